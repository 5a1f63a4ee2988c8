from pathlib import Path

import pytest

from papers.bpo.options import DataOptions
from papers.bpo.prepare import prepare
from shared.lm.options import DecoderOptions, FinetuneOptions
from shared.lm.stages.finetune import finetune
from shared.training_options import TrainingOptions

DATA = ("words", "supervised", "pairs", "held_out", "prompts", "references")


def data_paths(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in DATA}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> dict[str, Path]:
    """The testbed's data at the smallest size, and a barely trained supervised model."""
    folder = tmp_path_factory.mktemp("bpo-data")
    paths = data_paths(folder)
    prepare(DataOptions(64, 16, 4), seed=3, kappa=4.0, **paths)
    options = FinetuneOptions(
        TrainingOptions(epochs=6, batch_size=32, learning_rate=0.01),
        decoder=DecoderOptions(layers=1, width=16, heads=2, dropout=0.1),
        max_prompt_tokens=4,
        max_answer_tokens=13,
    )
    finetune(
        options,
        seed=3,
        examples=paths["supervised"],
        words=paths["words"],
        model=folder / "model",
        curve=folder / "curve",
        state=folder / "state",
    )
    return paths | {"model": folder / "model"}
