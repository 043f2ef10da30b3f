"""Labels as example shards, which `sft` and `train` open at once, with every object that was found beside them.

OUT/train/...                       shards of the split (envs/shards/files.py)
OUT/objects/objects-00000.parquet   what was found in the images of a shard, kept or refused (rollout/label/objects.py)
OUT/progress-00000.json             how far the labels are after a shard
OUT/timings-00000.json              what each stage took for the images of a shard (rollout/label/timings.py)

Shards end at ends of blocks and by what is in them alone, so that they are the same however often the work was stopped.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.example import Example, ImageRef, Prompt, Truth
from envs.images import ShownFile, View
from envs.shards.files import Card
from envs.shards.rows import Scene, example_row
from rollout.disk import replace_text, whole_file, writing
from rollout.label.objects import SCHEMA, object_rows, objects_path
from rollout.label.pipeline import LabelledBlock
from rollout.label.record import LabelImage, LabelObject
from rollout.label.timings import Spent, Timings
from rollout.photo_shards import next_fingerprint
from rollout.shard_writer import About, ShardWriter

SHARD_IMAGES = 8192
"""Images after which a shard ends, however few labels there are."""


@dataclass(frozen=True)
class Written:
    """What is written of labels."""

    split: str = "train"
    """Split that the examples are of."""
    data_set: str = "labels"
    """First part of the examples' ids."""
    candidates: bool = False
    """Whether the objects of an image go with each question as masks to choose from."""


@dataclass
class Progress:
    """How far the labels are; kept beside each shard."""

    images: int = 0
    """Images that are written."""
    empty: int = 0
    """Of them those that could be opened and in which no stage found anything."""
    fingerprint: str = ""
    """SHA-256 over the rows of the shards."""
    found: int = 0
    """Objects that any stage found."""
    kept: int = 0
    """Objects that became labels."""
    refused: dict[str, int] = field(default_factory=dict)
    """Objects that were refused, by stage."""
    refused_images: dict[str, int] = field(default_factory=dict)
    """Images that were refused as a whole, by stage."""


class LabelWriter:
    """One folder of labels, written image by image."""

    def __init__(self, out: Path, written: Written, provenance: Mapping[str, Any], fingerprint: str) -> None:
        """Begin in `out`, or go on there.

        provenance: images and stages, in terms of JSON; fingerprint: that of the images. Raises ValueError where the
        folder holds other labels.
        """
        self.out, self._written = out, written
        provenance = {**provenance, "images_sha256": fingerprint, **asdict(written)}
        self._shards = ShardWriter(out / written.split, provenance, None)
        self.progress = Progress()
        self.timings = Timings()
        """What the stages took since this job began or went on."""
        self._shard_timings = Timings()
        self._rows: list[dict[str, Any]] = []
        self._words, self._since_shard = set[str](), 0
        if self._shards.num_shards:
            self._go_on()

    @property
    def is_whole(self) -> bool:
        """Whether all is written already."""
        return self._shards.is_whole

    def _progress_path(self, part: int) -> Path:
        return self.out / f"progress-{part:05d}.json"

    def _go_on(self) -> None:
        last = self._shards.num_shards - 1
        held = json.loads(self._progress_path(last).read_text(encoding="utf-8"))
        for part in range(last + 1):
            beside = json.loads(self._progress_path(part).read_text(encoding="utf-8"))
            self._words |= set(beside["words"])
        self.progress = Progress(**held["progress"])

    def add(self, block: LabelledBlock) -> None:
        """Write a block of images; a shard ends behind it where it is full."""
        began = time.perf_counter(), time.process_time()
        self._take(len(block.images), block.spent)
        for one in block.images:
            self._add_image(one.image, one.png)
        if self._shards.is_full or self._since_shard >= SHARD_IMAGES:
            self._end_shard()
        self._take(0, {"write": Spent(time.perf_counter() - began[0], time.process_time() - began[1])})

    def _take(self, images: int, spent: Mapping[str, Spent]) -> None:
        for timings in (self.timings, self._shard_timings):
            timings.add(images, spent)

    def _add_image(self, image: LabelImage, png: bytes | None) -> None:
        examples = list(self._examples(image)) if image.is_open else []
        ids: dict[int, str] = {}
        for example, members in examples:
            for number in members:
                ids.setdefault(number, example.id)
        self._add_examples(image, [example for example, _ in examples], png)
        rows = list(object_rows(image, ids))
        self._rows += rows
        progress = self.progress
        progress.images += 1
        progress.found += image.next_number
        progress.kept += len(ids)
        progress.empty += image.is_open and not image.next_number
        for row in rows:
            if row.get("stage"):
                counts = progress.refused_images if row.get("number") is None else progress.refused
                counts[row["stage"]] = counts.get(row["stage"], 0) + 1
        self._since_shard += 1

    def _add_examples(self, image: LabelImage, examples: list[Example], png: bytes | None) -> None:
        origin, place = image.origin, Scene(self._shards.num_rows, len(examples))
        file = None
        if origin.file is not None:
            file = ShownFile(Path(origin.file), origin.upright, View(origin.side))
        for k, example in enumerate(examples):
            row = example_row(example, place, file, png if k == 0 and file is None else None)
            self.progress.fingerprint = next_fingerprint(self.progress.fingerprint, row)
            self._words.update(example.prompt.text.split())
            self._shards.order.append(self._shards.num_rows)
            self._shards.add_row(row)

    def _examples(self, image: LabelImage) -> Iterator[tuple[Example, tuple[int, ...]]]:
        """The examples of an image, each with the numbers of its objects: one for each phrase, then the groups."""
        ready = [found for found in image.objects if found.phrase and found.mask is not None]
        of_number = {found.number: found for found in ready}
        asked: dict[str, list[LabelObject]] = {}
        for found in ready:
            asked.setdefault(found.phrase or "", []).append(found)
        for group in image.groups:
            members = [of_number[number] for number in group.members if number in of_number]
            if group.phrase not in asked and len(members) == len(group.members):
                asked[group.phrase] = members
        origin = image.origin
        reference = ImageRef(origin.key, image.sha256, image.height, image.width)
        pool = self._masks(image, ready) if self._written.candidates else None
        for k, (phrase, members) in enumerate(asked.items()):
            truth = Truth(self._masks(image, members))
            name = f"{self._written.data_set}/{image.index}/{k}"
            source = origin.address or origin.source
            licence = origin.licence or "unknown"
            example = Example(
                name, reference, Prompt.of_text(phrase), truth, self._written.split, source, licence, pool
            )
            yield example, tuple(found.number for found in members)

    @staticmethod
    def _masks(image: LabelImage, objects: list[LabelObject]) -> np.ndarray:
        masks = np.zeros((len(objects), image.height, image.width), np.bool_)
        for mask, found in zip(masks, objects, strict=True):
            mask[:] = image.mask(found)
        return masks

    def _end_shard(self) -> None:
        """Write what was found, how far it is, and the shard; that comes last, and counts where it is there."""
        part = self._shards.num_shards
        path = objects_path(self.out, part)
        with writing(path.name, path), whole_file(path) as partial:
            pq.write_table(pa.Table.from_pylist(self._rows, SCHEMA), partial, compression="zstd")
        beside = {"progress": asdict(self.progress), "words": sorted(self._words)}
        replace_text(self._progress_path(part), json.dumps(beside))
        self._shard_timings.write(self.out, part)
        self._shards.write_shard()
        self._rows, self._since_shard, self._shard_timings = [], 0, Timings()

    def finish(self) -> Card:
        """Write what is left and, last, the card; every image must have been added."""
        if self._since_shard or not self._shards.num_shards:
            self._end_shard()
        progress = self.progress
        notes = {f"objects refused by {stage}": [f"{count:,}"] for stage, count in progress.refused.items()}
        notes |= {f"images refused by {stage}": [f"{count:,}"] for stage, count in progress.refused_images.items()}
        fingerprint = progress.fingerprint or hashlib.sha256(b"").hexdigest()
        return self._shards.finish(About(fingerprint, notes, self._words))
