"""Env: the examples of another one, asked in other ways: SimpleSeg's four words text, point, box and mask combined.

A mask gives its box and points inside it, so one annotated mask serves every task. Which task an example becomes is
drawn by its id and the shares, the same in any process. Its id begins with the task, so scores are told by task.

    text_to_mask, text_to_box, text_to_point    the phrase; all its objects, a box or a point for each
    point_to_mask, point_to_box, box_to_mask    a place in or around one of the objects; that one object
    text_mask_to_mask                           the phrase and a region drawn in few vertices; all its objects

What nothing fits has no place to point at: such an example asks by text for what its task asks for.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from envs.datasets.base import Env as AnyEnv
from envs.datasets.base import FromFiles, NamesSplits, TellsLost
from envs.example import PART_END, BoxPart, Example, ImageRef, MaskPart, PointPart, Prompt, Truth
from envs.geometry.masks import tight_box_px
from envs.images import ShownFile
from envs.plugin import Plugin, did_you_mean
from envs.polygons import Box

TASKS: Mapping[str, tuple[str, str]] = {
    "text_to_mask": ("text", "mask"),
    "text_to_box": ("text", "box"),
    "text_to_point": ("text", "point"),
    "point_to_mask": ("point", "mask"),
    "point_to_box": ("point", "box"),
    "box_to_mask": ("box", "mask"),
    "text_mask_to_mask": ("text_mask", "mask"),
}
"""By name of a task, what it shows and what it asks for."""
_INNER_SHARE = 0.5
"""A point of a question lies at least this far inside, of the farthest that any pixel of its object does."""


@dataclass
class Env:
    """The examples of `of`, each as one task; raises ValueError for tasks that are not there, and as `of` does."""

    split: str
    """A split of the env that is asked."""
    of: dict[str, Any] = field(default_factory=dict)
    """Entry of the env that is asked, such as {name: shards, folder: ...}."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Share of each task, by a name of TASKS; shares are scaled to sum to 1. Without any, text_to_mask alone."""
    seed: int = 0
    """Which example becomes which task, and which pixel is pointed at."""

    def __post_init__(self) -> None:
        """Check the shares and build the env."""
        for name, share in self.tasks.items():
            if name not in TASKS:
                raise ValueError(
                    f"env.tasks has {name!r}{did_you_mean(name, list(TASKS))} There are: {', '.join(TASKS)}."
                )
            if not 0 < share < np.inf:
                raise ValueError(f"env.tasks.{name} is {share}; give a share above 0, or leave the task out.")
        named = self.of.get("name") or self.of.get("module")
        if not isinstance(named, str):
            raise ValueError("env.of has no name; write the entry of an env, such as {name: shards, folder: ...}.")
        settings = {key: value for key, value in self.of.items() if key not in ("name", "module")}
        plugin = Plugin("envs.datasets", "Env", named, settings, self.of.get("module"))
        self._env: AnyEnv = plugin.build(split=self.split)
        shares = self.tasks or {"text_to_mask": 1.0}
        self._names = tuple(shares)
        self._bounds = np.cumsum([*shares.values()]) / sum(shares.values())

    @property
    def asked(self) -> tuple[str, ...]:
        """What may be asked for: "mask", "box", "point"."""
        return tuple(dict.fromkeys(TASKS[name][1] for name in self._names))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the env's fingerprint, the shares and the seed."""
        return hashlib.sha256(f"{self._env.fingerprint}:{self.tasks!r}:{self.seed}".encode()).hexdigest()

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """What was left out or decided by the env that is asked."""
        return self._env.notes

    @property
    def num_lost(self) -> int:
        """Questions that the env could not ask."""
        return self._env.num_lost if isinstance(self._env, TellsLost) else 0

    def phrase_words(self) -> set[str]:
        """Words of every phrase of the env that is asked."""
        return self._env.phrase_words()

    def splits(self) -> tuple[str, ...]:
        """Names of the splits of the env that is asked."""
        return self._env.splits() if isinstance(self._env, NamesSplits) else (self.split,)

    def __len__(self) -> int:
        """Number of examples, that of the env."""
        return len(self._env)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, as its task asks it."""
        return self._asked(self._env[index])

    def scene(self, index: int) -> list[Example]:
        """Every example of the image of example `index`, each as its task asks it."""
        return [self._asked(example) for example in self._env.scene(index)]

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        """The image [H, W, 3] RGB, that of the env."""
        return self._env.image(ref)

    def image_file(self, ref: ImageRef) -> ShownFile | None:
        """The file behind an image; None where the env composes its images."""
        return self._env.image_file(ref) if isinstance(self._env, FromFiles) else None

    def _asked(self, example: Example) -> Example:
        draws = draws_of(f"{self.seed}:{example.id}")
        name = self._names[int(np.searchsorted(self._bounds, draws.random(), side="right"))]
        return as_task(example, name, draws)


def draws_of(key: str) -> np.random.Generator:
    """Random numbers that follow from a text, the same in any process."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))


def as_task(example: Example, name: str, draws: np.random.Generator) -> Example:
    """An example that asks for a mask by text, as another task of TASKS; its id begins with the task.

    draws: which object is meant, and which pixel is pointed at. A question that already shows more than text, or asks
    for something else, stays as it is.
    """
    shown, asked = TASKS[name]
    prompt, masks = example.prompt, [mask for mask in example.truth.masks if mask.any()]
    if prompt.asked != "mask" or not prompt.text:
        return example
    called = replace(example, id=f"{name}{PART_END}{example.id}")
    if shown == "text" or not len(masks):
        return replace(called, prompt=Prompt(prompt.parts, asked))
    mask = masks[int(draws.integers(len(masks)))]
    if shown == "text_mask":
        return replace(called, prompt=Prompt((*prompt.parts, MaskPart(mask)), asked))
    truth = Truth(mask[None], _others(example.truth, mask))
    part = PointPart(inner_point_px(mask, draws)) if shown == "point" else BoxPart(box_px(mask))
    return replace(called, prompt=Prompt((part,), asked), truth=truth)


def box_px(mask: NDArray[np.bool_]) -> Box:
    """(x0, y0, x1, y1) tightly around the pixels of `mask` [H, W], of which there is one or more."""
    box = tight_box_px(mask)
    if box is None:
        raise ValueError("a mask without a pixel has no box.")
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def _others(truth: Truth, mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """What stays to be ignored, less the object itself."""
    return None if truth.ignore is None else truth.ignore & ~mask


def inner_point_px(mask: NDArray[np.bool_], draws: np.random.Generator | None = None) -> tuple[float, float]:
    """(x, y) of a pixel centre inside of `mask` [H, W], which has one: the innermost, or, by `draws`, one well inside.

    Well inside: at least half as far from the outside as the innermost.
    """
    padded = np.pad(mask, 1)
    depth = np.asarray(distance_transform_edt(padded))[1:-1, 1:-1]
    if draws is None:
        row, column = divmod(int(depth.argmax()), mask.shape[1])
    else:
        inside = np.argwhere(depth >= _INNER_SHARE * depth.max())
        row, column = inside[int(draws.integers(len(inside)))].tolist()
    return column + 0.5, row + 0.5
