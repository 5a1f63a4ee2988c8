"""Stages from end to end on a tiny system, and on a tiny Stable Diffusion in the place of a model of the hub."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers_pipelines import flux, load_without_text, stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from lidar_cases import SAMPLER, save_system
from peft import LoraConfig, get_peft_model_state_dict
from transformers import CLIPConfig, CLIPModel

from papers.lidar import figures
from papers.lidar.evaluate import evaluate
from papers.lidar.hub import HubBench, draw_sets, open_hub, own_prompts, run_prompt, scheduler_of
from papers.lidar.options import HubOptions, MixtureOptions, ScenePromptOptions, SolverOptions, TuneOptions
from papers.lidar.runs import parse_run
from papers.lidar.sample import sample
from papers.lidar.sample_hub import mean_costs, pictures, sampled_prompt, score_table
from papers.lidar.select import best_strengths, select
from papers.lidar.study_mixtures import study_mixtures
from papers.lidar.tune import tune
from papers.lidar.validate import validate
from shared.errors import InputError
from shared.results import read_metrics, read_units
from shared.t2i.clip_scorer import ClipScorer
from shared.t2i.hub_pipeline import prepare_pipeline
from shared.tables import read_table

PROMPTS = ScenePromptOptions(prompts_per_task=1, dev_prompts_per_task=1, gate_prompts_per_task=2)
TUNED = ("lidar/d2-n4", "exact/d2-n4", "universal", "date/1")
RUNS = (
    "vanilla",
    "bon/2",
    "lidar/d2-n2",
    "lidar/d2-n4",
    "exact/d2-n4",
    "permuted/d2-n4",
    "universal-reward",
    "date/1",
    "date/2",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything from tuning to the figures, once."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("lidar")
    system = save_system(folder)
    options = TuneOptions((20.0, 80.0), 3.0, (1.0, 3.0), (0.5, 1.0), (10.0, 30.0), (2, 3))
    tune(SAMPLER, PROMPTS, options, seed=9, runs=TUNED, **system, trials=folder / "trials")
    select(criterion="gold_share", trials=(folder / "trials",), strengths=folder / "strengths")
    chosen = {"strengths": folder / "strengths", **system}
    validate(
        SAMPLER,
        PROMPTS,
        seed=0,
        lookahead=("best/d2-n4", "best/d4-n4"),
        weighed=("vanilla", "lidar/d2-n4", "date/1"),
        gates=folder / "gates",
        **chosen,
    )
    files = {"scores": folder / "scores", "images": folder / "images"}
    measured = sample(SAMPLER, PROMPTS, seed=0, runs=RUNS, **chosen, **files)
    record = {"options": {"seed": 0}, "measurements": measured, "outputs": {}}
    (folder / "record.json").write_text(json.dumps(record))
    study_mixtures(MixtureOptions((8,), (16, 64), 1, points=4), seeds=(0,), errors=folder / "errors")
    tables = {name: folder / name for name in ("metrics", "units", "equal_score")}
    evaluate(
        paper="lidar",
        scale="smoke",
        matched="lidar/d2-n4",
        scores=(files["scores"],),
        records=(folder / "record.json",),
        gates=(folder / "gates",),
        errors=folder / "errors",
        **tables,
    )
    return folder


def test_strengths_are_selected_by_the_criterion(made):
    trials, chosen = read_table(made / "trials"), read_table(made / "strengths").set_index("tuned")
    assert trials.groupby("tuned").size().to_dict() == {"date": 2, "exact": 2, "lidar": 2, "universal": 2}
    tried = trials.groupby("tuned")
    assert set(tried.get_group("lidar")["value"]) == {3.0} and set(tried.get_group("exact")["value"]) == {1.0}
    for name, rows in tried:
        best = rows[rows["gold_share"] == rows["gold_share"].max()].iloc[0]
        assert chosen.loc[name, "value"] == best["value"]
    greedy = trials[trials["tuned"] == "universal"].sort_values("guidance_score").iloc[-1]
    assert chosen.loc["universal-reward", "value"] == greedy["value"]
    assert chosen["reward_weight"].notna().to_dict()["lidar"] and np.isnan(chosen.loc["date", "reward_weight"])


def test_of_equal_strengths_the_first_is_taken():
    trials = pd.DataFrame({"tuned": "date", "value": [1.0, 2.0], "reward_weight": np.nan, "gold": 0.5})
    assert best_strengths(trials.assign(guidance_score=0.0), "gold")["value"].tolist() == [1.0]


def test_gates_are_measured(made):
    gates = read_table(made / "gates")
    seed_wide = gates[gates["unit"] == ""].set_index(["method", "metric"])["value"]
    for name in ("vanilla", "lookahead/d2", "lookahead/d4"):
        assert 0 <= seed_wide[name, "reward_auc"] <= 1
    gap = max(
        seed_wide["lookahead/d4", metric] - seed_wide["lookahead/d2", metric]
        for metric in ("reward_auc_within", "crisp")
    )
    assert seed_wide["lookahead/d2", "quality_gap"] == pytest.approx(gap)
    memory = seed_wide.xs("peak_mib", level="metric")
    assert memory["date/1"] > 1.5 * memory["vanilla"] and memory["lidar/d2-n4"] < 1.5 * memory["vanilla"]
    assert (gates[gates["unit"] != ""].groupby(["method", "metric"]).size() == 12).all()


def test_tables_say_what_was_measured(made):
    scores = read_table(made / "scores")
    assert len(scores) == len(RUNS) * 6 * 2 and set(scores["run"]) == set(RUNS)
    units, metrics = read_units(made / "units"), read_metrics(made / "metrics")
    wide = units[units["setting"] == "test"].pivot(index=["metric", "unit"], columns="method", values="value")
    slope = (wide["lidar/d2-n4"] - wide["lidar/d2-n2"]) / np.log(2)
    for metric in ("gold", "guidance_score"):
        found = wide.loc[f"{metric}_per_log_n", "lidar/d2"]
        np.testing.assert_allclose(found, slope.loc[metric], atol=1e-6)
    # 8 evaluations of the target sampler and 8 of lookahead samples: as dear as best of 2.
    np.testing.assert_allclose(wide.loc["gold", "bon-as-dear"], wide.loc["gold", "bon/2"], atol=1e-6)
    costs = metrics[(metrics["metric"] == "evaluations") & (metrics["setting"] == "test")].set_index("method")
    assert costs.loc["lidar/d2-n4", "value"] == 2 * 4 + 2 * 4 * 2 / 2 == costs.loc["bon/2", "value"]
    assert costs.loc["date/1", "value"] == 2 * 4 + 4 * 3
    reached = metrics[metrics["metric"] == "evaluations_to_gold"].set_index("method")["value"]
    assert reached["date"] <= costs.loc["date/1", "value"] and set(reached.index) >= {"bon", "lidar/d2", "date"}
    equal = read_table(made / "equal_score")
    assert (equal["low"] <= equal["high"]).all() and set(equal["cost"]) == {"evaluations", "seconds"}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_are_drawn(made, name, tmp_path, monkeypatch):
    tiny = {family: ("LiDAR, δ = 2", "#000000", "o") for family in ("lidar/d2", "exact/d2")}
    monkeypatch.setattr(figures, "FAMILIES", figures.FAMILIES | tiny)
    tables = {key: made / key for key in ("metrics", "equal_score", "errors")}
    listed = {"trials": (made / "trials",), "scores": (made / "scores",), "images": (made / "images",)}
    figures.draw(figure=name, **tables, **listed, png=tmp_path / "f.png", pdf=tmp_path / "f.pdf")
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_damaged_pictures_are_named(made, tmp_path):
    (tmp_path / "images").write_bytes(b"torn")
    with pytest.raises(InputError, match="no images"):
        figures.read_images((tmp_path / "images",), [read_table(made / "scores")])


# On a model of the hub


def tokenize(texts, **_):
    rows = [[1, *(2 + ord(letter) % 20 for letter in text[:4]), 30] for text in texts]
    return Tokens(input_ids=torch.tensor([row + [30] * (6 - len(row)) for row in rows]))


class Tokens(dict):
    def to(self, device):
        return self


def clip_scorer(seed: int) -> ClipScorer:
    torch.manual_seed(seed)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 32, "max_position_embeddings": 8, "eos_token_id": 30, "bos_token_id": 1, "pad_token_id": 30}
    config = CLIPConfig(
        text_config=small | text, vision_config=small | {"image_size": 8, "patch_size": 4}, projection_dim=6
    )
    images = SimpleNamespace(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25])
    return ClipScorer(CLIPModel(config), SimpleNamespace(tokenizer=tokenize, image_processor=images))


HUB = HubOptions(
    model="tiny",
    reward="a",
    evaluator="b",
    reward_weight=1e7,
    scale=3.0,
    universal_scale=10.0,
    step_size=1.0,
    steering_weight=1e7,
    renoising_steps=2,
    test_prompts=2,
    decode_batch=3,
)
SOLVER = SolverOptions("DPMSolverMultistepScheduler", ("algorithm_type=dpmsolver++", "solver_order=2"))
HUB_RUNS = ("vanilla", "bon/2", "lidar/d2-n2", "lidar/d2-n4", "permuted/d2-n4", "best/d2-n4")
BASELINES = ("universal", "date/2", "smc-difference/k2", "renoised/d2-n4")


def hub_bench(make=stable_diffusion) -> HubBench:
    pipeline, flow = make(), make in (stable_diffusion_3, flux)
    hub = replace(HUB, scheduler="own", size=16) if flow else HUB
    prepare_pipeline(pipeline, hub)

    def encode(prompt, *arguments, num_images_per_prompt=None, **__):
        count = num_images_per_prompt or arguments[1]  # that of Stable Diffusion gets it by place
        generator = torch.Generator().manual_seed(len(prompt))
        own = torch.randn(1, 5, 12, generator=generator).expand(count, -1, -1)
        if make is stable_diffusion:
            return own, torch.zeros_like(own)
        pooled = torch.randn(1, 10, generator=generator).expand(count, -1)
        if make is flux:
            return own, pooled, torch.zeros(5, 3)
        return own, torch.zeros_like(own), pooled, torch.zeros_like(pooled)

    pipeline.encode_prompt = encode
    options = replace(SAMPLER, batch_size=3, eta=0.0 if flow else 1.0)
    return HubBench(options, hub, pipeline, clip_scorer(0), clip_scorer(1), seed=3)


@pytest.fixture
def prompt_file(tmp_path):
    entries = [{"prompt": "a photo of a bench", "tag": "single"}, {"prompt": "two clocks", "tag": "counting"}]
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)) + "\n")
    return path


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_xl, stable_diffusion_3, flux])
def test_both_phases_run_on_a_pipeline_of_diffusers(make, tmp_path, prompt_file):
    bench, own = hub_bench(make), own_prompts(prompt_file, HUB)
    flow = make in (stable_diffusion_3, flux)
    solver = SolverOptions("FlowMatchEulerDiscreteScheduler") if flow else SOLVER
    draw_sets(bench, own, "d2", solver, tmp_path)
    sets = sorted(tmp_path.glob("*.safetensors"))
    assert len(sets) == len(own) == 2
    written = [path.stat().st_mtime_ns for path in sets]
    draw_sets(bench, own, "d2", solver, tmp_path)  # a second time nothing is drawn
    assert [path.stat().st_mtime_ns for path in sets] == written

    solvers = {"d2": (solver, tmp_path)}
    found = [(row, prompt, sampled_prompt(bench, row, prompt, HUB_RUNS, solvers)) for row, prompt in own]
    table = score_table(found, seed=3)
    assert len(table) == 2 * len(HUB_RUNS) * 2 and table["seed"].eq(3).all()
    means = table.groupby("run")["guidance_score"].mean()
    assert means["bon/2"] >= means["vanilla"] and means["best/d2-n4"] != means["vanilla"]
    vanilla, guided = (table[table["run"] == name]["guidance_score"].to_numpy() for name in ("vanilla", "lidar/d2-n4"))
    assert not np.allclose(vanilla, guided, atol=1e-6)
    costs = mean_costs(found)
    branches = 1 if make is flux else 2  # guidance is an input of its network
    assert costs["lidar/d2-n4"]["evaluations"] == branches * (4 + 4 * 2 / 2)
    assert costs["bon/2"]["evaluations"] == branches * 8
    shown = pictures(found, ("vanilla", "best/d2-n4"))
    assert {name: tuple(each.shape) for name, each in shown.items()} == {
        "vanilla": (4, 3, 64, 64),
        "best/d2-n4": (4, 3, 64, 64),
    }


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_xl])
def test_baselines_run_on_a_pipeline_of_diffusers(make, tmp_path, prompt_file):
    bench, own = hub_bench(make), own_prompts(prompt_file, HUB)
    draw_sets(bench, own, "d2", SOLVER, tmp_path)
    scheduler = bench.pipeline.scheduler
    runs = ("vanilla", *BASELINES)
    found = [(row, prompt, run_prompt(bench, row, prompt, runs, {"d2": (SOLVER, tmp_path)})) for row, prompt in own]
    assert bench.pipeline.scheduler is scheduler
    for name in BASELINES:
        images = [[entry[run]["images"] for _, _, entry in found] for run in ("vanilla", name)]
        assert not all(torch.equal(*pair) for pair in zip(*images, strict=True)), name
    costs = mean_costs(found)
    # Four steps of two branches; both again with gradient; one again with gradient and one without in two of them.
    assert costs["universal"]["evaluations"] == 8 + 8 * 3 and costs["date/2"]["evaluations"] == 8 + 2 * (3 + 1)
    assert costs["smc-difference/k2"]["evaluations"] == 8 and costs["smc-difference/k2"]["reward_evaluations"] == 3
    assert costs["renoised/d2-n4"]["evaluations"] == 2 * 2 + 2 * 4 * 2 / 2


def test_steering_without_preference_is_the_target_sampler(prompt_file):
    bench, (row, prompt) = hub_bench(), own_prompts(prompt_file, HUB)[0]
    bench.hub = replace(bench.hub, steering_weight=0.0)
    bench.options = replace(bench.options, steering_steps=())
    plain, steered = (bench.sample_run(parse_run(name), row, prompt, None) for name in ("vanilla", "smc-max/k2"))
    assert torch.equal(plain["images"], steered["images"])


def test_a_lookahead_sampler_brings_its_own_weights(tmp_path, monkeypatch):
    """An adapter is loaded at its weight, for drawing alone; runs that need gradients get single precision."""
    monkeypatch.setattr("papers.lidar.hub.load_clip", lambda name: clip_scorer(0))
    load_without_text(monkeypatch)
    stable_diffusion().save_pretrained(tmp_path / "model")
    trained = stable_diffusion()
    trained.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = get_peft_model_state_dict(trained.unet)
    trained.save_lora_weights(tmp_path / "adapter", unet_lora_layers=layers)
    hub = replace(HUB, model=str(tmp_path / "model"), precision="bfloat16")
    adapter = SolverOptions("LCMScheduler", adapter=f"{tmp_path}/adapter/pytorch_lora_weights.safetensors")

    def output(solver=None, runs=()):
        unet = open_hub(SAMPLER, hub, seed=0, solver=solver, runs=runs).pipeline.unet
        precision = next(unet.parameters()).dtype
        arguments = torch.ones(1, 4, 8, 8, dtype=precision), torch.tensor([400]), torch.ones(1, 5, 12, dtype=precision)
        with torch.no_grad():
            return unet(*arguments).sample

    plain = output()
    assert plain.dtype == torch.bfloat16 and output(runs=("vanilla", "date/2")).dtype == torch.float32
    assert torch.equal(output(replace(adapter, adapter_weight=0.0)), plain)
    assert not torch.equal(output(adapter), plain)


def test_sets_of_other_settings_are_refused(tmp_path, prompt_file):
    bench, own = hub_bench(), own_prompts(prompt_file, HUB)
    draw_sets(bench, own[:1], "d2", SOLVER, tmp_path)
    row, prompt = own[0]
    for solvers in (
        {"d2": (replace(SOLVER, settings=("solver_order=1",)), tmp_path)},
        {"d3": (SOLVER, tmp_path)},
    ):
        name = next(iter(solvers))
        with pytest.raises(InputError, match="no lookahead set for this prompt"):
            run_prompt(bench, row, prompt, (f"lidar/{name}-n2",), solvers)
    with pytest.raises(ValueError, match="universal-reward is not supported"):
        run_prompt(bench, row, prompt, ("universal-reward",), {})


def test_schedulers_come_from_their_settings():
    pipeline = stable_diffusion()
    found = scheduler_of(replace(SOLVER, settings=("use_karras_sigmas=true", "solver_order=2")), pipeline)
    assert found.config.use_karras_sigmas is True and found.config.beta_end == pipeline.scheduler.config.beta_end
    with pytest.raises(InputError, match="diffusers has no 'Nothing'"):
        scheduler_of(SolverOptions("Nothing"), pipeline)
    with pytest.raises(InputError, match="expected <name>=<value>"):
        scheduler_of(replace(SOLVER, settings=("karras",)), pipeline)
