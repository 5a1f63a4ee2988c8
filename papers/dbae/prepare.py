"""Prepare: read images that are not drawn into one file."""

from __future__ import annotations

from papers.dbae.image_data import read_images, write_image_data
from papers.dbae.options import DataOptions
from shared.stage import Output, run


def prepare(options: DataOptions, *, images: Output) -> dict[str, int]:
    """Write the images with their labels."""
    data = read_images(options)
    write_image_data(images, data)
    return {"images": len(data), "labels": len(data.class_names)}


if __name__ == "__main__":
    run(prepare)
