"""Runs on systems of the hub: inside whole pipelines of every kind that the paper names, and shared by processes."""

from dataclasses import replace
from types import SimpleNamespace

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
from safetensors.torch import save_file
from safety_cases import tiny_bench, tiny_judge

from papers.stg import hub as stg_hub
from papers.stg import sample_hub, tune_hub
from papers.stg.measurement import sample_run, summarise_trace
from papers.stg.options import DefenceOptions, GuidedHubOptions
from papers.stg.pipeline_runs import judged, sample_bench, sample_pipeline
from shared.errors import InputError
from shared.t2i import hub, prompt_shares
from shared.t2i.bench import Bench, Judge, PromptSet, success
from shared.t2i.hub import PipelineBench
from shared.t2i.prompt_shares import own_share
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
    bench, share = bench_of(make), own_share(SETS)
    trace = []
    base = sample_pipeline("base", bench, share, 0, OPTIONS, trace)
    guided = sample_pipeline("stg:3", bench, share, 0, OPTIONS)
    assert base.images.shape == (3, 3, 16, 16) and base.images.abs().max() <= 1
    assert (redness(guided.images) < redness(base.images)).all()
    # In two of four steps STG evaluates the network once more, and a backward pass counts as two evaluations.
    assert (base.evaluations, guided.evaluations) == (4 * branches, 4 * branches + 2 * (1 + 2))
    steps = pd.concat(trace)
    assert steps["step"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3] and steps["prompt"].max() == 2
    # The last step's prediction is nearly the image.
    last = steps[steps["step"] == 3].sort_values("prompt")["value"]
    if make is not latent_consistency:
        np.testing.assert_allclose(last, redness(base.images), atol=0.2)
    assert not network(bench.pipeline)._forward_hooks and not network(bench.pipeline)._forward_pre_hooks


def test_unflagged_runs_are_the_base_models():
    bench, share = bench_of(flux, flagged=False), own_share(SETS)
    base, guided = (sample_pipeline(text, bench, share, 0, OPTIONS) for text in ("base", "stg:3"))
    assert torch.equal(guided.images, base.images) and guided.evaluations == base.evaluations + 2


@pytest.mark.parametrize("text", ["sdg:1", "negative:0.5", "stg:1@duo"])
def test_what_does_not_run_in_pipelines_is_refused(text):
    with pytest.raises(InputError, match=f"run '{text}': only base and stg run in a FluxPipeline"):
        sample_pipeline(text, bench_of(flux), own_share(SETS), 0, OPTIONS)


def test_the_stages_sample_and_tune(tmp_path, monkeypatch):
    bench = bench_of(flux)
    for stage in (sample_hub, tune_hub):
        monkeypatch.setattr(stage, "open_guided", lambda options, models=(): bench)
        monkeypatch.setattr(stage, "open_hub_judge", lambda options, size: judge())
        monkeypatch.setattr(stage, "hub_prompt_sets", lambda prompts, skip, count: SETS)
    files = {name: tmp_path / name for name in ("values", "totals", "traces", "pictures")}
    sample_hub.sample_hub(OPTIONS, HUB, seed=0, runs=("base", "stg:3"), **files)
    values, totals = read_table(files["values"]), read_table(files["totals"])
    assert values.groupby("run").size().to_dict() == {"base": 3, "stg:3": 3}
    assert (values[values["run"] == "base"]["similarity"] == 1).all() and totals["evaluations"].tolist() == [4, 10]
    assert set(read_table(files["traces"])["run"]) == {"base", "stg:3"}
    tune_hub.tune_hub(OPTIONS, HUB, seed=1, runs=("stg:1", "stg:3"), development=tmp_path / "development")
    found = read_table(tmp_path / "development", ("run", "set", "dsr", "success", "similarity"))
    assert found["run"].tolist() == ["stg:1", "stg:1", "stg:3", "stg:3"]


def test_the_hub_opens_what_the_index_names(tmp_path, monkeypatch):
    load_without_text(monkeypatch)
    monkeypatch.setattr(stg_hub, "open_score", lambda *_: redness)
    monkeypatch.setattr(hub, "text_of", lambda *_: None)
    stable_diffusion_xl().save_pretrained(tmp_path)
    options = replace(HUB, model=str(tmp_path), scheduler="ddim", size=16)
    bench = stg_hub.open_guided(options)
    assert type(bench.pipeline).__name__ == "StableDiffusionXLPipeline" and bench.size == {"height": 16, "width": 16}
    values, flags = bench.unsafe_score(torch.ones(2, 3, 4, 4), -1.0)
    assert values.tolist() == [0, 0] and flags.all()
    stable_diffusion().save_pretrained(tmp_path / "taken apart")
    taken_apart = stg_hub.open_guided(replace(options, model=str(tmp_path / "taken apart")))
    assert isinstance(taken_apart, Bench) and taken_apart.latent_shape == (4, 8, 8)


def test_unlearned_models_come_from_adapters(tmp_path, monkeypatch):
    load_without_text(monkeypatch)
    monkeypatch.setattr(stg_hub, "open_score", lambda *_: redness)
    monkeypatch.setattr(hub, "text_of", lambda *_: None)
    stable_diffusion().save_pretrained(tmp_path / "model")
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    before = stable_diffusion().unet.get_submodule(layer).weight
    up, down = torch.randn(len(before), 2), torch.randn(2, before.shape[1])
    save_file({f"unet.{layer}.lora_B.weight": up, f"unet.{layer}.lora_A.weight": down}, tmp_path / "lora.safetensors")
    options = replace(
        HUB, model=str(tmp_path / "model"), scheduler="ddim", loras=(f"duo={tmp_path / 'lora.safetensors'}",)
    )
    bench = stg_hub.open_guided(options, ["duo"])
    torch.testing.assert_close(bench.on("duo").unet.get_submodule(layer).weight, before + up @ down)
    assert torch.equal(bench.unet.get_submodule(layer).weight, before)
    with pytest.raises(InputError, match="they need Stable Diffusion with DDIM, got a StableDiffusionPipeline"):
        stg_hub.open_guided(replace(options, scheduler="own"), ["duo"])


def test_a_share_is_sampled_as_the_whole_is():
    sets = [PromptSet("explicit", ("a ring", "two red tees")), PromptSet("safe", ("a green disk and a saltire",))]
    bench, share = tiny_bench(), own_share(sets)
    for text in ("base", "stg:3,threshold=0.5", "sdg:9,threshold=0.5", "stg:1,threshold=0.5@duo"):
        whole_trace, trace = [], []
        whole = sample_run(text, bench, sets, 0, OPTIONS, whole_trace)
        found = sample_bench(text, bench, share, 0, OPTIONS, trace)
        assert torch.equal(found.images, whole.images) and found.evaluations == whole.evaluations
        pd.testing.assert_frame_equal(summarise_trace(trace, sets), summarise_trace(whole_trace, sets))


def test_processes_share_the_prompts_and_gather_all_measurements(monkeypatch):
    sets = [PromptSet("explicit", ("a ring", "two tees", "a red tee")), PromptSet("safe", ("a disk", "a blue disk"))]
    bench, runs = tiny_bench(), ("base", "stg:3,threshold=0.5")
    options = replace(OPTIONS, traced=runs)
    alone = list(judged(runs, bench, sets, tiny_judge(), 0, options))

    def as_process(index, gathered):
        monkeypatch.setattr(
            prompt_shares, "PartialState", lambda: SimpleNamespace(process_index=index, num_processes=2)
        )
        monkeypatch.setattr(prompt_shares, "gather_object", gathered)
        return list(judged(runs, bench, sets, tiny_judge(), 0, options))

    others = []
    as_process(1, lambda own: others.extend(own) or own)
    together = as_process(0, lambda own: [*own, others.pop(0)])
    assert not others
    for found, expected in zip(together, alone, strict=True):
        pd.testing.assert_frame_equal(found.values, expected.values, atol=2e-4)
        pd.testing.assert_frame_equal(
            summarise_trace(found.trace, sets), summarise_trace(expected.trace, sets), atol=2e-4
        )
        assert found.sampled.evaluations == pytest.approx(expected.sampled.evaluations)
        torch.testing.assert_close(found.sampled.images, expected.sampled.images[::2], atol=1e-4, rtol=1e-4)


def test_more_processes_than_prompts_are_refused(monkeypatch):
    monkeypatch.setattr(prompt_shares, "PartialState", lambda: SimpleNamespace(process_index=0, num_processes=4))
    with pytest.raises(InputError, match="4 cannot share 3 prompts"):
        own_share(SETS)


def test_a_process_may_have_no_prompt_of_a_set(monkeypatch):
    monkeypatch.setattr(prompt_shares, "PartialState", lambda: SimpleNamespace(process_index=1, num_processes=3))
    share = own_share(SETS)
    assert [part.name for part in share.sets] == ["attack"] and share.captions == ["thing"]
    assert share.numbers.tolist() == [1] and share.places.tolist() == [1]
