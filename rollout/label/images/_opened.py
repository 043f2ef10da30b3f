"""An image opened for labelling: its pixels as they are shown, or why it cannot be looked at."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.example import image_sha256
from envs.images import ShownFile, View, image_header
from rollout.label.record import DECODED, LabelImage, Origin, Shown

UNREADABLE = "an image that cannot be opened"
HUGE = "an image of too many pixels"
SMALL = "an image of too few pixels"
NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
LEAST_SIDE = 16
"""Shorter side below which nothing can be outlined."""


def opened_file(index: int, origin: Origin, path: Path, most_pixels: int) -> Shown:
    """The image of a file; of an animation the first frame.

    Its header is read before any pixel is decoded, so that a small file of very many pixels costs nothing.
    """
    try:
        os.fsencode(path)  # a surrogate that no file system takes
        header = image_header(path)
        if header.height * header.width > most_pixels:
            return refused(index, origin, HUGE, f"{header.width} x {header.height}")
        pixels = ShownFile(path, origin.upright, View(origin.side)).pixels()
    except (ValueError, OSError) as error:
        return refused(index, origin, UNREADABLE, f"{error}")
    return shown(index, origin, pixels)


def shown(index: int, origin: Origin, pixels: NDArray[np.uint8]) -> Shown:
    """An image of pixels [H, W, 3]."""
    height, width = pixels.shape[:2]
    image = LabelImage(index, origin, height, width, image_sha256(pixels))
    if min(height, width) < LEAST_SIDE:
        return Shown(image.refuse(DECODED, SMALL, f"{width} x {height}"), NO_PIXELS)
    return Shown(image, pixels)


def refused(index: int, origin: Origin, reason: str, detail: str) -> Shown:
    """An image without pixels."""
    return Shown(LabelImage(index, replace(origin, truths=None)).refuse(DECODED, reason, detail), NO_PIXELS)
