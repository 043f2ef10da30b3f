"""Pairs for a refiner out of an archive: a coarse mask that the policy drew, beside the true one.

Kept are valid outlines of training examples with min_iou <= IoU <= max_iou, each outline of an example once. Below
min_iou the answer is about another object: a grounding error that a refiner must not learn to paper over. Of these at
most `per_example` an example, spread over IoU: the range is cut into `per_example` equal bins, and the bins take turns,
the lowest first, each giving its outlines in a seeded order. With a limit, examples come in a seeded order until it is
reached. Memory holds only what may still be chosen: at most `per_example` outlines a bin, and `limit` examples.
"""

import hashlib
import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from envs.polygons import AnswerStatus, Box, Ring, bounding_box_px, flatten_rings
from envs.raster import fill, rle_from_mask
from rollout.archive import RolloutArchive, write_shard
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

_PLACE = ("step", "position", "index")

PAIR_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("prompt", pa.string()),
        ("image_key", pa.string()),
        ("image_sha256", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("coarse_rle", pa.string()),
        ("true_rle", pa.string()),
        ("ignore_rle", pa.string()),
        ("iou", pa.float64()),
        ("box_px", pa.list_(pa.float64())),
        ("run", pa.string()),
        *((name, pa.int64()) for name in (*_PLACE, "policy_version")),
        ("source", pa.string()),
        ("licence", pa.string()),
    ]
)
"""Columns of pairs.parquet: the fields of Pair, its coarse mask as COCO RLE, and its box."""


@dataclass(frozen=True)
class PairRule:
    """Which answers become pairs."""

    min_iou: float = 0.3
    """Lowest IoU kept, 0..1."""
    max_iou: float = 1.0
    """Highest IoU kept, min_iou..1."""
    per_example: int = 4
    """Most pairs of one example."""
    limit: int | None = None
    """Most pairs in all; None for no limit."""
    seed: int = 0
    """Key of every random choice."""

    def __post_init__(self) -> None:
        """Raises ValueError on a setting that can keep nothing."""
        if not 0 <= self.min_iou <= self.max_iou <= 1:
            raise ValueError(
                f"min_iou is {self.min_iou} and max_iou {self.max_iou}; set them so that 0 <= min_iou <= max_iou <= 1."
            )
        if self.per_example < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"per_example is {self.per_example} and limit {self.limit}; set each to 1 or more.")

    def iou_bin(self, iou: float) -> int:
        """Bin of an IoU, 0 .. per_example - 1."""
        width = max(self.max_iou - self.min_iou, 1e-9)
        return min(int((iou - self.min_iou) / width * self.per_example), self.per_example - 1)

    def order(self, *names: bytes) -> bytes:
        """Place of something in the seeded order: 16 bytes, evenly spread, the same for equal names."""
        digest = hashlib.blake2b(f"{self.seed}".encode(), digest_size=16)
        for name in names:
            digest.update(len(name).to_bytes(8, "little") + name)
        return digest.digest()


DEFAULT_RULE = PairRule()


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


class _Candidate(NamedTuple):
    """An answer that may become a pair."""

    order: bytes
    """Its place among its bin's, by example and outline: equal outlines are equal here."""
    place: tuple[int, int, int]
    """Step, position, index."""


class _Chooser:
    """Keeps what may still be chosen, whatever the order in which answers are offered."""

    def __init__(self, rule: PairRule) -> None:
        self.rule = rule
        self.bins: dict[str, list[list[_Candidate]]] = {}
        self.left_out: Counter[str] = Counter()
        self._last_first: list[tuple[int, str]] = []

    def offer(self, example_id: str, iou: float, candidate: _Candidate) -> None:
        """Keep the candidate, in place of a later one where its bin is full, or count why not."""
        if not self._admits(example_id):
            self.left_out["over_limit"] += 1
            return
        bin_ = self.bins[example_id][self.rule.iou_bin(iou)]
        place = bisect_left(bin_, (candidate.order,))
        if place < len(bin_) and bin_[place].order == candidate.order:
            self.left_out["duplicate"] += 1
            return
        bin_.insert(place, candidate)
        if len(bin_) > self.rule.per_example:
            bin_.pop()
            self.left_out["over_per_example"] += 1

    def _admits(self, example_id: str) -> bool:
        """Whether an example may still be chosen: each of the `limit` first examples gives at least one pair."""
        if example_id in self.bins:
            return True
        self.bins[example_id] = [[] for _ in range(self.rule.per_example)]
        if self.rule.limit is None:
            return True
        heapq.heappush(self._last_first, (-int.from_bytes(self.rule.order(example_id.encode())), example_id))
        if len(self._last_first) <= self.rule.limit:
            return True
        _, last = heapq.heappop(self._last_first)
        self.left_out["over_limit"] += sum(len(bin_) for bin_ in self.bins.pop(last))
        return last != example_id

    def chosen(self) -> dict[tuple[int, int, int], str]:
        """Example ids of the pairs by (step, position, index); counts what the caps leave out."""
        places: dict[tuple[int, int, int], str] = {}
        for name in sorted(self.bins, key=lambda name: self.rule.order(name.encode())):
            turns = [(turn, k, item) for k, bin_ in enumerate(self.bins[name]) for turn, item in enumerate(bin_)]
            fair = [item for _, _, item in sorted(turns)[: self.rule.per_example]]
            kept = fair if self.rule.limit is None else fair[: self.rule.limit - len(places)]
            places.update({item.place: name for item in kept})
            self.left_out["over_per_example"] += len(turns) - len(fair)
            self.left_out["over_limit"] += len(fair) - len(kept)
        return places


def select(archive: RolloutArchive, rule: PairRule = DEFAULT_RULE) -> Selection:
    """Choose pairs by `rule` (see the top of this file), reading the archive twice, a shard at a time.

    Raises FileNotFoundError where there is no archive, ValueError where a shard cannot be read.
    """
    chooser = _Chooser(rule)
    reasons = _reasons_by_example(archive)
    answers = 0
    for batch in archive.rollouts(["example_id", "status", "iou", *_PLACE, "vertices_px", "ring_offsets"]):
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


def _offer_batch(batch: pa.RecordBatch, reasons: Mapping[str, str | None], chooser: _Chooser) -> None:
    outlines = zip(_list_bytes(batch["ring_offsets"]), _list_bytes(batch["vertices_px"]), strict=True)
    rows = _tuples([batch], ["example_id", "status", "iou", *_PLACE])
    for (name, status, iou, step, position, index), outline in zip(rows, outlines, strict=True):
        reason = reasons.get(name, "example_missing") or _reason(status, iou, chooser.rule)
        if reason:
            chooser.left_out[reason] += 1
        else:
            chooser.offer(name, iou, _Candidate(chooser.rule.order(name.encode(), *outline), (step, position, index)))


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
    for batch in archive.rollouts([*ANSWER_COLUMNS, *_PLACE, "example_id", "run", "iou", "policy_version"], steps):
        wanted = [k for k, place in enumerate(_tuples([batch], _PLACE)) if place in places]
        for row in batch.take(pa.array(wanted, pa.int64())).to_pylist():
            rings = tuple(answer_from_row(row).rings_px)
            copied = {name: row[name] for name in (*_PLACE, "example_id", "run", "iou", "policy_version")}
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


def export_pairs(run_folder: Path, out: Path, rule: PairRule = DEFAULT_RULE) -> SelectionReport:
    """Write the chosen pairs of a run to out/pairs.parquet, with a data card in out/README.md.

    Raises ValueError, before anything is written, where `out` is not empty or the rule keeps no answer.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder for the pairs, or empty this one.")
    selection = select(RolloutArchive(run_folder / "archive"), rule)
    if not selection.pairs:
        raise ValueError(
            f"{rule} keeps none of the {selection.report.answers} answers in {run_folder} "
            f"({selection.report.left_out}); widen the rule, or train for longer."
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(_data_card(selection, rule), encoding="utf-8")
    write_shard(out / "pairs.parquet", pa.Table.from_pylist(list(map(_row, selection.pairs)), schema=PAIR_SCHEMA))
    return selection.report


def _row(pair: Pair) -> dict[str, object]:
    made = {"coarse_rle": rle_from_mask(pair.coarse_mask), "box_px": pair.box_px}
    fields = vars(pair)
    return {name: made[name] if name in made else fields[name] for name in PAIR_SCHEMA.names}


def _data_card(selection: Selection, rule: PairRule) -> str:
    pairs, report = selection.pairs, selection.report
    sources = Counter((pair.licence, pair.source) for pair in pairs)
    tenths = Counter(min(int(pair.iou * 10), 9) for pair in pairs)
    return f"""# Coarse and true masks

{len(pairs)} pairs from {len({pair.example_id for pair in pairs})} training examples over \
{len({pair.image_sha256 for pair in pairs})} images, chosen from {report.answers} answers of the run \
{", ".join(sorted({pair.run for pair in pairs}))} by `{rule}`.

A row of `pairs.parquet` is an outline that a policy drew (`coarse_rle`) beside the true mask (`true_rle`), both COCO
compressed RLE of height x width pixels; `ignore_rle` are pixels that count neither way. Images are given by key and by
the SHA-256 of their pixels, not copied. `box_px` is (x0, y0, x1, y1) around the outline. Run, step, position and index
find the answer in its archive.

## Licences of the images

| licence | source | pairs |
| --- | --- | ---: |
{_table(sorted((*key, count) for key, count in sources.items()))}

## IoU of coarse and true mask

| IoU | pairs |
| --- | ---: |
{_table((f"{k / 10:.1f} to {(k + 1) / 10:.1f}", tenths[k]) for k in range(10))}

## Answers left out

| reason | answers |
| --- | ---: |
{_table((meaning, report.left_out[reason]) for reason, meaning in LEFT_OUT.items())}
"""


def _table(rows: Iterable[Sequence[object]]) -> str:
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows)
