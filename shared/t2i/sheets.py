"""Sheets of small images, to look at."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


def save_sheet(path: Path, images: Tensor, *, columns: int, magnification: int = 6, gap: int = 1) -> None:
    """Write images (N, 3, H, W) in [-1, 1] as one PNG, row by row, enlarged without smoothing.

    Args:
        path: where to.
        images: values outside the range are clipped.
        columns: images in a row; the last row may be shorter.
        magnification: pixels of the sheet per pixel of an image.
        gap: pixels of an image between images, grey.
    """
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 128, np.uint8)
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        top, left = row * (height + gap) + gap, column * (width + gap) + gap
        sheet[top : top + height, left : left + width] = image
    enlarged = sheet.repeat(magnification, axis=0).repeat(magnification, axis=1)
    Image.fromarray(enlarged).save(path, optimize=True)
