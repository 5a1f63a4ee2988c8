"""Losses, bottleneck, encoders and the chain of every method, and one linear system whose errors are known."""

from dataclasses import replace

import pytest
import torch
from dbae_cases import METHOD, NETWORK, SHAPE, random_images

from papers.dbae.autoencoders import (
    BOUND,
    FLOOR,
    BridgeAutoencoder,
    build_autoencoder,
    code_distribution,
    gaussian_kl,
    maximum_mean_discrepancy,
    soft_clamp,
)
from papers.dbae.ddim_chain import (
    add_noise,
    ddim_decode,
    ddim_infer,
    from_noise,
    from_velocity,
    linear_chain,
    pdae_shift,
    pdae_weight,
    spaced_times,
    velocity,
)
from papers.dbae.diffusion_bridge import BridgeSchedule, bridge_marginal, karras_time_grid, sample_bridge
from papers.dbae.latent_prior import LatentPrior, fit_latent_prior
from papers.dbae.options import METHODS


@pytest.fixture(scope="module")
def models():
    """Every method's module, its output layer set free of zero, in evaluation mode."""
    built = {}
    for name in METHODS:
        prior = build_autoencoder("ddpm", SHAPE, NETWORK, METHOD, seed=0)  # pdae freezes it
        model = build_autoencoder(name, SHAPE, NETWORK, METHOD, seed=0, prior=prior)
        for part in ("unet", "prior"):
            if hasattr(model, part):
                unet = getattr(model, part)
                (unet if part == "unet" else unet.unet).unet.conv_out.weight.data.normal_(
                    0, 0.02, generator=torch.Generator().manual_seed(1)
                )
        built[name] = model.eval()
    return built


def test_the_code_is_the_only_way_from_image_to_reconstruction(models):
    """Two images whose codes are equal give the same bits."""
    model, images = models["dbae_d"], random_images(2)
    with torch.no_grad():
        z = model.encode(images)
        z = z[:1].expand(2, -1)
        found = model.decode(z, model.endpoint(z), 5).x0
    assert torch.equal(found[0], found[1])
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize(
    ("conditioned", "detached", "expected"),
    [(False, True, False), (True, True, True), (False, False, True), (True, False, True)],
)
def test_gradients_reach_the_encoder_by_endpoint_and_code(conditioned, detached, expected):
    model = build_autoencoder("dbae_d", SHAPE, NETWORK, replace(METHOD, condition_on_z=conditioned), seed=0)
    model.unet.unet.conv_out.weight.data.normal_(0, 0.02)
    if detached:
        model.decoder.register_forward_hook(lambda module, inputs, output: output.detach())
    torch.manual_seed(0)
    model(random_images()).backward()
    gradients = [parameter.grad for parameter in model.encoder.parameters()]
    reached = any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    assert reached is expected


def test_the_bridges_loss_is_that_of_its_equations(models):
    """A network that gives 0 has D = c_skip x_t, for this bridge's marginal."""
    model = build_autoencoder("dbae_d", SHAPE, NETWORK, METHOD, seed=0)
    images = random_images(6)
    torch.manual_seed(3)
    loss = model(images).item()
    torch.manual_seed(3)
    t = METHOD.t_min + (1 - METHOD.t_min) * torch.rand(6)
    noise = torch.randn_like(images)
    a, b, s = (part.double().reshape(-1, 1, 1, 1) for part in bridge_marginal(t.double(), BridgeSchedule()))
    x_T = model.decoder(model.encoder(images)).double()
    x = a * x_T + b * images + s * noise
    variance = 0.25 * (a**2 + b**2) + s**2
    skip, out_squared = 0.25 * b / variance, (0.0625 * a**2 + 0.25 * s**2) / variance
    expected = ((skip * x - images) ** 2 / out_squared).mean().item()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_network_sees_a_scaled_image_and_the_endpoint_as_it_is(models):
    model, seen = models["dbae_d"], {}
    handle = model.unet.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], time=inputs[1]))
    x, x_T = random_images(2), 7 * random_images(2, seed=1)
    t = torch.tensor([0.05, 0.7])
    with torch.no_grad():
        denoised = model.denoise(x, t, x_T, torch.zeros(2, 3))
    handle.remove()
    a, b, s = (part.reshape(-1, 1, 1, 1) for part in bridge_marginal(t, BridgeSchedule()))
    scale = (0.25 * (a**2 + b**2) + s**2).rsqrt()
    torch.testing.assert_close(seen["x"], torch.cat([scale * x, x_T], dim=1))
    torch.testing.assert_close(seen["time"], 250 * t.log())
    assert denoised.shape == x.shape and (seen["time"] < 0).all()


def test_the_stochastic_code_is_bounded_and_has_a_floor():
    wild = torch.tensor([[-1e4, 0.01, 1e4, -1e4, 0.02, 1e4]])
    mean, scale = code_distribution(wild)
    assert mean.abs().max() <= BOUND
    expected = torch.tensor([-5.0, 0.02, 5.0]).exp() + FLOOR
    torch.testing.assert_close(scale[0], expected, rtol=1e-4, atol=0)
    small = torch.linspace(-0.1, 0.1, 5, dtype=torch.float64)
    torch.testing.assert_close(soft_clamp(small), small, rtol=2e-4, atol=0)


def test_one_draw_of_the_code_serves_endpoint_and_condition():
    model = build_autoencoder("dbae", SHAPE, NETWORK, METHOD, seed=0).train()
    seen = {}
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.update(decoded=inputs[0]))
    model.unet.register_forward_hook(lambda module, inputs, output: seen.update(told=inputs[2]))
    model(random_images())
    assert torch.equal(seen["decoded"], seen["told"])
    model.eval()
    first, second = (model.encode(random_images()) for _ in range(2))
    assert not torch.equal(first, second), "it is drawn at evaluation too"
    mean = BridgeAutoencoder(SHAPE, NETWORK, replace(METHOD, mean_latent=True), stochastic=True).eval()
    mean.load_state_dict(model.state_dict())
    assert torch.equal(mean.encode(random_images()), model.code_mean(random_images()))


def test_every_method_trains_all_it_should(models):
    images = random_images(4)
    for name, model in models.items():
        model.zero_grad()
        loss = model(images)
        assert loss.ndim == 0 and torch.isfinite(loss), name
        loss.backward()
        without = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
        assert not without, (name, without)
        frozen = [key for key, value in model.named_parameters() if not value.requires_grad]
        assert all(key.startswith("prior.") for key in frozen) and bool(frozen) == (name == "pdae"), name


def test_divergences_are_zero_at_the_prior_alone():
    mean = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    log_variance = torch.tensor([[0.0, 0.0], [0.5, -1.0]])
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    a, b = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind()
    assert maximum_mean_discrepancy(a, a).abs() < 1e-6 and maximum_mean_discrepancy(a, b) > 0
    pairs = [(x - y).square().mean() / 3 for x in a for y in b]
    between = torch.stack([torch.exp(-pair) for pair in pairs]).mean()
    within = [torch.exp(-(x[:, None] - x[None]).square().mean(2) / 3).mean() for x in (a, b)]
    torch.testing.assert_close(maximum_mean_discrepancy(a, b), sum(within) - 2 * between)


def test_estimates_invert_their_targets():
    x0, noise = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    levels = linear_chain()[torch.tensor([0, 10, 500, 999])]
    x = add_noise(x0, noise, levels)
    torch.testing.assert_close(from_noise(x, noise, levels), x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(from_velocity(x, velocity(x0, noise, levels), levels), x0, rtol=1e-8, atol=1e-8)


def test_pdaes_weights_are_those_of_its_equations():
    chain = linear_chain(40)
    shift, weight = pdae_shift(chain), pdae_weight(chain)
    t = 17
    alpha = chain[t] / chain[t - 1]
    assert shift[0] == 0
    assert shift[t].item() == pytest.approx((alpha.sqrt() * (1 - chain[t - 1]) / (1 - chain[t]).sqrt()).item())
    snr = chain[t] / (1 - chain[t])
    assert weight[t].item() == pytest.approx((snr**0.1 / (1 + snr)).item())


def test_ddim_reaches_a_known_image_and_finds_its_way_back():
    chain = linear_chain()
    x0 = 0.5 * torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-1, 1)
    x_T = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(ddim_decode(lambda x, t: x0, x_T, chain, 10), x0, rtol=1e-8, atol=1e-8)
    assert spaced_times(5, 1000).tolist() == [0, 250, 500, 749, 999]

    def gaussian(x, t):
        level = chain[t].reshape(-1, 1, 1, 1)
        return 0.04 * level.sqrt() / (0.04 * level + 1 - level) * x

    image = 0.2 * x_T.clamp(-2, 2)
    back = [ddim_decode(gaussian, ddim_infer(gaussian, image, chain, steps), chain, steps) for steps in (50, 500)]
    errors = [(each - image).abs().max().item() for each in back]
    assert errors[1] < 0.02 and errors[1] < errors[0]


def test_a_linear_autoencoder_has_the_errors_of_its_eigenvalues():
    """Gaussian data of which z holds the first components: the ODE errs by the rest, a draw from the posterior twice as
    much, and with inferred x_T nothing is lost."""
    generator = torch.Generator().manual_seed(0)
    eigenvalues = torch.tensor([0.5, 0.3, 0.1, 0.05], dtype=torch.float64)
    x0 = torch.randn(3000, 4, generator=generator, dtype=torch.float64) * eigenvalues.sqrt()
    kept = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
    rest = eigenvalues[2:].sum().item()

    def by_bridge(x, t, x_T):
        """E[x_0 | x_t, x_T] with x_T = what z holds."""
        a, b, s = (part.reshape(-1, 1) for part in bridge_marginal(t, BridgeSchedule()))
        variance = eigenvalues * (1 - kept)
        return x_T + variance * b / (b**2 * variance + s**2) * (x - (a + b) * x_T)

    grid = karras_time_grid(200, t_min=1e-4, t_max=1.0)
    found = sample_bridge(by_bridge, x0 * kept, grid, BridgeSchedule(), clip=False).x0
    assert (found - x0).square().sum(1).mean().item() == pytest.approx(rest, rel=0.05)

    chain = linear_chain()

    def by_chain(x, t):
        """E[x_0 | x_t, z]."""
        level = chain[t].reshape(-1, 1)
        mean, variance = x0 * kept, eigenvalues * (1 - kept)
        return mean + variance * level.sqrt() / (level * variance + 1 - level) * (x - level.sqrt() * mean)

    random = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    drawn = ddim_decode(by_chain, random, chain, 300, clip=False)
    assert (drawn - x0).square().sum(1).mean().item() == pytest.approx(2 * rest, rel=0.05)
    some = slice(0, 200)
    small = x0.abs().max(1).values[some] < 1  # the way up clips, as images need it
    x0 = x0[some][small]
    inferred = ddim_decode(by_chain, ddim_infer(by_chain, x0, chain, 500), chain, 500, clip=False)
    assert (inferred - x0).square().sum(1).mean().item() < 0.02 * rest


def test_the_latent_prior_finds_mean_and_scale_again():
    codes = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.1]) + 5
    prior = fit_latent_prior(codes, width=32, depth=2, steps=300, batch_size=128, seed=0)
    drawn = prior.sample(torch.randn(400, 2, generator=torch.Generator().manual_seed(1)), 20)
    torch.testing.assert_close(drawn.mean(0), torch.tensor([5.0, 5.0]), rtol=0.1, atol=0)
    torch.testing.assert_close(drawn.std(0), codes.std(0), rtol=0.3, atol=0)
    again = fit_latent_prior(codes, width=32, depth=2, steps=2, batch_size=128, seed=0)
    assert torch.equal(again.mean, prior.mean) and {"mean", "scale"} <= set(again.state_dict())
    with pytest.raises(ValueError, match="codes: need at least two finite ones"):
        LatentPrior(torch.full((3, 2), torch.nan), width=4, depth=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_autoencoder("vae", SHAPE, NETWORK, METHOD, seed=0), "method: unknown name 'vae'"),
        (lambda: build_autoencoder("pdae", SHAPE, NETWORK, METHOD, seed=0), "prior: pdae needs a trained ddpm"),
        (lambda: build_autoencoder("ae", (3, 7, 7), NETWORK, METHOD, seed=0), "image_size: must be divisible by 2"),
        (lambda: linear_chain(1), "num_times: need at least 2"),
        (lambda: linear_chain(beta_min=0.0), "beta_min, beta_max: need"),
        (lambda: spaced_times(1, 10), r"num_steps: must lie in \[2, 10\]"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
