"""Speed of LiDAR's guidance, measured in one run: `python -m tests.benchmarks.lookahead_score`.

The problem is one step of the paper's size: the four images of a prompt, latents of Stable Diffusion v1.5 (d = 16384)
and the largest lookahead set of its Fig. 3, float32, one thread. `lookahead_score` takes two matrix products. Beside
it: the formulas with their (B, n, d) differences, and the gradient of the estimated future reward by automatic
differentiation. The repeats are interleaved, so that a busy machine slows all alike; the medians are compared.
"""

import statistics
import time

import torch
from torch import Tensor

from papers.lidar.lookahead_guidance import lookahead_score

IMAGES, SAMPLES, SHAPE = 4, 400, (4, 64, 64)
ALPHA, SIGMA, REWARD_WEIGHT = 0.6, 0.8, 5000.0
REPEATS = 9


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images (B, *shape), lookahead samples (n, *shape) and rewards (n,)."""
    generator = torch.Generator().manual_seed(seed)
    lookahead = torch.randn(SAMPLES, *SHAPE, generator=generator)
    x_t = ALPHA * lookahead[:IMAGES] + SIGMA * torch.randn(IMAGES, *SHAPE, generator=generator)
    return x_t, lookahead, torch.randn(SAMPLES, generator=generator)


def differences(x_t: Tensor, lookahead: Tensor, rewards: Tensor) -> Tensor:
    """The score by the formulas as they stand."""
    logits = -(x_t[:, None] - ALPHA * lookahead).square().flatten(2).sum(dim=-1) / (2 * SIGMA**2)
    shift = (REWARD_WEIGHT * rewards + logits).softmax(dim=1) - logits.softmax(dim=1)
    return ALPHA / SIGMA**2 * (shift[:, :, None, None, None] * lookahead).sum(dim=1)


def differentiated(x_t: Tensor, lookahead: Tensor, rewards: Tensor) -> Tensor:
    """The score as the gradient of the estimated future reward."""
    x_t = x_t.clone().requires_grad_()
    logits = -(x_t[:, None] - ALPHA * lookahead).square().flatten(2).sum(dim=-1) / (2 * SIGMA**2)
    future = (REWARD_WEIGHT * rewards + logits).logsumexp(dim=1) - logits.logsumexp(dim=1)
    return torch.autograd.grad(future.sum(), x_t)[0]


def main() -> None:
    torch.set_num_threads(1)
    given = problem()
    table = {
        "two matrix products": lambda: lookahead_score(*given, ALPHA, SIGMA, REWARD_WEIGHT),
        "(B, n, d) differences": lambda: differences(*given),
        "automatic differentiation": lambda: differentiated(*given),
    }
    results = {name: score() for name, score in table.items()}
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(REPEATS):
        for name, score in table.items():
            start = time.perf_counter()
            score()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = next(iter(medians.values()))
    exact = differences(*(each.double() for each in given))
    print(f"B={IMAGES} images, n={SAMPLES} samples, d={given[0][0].numel()}, float32, 1 thread, {REPEATS} repeats")
    print(f"{'score':<28} {'median s':>9} {'best s':>9} {'/ ours':>8} {'max |Δ|/max':>12}")
    for name, median in medians.items():
        error = (results[name] - exact).abs().max() / exact.abs().max()
        print(f"{name:<28} {median:9.4f} {min(seconds[name]):9.4f} {median / ours:8.1f} {error:12.1e}")


if __name__ == "__main__":
    main()
