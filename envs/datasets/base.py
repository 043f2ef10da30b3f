"""What a data set must offer to be an Env, and what it may offer beside; frames are those of envs/example.py."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from envs.example import Example, ImageRef
from envs.images import ShownFile


@runtime_checkable
class Env(Protocol):
    """A deterministic, picklable sequence of examples; equal settings give equal examples in any process."""

    split: str

    @property
    def fingerprint(self) -> str:
        """SHA-256, 64 hex digits, of what this split asks and of what is true: other masks, phrases or photos, another.

        A run that is resumed compares it, since answers must be judged by the truth that they were archived with.
        """
        ...

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """What a user should know of how the data was read: what was left out and why, and of each which entries."""
        ...

    def phrase_words(self) -> set[str]:
        """Words of every phrase that any split can ask, split at white space.

        What the word-level tokenizer of a new model must know.
        """
        ...

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at `index`; raises IndexError outside 0 .. len - 1."""
        ...

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        """Pixels of an image of this Env, [H, W, 3] uint8 RGB.

        Raises ValueError where they no longer have `ref.sha256`.
        """
        ...

    def scene(self, index: int) -> list[Example]:
        """Every question that can be asked about the image of example `index`, in a fixed order."""
        ...


@runtime_checkable
class NamesSplits(Protocol):
    """An Env that can say which splits its settings give, so that all of them are prepared without being named."""

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have examples."""
        ...


@runtime_checkable
class TellsLost(Protocol):
    """An Env of a data set some of whose questions cannot be asked."""

    @property
    def num_lost(self) -> int:
        """Questions of the split that its files have and that could not be used."""
        ...


@runtime_checkable
class AsksForms(Protocol):
    """An Env that may ask for boxes or points, and says so; any other asks for masks alone."""

    @property
    def asked(self) -> tuple[str, ...]:
        """What may be asked for, of ASKED of envs/example.py."""
        ...


@runtime_checkable
class FromFiles(Protocol):
    """An Env whose images are files, so that prepared shards may name the files and not hold their pixels."""

    def image_file(self, ref: ImageRef) -> ShownFile | None:
        """The file behind an image of this Env, and how it is shown; None for one whose pixels it holds or composes.

        Raises ValueError for an image that it does not have.
        """
        ...
