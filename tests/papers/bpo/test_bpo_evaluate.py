import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from papers.bpo import evaluate as stage
from papers.bpo.options import EvaluationOptions
from shared.lm.diversity import distinct_n, self_bleu
from shared.results import read_metrics, read_units
from shared.tables import write_table

POWERS = (-0.5, 0.0, 0.5, 1.0, 2.0)
SBA = [f"sba:{power:g}" for power in POWERS]
METHODS = ["sft", "dpo", "dpo:0.1", "fdpo-js", "fpo-js", *SBA, "sba:0@fdpo-js"]
TRAINED = METHODS[1:]
PROMPTS, SAMPLES = 3, 4
HALF = 2.0**-11  # rounding of units, relative


def responses_of(method: str, seed: int, split: str, temperature: float, lift: float) -> pd.DataFrame:
    rng = np.random.default_rng([seed, len(split), int(10 * temperature)])
    count = PROMPTS * SAMPLES
    kept = split == "test" and temperature == 1.0
    tokens = rng.integers(2, 6, count)
    return pd.DataFrame(
        {
            "prompt_id": np.repeat(np.arange(PROMPTS), SAMPLES),
            "sample": np.tile(np.arange(SAMPLES), PROMPTS),
            "response": [" ".join(rng.choice(list("abcd"), length - 1)) if kept else None for length in tokens],
            "tokens": tokens,
            "entropy": np.nan if method == "preferred" else tokens * (1 + temperature + 0.1 * rng.random(count)),
            "score": rng.normal(size=count) + lift,
            "split": split,
            "temperature": temperature,
            "method": method,
            "setting": "clean",
            "seed": seed,
        }
    )


@pytest.fixture
def inputs(tmp_path):
    """Tables as `optimize` writes them: SBA's power 1 is the best on validation samples, its power 0.5 on test ones."""
    lifts = {"validation": {"sba:1": 3.0}, "test": {"sba:0.5": 3.0}}
    samples, curves, margins = [], [], []
    for seed in range(3):
        for method in [*METHODS, "preferred"]:
            for split, temperature in (("validation", 1.0), ("test", 1.0), ("test", 0.5), ("test", 1.5)):
                if temperature != 1.0 and method not in ("dpo", *SBA):
                    continue
                if method == "preferred" and split == "validation":
                    continue
                samples.append(responses_of(method, seed, split, temperature, lifts[split].get(method, 0.0)))
        for index, method in enumerate(TRAINED):
            steps = np.arange(1, 7)
            label = {"method": method, "setting": "clean", "seed": seed}
            margin = np.where(steps > 4, 1.0, 50.0)
            curves.append(
                pd.DataFrame(
                    {
                        "step": steps,
                        "grad_norm": np.where(steps == 1, (seed + 1.0) * (index + 1), 9.0),
                        "margin": margin,
                        "margin_square": margin**2 + 4.0,
                        "clipped": np.where(steps > 4, 0.25, 1.0),
                        **label,
                    }
                )
            )
            width = 2.0 + POWERS[SBA.index(method)] if method in SBA else 1.0
            margins.append(pd.DataFrame({"pair": range(4), "margin": 0.5 + width * np.array([-1, 1, -1, 1]), **label}))
    paths = {name: tmp_path / f"{name}.parquet" for name in ("samples", "curves", "margins", "gaps")}
    for name, parts in (("samples", samples), ("curves", curves), ("margins", margins)):
        write_table(paths[name], pd.concat(parts, ignore_index=True))
    write_table(paths["gaps"], pd.DataFrame({"seed": 1, "problem": [0, 1], "loss": "bpo/kliep", "gap": [0.0, 2e-16]}))
    paths["records"] = tmp_path / "record.json"
    seconds = dict.fromkeys(METHODS, 2.5)
    record = {"options": {"setting": "clean", "seed": 1}, "measurements": {"seconds": seconds}}
    paths["records"].write_text(json.dumps(record | {"outputs": {}, "paths": {}}))
    return paths


@pytest.fixture
def outputs(inputs, tmp_path):
    paths = {name: tmp_path / name for name in ("metrics", "units", "temperatures", "training", "held_out")}
    stage.evaluate(
        EvaluationOptions(group=2, ngram=2, final_steps=2),
        paper="bpo",
        scale="small",
        **{name: (inputs[name],) for name in ("samples", "curves", "margins", "records")},
        gaps=inputs["gaps"],
        **paths,
    )
    return paths


def test_tables_hold_what_the_claims_need(outputs, inputs):
    metrics, units = read_metrics(outputs["metrics"]), read_units(outputs["units"])
    value = metrics.set_index(["setting", "method", "seed", "metric"])["value"]
    raw = pd.read_parquet(inputs["samples"])
    assert raw.loc[raw["temperature"] != 1.0, "response"].isna().all()

    mine = raw.query("method == 'sba:2' and split == 'test' and temperature == 1.0 and seed == 1")
    for metric, opponent in (("win_vs_sft", "sft"), ("win_vs_preferred", "preferred")):
        theirs = raw.query(f"method == '{opponent}' and split == 'test' and seed == 1")
        pairs = mine.merge(theirs, on="prompt_id")
        expected = ((np.sign(pairs["score_x"] - pairs["score_y"]) + 1) / 2).mean()
        assert value["clean", "sba:2", 1, metric] == pytest.approx(expected, rel=HALF)
    token_entropy = mine["entropy"].sum() / mine["tokens"].sum()
    assert value["clean", "sba:2", 1, "entropy"] == pytest.approx(token_entropy, rel=HALF)
    assert value["clean", "sba:2", 1, "score"] == pytest.approx(mine["score"].mean())
    assert ("clean", "sft", 1, "win_vs_sft") not in value.index
    assert ("clean", "preferred", 1, "win_vs_sft") in value.index and ("clean", "preferred", 1, "entropy") not in value

    # selection looks at validation samples alone, and never at the ends for the inner powers
    for metric in ("win_vs_sft", "entropy", "self_bleu"):
        assert value["clean", "best-sba", 0, metric] == value["clean", "sba:1", 0, metric]
        assert value["clean", "inner-sba", 0, metric] == value["clean", "sba:1", 0, metric]
    assert value["clean", "best-fdpo", 0, "win_vs_sft"] == value["clean", "fdpo-js", 0, "win_vs_sft"]

    assert value["clean", "dpo", 2, "gradient_ratio"] == 1
    assert value["clean", "sba:2", 2, "gradient_ratio"] == TRAINED.index("sba:2") + 1
    assert value["clean", "dpo", 2, "margin_sd_final"] == pytest.approx(2.0)
    assert value["clean", "dpo", 2, "clipped_final"] == 0.25
    assert value["clean", "sba:2", 0, "margin_sd"] == pytest.approx(4.0)
    assert value["clean", "sba:2", 0, "margin"] == pytest.approx(0.5)
    assert value["clean", "sba:2", 0, "margin_accuracy"] == 0.5
    assert value["clean", "sba", 0, "margin_sd_slope"] == pytest.approx(1.0)
    assert value["tabular", "bpo/kliep", 1, "optimality_gap"] == 1e-16

    wall = metrics.set_index(["method", "seed"])["wall_seconds"]
    assert (wall["dpo", 1] == 2.5).all() and wall["dpo", 0].isna().all()
    ordered = mine.sort_values(["prompt_id", "sample"])["response"].tolist()
    groups = [ordered[start : start + 2] for start in range(0, len(ordered), 2)]
    assert value["clean", "sba:2", 1, "self_bleu"] == pytest.approx(self_bleu(groups, max_ngram_order=2))
    assert value["clean", "sba:2", 1, "distinct_1"] == pytest.approx(distinct_n(ordered))
    assert set(units["metric"]) == {"win_vs_sft", "win_vs_preferred", "entropy", "optimality_gap"}


def test_dpo_is_matched_in_entropy_response_by_response(outputs):
    units = (
        read_units(outputs["units"]).query("seed == 0").set_index(["method", "metric", "unit"])["value"].sort_index()
    )
    temperatures = pd.read_parquet(outputs["temperatures"]).query("seed == 0").set_index(["method", "temperature"])
    matched = units["dpo-matching-sba:1", "win_vs_sft"]
    own = units["sba:1", "entropy"].mean()
    assert units["dpo-matching-sba:1", "entropy"].mean() == pytest.approx(own, rel=HALF)
    dpo = temperatures.loc["dpo"]
    assert dpo["entropy"].is_monotonic_increasing
    expected = np.interp(own, dpo["entropy"], dpo["win_vs_sft"])
    assert matched.mean() == pytest.approx(expected, rel=2 * HALF)
    assert len(matched) == PROMPTS * SAMPLES and (matched.index == units["sba:1", "win_vs_sft"].index).all()


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=8),
    st.lists(st.integers(-3, 3), min_size=1, max_size=8),
)
def test_win_shares_count_pairs(mine, theirs):
    rows = pd.DataFrame({"prompt_id": 7, "score": np.array(mine, dtype=float)}, index=range(100, 100 + len(mine)))
    opponents = pd.DataFrame({"prompt_id": 7, "score": np.array(theirs, dtype=float)})
    expected = [np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for b in theirs]) for a in mine]
    np.testing.assert_allclose(stage.win_shares(rows, opponents), expected)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 12)), min_size=1, max_size=20))
def test_entropy_by_response_has_the_mean_over_tokens(pairs):
    entropy, tokens = pd.Series([float(s) for s, _ in pairs]), pd.Series([n for _, n in pairs])
    parts = stage.entropy_by_response(entropy, tokens, entropy.sum(), tokens.sum(), len(pairs))
    assert parts.mean() == pytest.approx(entropy.sum() / tokens.sum(), abs=1e-9)
    # a response with the mean entropy in each of its tokens adds nothing to the spread, however long it is
    flat = stage.entropy_by_response(2.0 * tokens, tokens, 2.0 * tokens.sum(), tokens.sum(), len(pairs))
    np.testing.assert_allclose(flat, 2.0)


def test_candidates_of_selected_methods():
    found = stage.selections([*METHODS, "sba:0.5@fdpo-js", "fdpo-fkl", "simpo"])
    assert found == {
        "best-sba": SBA,
        "inner-sba": SBA[1:-1],
        "best-dpo": ["dpo", "dpo:0.1"],
        "best-fdpo": ["fdpo-js", "fdpo-fkl"],
        "best-fpo": ["fpo-js"],
    }
    assert stage.lambdas(["sba:2", "sba:-0.5", "sba:0@simpo", "sba:1"]) == {
        "sba:-0.5": -0.5,
        "sba:1": 1.0,
        "sba:2": 2.0,
    }
