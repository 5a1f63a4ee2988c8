import gzip
import json
import re
import sys
from types import SimpleNamespace

import pytest

from shared.errors import InputError
from shared.lm.preference_data import is_single_turn, read_preferences, read_records

TURN = "\n\nHuman: how?\n\nAssistant:"
DIALOGUE = {"chosen": TURN + " so.", "rejected": TURN + " no idea."}
SUMMARY = {
    "info": {"subreddit": "cats", "title": "My cat", "post": "It sleeps."},
    "summaries": [{"text": " cat awake"}, {"text": " cat asleep"}],
    "choice": 1,
}
MESSAGES = {
    "prompt": "Say hi.",
    "chosen": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi!"}],
    "rejected": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Why?"}],
}


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_dialogues_share_their_prompt_up_to_the_last_common_cue(tmp_path):
    longer = TURN + " like this." + TURN
    records = (
        DIALOGUE,
        {"chosen": longer + " yes", "rejected": longer + " yet"},
        # they part before the last cue: what follows the common one is the answer
        {"chosen": longer + " yes", "rejected": TURN + " otherwise." + TURN + " no"},
    )
    table, left_out = read_preferences(lines(tmp_path / "a.jsonl", *records), "hh-rlhf")
    assert left_out == 0
    assert table["prompt"].tolist() == [TURN, longer, TURN]
    assert table["chosen"].tolist()[:2] == [" so.", " yes"]
    assert table["rejected"].tolist() == [" no idea.", " yet", " otherwise." + TURN + " no"]
    assert [is_single_turn(prompt) for prompt in table["prompt"]] == [True, False, True]


def test_summaries_and_messages(tmp_path):
    table, _ = read_preferences(lines(tmp_path / "a.jsonl", SUMMARY, SUMMARY | {"choice": 0}), "tldr")
    assert table["chosen"].tolist() == [" cat asleep", " cat awake"]
    assert table["rejected"].tolist() == [" cat awake", " cat asleep"]
    assert all("r/cats" in prompt and "It sleeps." in prompt for prompt in table["prompt"])
    source = lines(tmp_path / "b.jsonl", MESSAGES)
    table, _ = read_preferences(source, "ultrafeedback", template="<user><prompt><assistant>")
    assert table.iloc[0].tolist() == ["<user>Say hi.<assistant>", "Hi!", "Why?"]


def test_what_looks_like_a_template_in_a_prompt_is_left_alone(tmp_path):
    source = lines(tmp_path / "a.jsonl", MESSAGES | {"prompt": "<prompt> {x}"})
    table, _ = read_preferences(source, "ultrafeedback", template="[<prompt>]")
    assert table["prompt"][0] == "[<prompt> {x}]"


def test_compressed_files_read_the_same(tmp_path):
    plain = lines(tmp_path / "a.jsonl", DIALOGUE, DIALOGUE)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "a.jsonl").read_text(encoding="utf-8"))
    first, second = (read_preferences(source, "hh-rlhf")[0] for source in (plain, plain + ".gz"))
    assert first.equals(second) and len(first) == 2


def test_pairs_without_a_preference_are_left_out_and_counted(tmp_path):
    same, empty = DIALOGUE | {"rejected": DIALOGUE["chosen"]}, DIALOGUE | {"rejected": TURN + " "}
    table, left_out = read_preferences(lines(tmp_path / "a.jsonl", same, DIALOGUE, empty), "hh-rlhf")
    assert (len(table), left_out) == (1, 2)
    with pytest.raises(InputError, match="no usable pair"):
        read_preferences(lines(tmp_path / "b.jsonl", same), "hh-rlhf")


@pytest.mark.parametrize(
    ("dataset", "record", "message"),
    [
        ("hh-rlhf", {"chosen": "a"}, "expected a text under 'rejected', got NoneType"),
        ("hh-rlhf", {"chosen": 3, "rejected": "a"}, "expected a text under 'chosen', got int"),
        ("hh-rlhf", {"chosen": "hello", "rejected": "help"}, "the dialogues share no turn"),
        ("tldr", {"choice": 0}, "expected info, two summaries and choice"),
        ("tldr", SUMMARY | {"summaries": [{"text": "a"}]}, "expected info, two summaries and choice"),
        ("tldr", SUMMARY | {"choice": 2}, "choice must be 0 or 1, got 2"),
        ("ultrafeedback", MESSAGES | {"chosen": []}, "'chosen' must be a list of messages"),
        ("ultrafeedback", MESSAGES | {"rejected": MESSAGES["rejected"][:1]}, "'rejected' must be a list of messages"),
        ("ultrafeedback", MESSAGES | {"prompt": None}, "expected a text under 'prompt'"),
        ("hh-rlhf", [1], "expected a JSON object, got list"),
    ],
)
def test_records_of_another_shape_are_named_with_file_and_line(tmp_path, dataset, record, message):
    good = {"hh-rlhf": DIALOGUE, "tldr": SUMMARY, "ultrafeedback": MESSAGES}[dataset]
    source = lines(tmp_path / "a.jsonl", good, record)
    with pytest.raises(InputError, match=re.escape(f"{source}:2: {message}")):
        read_preferences(source, dataset)


def test_damaged_and_missing_sources(tmp_path):
    broken = tmp_path / "a.jsonl"
    broken.write_text(json.dumps(DIALOGUE) + "\n{", encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(f"{broken}:2: not valid JSON")):
        list(read_records(str(broken)))
    whole = gzip.compress(json.dumps(DIALOGUE).encode() * 50)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.jsonl\.gz:1: damaged file"):
        list(read_records(str(tmp_path / "b.jsonl.gz")))
    for source, message in ((tmp_path / "none.jsonl", "no such file"), ("data", "expected a .jsonl")):
        with pytest.raises(InputError, match=message):
            list(read_records(str(source)))
    with pytest.raises(InputError, match="dataset 'shp': unknown format; there are: hh-rlhf, tldr, ultrafeedback"):
        read_preferences(str(broken), "shp")


def test_hub_sources_name_a_data_set_its_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(name, configuration, *, split):
        asked.append((name, configuration, split))
        return [DIALOGUE, {"chosen": "x"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    records = list(read_records("owner/data#part:train"))
    assert [record.where for record in records] == ["owner/data#part:train:0", "owner/data#part:train:1"]
    with pytest.raises(InputError, match="owner/data:test:1: expected a text under 'rejected'"):
        read_preferences("owner/data:test", "hh-rlhf")
    assert asked == [("owner/data", "part", "train"), ("owner/data", None, "test")]
