"""What a detector sees in an image that it is asked names about, whichever detector it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sightings:
    """Boxes above the threshold in one image, before any is compared with another; M of them."""

    boxes_px: NDArray[np.float64]
    """[M, 4] (x0, y0, x1, y1) in pixels of the image, which they may leave."""
    names: NDArray[np.int64]
    """[M] places of their names among those asked."""
    scores: NDArray[np.float64]
    """[M] in 0..1"""
    unnamed: int = 0
    """Boxes above the threshold that stand for no name, which are not among the M."""

    def of_names(self, first: int) -> "Sightings":
        """The same, with places in a longer list in which the names asked begin at `first`."""
        return replace(self, names=self.names + first)


class Detector(Protocol):
    """A detector that takes any names."""

    def reading(self, name: str) -> str:
        """What the model reads of a name; of two with one reading only one can be asked."""
        ...

    def reads(self, name: str) -> bool:
        """Whether there is something to read in a name and the model reads it to its end."""
        ...

    def parts(self, names: Sequence[str]) -> list[slice]:
        """The names in parts that can be asked at once; none without names."""
        ...

    def look(self, images: Sequence[NDArray[np.uint8]], names: Sequence[Sequence[str]]) -> list[Sightings]:
        """[images] what is seen in images [H, W, 3] of one size, of some names, at least one, for each."""
        ...
