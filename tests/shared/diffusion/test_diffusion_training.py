"""Training: denoisers approach the exact one, discriminators the exact ratio, and both repeat themselves."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from shared.diffusion.files import load_denoiser, save_denoiser
from shared.diffusion.gaussian_mixtures import GaussianMixture
from shared.diffusion.networks import LOWEST_SIGMA
from shared.diffusion.options import DenoiserOptions, DiscriminatorOptions
from shared.diffusion.training import (
    build_denoiser,
    build_discriminator,
    score_matching,
    train_denoiser,
    train_discriminator,
)
from shared.errors import InputError
from shared.training_options import TrainingOptions

TWO_MODES = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.2, torch.tensor([1.0, 3.0]))
TRAINING = TrainingOptions(epochs=2, batch_size=128, learning_rate=3e-3, schedule="linear")


def denoiser_of_two_modes(folder, epochs=1.0, ema_decay=None, **options):
    data = TWO_MODES.sample(4000, torch.Generator().manual_seed(0))[0].float()
    training = replace(TRAINING, epochs=epochs)
    settings = DenoiserOptions(
        training, sigma_data=0.9, log_sigma_mean=-0.7, log_sigma_std=0.3, widths=(32, 32), ema_decay=ema_decay
    )
    torch.manual_seed(0)
    return settings, train_denoiser(
        settings,
        build_denoiser(settings, (1,), seed=1),
        size=len(data),
        clean_batch=lambda numbers: data[torch.tensor(numbers)],
        seed=2,
        accelerator=Accelerator(cpu=True),
        checkpoints=folder,
        log_every=20,
        **options,
    )


def test_denoiser_approaches_the_exact_one(tmp_path):
    settings, (model, records) = denoiser_of_two_modes(tmp_path, epochs=15)
    generator, sigma = torch.Generator().manual_seed(4), torch.full((2000,), 0.5, dtype=torch.float64)
    x = TWO_MODES.sample(2000, generator)[0] + 0.5 * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    exact = TWO_MODES.denoise(x, sigma)
    with torch.no_grad():
        errors = [
            (denoiser(x, sigma) - exact).square().mean().item()
            for denoiser in (build_denoiser(settings, (1,), seed=1), model)
        ]
    assert errors[1] < errors[0] / 3
    assert records[-1]["loss"] < records[0]["loss"]
    assert not model.training


def test_training_repeats_itself_and_follows_its_objective(tmp_path):
    runs = [denoiser_of_two_modes(tmp_path / str(run))[1] for run in range(2)]
    assert runs[0][1] == runs[1][1]

    def doubled(*batch):
        return 2 * score_matching(0.9)(*batch)

    _, records = denoiser_of_two_modes(tmp_path / "doubled", objective=doubled)[1]
    assert records[0]["loss"] == pytest.approx(2 * runs[0][1][0]["loss"])


def test_running_mean_of_the_weights_lags_behind(tmp_path):
    last, mean = (
        denoiser_of_two_modes(tmp_path / str(decay), ema_decay=decay)[1][0].network.mlp.layers[0].weight
        for decay in (None, 0.9)
    )
    options = DenoiserOptions(TRAINING, sigma_data=0.9, widths=(32, 32))
    start = build_denoiser(options, (1,), seed=1).network.mlp.layers[0].weight
    assert 0 < (mean - last).norm() < 0.7 * (last - start).norm()


def test_files_hold_what_builds_the_denoiser(tmp_path):
    options = DenoiserOptions(training=TRAINING, sigma_data=0.9, widths=(8, 8))
    denoiser = build_denoiser(options, (3,), seed=1)
    save_denoiser(tmp_path / "denoiser.safetensors", denoiser, options, (3,))
    read, shape = load_denoiser(tmp_path / "denoiser.safetensors")
    x, sigma = torch.randn(4, 3), torch.ones(4)
    torch.testing.assert_close(read(x, sigma), denoiser(x, sigma).detach(), rtol=0, atol=2e-3)
    assert shape == (3,)
    assert read.sigma_data == 0.9
    assert not any(parameter.requires_grad for parameter in read.parameters())
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"other.safetensors: no weights of a denoiser"):
        load_denoiser(tmp_path / "other.safetensors")


def test_objective_is_given_the_noisy_sample(tmp_path):
    seen = []

    def objective(denoised, clean, x, sigma):
        seen.append(((x - clean).square().mean(1) / sigma**2).mean().item())
        return score_matching(0.9)(denoised, clean, x, sigma)

    denoiser_of_two_modes(tmp_path, objective=objective)
    assert sum(seen) / len(seen) == pytest.approx(1, abs=0.05)


def test_discriminator_of_few_against_many_finds_the_ratio(tmp_path):
    """Equal numbers in every batch, so that the logit is the ratio of densities, not of set sizes."""
    first = GaussianMixture(torch.tensor([[0.5]]), 1.0, torch.ones(1)).sample(3000)[0].float()
    second = GaussianMixture(torch.tensor([[-0.5]]), 1.0, torch.ones(1)).sample(9000)[0].float()
    options = DiscriminatorOptions(training=TRAINING, width=32, depth=2)
    torch.manual_seed(0)
    model, records = train_discriminator(
        options,
        build_discriminator(options, (1,), sigma_data=1.1, seed=1),
        first,
        second,
        seed=2,
        accelerator=Accelerator(cpu=True),
        checkpoints=tmp_path,
    )
    x = torch.linspace(-1, 1, 5)[:, None]
    for sigma in (0.0, 1.0):
        torch.testing.assert_close(model(x, torch.full((5,), sigma)), x[:, 0] / (1 + sigma**2), rtol=0, atol=0.3)
    assert records[-1]["loss"] < math.log(2)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_discriminator_of_one_level_and_bad_sets(tmp_path):
    options = DiscriminatorOptions(training=TrainingOptions(epochs=1, batch_size=8, learning_rate=0.01), width=4)
    seen = []
    network = build_discriminator(options, (1,), sigma_data=1.0, seed=1)
    network.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    arguments = dict(seed=0, accelerator=Accelerator(cpu=True), checkpoints=tmp_path)
    train_discriminator(options, network, torch.zeros(3, 1), torch.ones(16, 1), sigma=LOWEST_SIGMA, **arguments)
    assert len(seen) == 2
    assert all((levels == torch.tensor(LOWEST_SIGMA)).all() for levels in seen)
    for first in (torch.zeros(0, 1), torch.zeros(3, 2)):
        with pytest.raises(ValueError, match="first"):
            train_discriminator(options, network, first, torch.ones(16, 1), **arguments)


def test_options_refuse_uneven_mlps():
    with pytest.raises(ValueError, match="widths"):
        DenoiserOptions(training=TRAINING, widths=(8, 16))
    unet = DenoiserOptions(training=TRAINING, architecture="unet", widths=(4, 8))
    x = torch.zeros(2, 1, 8, 8)
    assert build_denoiser(unet, (1, 8, 8), seed=0)(x, torch.ones(2)).shape == x.shape
