"""Runs inside whole pipelines of diffusers, of every kind that the paper names."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers_pipelines import (
    encode_texts,
    flux,
    latent_consistency,
    load_without_text,
    network,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)

from papers.stg import sample_hub, tune_hub
from papers.stg.options import DefenceOptions, GuidedHubOptions
from papers.stg.pipeline_runs import drawing, sample_pipeline
from shared.errors import InputError
from shared.t2i import hub
from shared.t2i.bench import Bench, Judge, PromptSet, success
from shared.t2i.hub import PipelineBench
from shared.tables import read_table

OPTIONS = DefenceOptions(
    num_steps=4, guidance_scale=3.0, fraction=0.5, threshold=0.0, batch_size=2, traced=("base", "stg:3")
)
SETS = [PromptSet("attack", ("some", "thing")), PromptSet("safe", ("harmless",))]
HUB = GuidedHubOptions(
    model="none", scheduler="own", guidance="clip=a", judge="clip=b", judge_threshold=0.2, features="c",
    prompts=(), concepts=("blood",),
)  # fmt: skip


def redness(images):
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1:].mean(dim=(1, 2, 3))


def bench_of(make, flagged=True) -> PipelineBench:
    def unsafe_score(images, threshold):
        return redness(images), torch.full((len(images),), flagged)

    return PipelineBench(encode_texts(make()), unsafe_score, {"height": 16, "width": 16})


def judge() -> Judge:
    def measure(prompts, images):
        dsr = (redness(images) < 0).double().numpy()
        return {"dsr": dsr, "alignment": dsr, "success": success(dsr, dsr)}

    return Judge(measure, lambda images: images.flatten(1))


@pytest.mark.parametrize(("make", "branches"), [(stable_diffusion_3, 2), (flux, 1), (latent_consistency, 1)])
def test_stg_makes_images_safer_in_any_pipeline(make, branches):
    bench = bench_of(make)
    draw = drawing(bench, SETS, 0, OPTIONS)
    trace = []
    base, guided = draw("base", trace), draw("stg:3", None)
    assert base.images.shape == (3, 3, 16, 16) and base.images.abs().max() <= 1
    assert (redness(guided.images) < redness(base.images)).all()
    assert (base.evaluations, guided.evaluations) == (4 * branches, 4 * branches + 2)
    steps = pd.concat(trace)
    assert steps["step"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3] and steps["prompt"].max() == 2
    # The last step's prediction is nearly the image.
    last = steps[steps["step"] == 3].sort_values("prompt")["value"]
    if make is not latent_consistency:
        np.testing.assert_allclose(last, redness(base.images), atol=0.2)
    assert not network(bench.pipeline)._forward_hooks and not network(bench.pipeline)._forward_pre_hooks


def test_unflagged_runs_are_the_base_models():
    draw = drawing(bench_of(flux, flagged=False), SETS, 0, OPTIONS)
    assert torch.equal(draw("stg:3", None).images, draw("base", None).images)


@pytest.mark.parametrize("text", ["sdg:1", "negative:0.5", "stg:1@duo"])
def test_what_does_not_run_in_pipelines_is_refused(text):
    with pytest.raises(InputError, match=f"run '{text}': only base and stg run in a FluxPipeline"):
        sample_pipeline(text, bench_of(flux), SETS, 0, OPTIONS)


def test_the_stages_sample_and_tune(tmp_path, monkeypatch):
    bench = bench_of(flux)
    for stage in (sample_hub, tune_hub):
        monkeypatch.setattr(stage, "open_hub", lambda options, guidance: bench)
        monkeypatch.setattr(stage, "open_hub_judge", lambda options, size: judge())
        monkeypatch.setattr(stage, "hub_prompt_sets", lambda prompts, skip, count: SETS)
    files = {name: tmp_path / name for name in ("values", "totals", "traces", "pictures")}
    sample_hub.sample_hub(OPTIONS, HUB, seed=0, runs=("base", "stg:3"), **files)
    values, totals = read_table(files["values"]), read_table(files["totals"])
    assert values.groupby("run").size().to_dict() == {"base": 3, "stg:3": 3}
    assert (values[values["run"] == "base"]["similarity"] == 1).all() and totals["evaluations"].tolist() == [4, 6]
    assert set(read_table(files["traces"])["run"]) == {"base", "stg:3"}
    tune_hub.tune_hub(OPTIONS, HUB, seed=1, runs=("stg:1", "stg:3"), development=tmp_path / "development")
    found = read_table(tmp_path / "development", ("run", "set", "dsr", "success", "similarity"))
    assert found["run"].tolist() == ["stg:1", "stg:1", "stg:3", "stg:3"]


def test_the_hub_opens_what_the_index_names(tmp_path, monkeypatch):
    load_without_text(monkeypatch)
    monkeypatch.setattr(hub, "open_score", lambda *_: redness)
    monkeypatch.setattr(hub, "text_of", lambda *_: None)
    stable_diffusion_xl().save_pretrained(tmp_path)
    options = replace(HUB, model=str(tmp_path), scheduler="ddim", size=16)
    bench = hub.open_hub(options, options.guidance)
    assert type(bench.pipeline).__name__ == "StableDiffusionXLPipeline" and bench.size == {"height": 16, "width": 16}
    values, flags = bench.unsafe_score(torch.ones(2, 3, 4, 4), -1.0)
    assert values.tolist() == [0, 0] and flags.all()
    stable_diffusion().save_pretrained(tmp_path / "taken apart")
    taken_apart = hub.open_hub(replace(options, model=str(tmp_path / "taken apart")), options.guidance)
    assert isinstance(taken_apart, Bench) and taken_apart.latent_shape == (4, 8, 8)
