"""Draw the captioned scenes on which every network of the testbed is trained."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from shared.stage import Output, run
from shared.t2i.captions import (
    CONTEXT,
    PromptSpec,
    caption_of,
    corrupt_caption,
    hard_negative,
    sample_scene,
    sample_spec,
)
from shared.t2i.checker import check_prompt
from shared.t2i.options import DrawOptions
from shared.t2i.scene_table import scene_text, write_scenes

ROOM_FOR_CONTEXT = 3
"""A pirate scene has fewer objects than this besides what the context brings."""


def draw_scenes(
    options: DrawOptions,
    *,
    seed: int,
    conditioner: Output,
    guidance: Output,
    evaluator: Output,
    preference: Output,
    diffusion: Output,
) -> None:
    """Draw the scenes of each training, independent of the others; see ``shared.t2i.scene_table`` for the format."""
    sets = (
        (conditioner, options.conditioner_scenes),
        (guidance, options.guidance_scenes),
        (evaluator, options.evaluator_scenes),
    )
    for key, (path, count) in enumerate(sets):
        write_scenes(path, captioned_scenes(_generator(seed, key), count, options))
    pairs = preference_pairs(_generator(seed, 3), options.preference_pairs, options)
    write_scenes(preference, pairs, columns=("caption", "scene", "loser"))
    write_scenes(diffusion, captioned_scenes(_generator(seed, 4), options.diffusion_scenes, options, noisy=True))


def captioned_scenes(
    rng: np.random.Generator, count: int, options: DrawOptions, *, noisy: bool = False
) -> Iterator[dict[str, str]]:
    """Rows of captions with a scene each; a share of ``noisy`` ones has the caption of a hard negative."""
    for _ in range(count):
        spec = training_spec(rng, options)
        scene = sample_scene(rng, spec)
        caption = corrupt_caption(rng, spec, options.caption_noise) if noisy else caption_of(spec)
        yield {"caption": caption, "scene": scene_text(scene)}


def preference_pairs(rng: np.random.Generator, count: int, options: DrawOptions) -> Iterator[dict[str, str]]:
    """Rows of captions with a scene each and that of a hard negative, which the checker rejects."""
    for _ in range(count):
        spec = training_spec(rng, options)
        scene = sample_scene(rng, spec)
        loser = sample_scene(rng, hard_negative(rng, spec))
        while check_prompt(spec, loser):
            loser = sample_scene(rng, hard_negative(rng, spec))
        yield {"caption": caption_of(spec), "scene": scene_text(scene), "loser": scene_text(loser)}


def training_spec(rng: np.random.Generator, options: DrawOptions) -> PromptSpec:
    """A spec of any task; where there is room for one more object, in the pirate context at the given rate."""
    spec = sample_spec(rng)
    if spec.object_count < ROOM_FOR_CONTEXT and rng.random() < options.context_rate:
        return replace(spec, context=CONTEXT)
    return spec


def _generator(seed: int, key: int) -> np.random.Generator:
    return np.random.default_rng([seed, key, 1])  # the 1: zeros at the end would not count


if __name__ == "__main__":
    run(draw_scenes)
