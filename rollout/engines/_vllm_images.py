"""Images as vLLM gets them: resized here, so that its own image processor finds nothing to resize.

It resizes by torchvision and the policy by Pillow, which round differently: where an image had to be resized, answers
would be sampled of other patches than the learner sees.
"""

from math import isqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from policies.processor import Processor

_MOST_RATIO = 200
"""Largest ratio of an image's sides that image processors take."""


def resized(processor: Processor, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image [H, W, 3] at the size that the model sees, of which the processor makes the same patches.

    Not resized where it would then be too thin for an image processor.
    """
    shown = processor.shown_image(image)
    height, width = processor.shown_size(*shown.shape[:2])
    if (height, width) == shown.shape[:2]:
        return shown
    how = Image.Resampling(processor.image_processor.resample)
    small = np.array(Image.fromarray(shown).resize((width, height), how))
    return small if processor.shown_image(small).shape == small.shape else shown


def image_limits(processor: Processor, max_model_len: int | None) -> dict[str, int]:
    """Limits of an image's area for vLLM that change no image which `resized` gave; none for some families.

    They are no wider than that takes, since vLLM encodes an image of the largest area when it is opened: an image of
    more tokens than `max_model_len` cannot be asked about.
    """
    limits = processor.engine_limits
    if not limits:
        return {}
    height, width = processor.shown_size(1024, 1024)
    pixels_each = height * width // processor.image_tokens(1024, 1024)
    # A strip of one row of tokens may be larger than the policy's own limit, which it cannot be thinned to.
    strip = isqrt(_MOST_RATIO * pixels_each * limits["max_pixels"]) + pixels_each
    most = max(limits["max_pixels"], strip)
    if max_model_len is not None:
        most = min(most, max_model_len * pixels_each)
    return {"min_pixels": pixels_each, "max_pixels": most}
