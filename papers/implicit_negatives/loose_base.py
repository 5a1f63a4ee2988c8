"""A base model of the control: scenes with loose captions, and the testbed's training of the diffusion model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from papers.implicit_negatives.loose_captions import loose_caption
from papers.implicit_negatives.options import LooseOptions
from shared.errors import InputError
from shared.files import atomic_output, write_json
from shared.options import from_mapping
from shared.stage import make_deterministic
from shared.t2i.captions import sample_scene
from shared.t2i.options import DiffusionOptions, DrawOptions
from shared.t2i.pipeline import load_pipeline
from shared.t2i.scene_table import scene_text, write_scenes
from shared.t2i.stages.draw_scenes import training_spec
from shared.t2i.stages.train_diffusion import draw_sheet, train_diffusion

PIPELINE, SHEET, CHECK = "pipeline", "sheet.png", "check.json"
"""What the folder of a base model holds: the system, a sheet of what it draws, and its share of right images."""
_SCENES_KEY = 21

Options = TypeVar("Options")


def loose_base(
    captions: LooseOptions, draw: DrawOptions, diffusion: str, *, seed: int, conditioner: Path, state: Path
) -> Path:
    """Folder of a base model, which is trained if it is not in `state` yet.

    Args:
        captions: how they are loosened.
        draw: of the scenes of the diffusion model.
        diffusion: of its training, `DiffusionOptions` as JSON.
        seed: of scenes and training.
        conditioner: whose text encoder embeds captions.
        state: where a training that was interrupted goes on.

    Raises:
        InputError: options that are none.
    """
    folder, options = state / "base", from_json(diffusion, DiffusionOptions, "diffusion")
    if folder.exists():
        return folder
    write_scenes(state / "scenes.parquet", loose_scenes(captions, draw, seed))
    make_deterministic(seed)
    with atomic_output(folder) as partial:
        partial.mkdir()
        found = train_diffusion(
            options,
            seed=seed,
            scenes=state / "scenes.parquet",
            conditioner=conditioner,
            pipeline=partial / PIPELINE,
            curve=partial / "curve.parquet",
            sheets=partial / "sheets",
            state=state / "training",
        )
        write_json(partial / CHECK, found)
        draw_sheet(partial / SHEET, load_pipeline(partial / PIPELINE), options)
    return folder


def loose_scenes(captions: LooseOptions, draw: DrawOptions, seed: int) -> Iterator[dict[str, str]]:
    """Rows of loose captions with a scene each, drawn like those of the shared diffusion model otherwise."""
    rng = np.random.default_rng([seed, _SCENES_KEY, 1])
    for _ in range(draw.diffusion_scenes):
        spec = training_spec(rng, draw)
        scene = sample_scene(rng, spec)
        caption = loose_caption(rng, spec, word_dropout=captions.word_dropout, noun_noise=captions.noun_noise)
        yield {"caption": caption, "scene": scene_text(scene)}


def from_json(text: str, schema: type[Options], name: str) -> Options:
    """Options from the JSON text of a stage's argument.

    Raises:
        InputError: naming the argument, and the key.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: not valid JSON: {error.msg}") from None
    return from_mapping(values, schema, where=name)
