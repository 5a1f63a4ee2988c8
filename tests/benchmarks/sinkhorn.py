"""Speed of the Sinkhorn dual solver beside POT, measured in one run: `python -m tests.benchmarks.sinkhorn`.

The problem is that of one training micro-batch: M positions that share a support of n tokens and its cost, ten
iterations, float64, one thread. POT solves it one position at a time (`ot.bregman.sinkhorn_log`) or as a batch
(`ot.batch.solve_batch`), each with torch and with numpy; it also returns the plans. The repeats of all solvers are
interleaved, so that a busy machine slows them alike; the medians are compared. POT has no floor δ, which is what
separates the default solver from it; `floor=0` is the same iteration as POT's.
"""

import statistics
import time
from collections.abc import Callable

import ot
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from papers.wpr.wasserstein import sinkhorn_potentials, token_cost_matrix

POSITIONS, TOKENS, NUM_ITERS, REG = 256, 128, 10, 0.1
REPEATS = 7


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Policy (M, n), reference (M, n) and cost (n, n) of mean 1, float64."""
    generator = torch.Generator().manual_seed(seed)
    policy, reference = (
        (2 * torch.randn(POSITIONS, TOKENS, generator=generator, dtype=torch.float64)).softmax(-1) for _ in range(2)
    )
    cost = token_cost_matrix(torch.randn(TOKENS, 16, generator=generator, dtype=torch.float64))
    return policy, reference, cost / cost.mean()


def one_by_one(policy, reference, cost) -> Tensor:
    """φ by POT, position by position. POT updates its second marginal first, so the two change places."""
    potentials = [
        ot.bregman.sinkhorn_log(q, p, cost.T, REG, numItermax=NUM_ITERS, stopThr=0, warn=False, log=True)[1]["log_v"]
        for p, q in zip(policy, reference, strict=True)
    ]
    return REG * torch.stack([torch.as_tensor(potential) for potential in potentials])


def batched(policy, reference, costs, method: str) -> Tensor:
    """φ by POT's batch solver; `costs` (M, n, n)."""
    solution = ot.batch.solve_batch(
        costs, REG, policy, reference, max_iter=NUM_ITERS, tol=0, method=method, grad="detach"
    )
    scaling = torch.as_tensor(solution.potentials[0])
    return REG * (scaling if method == "log_sinkhorn" else scaling.log())


def solvers() -> dict[str, Callable[[], Tensor]]:
    in_torch = problem()
    in_numpy = tuple(x.numpy() for x in in_torch)
    table: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: sinkhorn_potentials(*in_torch, reg=REG, num_iters=NUM_ITERS)[0],
        "ours, floor=0": lambda: sinkhorn_potentials(*in_torch, reg=REG, num_iters=NUM_ITERS, floor=0.0)[0],
    }
    for backend, (policy, reference, cost) in {"torch": in_torch, "numpy": in_numpy}.items():
        costs = torch.as_tensor(cost).expand(POSITIONS, TOKENS, TOKENS)
        costs = costs if backend == "torch" else costs.numpy()
        table[f"loop over ot.bregman.sinkhorn_log, {backend}"] = lambda a=policy, b=reference, c=cost: one_by_one(
            a, b, c
        )
        for method in ("log_sinkhorn", "sinkhorn"):
            table[f"ot.batch.solve_batch {method}, {backend}"] = lambda a=policy, b=reference, c=costs, m=method: (
                batched(a, b, c, m)
            )
    return table


def main() -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        table = solvers()
        results = {name: solve() for name, solve in table.items()}
        seconds: dict[str, list[float]] = {name: [] for name in table}
        for _ in range(REPEATS):
            for name, solve in table.items():
                start = time.perf_counter()
                solve()
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"M={POSITIONS} positions, n={TOKENS} tokens, {NUM_ITERS} iterations, float64, 1 thread, {REPEATS} repeats")
    print(f"{'solver':<46} {'median s':>9} {'best s':>9} {'/ ours':>8} {'max |Δφ|':>9}")
    for name, median in medians.items():
        difference = (results[name] - results["ours, floor=0"]).abs().max().item()
        print(f"{name:<46} {median:9.4f} {min(seconds[name]):9.4f} {median / medians['ours']:8.1f} {difference:9.1e}")


if __name__ == "__main__":
    main()
