"""Questions in words about images, as tests write them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.example import Prompt, Question


def ask(image: NDArray[np.uint8], phrase: str) -> Question:
    """A question about one image."""
    return Question(image, Prompt.of_text(phrase))


def ask_all(images: Sequence[NDArray[np.uint8]], phrases: Sequence[str]) -> list[Question]:
    """A question about each image."""
    return [ask(image, phrase) for image, phrase in zip(images, phrases, strict=True)]
