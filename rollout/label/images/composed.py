"""Images: scenes composed of cut-outs, whose truth is known and hidden; what a pipeline is tried on.

Their tags are the names of what is shown, as a web page's words may be, with some of what is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Any

import numpy as np

from envs.datasets.base import Env
from envs.example import Example
from envs.geometry.rle import rle_from_mask
from envs.plugin import Plugin
from envs.ranges import at_least
from rollout.label.images._opened import shown
from rollout.label.record import HiddenTruth, Origin, Shown

_SCENES = "cutout_scenes"


@dataclass(frozen=True)
class Images:
    """The first scenes of a split."""

    num: Annotated[int, at_least(1)] = 1000
    """How many."""
    split: str = "train"
    """Split whose scenes they are."""
    first: Annotated[int, at_least(0)] = 0
    """Number of the first scene in the split."""
    wrong_tags: Annotated[int, at_least(0)] = 1
    """Names among the tags of something that the scene does not show."""
    env: dict[str, Any] = field(default_factory=dict)
    """Settings of the scenes (envs/datasets/cutout_scenes.py)."""

    @cached_property
    def _env(self) -> Env:
        settings = {"num_scenes": self.first + self.num, **self.env}
        env: Env = Plugin("envs.datasets", "Env", _SCENES, settings).build(split=self.split)
        return env

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the scenes and of which of them are meant."""
        return sha256(f"{self._env.fingerprint} {self.first} {self.num} {self.wrong_tags}".encode()).hexdigest()

    def __len__(self) -> int:
        """How many scenes."""
        return self.num

    def read(self, index: int) -> Shown:
        """A scene; its pixels go into the shards."""
        asked = self._env.scene(self.first + index)
        example = asked[0]
        origin = Origin(
            key=example.image.key,
            source=example.source,
            licence=example.licence,
            tags=self._tags(asked, index),
            truths=tuple(truths_of(asked)),
        )
        return shown(index, origin, self._env.image(example.image))

    def _tags(self, asked: list[Example], index: int) -> tuple[str, ...]:
        names = list(dict.fromkeys(name_of(one) for one in asked if one.truth.masks.size))
        others = sorted(self._names - set(names))
        chosen = np.random.default_rng((index, 7)).choice(len(others), min(self.wrong_tags, len(others)), False)
        return (*names, *(others[place] for place in sorted(chosen)))

    @cached_property
    def _names(self) -> set[str]:
        names: tuple[str, ...] = self._env.names  # type: ignore[attr-defined]  # what this env has beside
        return set(names)


def name_of(example: Example) -> str:
    """The name of what is asked for, without the word that tells it from another of its kind."""
    words = example.prompt.text.split(" ")
    return " ".join(words[2:] if words[0] == "the" and len(words) > 2 else words)


def truths_of(asked: list[Example]) -> list[HiddenTruth]:
    """What is true of a scene: each object by the phrase that asks for it, and by its name."""
    named: Mapping[tuple[str, str], None] = {
        (phrase, rle_from_mask(mask)): None
        for one in asked
        for mask in one.truth.masks
        for phrase in (one.prompt.text, name_of(one))
    }
    return [HiddenTruth(phrase, mask) for phrase, mask in named]
