import itertools

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from shared.errors import InputError
from shared.t2i.model import LATENT_SHAPE, LatentCodec, RunningMean, build_scheduler, build_unet, diffusion_loss
from shared.t2i.options import UNetOptions
from shared.t2i.pipeline import ScenePipeline, load_pipeline
from shared.t2i.sampling import classifier_free_guidance, initial_noise
from shared.t2i.scorer import build_text_encoder
from shared.t2i.sheets import save_sheet

CAPTIONS = ["a ring", "two red tees", "a blue disk above a wedge"]
SMALL = UNetOptions(channels=(16, 32))


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    return ScenePipeline(build_unet(SMALL, seed=0), build_text_encoder(), build_scheduler())


def draw(pipeline, captions=CAPTIONS, prompts=range(3), **options):
    return pipeline(captions, initial_noise(0, prompts), num_steps=3, **options)


def test_the_codec_is_exact():
    images = torch.randn(2, 3, 12, 12)
    latents = LatentCodec.encode(images)
    assert latents.shape == (2, *LATENT_SHAPE) and torch.equal(LatentCodec.decode(latents), images)
    cell = latents[0, :, 2, 3].reshape(3, 2, 2)
    assert torch.equal(cell, images[0, :, 4:6, 6:8])


def test_the_denoiser_is_a_function_of_its_seed():
    one, same, other = (build_unet(SMALL, seed=seed).conv_in.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert sum(parameter.numel() for parameter in build_unet(UNetOptions(), seed=0).parameters()) == 2_227_740


def test_the_noise_schedule_is_stable_diffusions():
    alphas = build_scheduler().alphas_cumprod
    assert alphas[-1].item() == pytest.approx(0.0047, abs=1e-4) and alphas[0].item() == pytest.approx(1 - 0.00085)


def test_a_perfect_denoiser_has_no_loss_and_noise_is_added_as_scheduled():
    clean, seen = torch.randn(64, *LATENT_SHAPE), {}

    class Spy:
        def __call__(self, noisy, timesteps, encoder_hidden_states):
            seen.update(noisy=noisy, timesteps=timesteps)
            return type("Output", (), {"sample": clean})

    scheduler = build_scheduler()
    assert diffusion_loss(Spy(), scheduler, clean, None) == 0
    alpha = scheduler.alphas_cumprod[seen["timesteps"]].view(-1, 1, 1, 1)
    noise = (seen["noisy"] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    assert noise.std().item() == pytest.approx(1, abs=0.05) and noise.mean().item() == pytest.approx(0, abs=0.05)
    assert len(seen["timesteps"].unique()) > 50 and seen["timesteps"].max() > 900


def test_the_running_mean_follows_its_decay():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    mean = RunningMean(model, 0.2)
    torch.nn.init.ones_(model.weight)
    mean.update(model)
    assert mean.model.weight.item() == pytest.approx(0.9)  # decay (1 + 0) / (10 + 0)
    mean.update(model)
    assert mean.model.weight.item() == pytest.approx(1 - 0.1 * 2 / 11)
    for _ in range(10):
        mean.update(model)
    before = 1 - mean.model.weight.item()
    mean.update(model)
    assert 1 - mean.model.weight.item() == pytest.approx(0.2 * before, rel=1e-3)  # the largest decay
    assert int(mean.updates) == 13 and not mean.model.weight.requires_grad


# Sampling


def test_hooks_that_change_nothing_change_nothing(pipeline):
    plain = draw(pipeline)
    hooked = draw(
        pipeline,
        embedding_hook=lambda step, embedding: embedding,
        output_hook=lambda step, cond, guided: guided,
        step_callback=lambda step, output: None,
    )
    assert torch.equal(plain, hooked)


def test_a_sample_does_not_depend_on_its_batch(pipeline):
    together = draw(pipeline)
    alone = [draw(pipeline, [caption], [index]) for index, caption in enumerate(CAPTIONS)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert torch.equal(initial_noise(3, [5, 7])[1], initial_noise(3, [7])[0])
    assert not torch.equal(initial_noise(3, [7]), initial_noise(4, [7]))


def test_guidance_at_its_limits(pipeline):
    uncond, cond = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    assert torch.equal(classifier_free_guidance(uncond, cond, 0.0), uncond)
    assert torch.allclose(classifier_free_guidance(uncond, cond, 1.0), cond, atol=1e-6)
    empty = draw(pipeline, ["", "", ""])
    assert torch.allclose(draw(pipeline, guidance_scale=0.0), empty, atol=1e-5)
    assert not torch.allclose(draw(pipeline), empty, atol=1e-3)


def test_steps_go_from_noise_to_image(pipeline):
    steps = []
    images = draw(pipeline, step_callback=lambda step, output: steps.append((step, output)))
    assert [step.index for step, _ in steps] == [0, 1, 2]
    assert [int(step.timestep) for step, _ in steps] == [999, 666, 332]
    assert {step.guidance_scale for step, _ in steps} == {5.0}
    assert steps[1][0].alpha_cumprod == pytest.approx(float(pipeline.scheduler.alphas_cumprod[666]))
    assert torch.equal(steps[0][0].latents, initial_noise(0, range(3)))
    # From the last step there is no noise left: the image is the prediction itself.
    assert torch.allclose(images, LatentCodec.decode(steps[-1][1]), atol=1e-5)


def test_noisy_steps_are_those_of_ddim(pipeline):
    noises, seen = torch.randn(4, 3, *LATENT_SHAPE), []
    options = {"num_steps": 4, "eta": 0.7, "step_noise": lambda index: noises[index]}
    pipeline(CAPTIONS, initial_noise(0, range(3)), **options, step_callback=lambda *step: seen.append(step))
    for (step, clean), (after, _) in itertools.pairwise(seen):
        alpha, later = step.alpha_cumprod, after.alpha_cumprod
        epsilon = (step.latents - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        sigma = 0.7 * ((1 - later) / (1 - alpha) * (1 - alpha / later)) ** 0.5
        mean = later**0.5 * clean + (1 - later - sigma**2) ** 0.5 * epsilon
        assert torch.allclose(after.latents, mean + sigma * noises[step.index], atol=1e-4)


def test_a_new_embedding_stays_and_an_output_is_for_one_step(pipeline):
    seen = []

    def embedding_hook(step, embedding):
        seen.append(embedding.clone())
        return embedding + 1 if step.index == 0 else embedding

    draw(pipeline, embedding_hook=embedding_hook)
    assert torch.equal(seen[1], seen[0] + 1) and torch.equal(seen[2], seen[1])

    images = draw(pipeline, output_hook=lambda step, cond, guided: torch.full_like(guided, 0.25))
    assert torch.allclose(images, torch.full_like(images, 0.25))


def test_hooks_see_consistent_outputs_and_may_differentiate(pipeline):
    def embedding_hook(step, embedding):
        with torch.enable_grad():
            leaf = embedding.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(pipeline.denoise(step.latents, step.timestep, leaf).sum(), leaf)
        assert gradient.abs().sum() > 0
        return embedding

    def output_hook(step, cond, guided):
        assert torch.allclose(guided, step.uncond_output + 5 * (cond - step.uncond_output), atol=1e-5)
        return guided

    assert torch.equal(draw(pipeline, embedding_hook=embedding_hook, output_hook=output_hook), draw(pipeline))
    assert all(parameter.grad is None for parameter in pipeline.unet.parameters())


@pytest.mark.parametrize(
    ("captions", "noise", "options", "name"),
    [
        (["a ring"], 2, {}, "initial_noise"),
        ([], 1, {}, "captions"),
        (["a ring"], 1, {"num_steps": 0}, "num_steps"),
        (["a ring"], 1, {"eta": 1.0}, "step_noise"),
    ],
)
def test_impossible_requests_are_refused(pipeline, captions, noise, options, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        pipeline(captions, initial_noise(0, range(noise)), **options)


def test_a_pipeline_survives_its_folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "p", safe_serialization=True)
    files = {path.name for path in (tmp_path / "p").rglob("*") if path.is_file()}
    assert {name for name in files if not name.endswith((".json", ".safetensors"))} == set()
    loaded = load_pipeline(tmp_path / "p")
    assert isinstance(loaded.unet, UNet2DConditionModel) and not loaded.unet.training
    assert torch.equal(draw(loaded), draw(pipeline))
    assert loaded.scheduler.config.prediction_type == "sample"


def test_half_precision_on_disk_is_single_in_memory(pipeline, tmp_path):
    half = ScenePipeline(build_unet(SMALL, seed=0).half(), build_text_encoder().half(), build_scheduler())
    half.save_pretrained(tmp_path / "p", safe_serialization=True)
    assert load_pipeline(tmp_path / "p").unet.dtype == torch.float32


def test_what_is_no_pipeline_is_named(tmp_path):
    with pytest.raises(InputError, match="no text-to-image pipeline"):
        load_pipeline(tmp_path)


def test_sheets_show_images_in_rows(tmp_path):
    images = torch.full((3, 3, 12, 12), -1.0)
    images[1, 0] = 5.0
    images[2, 2] = 1.0
    save_sheet(tmp_path / "sheet.png", images, columns=2, magnification=2, gap=1)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape == (54, 54, 3)
    assert pixels[0, 0].tolist() == [128] * 3
    assert pixels[2, 2].tolist() == [0, 0, 0] and pixels[2, 28].tolist() == [255, 0, 0]
    assert pixels[28, 2].tolist() == [0, 0, 255] and pixels[28, 28].tolist() == [128] * 3
