"""Options travel from config.yaml to a command line without loss, and a mistake is one line that names it."""

from dataclasses import dataclass

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InputError
from shared.options import flags, from_mapping, read_scale


@dataclass(frozen=True)
class ModelOptions:
    width: int
    tied: bool = False


@dataclass(frozen=True)
class TrainOptions:
    learning_rate: float
    betas: tuple[float, ...]
    name: str = "gpt2"
    top_k: int | None = None
    model: ModelOptions = ModelOptions(8)


@dataclass(frozen=True)
class Scale:
    seeds: tuple[int, ...]
    train: TrainOptions
    grids: dict[str, tuple[float, ...]]


GOOD = """
scales:
  small:
    seeds: [0, 1]
    train: {learning_rate: 0.003, betas: [0.1, 1], model: {width: 64, tied: true}}
    grids: {wpr: [0.1, 0.3]}
"""


def scale(tmp_path, text, name="small"):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return read_scale(path, name, Scale)


def test_reads_a_scale(tmp_path):
    settings = scale(tmp_path, GOOD)
    assert settings == Scale((0, 1), TrainOptions(0.003, (0.1, 1.0), model=ModelOptions(64, True)), {"wpr": (0.1, 0.3)})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("learning_rate", "learning_rat", "scales.small.train: unknown key 'learning_rat'; known keys: learning_rate"),
        ("width", "widht", "scales.small.train.model: unknown key 'widht'"),
        ("0.003", "1e-3", "scales.small.train.learning_rate: input should be a valid number, got '1e-3'"),
        ("tied: true", "tied: 1", "scales.small.train.model.tied"),
        ("[0, 1]", "0", "scales.small.seeds"),
        ("width: 64, ", "", "scales.small.train.model.width: field required"),
        ("[0.1, 0.3]", "[0.1, x]", "scales.small.grids.wpr.1"),
        ("seeds: [0, 1]", "seeds: [0, 1", "config.yaml:5: not valid YAML"),
        ("seeds: [0, 1]", "seeds: [0]\n    seeds: [1]", "config.yaml:5: not valid YAML: repeated key 'seeds'"),
        ("small:", "large:", "no scale 'small'; there are: large"),
        ("scales:", "scale:", "expected a mapping under the key 'scales'"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(tmp_path, old, new, expected):
    with pytest.raises(InputError) as error:
        scale(tmp_path, GOOD.replace(old, new, 1))
    message = str(error.value)
    assert "config.yaml" in message and expected in message and "\n" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.yaml: no such file"):
        read_scale(tmp_path / "config.yaml", "small", Scale)


def test_a_merged_key_may_be_overridden(tmp_path):
    merged = (
        GOOD
        + """
  other:
    seeds: [2]
    train: &train {learning_rate: 0.1, betas: [1]}
    grids: {}
  third: {seeds: [3], train: {<<: *train, learning_rate: 0.2}, grids: {}}
"""
    )
    assert scale(tmp_path, merged, "third").train == TrainOptions(0.2, (1.0,))


@settings(deadline=None)  # a parser is made each time
@given(
    learning_rate=st.floats(allow_nan=False, allow_infinity=False),
    betas=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
    name=st.from_regex(r"[a-z][a-z/0-9-]{0,12}", fullmatch=True),
    top_k=st.none() | st.integers(-5, 10**6),
    width=st.integers(0, 10**6),
    tied=st.booleans(),
)
def test_flags_are_read_back_as_the_same_options(learning_rate, betas, name, top_k, width, tied):
    options = TrainOptions(learning_rate, tuple(betas), name, top_k, ModelOptions(width, tied))
    assert tyro.cli(TrainOptions, args=flags(options), config=(tyro.conf.OmitArgPrefixes,)) == options


def test_nested_errors_name_the_mapping_given():
    with pytest.raises(InputError, match=r"^here\.width"):
        from_mapping({"width": "8"}, ModelOptions, where="here")
