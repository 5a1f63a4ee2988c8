"""Prepare: read the images that a scale names into one file."""

from __future__ import annotations

from papers.udim.image_sets import read_images, write_image_set
from papers.udim.options import DataOptions
from shared.stage import Output, run


def prepare(options: DataOptions, *, images: Output) -> dict[str, int]:
    """Write the images with their classes and domains."""
    image_set = read_images(options)
    write_image_set(images, image_set)
    return {name: int((image_set.domains == number).sum()) for number, name in enumerate(image_set.names)}


if __name__ == "__main__":
    run(prepare)
