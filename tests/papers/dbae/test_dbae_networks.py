"""Networks: sizes that fit, the paper's by their configuration, and what their options say."""

from pathlib import Path

import pytest
import torch
from dbae_cases import NETWORK, SHAPE, random_images

from papers.dbae import figures, networks
from papers.dbae.autoencoders import build_autoencoder
from papers.dbae.networks import ConditionalUNet, FastGanDecoder, build_decoder, build_encoder
from papers.dbae.options import LONG, METHODS, NetworkOptions, Scale
from shared.claims import read_paper
from shared.options import flags, read_scale
from shared.pages import read_captions

PAPER = Path(__file__).resolve().parents[3] / "papers" / "dbae"
SCALES = ("smoke", "small", "gpu", "paper")
ADM = NetworkOptions(
    architecture="adm", latent_dim=6, base_channels=8, channel_factors=(1, 2), encoder_channels=8,
    encoder_factors=(1, 1, 2), layers_per_block=1, attention_sizes=(4,), head_channels=8, norm_groups=4, dropout=0.1,
)  # fmt: skip


def settings_of(scale: str) -> Scale:
    return read_scale(PAPER / "config.yaml", scale, Scale)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale):
    settings = settings_of(scale)
    assert set(settings.figures) <= set(figures.FIGURES) == set(read_captions(PAPER / "figures.yaml"))
    for suite in settings.suites.values():
        names = [name for family in suite.families.values() for name in family]
        assert len(set(names)) == len(names) and set(names) <= set(figures.LABELS) and set(suite.saved) <= set(names)
        groups = (suite.data, suite.network, suite.method, suite.fit, suite.measure)
        given = [flag for group in groups for flag in flags(group) if flag.startswith("--")]
        assert len(set(given)) == len(given)
    first = {name for family in next(iter(settings.suites.values())).families.values() for name in family}
    assert {"ae", "beta_vae", "ddpm", "pdae", "diffae", "diffae_v", "dbae_d", "dbae"} <= first
    assert scale == "small" or {name.removesuffix(LONG) for name in first} == set(METHODS)


@pytest.mark.parametrize("scale", SCALES)
def test_claims_ask_for_what_the_scale_measures(scale):
    settings = settings_of(scale)
    made = 0
    for claim in read_paper(PAPER / "paper.yaml").claims:
        for test in (*claim.guards, *claim.tests):
            if test.scales is None or scale in test.scales:
                made += 1
                for method, setting, _ in test.series:
                    families = settings.suites[setting].families.values()
                    assert any(method in family for family in families), (test.name, method)
    assert made >= 10


@pytest.mark.parametrize("setting", ["celeba", "ffhq"])
def test_the_papers_networks_are_what_their_options_say(setting):
    suite = settings_of("paper").suites[setting]
    shape = (3, suite.data.image_size, suite.data.image_size)
    with torch.device("meta"):
        model = build_autoencoder("dbae", shape, suite.network, suite.method, seed=0)
        z = torch.zeros(2, 512)
        end = model.decoder(z)
        output = model.unet(torch.zeros(2, 6, *shape[1:]), torch.zeros(2), z)
    assert end.shape == output.shape == (2, *shape)
    config = model.unet.unet.config
    attends = [kind == "AttnDownBlock2D" for kind in config.down_block_types]
    sizes = [shape[1] >> level for level in range(len(attends))]
    assert attends == [size in (32, 16, 8) for size in sizes]
    assert config.resnet_time_scale_shift == "scale_shift" and config.downsample_type == "resnet"
    assert config.attention_head_dim == 64 and config.dropout == 0.1 and config.layers_per_block == 2
    widths = {"celeba": (64, 128, 256, 512), "ffhq": (128, 128, 256, 384, 512)}
    assert config.block_out_channels == widths[setting]
    assert model.unet.embed.out_features == 4 * widths[setting][0]
    with torch.device("meta"):
        assert model.encoder(torch.zeros(2, *shape)).shape == (2, 1024)


@pytest.mark.parametrize("options", [NETWORK, ADM], ids=["small", "adm"])
def test_networks_run_and_are_told_what_they_should_be(options, monkeypatch):
    torch.manual_seed(0)
    images = random_images(3)
    z = build_encoder(SHAPE, options, outputs=options.latent_dim).eval()(images)
    assert z.shape == (3, options.latent_dim)
    decoded = build_decoder(SHAPE, options)(z)
    assert decoded.shape == images.shape
    unet = ConditionalUNet(SHAPE, options, in_channels=6, conditional=True).eval()
    x = torch.cat([images, decoded], dim=1)
    times = torch.tensor([-2000.5, -1.0, 0.0])
    assert not unet(x, times, z).any(), "it starts at 0"
    unet.unet.conv_out.weight.data.normal_()
    output = unet(x, times, z)
    for other in (unet(x, times, z + 1), unet(x, times + 50, z), unet(x.flip(3), times, z)):
        assert (output - other).abs().flatten(1).max(1).values.min() > 1e-4
    monkeypatch.setattr(networks, "AT_ONCE", 2)
    with torch.no_grad():
        torch.testing.assert_close(unet(x, times, z), output, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(networks.by_parts(unet.embed, z), unet.embed(z))
    plain = ConditionalUNet(SHAPE, options, in_channels=3, conditional=False)
    assert plain.embed is None and plain(images, times).shape == images.shape
    with torch.no_grad():
        torch.testing.assert_close(plain(images, times), torch.zeros_like(images))


def test_the_decoder_has_fastgans_parts():
    decoder = FastGanDecoder(5, 3, 64, width=0.01)
    assert list(decoder.blocks) == ["8", "16", "32", "64"] and list(decoder.skips) == ["64"]
    kinds = [type(module).__name__ for module in decoder.modules()]
    assert "Tanh" not in kinds and kinds.count("GLU") == 5 and kinds.count("BatchNorm2d") == 5
    torch.manual_seed(0)
    z = torch.randn(4, 5)
    with torch.no_grad():
        low = {}
        decoder.first.register_forward_hook(lambda module, inputs, output: low.update(features=output))
        images = decoder(z)
        assert images.shape == (4, 3, 64, 64) and low["features"].shape == (4, 10, 4, 4)
        # Spectral norms: no layer's matrix has a singular value much above 1.
        weight = decoder.blocks["8"][1].weight
        assert torch.linalg.matrix_norm(weight.flatten(1), ord=2) < 1.5
    with torch.device("meta"):
        whole = FastGanDecoder(512, 3, 128)
    assert whole.blocks["16"][1].weight.shape == (512, 512, 3, 3) and set(whole.skips) == {"64", "128"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ConditionalUNet((3, 9, 9), ADM, in_channels=3, conditional=False),
            "image_size: must be divisible by 2",
        ),
        (lambda: build_encoder((3, 10, 10), ADM, outputs=2), "image_size: must be divisible by 4 for 3 resolutions"),
        (lambda: FastGanDecoder(4, 3, 12), "size: must be one of 8, 16, 32, 64, 128, got 12"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
