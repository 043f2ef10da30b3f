"""An image as a policy is shown it: shrunk so that its longer side fits, perhaps padded to a square.

The same for the photos of an env and for any other image that the policy is asked about. Frames: what is said about a
view is in its pixels; `rings_px` brings it back into those of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from envs.polygons import Ring, px_from_unit, unit_from_px

PADDING_GREY = 128


@dataclass(frozen=True)
class View:
    """How images are shown."""

    side: int | None = None
    """Pixels of the longer side; None shows them as they are."""
    square: bool = False
    """Whether the shorter side is padded with grey, on the right or below."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after resizing, before padding."""
        if self.side is None:
            return height, width
        scale = self.side / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The view [h, w, 3] uint8 of an RGB image."""
        height, width = self.size(image.height, image.width)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return self.padded(np.array(image, np.uint8), PADDING_GREY)

    def padded(self, pixels: NDArray[Any], value: int) -> NDArray[Any]:
        """Pixels [H, W, ...] with `value` on the right or below where the view is square; else as they are."""
        if not self.square:
            return pixels
        height, width = pixels.shape[:2]
        side = max(height, width)
        margins = [(0, side - height), (0, side - width), (0, 0)][: pixels.ndim]
        return np.pad(pixels, margins, constant_values=value)

    def rings_px(self, rings: Sequence[Ring], height: int, width: int) -> list[Ring]:
        """Rings [N, 2] in pixels of the view, in those of its image of height x width."""
        shown = self.size(height, width)
        return [px_from_unit(unit_from_px(ring, *shown), height, width) for ring in rings]
