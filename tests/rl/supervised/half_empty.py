"""Env of two scenes: the first shows things, the second nothing of what is asked about."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.datasets import cutout_scenes
from envs.example import Example, ImageRef


@dataclass(frozen=True)
class Env:
    split: str
    shown: bool = True
    """Whether the first scene shows what is asked about."""

    @property
    def _scenes(self) -> Any:
        return cutout_scenes.Env(self.split, image_size=32, num_scenes=2)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Example:
        return self.scene(index)[0]

    def scene(self, index: int) -> list[Example]:
        examples: list[Example] = self._scenes.scene(index)
        if self.shown and index == 0:
            return examples
        return [replace(e, truth=replace(e.truth, masks=e.truth.masks[:0])) for e in examples]

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self._scenes.image(ref)
        return image
