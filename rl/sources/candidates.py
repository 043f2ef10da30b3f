"""`polytrace data candidates`: pools of masks to choose from, of SAM's automatic masks or of a policy's own answers.

Every object of an answer is a mask of its own, and the answers to all questions about an image make one pool: of
masks that are nearly the same the one that most answers agree on is kept. Masks are in the image's own pixels, however
a policy was shown it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from envs.example import ImageRef
from envs.geometry.pools import PoolRule, kept_masks
from envs.geometry.rle import mask_from_rle, rle_from_rings
from envs.plugin import Plugin
from envs.polygons import Answer, flatten_rings
from rl.config.plugins import env_plugin
from rl.config.run import RunConfig
from rl.pages.progress import StepProgress, bar
from rl.run.parts import run_parts
from rl.run.workers import answering
from rl.sources.pictures import (
    EnvImages,
    EnvSplits,
    ImagePlace,
    Picture,
    best_ious,
    config_env,
    image_places,
    refuse_one_file_twice,
)
from rl.sources.pool_file import ImagePool, PoolFile
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import ANSWER_COLUMNS, answer_from_row, truth_from_row
from rollout.records import Group
from rollout.worker import Unit

_AT_ONCE = 64
"""Questions that are asked before pools are written: what a stop costs."""


class Segments(Protocol):
    """What finds masks in an image."""

    def of(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """([M, H, W], [M]) masks of an image [H, W, 3] RGB, and how good each is said to be."""
        ...


@dataclass(frozen=True)
class Answering:
    """How a policy is asked for masks."""

    answers: int = 8
    """Answers that are drawn to each question."""
    temperature: float = 1.0
    """Temperature of drawing."""

    def __post_init__(self) -> None:
        if self.answers < 1 or not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"--answers is {self.answers} and --temperature {self.temperature}; draw 1 answer or more, at 0 or "
                "more."
            )


def segment(
    pictures: Iterable[Picture | ImagePool],
    file: PoolFile,
    segments: Segments,
    rule: PoolRule,
    total: int | None,
    console: Console,
) -> None:
    """Write the pool of each picture that is not done, of the masks that `segments` finds; total: of all images."""
    with StepProgress(console, "candidates", total, len(file.done)) as progress:
        for one in pictures:
            file.add(one if isinstance(one, ImagePool) else _segmented(one, segments, rule))
            progress.update(len(file.done))


def _segmented(picture: Picture, segments: Segments, rule: PoolRule) -> ImagePool:
    masks, scores = segments.of(picture.image)
    kept = kept_masks(masks, scores, rule)
    masks = masks[kept.places]
    made = ImagePool.of(picture.name, picture.file_bytes, masks, kept, picture.oracle(masks))
    return replace(made, upright=picture.upright)


class Drawn:
    """Masks that answers drew in one image: each by its run lengths, with how many answers drew just that."""

    def __init__(self, place: ImagePlace) -> None:
        """Raises as `read_image` where the image's file cannot be read."""
        self.place = place
        self.size, self._upright = place.own_size(), place.upright
        self._drawn = Counter[str]()
        self._unreadable = 0

    def add(self, answer: Answer) -> None:
        """The objects of an answer, which is in pixels of the view; nothing of one that cannot be read."""
        self._unreadable += not answer.status.valid
        for instance in answer.instances:
            rings = instance.rings_px
            if self.place.file is not None:
                rings = self.place.view.rings_px(rings, *self.size)
            self._drawn[rle_from_rings(*flatten_rings(rings), *self.size)] += 1

    def pool(self, rule: PoolRule, unions: Sequence[NDArray[np.bool_]]) -> ImagePool:
        """The pool of the image; unions: [h, w] what is true of each question, in the view."""
        masks = np.zeros((len(self._drawn), *self.size), np.bool_)
        for mask, counts in zip(masks, self._drawn, strict=True):
            mask[:] = mask_from_rle(counts, *self.size)
        kept = kept_masks(masks, np.array([*self._drawn.values()], np.float64), rule, by_agreement=True)
        masks = masks[kept.places]
        best = best_ious(masks, self.place.view, unions)
        made = ImagePool.of(self.place.name, self.place.file_bytes, masks, kept, best)
        return replace(made, unreadable=self._unreadable, upright=self._upright)


def gather(run: Path, file: PoolFile, rule: PoolRule, console: Console) -> None:
    """Write a pool for each image that a run has asked about, of the answers in its archive."""
    archive, plugin = RolloutArchive(run / "archive"), env_plugin(config_env(run))
    images, unions = _archived_images(archive, plugin)
    drawn: dict[str, Drawn] = {}
    for key, place in images.items():
        if place.name not in file.done:
            try:
                drawn[key] = Drawn(place)
            except (ValueError, OSError) as error:
                file.add(ImagePool.unusable(place.name, f"{error}"))
    key_of = {example: key for key, asked in unions.items() for example in asked}
    columns = ["example_id", *ANSWER_COLUMNS]
    for batch in bar(archive.rollouts(columns), "answers", console):
        for row in batch.to_pylist():
            if (into := drawn.get(key_of[row["example_id"]])) is not None:
                into.add(answer_from_row(row))
    with StepProgress(console, "candidates", len(images), len(file.done)) as progress:
        for key in list(drawn):
            true = [truth_from_row(row).union for row in unions[key].values() if row["asked"] in (None, "mask")]
            file.add(drawn.pop(key).pool(rule, true))
            progress.update(len(file.done))


def _archived_images(
    archive: RolloutArchive, plugin: Plugin
) -> tuple[dict[str, ImagePlace], dict[str, dict[str, Mapping[str, Any]]]]:
    """Images of an archive, and the rows of what was asked about each, by the image's key and the example's id."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    splits: dict[str, Any] = {}
    images = []
    for batch in archive.examples():
        for row in batch.to_pylist():
            key, split = row["image_key"], row["split"]
            if key not in rows:
                if split not in splits:
                    splits[split] = plugin.build(split=split)
                images.append((splits[split], ImageRef(key, row["image_sha256"], row["height"], row["width"])))
            rows.setdefault(key, {})[row["example_id"]] = row
    places = image_places(images)
    refuse_one_file_twice(places)
    return places, rows


@dataclass(frozen=True)
class Drawing:
    """A policy that is asked for masks."""

    config: RunConfig
    """How it is asked, with its checkpoint; the env is put in its place."""
    splits: EnvSplits
    """What it is asked about."""
    answering: Answering
    rule: PoolRule
    limit: int | None = None
    """Most images; None for all."""


def draw(asked: Drawing, file: PoolFile, console: Console) -> None:
    """Write a pool for each image of an env, of answers that a policy draws to its questions.

    Raises ValueError or FileNotFoundError, before the first answer, for what does not fit together.
    """
    images = EnvImages(asked.splits, console)
    keys = list(images.asked)[: asked.limit]
    for place, split in enumerate(asked.splits.splits):
        mine = [key for key in keys if images.asked[key][0] == place and images.places[key].name not in file.done]
        if not mine:
            continue
        config, called = _asking(asked.config, asked.splits, split)
        with (
            answering(config, run_parts(config), console) as pool,
            StepProgress(console, "candidates", len(keys)) as progress,
        ):
            for some in _by_questions(mine, images):
                groups = pool.answer(_units(config, called, asked.answering, images, some))
                _add_pools(groups, some, images, asked.rule, file)
                progress.update(len(file.done))


def _asking(config: RunConfig, splits: EnvSplits, split: str) -> tuple[RunConfig, str]:
    """The config about a split, and what it calls that: prepared examples need not have the splits of a run."""
    entry = dict(splits.entry)
    if entry["name"] != "shards":
        return replace(config, env=entry), split
    names = dict.fromkeys(("train", "validation", "test"), dict(entry.get("names", {})).get(split, split))
    return replace(config, env=entry | {"names": names}), "test"


def _by_questions(keys: Sequence[str], images: EnvImages) -> Iterator[list[str]]:
    """Images, so many at a time that they have about _AT_ONCE questions."""
    some, questions = list[str](), 0
    for key in keys:
        some.append(key)
        questions += len(images.asked[key][1])
        if questions >= _AT_ONCE:
            yield some
            some, questions = [], 0
    if some:
        yield some


def _units(
    config: RunConfig, split: str, answering: Answering, images: EnvImages, keys: Sequence[str]
) -> Iterator[Unit]:
    """All questions about some images; a question is answered alike whatever it is asked beside."""
    sampling = replace(config.sampling, temperature=answering.temperature, routing_replay=False)
    indices = [index for key in keys for index in images.asked[key][1]]
    for first in range(0, len(indices), config.unit_groups):
        some = tuple(indices[first : first + config.unit_groups])
        yield Unit(split, step=0, positions=some, indices=some, group_size=answering.answers, sampling=sampling)


def _add_pools(groups: Sequence[Group], keys: Sequence[str], images: EnvImages, rule: PoolRule, file: PoolFile) -> None:
    of_image: dict[str, list[Group]] = {}
    for group in groups:
        of_image.setdefault(group.example.image.key, []).append(group)
    for key in keys:
        try:
            drawn = Drawn(images.places[key])
        except (ValueError, OSError) as error:
            file.add(ImagePool.unusable(images.places[key].name, f"{error}"))
            continue
        for group in of_image[key]:
            for rollout in group.rollouts:
                drawn.add(rollout.answer)
        true = [group.example.truth.union for group in of_image[key] if group.example.prompt.asked == "mask"]
        file.add(drawn.pool(rule, true))
