"""The small networks: shapes, what they see, and that they learn."""

import math

import pytest
import torch

from shared.diffusion.denoisers import EdmDenoiser
from shared.diffusion.networks import (
    LOWEST_SIGMA,
    MlpImage,
    MlpLogit,
    NoiseMlp,
    NoisyDiscriminator,
    UNetImage,
    UNetLogit,
    discriminator_loss,
    discriminator_sigmas,
)


@pytest.mark.parametrize(
    "network",
    [
        MlpImage((1, 8, 8), width=16, depth=2),
        UNetImage((1, 8, 8), channels=(4, 8)),
        UNetImage((1, 8, 8), channels=(8, 16), attention=True),
    ],
    ids=["mlp", "unet", "attention"],
)
def test_denoiser_networks_keep_the_shape_and_hear_the_noise_level(network):
    denoiser = EdmDenoiser(network.eval())
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        low, high = denoiser.network(x, torch.full((2,), -1.0)), denoiser.network(x, torch.full((2,), 1.0))
        assert denoiser(x, torch.ones(2)).shape == x.shape
    assert (low - high).abs().max() > 1e-3


def test_mlp_sees_waves_of_its_input():
    plain, wavy = NoiseMlp(2, 1, width=4, depth=1), NoiseMlp(2, 1, width=4, depth=1, frequencies=(1, 2, 4))
    assert wavy.layers[0].in_features - plain.layers[0].in_features == 2 * 2 * 3
    x = torch.tensor([[0.3, -0.7]])
    seen = []
    wavy.layers[0].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    wavy(x, torch.zeros(1))
    phases = math.pi * torch.tensor([0.3, 0.6, 1.2, -0.7, -1.4, -2.8])
    torch.testing.assert_close(seen[0][0, 2:14], torch.cat([phases.sin(), phases.cos()]))


def test_discriminator_takes_clean_samples_for_the_least_noisy():
    network = NoisyDiscriminator(MlpLogit((2,), width=8, depth=1), sigma_data=0.5).eval()
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        clean = network(x, torch.zeros(3))
        least = network(x, torch.full((3,), LOWEST_SIGMA, dtype=torch.float64))
        other = network(x, torch.full((3,), 0.1))
    assert clean.shape == (3,)
    torch.testing.assert_close(clean, least, rtol=1e-4, atol=1e-5)
    assert (clean - other).abs().max() > 1e-4


def test_discriminator_of_images_sees_every_pixel_and_the_noise_level():
    network = NoisyDiscriminator(UNetLogit((1, 8, 8), channels=(4, 8)), sigma_data=0.5).eval()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = network(x, torch.tensor([0.0, 1.0]))
    (gradient,) = torch.autograd.grad(logits[0], x)
    assert (gradient[0].abs() > 0).all()
    assert not gradient[1].any()
    with torch.no_grad():
        assert (network(x, torch.tensor([1.0, 1.0]))[0] - logits[0]).abs() > 1e-5


def test_discriminator_levels_are_log_uniform():
    logs = discriminator_sigmas(20_000, torch.Generator().manual_seed(0)).log()
    low, high = math.log(LOWEST_SIGMA), math.log(152.2)
    assert (logs.min().item(), logs.max().item()) == pytest.approx((low, high), abs=0.01)
    quantiles = logs.quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, low + (high - low) * torch.tensor([0.25, 0.5, 0.75]), rtol=0, atol=0.1)


def test_discriminator_loss_balances_its_sets():
    first, second = torch.tensor([1.0, -2.0]), torch.tensor([0.5])
    by_hand = -(torch.sigmoid(first).log().mean() + torch.sigmoid(-second).log().mean()) / 2
    torch.testing.assert_close(discriminator_loss(first, second), by_hand)
    assert discriminator_loss(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(math.log(2))
    torch.testing.assert_close(discriminator_loss(first, second), discriminator_loss(first.repeat(9), second))


def test_discriminator_learns_the_log_ratio():
    """N(½, 1) against N(−½, 1) in one dimension: the exact logit is x/(1 + σ²), at every noise level."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = NoisyDiscriminator(MlpLogit((1,), width=32, depth=2), sigma_data=1.1)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(400):
        sigma = discriminator_sigmas(512, generator)
        x = torch.randn(512, 1, generator=generator) + sigma[:, None] * torch.randn(512, 1, generator=generator)
        real = torch.arange(512) % 2 == 0
        logits = network(x + torch.where(real, 0.5, -0.5)[:, None], sigma)
        optimizer.zero_grad()
        discriminator_loss(logits[real], logits[~real]).backward()
        optimizer.step()
    x = torch.linspace(-1.5, 1.5, 7)[:, None]
    for sigma in (0.0, 0.5, 2.0):
        with torch.no_grad():
            logit = network(x, torch.full((7,), sigma))
        torch.testing.assert_close(logit, x[:, 0] / (1 + sigma**2), rtol=0, atol=0.3)
