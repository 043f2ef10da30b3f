"""Brush masks of Label Studio: RGBA pixels, row by row, packed as a stream of bits. What is on is what has alpha.

The stream, most significant bits first: 32 bits, the number of values; 5 bits, the bits of a value less one; four times
4 bits, the bits of a length less one, in four sizes. Then records until all values are there: 1 bit, whether one value
is repeated; 2 bits, which size the length has; the length less one; the value, or as many values as the length says.
(The format is `rle-pack` of thi.ng/umbrella.)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_HEADER_BITS = 32 + 5 + 4 * 4
_CHANNELS = 4
_CUT = "brush RLE that is cut off"


@dataclass(frozen=True)
class BrushShape:
    """A brush mask, still packed."""

    packed: bytes
    height: int
    """H of the mask, that of the photo itself."""
    width: int
    """W of the mask, that of the photo itself."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """[height, width] the pixels with alpha; raises ValueError where they are of another size."""
        if (height, width) != (self.height, self.width):
            raise ValueError(f"the brush mask is {self.width} x {self.height} pixels and its photo {width} x {height}.")
        return _with_alpha(self.packed, height * width).reshape(height, width)


def brush_shape(packed: bytes, height: int, width: int) -> tuple[BrushShape, int]:
    """A mask of height x width pixels, and how many of them are on.

    Raises ValueError where the stream is cut off, or is of another number of pixels.
    """
    num_values = int.from_bytes(packed[:4], "big")
    if 8 * len(packed) < _HEADER_BITS or num_values != _CHANNELS * height * width:
        raise ValueError(f"brush RLE of {num_values} values, not {_CHANNELS} for each of {width} x {height} pixels")
    return BrushShape(packed, height, width), int(_with_alpha(packed, height * width).sum())


def _with_alpha(packed: bytes, num_pixels: int) -> NDArray[np.bool_]:
    """[num_pixels] whether each pixel has alpha; raises ValueError where the stream is cut off."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    text = (bits + ord("0")).tobytes()  # int() reads numbers of it
    word, sizes = int(text[32:37], 2) + 1, [int(text[k : k + 4], 2) + 1 for k in range(37, _HEADER_BITS, 4)]
    on = np.zeros(num_pixels, np.bool_)
    place, filled = _HEADER_BITS, 0
    while filled < _CHANNELS * num_pixels:
        start = place + 3 + sizes[int(text[place + 1 : place + 3] or b"0", 2)]
        length = int(text[place + 3 : start] or b"0", 2) + 1
        end = min(filled + length, _CHANNELS * num_pixels)
        num_words = 1 if text[place : place + 1] == b"1" else end - filled
        place = start + word * num_words
        if place > len(text):
            raise ValueError(_CUT)
        values = np.asarray(bits[start:place].reshape(-1, word).any(axis=1))
        # The alphas among values filled..end - 1 are those of pixels filled // 4 .. end // 4 - 1.
        alphas = values if num_words == 1 else values[(_CHANNELS - 1 - filled) % _CHANNELS :: _CHANNELS]
        on[filled // _CHANNELS : end // _CHANNELS] = alphas[: max(1, end // _CHANNELS - filled // _CHANNELS)]
        filled = end
    return on
