import json

import numpy as np
import pandas as pd
import pytest

from papers.bpo.judge import gold_judge
from papers.bpo.options import DataOptions, HubDataOptions
from papers.bpo.prepare import prepare
from papers.bpo.prepare_hub import prepare_hub
from papers.bpo.writer_language import EOS_ID, WORDS, gold_reward
from shared.errors import InputError
from shared.lm.word_texts import to_ids
from shared.tables import read_table
from tests.papers.bpo.conftest import DATA, data_paths


def tables(paths):
    return {name: read_table(path) for name, path in paths.items() if name in DATA and name != "words"}


def test_prepared_data_fit_together(tiny_data):
    data = tables(tiny_data)
    assert tiny_data["words"].read_text().split() == list(WORDS)
    assert len(data["pairs"]) == 64 and len(data["held_out"]) == 16
    pd.testing.assert_frame_equal(
        data["supervised"], data["pairs"][["prompt", "chosen"]].rename(columns={"chosen": "answer"})
    )
    assert data["prompts"].groupby("split").size().to_dict() == {"test": 30, "validation": 30}
    assert len(data["references"]) == 120
    assert data["references"].groupby("prompt_id")["sample"].apply(list).tolist() == [[0, 1, 2, 3]] * 30
    assert (data["pairs"]["chosen"] != data["pairs"]["rejected"]).all()


def test_sharpness_changes_labels_only(tmp_path):
    found = {}
    for kappa in (1.0, 4.0):
        paths = {name: tmp_path / f"{kappa}-{name}" for name in DATA}
        prepare(DataOptions(400, 8, 2), seed=1, kappa=kappa, **paths)
        found[kappa] = read_table(paths["pairs"])
    both = [frozenset(pair) for pair in found[1.0][["chosen", "rejected"]].to_numpy().tolist()]
    assert both == [frozenset(pair) for pair in found[4.0][["chosen", "rejected"]].to_numpy().tolist()]
    changed = (found[1.0]["chosen"] != found[4.0]["chosen"]).mean()
    assert 0.1 < changed < 0.3  # 27 % and 9 % of the labels contradict the gold reward
    gaps = {
        kappa: judged(table["prompt"], table["chosen"]) - judged(table["prompt"], table["rejected"])
        for kappa, table in found.items()
    }
    assert (gaps[4.0] < 0).mean() < 0.14 < (gaps[1.0] < 0).mean() < 0.35


def judged(prompts, responses):
    return gold_judge(list(prompts), list(responses), np.ones(len(responses), dtype=bool))


def test_gold_judge_is_the_gold_reward_with_the_end_it_was_told():
    prompts = ["<bos> <sea> <sky> <sep>"] * 3
    responses = ["wave star salt", "wave star salt", ""]
    finished = np.array([True, False, True])
    scores = gold_judge(prompts, responses, finished)
    ids = np.array([[*to_ids(["wave star salt"], WORDS)[0], EOS_ID]])
    assert scores[0] == gold_reward(to_ids(prompts[:1], WORDS), ids)[0]
    assert scores[0] - scores[1] == pytest.approx(2 / 3)  # two points less, over three, without EOS
    assert scores[2] == pytest.approx(-4 / 3)
    with pytest.raises(InputError, match="'whale'"):
        gold_judge(prompts[:1], ["whale"], finished[:1])


def dialogue(number: int, answer: str) -> str:
    return f"\n\nHuman: question {number}?\n\nAssistant: {answer}"


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def hub(tmp_path):
    train = [{"chosen": dialogue(i, f"good {i}"), "rejected": dialogue(i, f"bad {i}")} for i in range(40)]
    train.append({"chosen": dialogue(100, "leaked"), "rejected": dialogue(100, "also leaked")})
    test = [{"chosen": dialogue(i, f"fine {i}"), "rejected": dialogue(i, "poor")} for i in range(100, 105)]
    return HubDataOptions(
        dataset="hh-rlhf",
        train=write_lines(tmp_path / "train.jsonl", train),
        test=write_lines(tmp_path / "test.jsonl", test),
        held_out_pairs=6,
        validation_prompts=4,
        test_prompts=5,
    )


def test_public_data_are_split_without_overlap(hub, tmp_path):
    first, second = data_paths(tmp_path / "a"), data_paths(tmp_path / "b")
    assert prepare_hub(hub, seed=0, **first | {"words": tmp_path / "words"})["pairs"] == 30
    prepare_hub(hub, seed=1, **second | {"words": tmp_path / "words"})
    data, other = tables(first), tables(second)
    prompts = {split: set(rows["prompt"]) for split, rows in data["prompts"].groupby("split")}
    learned, kept = set(data["pairs"]["prompt"]), set(data["held_out"]["prompt"])
    assert (len(learned), len(kept)) == (30, 6)
    assert {len(texts) for texts in prompts.values()} == {4, 5}
    groups = [learned, kept, *prompts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 45
    assert dialogue(100, "")[:-1] in prompts["test"]
    assert data["supervised"]["answer"].str.startswith(" good").all()
    assert data["references"]["response"].tolist() == [f" fine {i}" for i in range(100, 105)]
    pd.testing.assert_frame_equal(data["prompts"], other["prompts"])
    assert set(other["held_out"]["prompt"]) != kept


def test_too_few_public_pairs_are_an_error(hub, tmp_path):
    paths = data_paths(tmp_path / "a") | {"words": tmp_path / "words"}
    for change, message in (
        ({"test_prompts": 6}, "6 rows are to be set apart, but there are only 5"),
        ({"held_out_pairs": 36}, "nothing is left to learn from"),
    ):
        with pytest.raises(InputError, match=message):
            prepare_hub(type(hub)(**vars(hub) | change), seed=0, **paths)


def test_instructions_are_put_into_the_template(tmp_path):
    def answers(text):
        return [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]

    records = [{"prompt": f"Do {i}.", "chosen": answers("a"), "rejected": answers("b")} for i in range(8)]
    source = write_lines(tmp_path / "all.jsonl", records)
    options = HubDataOptions(
        dataset="ultrafeedback",
        train=source,
        test=source,
        template="<user><prompt><assistant>",
        held_out_pairs=2,
        validation_prompts=1,
        test_prompts=1,
    )
    paths = data_paths(tmp_path / "a") | {"words": tmp_path / "words"}
    assert prepare_hub(options, seed=0, **paths)["pairs"] == 4
    prompts = {name: table["prompt"].tolist() for name, table in tables(paths).items() if "prompt" in table}
    assert {text for texts in prompts.values() for text in texts} == {f"<user>Do {i}.<assistant>" for i in range(8)}
    with pytest.raises(ValueError, match="template: needs <prompt>, where the instruction goes, got 'Do it'"):
        HubDataOptions(dataset="ultrafeedback", train=source, test=source, template="Do it")


def test_single_turn_leaves_longer_dialogues_out(tmp_path):
    long = "\n\nHuman: hi\n\nAssistant: hello" + dialogue(7, "yes")
    records = [{"chosen": dialogue(i, "a"), "rejected": dialogue(i, "b")} for i in range(6)]
    records.append({"chosen": long, "rejected": long + " or no"})
    options = HubDataOptions(
        dataset="hh-rlhf",
        train=write_lines(tmp_path / "train.jsonl", records),
        test=write_lines(tmp_path / "test.jsonl", [{"chosen": dialogue(9, "a"), "rejected": dialogue(9, "b")}]),
        single_turn=True,
        held_out_pairs=2,
        validation_prompts=1,
        test_prompts=1,
    )
    paths = data_paths(tmp_path / "a") | {"words": tmp_path / "words"}
    assert prepare_hub(options, seed=0, **paths)["pairs"] == 3
