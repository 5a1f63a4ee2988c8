import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers_pipelines import (
    PIPELINES,
    draw,
    flux,
    latent_consistency,
    load_without_text,
    network,
    pixart,
    stable_diffusion,
    stable_diffusion_3,
)  # fmt: skip

from shared.errors import InputError
from shared.t2i.guidance import embedding_gradient, for_all
from shared.t2i.hub_pipeline import counted_rows, image_size, open_pipeline, prepare_pipeline
from shared.t2i.options import PipelineOptions
from shared.t2i.pipeline_hooks import plugged_in
from shared.t2i.step_method import StepMethod

OPTIONS = PipelineOptions(model="none", scheduler="own")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each tiny pipeline in the hub's format."""
    found = {make: tmp_path_factory.mktemp(make.__name__) for make in PIPELINES}
    for make, folder in found.items():
        make().save_pretrained(folder)
    return found


@pytest.fixture
def folders(saved, monkeypatch):
    load_without_text(monkeypatch)
    return saved


@pytest.mark.parametrize("make", PIPELINES)
def test_a_pipeline_is_of_the_class_that_its_index_names(folders, make):
    plain = make()
    pipeline = open_pipeline(replace(OPTIONS, model=str(folders[make])))
    named = json.loads((folders[make] / "model_index.json").read_text())["_class_name"]
    assert type(pipeline) is type(plain) and type(pipeline).__name__ == named
    assert not any(
        parameter.requires_grad for part in (network(pipeline), pipeline.vae) for parameter in part.parameters()
    )
    assert torch.equal(draw(pipeline), draw(plain))


def test_parts_can_be_kept_in_half_precision(folders):
    options = replace(OPTIONS, model=str(folders[flux]), half_parts=("vae",))
    pipeline = open_pipeline(options)
    assert (pipeline.transformer.dtype, pipeline.vae.dtype) == (torch.float32, torch.bfloat16)
    assert open_pipeline(replace(options, precision="bfloat16", half_parts=())).transformer.dtype == torch.bfloat16


def test_ddim_ends_at_the_least_noise_of_training():
    pipeline = stable_diffusion(kind=DPMSolverMultistepScheduler)
    prepare_pipeline(pipeline, replace(OPTIONS, scheduler="ddim"))
    own = pipeline.scheduler
    assert (
        type(own) is DDIMScheduler and not own.config.clip_sample and own.final_alpha_cumprod == own.alphas_cumprod[0]
    )


@pytest.mark.parametrize("make", [stable_diffusion_3, flux, latent_consistency])
def test_ddim_is_refused_where_it_cannot_sample(make):
    with pytest.raises(InputError, match=r"^scheduler: none cannot be sampled from by DDIM"):
        prepare_pipeline(make(), replace(OPTIONS, scheduler="ddim"))


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_3, flux, pixart])
def test_saving_memory_changes_no_gradient(make):
    def gradient(options):
        pipeline, found = make(), []
        prepare_pipeline(pipeline, options)

        def update(step, embedding, anchor):
            score = for_all(lambda images: images[:, 0].mean(dim=(1, 2)))
            found.append(embedding_gradient(step.denoise, score, step.latents, embedding, **step.guidance).gradient)
            return embedding

        with plugged_in(pipeline, StepMethod(update, steps=(1,))):
            draw(pipeline, num_inference_steps=2)
        assert network(pipeline).is_gradient_checkpointing == options.gradient_checkpointing
        assert pipeline.vae.use_slicing == options.vae_slicing and pipeline.vae.use_tiling == options.vae_tiling
        return found[0]

    plain = gradient(OPTIONS)
    saved = gradient(replace(OPTIONS, gradient_checkpointing=True, vae_slicing=True, vae_tiling=True))
    assert plain.abs().max() > 0
    torch.testing.assert_close(saved, plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))


@pytest.mark.parametrize(("make", "branches"), [(stable_diffusion_3, 2), (flux, 1), (latent_consistency, 1)])
def test_the_pipelines_own_evaluations_are_counted(make, branches):
    pipeline = make()
    method = StepMethod(
        lambda step, embedding, anchor: step.denoise(step.latents, anchor).detach() is None or embedding
    )
    with plugged_in(pipeline, method), counted_rows(pipeline) as rows:
        draw(pipeline)
    assert rows == 4 * [2 * branches]
    draw(pipeline)
    assert len(rows) == 4


def test_sizes_are_said_in_the_call_alone():
    assert image_size(OPTIONS) == {} and image_size(replace(OPTIONS, size=64)) == {"height": 64, "width": 64}
