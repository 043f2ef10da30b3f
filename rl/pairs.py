"""Pairs for a refiner out of an archive: a coarse mask that the policy drew, beside the true one.

Kept are valid outlines of training examples with min_iou <= IoU <= max_iou, of these as many as rl/pair_rule.py allows.
Below min_iou the answer is about another object: a grounding error that a refiner must not learn to paper over.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from envs.polygons import AnswerStatus, Box, Ring, bounding_box_px, flatten_rings
from envs.raster import fill
from envs.rle import rle_from_mask
from rl.pair_rule import DEFAULT_RULE, Candidate, Chooser, PairRule
from rollout.archive import RolloutArchive
from rollout.records import ANSWER_COLUMNS, answer_from_row, truth_from_row

LEFT_OUT = {
    "example_missing": "its example is not in the archive",
    "not_training": "its example is not of the training split",
    "image_held_out": "its image is also in an example of another split",
    "no_outline": "the answer was empty or could not be read",
    "wrong_object": "its IoU is below min_iou: another object than the phrase means",
    "too_good": "its IoU is above max_iou",
    "duplicate": "the same outline as another answer to this example",
    "over_per_example": "its example has per_example pairs without it",
    "over_limit": "the limit was reached without its example",
}
"""Why an answer is no pair; the first reason that holds is counted."""

PLACE_COLUMNS = ("step", "position", "index")
"""Columns that find an answer in the archive of its run."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A coarse answer beside the true mask of its example."""

    example_id: str
    image_key: str
    """Where its Env finds the image."""
    image_sha256: str
    """See `envs.example.image_sha256`."""
    height: int
    """H, pixels."""
    width: int
    """W, pixels."""
    prompt: str
    """Text of the question."""
    coarse_rings: tuple[Ring, ...]
    """Rings of the answer, each [N, 2] float64 px; filled together they are the coarse mask."""
    true_rle: str
    """COCO RLE of all true instances together, [H, W]."""
    ignore_rle: str | None
    """COCO RLE of pixels that count neither way, [H, W], or None."""
    iou: float
    """Of coarse and true mask, 0..1, ignored pixels left out."""
    run: str
    step: int
    position: int
    index: int
    """With run, step and position: where the answer is in the archive."""
    policy_version: int
    """Version of the weights that drew it."""
    source: str
    """Where image and annotation came from."""
    licence: str
    """Licence of the image."""

    @property
    def coarse_mask(self) -> NDArray[np.bool_]:
        """[H, W] pixels of the answer."""
        return fill(*flatten_rings(self.coarse_rings), self.height, self.width)

    @property
    def box_px(self) -> Box:
        """Box (x0, y0, x1, y1) around the answer's vertices."""
        return bounding_box_px(np.concatenate(self.coarse_rings))


@dataclass(frozen=True)
class SelectionReport:
    """What became of the answers of an archive; kept and left out add up to answers."""

    answers: int
    """Answers read."""
    kept: int
    """Pairs made."""
    left_out: dict[str, int]
    """Answers left out, by reason (LEFT_OUT says what each means)."""


@dataclass(frozen=True)
class Selection:
    """Chosen pairs in archive order, and why the others were not."""

    pairs: list[Pair]
    report: SelectionReport


def select(archive: RolloutArchive, rule: PairRule = DEFAULT_RULE) -> Selection:
    """Choose pairs by `rule` (see rl/pair_rule.py), reading the archive twice, a shard at a time.

    Raises FileNotFoundError where there is no archive, ValueError where a shard cannot be read.
    """
    chooser = Chooser(rule)
    reasons = _reasons_by_example(archive)
    answers = 0
    for batch in archive.rollouts(["example_id", "status", "iou", *PLACE_COLUMNS, "vertices_px", "ring_offsets"]):
        _offer_batch(batch, reasons, chooser)
        answers += batch.num_rows
    places = chooser.chosen()
    left_out = {reason: chooser.left_out[reason] for reason in LEFT_OUT}
    return Selection(list(_pairs(archive, places)), SelectionReport(answers, len(places), left_out))


def select_pairs(
    archive: RolloutArchive,
    min_iou: float = 0.3,
    max_iou: float = 1.0,
    per_example: int = 4,
    limit: int | None = None,
    seed: int = 0,
) -> list[Pair]:
    """The pairs that `select` chooses by these settings (see PairRule)."""
    return select(archive, PairRule(min_iou, max_iou, per_example, limit, seed)).pairs


def _reasons_by_example(archive: RolloutArchive) -> dict[str, str | None]:
    """For each example of the archive why its answers cannot be pairs, or None where they can."""
    columns = ["example_id", "split", "image_sha256"]
    held_out = {sha for _, split, sha in _tuples(archive.examples(columns), columns) if split != "train"}
    reasons: dict[str, str | None] = {}
    for name, split, sha in _tuples(archive.examples(columns), columns):
        reasons[name] = "not_training" if split != "train" else "image_held_out" if sha in held_out else None
    return reasons


def _tuples(batches: Iterable[pa.RecordBatch], columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for batch in batches:
        yield from zip(*(batch[column].to_pylist() for column in columns), strict=True)


def _offer_batch(batch: pa.RecordBatch, reasons: Mapping[str, str | None], chooser: Chooser) -> None:
    outlines = zip(_list_bytes(batch["ring_offsets"]), _list_bytes(batch["vertices_px"]), strict=True)
    rows = _tuples([batch], ["example_id", "status", "iou", *PLACE_COLUMNS])
    for (name, status, iou, step, position, index), outline in zip(rows, outlines, strict=True):
        reason = reasons.get(name, "example_missing") or _reason(status, iou, chooser.rule)
        if reason:
            chooser.left_out[reason] += 1
        else:
            chooser.offer(name, iou, Candidate(chooser.rule.order(name.encode(), *outline), (step, position, index)))


def _reason(status: str, iou: float, rule: PairRule) -> str | None:
    if status != AnswerStatus.OK:
        return "no_outline"
    if iou < rule.min_iou:
        return "wrong_object"
    return "too_good" if iou > rule.max_iou else None


def _list_bytes(column: pa.ListArray) -> Iterator[bytes]:
    """The bytes of each list of numbers."""
    values = np.asarray(column.values)
    return (values[start:end].tobytes() for start, end in pairwise(np.asarray(column.offsets)))


def _pairs(archive: RolloutArchive, places: Mapping[tuple[int, int, int], str]) -> Iterator[Pair]:
    """Pairs of the answers at these places, in archive order; only their shards are read."""
    truths = _truths(archive, set(places.values()))
    steps = {step for step, _, _ in places}
    for batch in archive.rollouts(
        [*ANSWER_COLUMNS, *PLACE_COLUMNS, "example_id", "run", "iou", "policy_version"], steps
    ):
        wanted = [k for k, place in enumerate(_tuples([batch], PLACE_COLUMNS)) if place in places]
        for row in batch.take(pa.array(wanted, pa.int64())).to_pylist():
            rings = tuple(answer_from_row(row).rings_px)
            copied = {name: row[name] for name in (*PLACE_COLUMNS, "example_id", "run", "iou", "policy_version")}
            yield Pair(**copied, **truths[row["example_id"]], coarse_rings=rings)


def _truths(archive: RolloutArchive, example_ids: Container[str]) -> dict[str, dict[str, Any]]:
    """By example id, the fields of a Pair that its example gives."""
    columns = ("image_key", "image_sha256", "height", "width", "prompt", "source", "licence")
    truths = {}
    for batch in archive.examples(["example_id", *columns, "masks", "ignore"]):
        wanted = [k for k, name in enumerate(batch["example_id"].to_pylist()) if name in example_ids]
        for row in batch.take(pa.array(wanted, pa.int64())).to_pylist():
            masks = {"true_rle": rle_from_mask(truth_from_row(row).union), "ignore_rle": row["ignore"]}
            truths[row["example_id"]] = {**{name: row[name] for name in columns}, **masks}
    return truths
