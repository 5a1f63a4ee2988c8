"""The paper's instruction data: small files in the published formats, and what is wrong with others."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from papers.csd.options import VALIDATION, HubDataOptions, Scale
from papers.csd.prepare_hub import instruction_prompt, parse_suite, prepare_hub, read_self_instruct
from shared.errors import InputError
from shared.options import read_scale
from shared.tables import read_table, write_table

ROOT = Path(__file__).resolve().parents[3]


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def dolly(path: Path, size: int = 12) -> Path:
    rows = [
        {"instruction": f"Name number {index}.", "context": "Count." if index % 2 else "",
         "response": f"It is {index}.", "category": "open_qa"}
        for index in range(size)
    ]  # fmt: skip
    return write_lines(path, rows)


def prepared(folder: Path, options: HubDataOptions) -> dict[str, Path]:
    outputs = {name: folder / f"{name}.parquet" for name in ("teaching", "distillation", "plain", "prompts")}
    prepare_hub(options, words=folder / "words.txt", **outputs)
    return outputs


def test_all_formats_become_the_tables_of_the_testbed(tmp_path):
    selfinst = write_lines(tmp_path / "selfinst.jsonl", [
        {"id": "t0", "motivation_app": "Gmail", "instruction": "Greet.", "instances": [
            {"input": "Ann", "output": "Hi Ann"}, {"input": "Bob", "output": "Hi Bob"},
            {"input": "Ann", "output": "Hello Ann"}]},
    ])  # fmt: skip
    vicuna = write_lines(tmp_path / "vicuna.jsonl", [
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Say yes.", "input": "", "output": ["yes", "Yes."]},
        {"instruction": "More.", "input": "", "output": "x"},
    ])  # fmt: skip
    options = HubDataOptions(
        training=str(dolly(tmp_path / "dolly.jsonl")),
        suites=(f"selfinst=self-instruct:{selfinst}", f"vicuna=instruction:{vicuna}"),
        validation_prompts=3, test_prompts=4, max_suite_prompts=2,
    )  # fmt: skip
    outputs = prepared(tmp_path, options)
    teaching = read_table(outputs["teaching"], ("prompt", "answer"))
    prompts = read_table(outputs["prompts"])
    assert len(teaching) == 5 and teaching.equals(read_table(outputs["distillation"]))
    assert prompts.groupby("suite").size().to_dict() == {VALIDATION: 3, "dolly": 4, "selfinst": 2, "vicuna": 2}
    assert not set(teaching["prompt"]) & set(prompts["prompt"])
    assert len(set(prompts[prompts["suite"].isin(["dolly", VALIDATION])]["prompt"])) == 7
    assert list(prompts.columns) == ["suite", "prompt_id", "prompt", "references"]
    references = prompts.set_index("prompt")["references"]
    assert list(references[instruction_prompt("Greet.", "Ann")]) == ["Hi Ann", "Hello Ann"]
    assert list(references[instruction_prompt("Say yes.")]) == ["yes", "Yes."]
    first = teaching.iloc[0]
    assert first["prompt"].endswith("\n\n### Response:\n") and first["answer"].startswith("It is ")
    assert (tmp_path / "words.txt").read_text() == ""
    assert len(read_table(outputs["plain"], ("text",))) == 0


def test_plain_text_is_read_up_to_a_limit(tmp_path):
    write_table(tmp_path / "web.parquet", pd.DataFrame({"text": ["One.", "Two.", "Three."]}))
    options = HubDataOptions(
        training=str(dolly(tmp_path / "dolly.jsonl")), validation_prompts=1, test_prompts=1,
        plain_text=str(tmp_path / "web.parquet"), max_plain_texts=2,
    )  # fmt: skip
    assert read_table(prepared(tmp_path, options)["plain"])["text"].tolist() == ["One.", "Two."]


def test_the_prompt_is_the_papers():
    assert instruction_prompt("Do.", "This.") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nDo.\n\n### Input:\nThis.\n\n"
        "### Response:\n"
    )
    assert instruction_prompt("Do.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo.\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"dolly.jsonl:1: not valid JSON"),
        ('"text"', r"dolly.jsonl:1: expected an object, got str"),
        ('{"instruction": "a", "context": ""}', r"dolly.jsonl:1: 'response' must be a text, got None"),
        ('{"instruction": "a", "context": 3, "response": "b"}', r"dolly.jsonl:1: 'context' must be a text, got 3"),
        ("\n", r"dolly.jsonl: holds no examples"),
        ('{"instruction": "a", "context": "", "response": "b"}', r"has 1 examples, of which 2 are to be held out"),
    ],
)
def test_a_broken_training_file_is_named(tmp_path, content, message):
    (tmp_path / "dolly.jsonl").write_text(content)
    options = HubDataOptions(training=str(tmp_path / "dolly.jsonl"), validation_prompts=1, test_prompts=1)
    with pytest.raises(InputError, match=message):
        prepared(tmp_path, options)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl: cannot be read"):
        prepared(tmp_path, HubDataOptions(training=str(tmp_path / "nowhere.jsonl")))


@pytest.mark.parametrize("instances", [None, [], ["x"], [{"input": "a"}]])
def test_broken_instances_are_named(tmp_path, instances):
    path = write_lines(tmp_path / "s.jsonl", [{"instruction": "a", "instances": instances}])
    with pytest.raises(InputError, match=r"s.jsonl:1: '(instances|output)' must"):
        read_self_instruct(path)


@pytest.mark.parametrize("text", ["vicuna", "=instruction:x", "v=other:x", "v=instruction:", "dolly=instruction:x"])
def test_a_misspelt_suite_is_refused(text):
    with pytest.raises(InputError, match="expected <name>="):
        parse_suite(text)


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_every_scale_validates(scale):
    from papers.csd.runs import parse_run, tuned_runs

    settings = read_scale(ROOT / "papers/csd/config.yaml", scale, Scale)
    runs = tuple(run for family in settings.families.values() for run in family)
    assert len(set(runs)) == len(runs)
    tuned = set(tuned_runs(runs))
    assert all(str(run.tuned_as) in tuned for run in map(parse_run, runs) if run.is_trained)
    assert set(settings.distill.saved_students) <= set(runs)


@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ("tuning_seed: 100", "tuning_seed: 0", "must not be a reported seed"),
        ("vocabularies: [500, 2000, 8000, 32000]", "vocabularies: 500", "cost.vocabularies"),
        ("        batch_size: 48", "        batch: 48", "unknown key 'batch'"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path, line, other, message):
    text = (ROOT / "papers/csd/config.yaml").read_text(encoding="utf-8")
    assert line in text
    (tmp_path / "config.yaml").write_text(text.replace(line, other, 1), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_scale(tmp_path / "config.yaml", "small", Scale)


def test_plain_text_with_a_weight_needs_a_source(tmp_path):
    text = (ROOT / "papers/csd/config.yaml").read_text(encoding="utf-8")
    (tmp_path / "config.yaml").write_text(re.sub(r"\n +plain_text: .*", "", text), encoding="utf-8")
    with pytest.raises(InputError, match="plain_text_weight: needs a source"):
        read_scale(tmp_path / "config.yaml", "paper", Scale)
