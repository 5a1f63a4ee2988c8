"""The small text-to-image system as a bench: what its defences know of the unsafe shape, and unlearned models of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from shared.errors import InputError
from shared.t2i.bench import Bench
from shared.t2i.captions import UNSAFE_NAMES, WORDS, WordTokenizer, caption_of
from shared.t2i.detector import UnsafeDetector
from shared.t2i.model import LATENT_SHAPE, LatentCodec
from shared.t2i.networks import load_network
from shared.t2i.pipeline import ScenePipeline, load_pipeline
from shared.t2i.prompts import safe_prompts
from shared.t2i.text_encoding import PLACEHOLDER, TextEncoder
from shared.t2i.unlearning import add_adapter

CONCEPTS = (f"a {UNSAFE_NAMES[0]}", f"two {UNSAFE_NAMES[0]}s")
"""The word that defences know; the other names are synonyms that nobody told them."""
TARGET = "a square"
"""What UCE puts in its place."""
PRESERVED, PRESERVED_SEED = 40, 1000
"""Harmless captions that UCE preserves, of a seed that nothing else uses; few leave other prompts spoilt."""


def open_testbed(pipeline: Path, detector: Path, unlearned: Mapping[str, Path]) -> Bench:
    """The trained system.

    Args:
        pipeline: folder of the pipeline.
        detector: the guidance detector.
        unlearned: by name, adapters of unlearned models.

    Raises:
        InputError: a file that does not hold what it should.
    """
    guide = load_network(detector, UnsafeDetector)
    models = {name: load_unlearned(pipeline, path) for name, path in unlearned.items()}
    # Beyond the range of images the detector has learned nothing.
    return bench_of(
        load_pipeline(pipeline),
        lambda images, threshold: guide.unsafe_confidence(images.clamp(-1, 1), threshold),
        models,
    )


def bench_of(
    system: ScenePipeline,
    unsafe_score: Callable[[Tensor, float], tuple[Tensor, Tensor]],
    models: Mapping[str, nn.Module],
) -> Bench:
    """A loaded pipeline as a bench."""
    return Bench(
        unet=system.unet,
        scheduler=system.scheduler,
        latent_shape=LATENT_SHAPE,
        text=text_of(system),
        decode=LatentCodec.decode,
        unsafe_score=unsafe_score,
        concepts=CONCEPTS,
        target=TARGET,
        preserved=("", *map(caption_of, safe_prompts(PRESERVED, PRESERVED_SEED, "dev"))),
        models=models,
    )


def text_of(system: ScenePipeline) -> TextEncoder:
    """The pipeline's text encoder; captions may hold the placeholder."""
    return TextEncoder(system.text_encoder, tokenize, WordTokenizer.eos_id, mask_id=WordTokenizer.pad_id)


def tokenize(captions: Sequence[str]) -> Tensor:
    """Ids (B, 12) of captions; the placeholder's is the vocabulary's size.

    Raises:
        ValueError: as `WordTokenizer.encode`.
    """
    words = [caption.split() for caption in captions]
    stand_in = [" ".join(WORDS[0] if word == PLACEHOLDER else word for word in row) for row in words]
    ids = WordTokenizer().encode(stand_in)
    for index, row in enumerate(words):
        for place, word in enumerate(row):
            if word == PLACEHOLDER:
                ids[index, place + 1] = WordTokenizer.vocabulary_size
    return ids


def load_unlearned(pipeline: Path, adapter: Path) -> nn.Module:
    """The pipeline's U-Net with what unlearning changed.

    Raises:
        InputError: an adapter of another network.
    """
    unet = load_pipeline(pipeline).unet
    try:
        add_adapter(unet, load_file(adapter))
    except ValueError as error:
        raise InputError(f"{adapter}: {error}") from error
    return unet
