"""What an archive holds of the shortlisted answers: their outlines and truths, as Arrow columns, a row at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from envs.geometry.rle import rle_from_spans, spans_from_rle
from envs.geometry.spans import Spans
from envs.polygons import FlatAnswers, Ring, split_rings
from rewards.kernels.bands import united
from rewards.target import Target
from rl.config.pairs import PairRule
from rl.pairs.shortlist import PLACE_COLUMNS
from rollout.archive.archive import RolloutArchive

_ROWS_PER_BATCH = 1 << 14
_OUTLINE_COLUMNS = ("vertices_px", "ring_offsets", "policy_version")
_EXAMPLE_FIELDS = ("example_id", "image_key", "image_sha256", "height", "width", "prompt", "source", "licence")


@dataclass(frozen=True, eq=False)
class Outlines:
    """The outlines of A answers."""

    runs: Sequence[str]
    """Names of the runs, by number."""
    rows: NDArray[np.void]
    """Candidates [A], of dtype rl.pairs.shortlist.CANDIDATE."""
    places: NDArray[np.int64]
    """Row [A] of each answer, counted over all batches."""
    batches: Sequence[pa.RecordBatch]
    """Columns vertices_px, ring_offsets and policy_version of an archive, batch by batch."""
    boundary_iou: NDArray[np.float64]
    """Boundary IoU [A] with the truth; empty until it is known."""

    def flat(self, chosen: Sequence[int]) -> FlatAnswers:
        """Some of the answers, as kernels take them."""
        parts = [self._arrays(k) for k in chosen]
        shifts = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
        offsets = [ends[1:] + shift for (_, ends), shift in zip(parts, shifts[:-1], strict=True)]
        num_rings = np.cumsum([0, *(len(ends) - 1 for _, ends in parts)])
        vertices = np.concatenate([vertices for vertices, _ in parts])
        return FlatAnswers(vertices, np.concatenate([np.zeros(1, np.int64), *offsets]), num_rings)

    def rings(self, k: int) -> tuple[Ring, ...]:
        """Rings [N, 2] px of one answer, copies."""
        vertices, offsets = self._arrays(k)
        return tuple(ring.copy() for ring in split_rings(vertices, offsets))

    def policy_version(self, k: int) -> int:
        """Version of the weights that drew one answer."""
        batch, row = self._found(k)
        return int(batch["policy_version"][row].as_py())

    def part(self, chosen: NDArray[np.int64], boundary_iou: NDArray[np.float64]) -> "Outlines":
        """Some of the answers, with their Boundary IoU; the columns of the others are let go."""
        order = np.argsort(self.places[chosen])
        wanted, places = self.places[chosen][order], np.empty(len(chosen), np.int64)
        places[order] = np.arange(len(chosen))
        cuts = np.searchsorted(wanted, self._starts)
        parts = [
            batch.take(pa.array(wanted[first:end] - start))
            for batch, start, (first, end) in zip(self.batches, self._starts, pairwise(cuts), strict=False)
        ]
        return Outlines(self.runs, self.rows[chosen], places, parts, boundary_iou)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """[batches + 1] place of the first row of each batch, and of the end."""
        return np.cumsum([0, *(batch.num_rows for batch in self.batches)])

    def _found(self, k: int) -> tuple[pa.RecordBatch, int]:
        """The batch of one answer, and its row there."""
        number = int(np.searchsorted(self._starts, self.places[k], "right")) - 1
        return self.batches[number], int(self.places[k] - self._starts[number])

    def _arrays(self, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        batch, row = self._found(k)
        vertices = batch["vertices_px"][row].values.to_numpy().reshape(-1, 2)
        return vertices, batch["ring_offsets"][row].values.to_numpy().astype(np.int64)


def read_outlines(
    archives: Sequence[RolloutArchive], runs: Sequence[str], rule: PairRule, rows: NDArray[np.void]
) -> Outlines:
    """Read the outlines of these candidates; only shards of their steps are opened."""
    batches, pending = list[pa.RecordBatch](), list[pa.RecordBatch]()
    places, num, joined = np.zeros(len(rows), np.int64), 0, 0
    for number, archive in enumerate(archives):
        mine = np.flatnonzero(rows["run"] == number)
        mine = mine[np.argsort(rows["order"][mine])]
        wanted = rows["order"][mine]
        steps = set(rows["step"][mine].tolist())
        for batch in archive.rollouts([*PLACE_COLUMNS, *_OUTLINE_COLUMNS], steps) if steps else ():
            orders = rule.answer_orders(runs[number], *(batch[name].to_numpy() for name in PLACE_COLUMNS))
            at = np.minimum(np.searchsorted(wanted, orders), len(wanted) - 1)
            hits = np.flatnonzero(wanted[at] == orders)
            places[mine[at[hits]]] = num + np.arange(len(hits))
            num += len(hits)
            pending.append(batch.select(_OUTLINE_COLUMNS).take(pa.array(hits)))
            if num - joined >= _ROWS_PER_BATCH:
                batches.append(pa.concat_batches(pending))
                pending, joined = [], num
    batches += [pa.concat_batches(pending)] if pending else []
    return Outlines(runs, rows, places, batches, np.zeros(0))


@dataclass(frozen=True)
class ExampleTruth:
    """An example as a pair needs it."""

    fields: dict[str, Any]
    """Fields of a Pair that the example gives."""
    target: Target
    """The true mask, prepared for scoring."""


class ExampleRows:
    """The examples of the shortlist."""

    def __init__(self, keys: NDArray[np.uint64], table: pa.Table) -> None:
        """keys: [E] of the rows of `table`, in any order."""
        order = np.argsort(keys)
        self._keys, self._rows, self._table = keys[order], order, table
        self._last: tuple[np.uint64, ExampleTruth] | None = None

    @property
    def keys(self) -> NDArray[np.uint64]:
        """[E] the sorted keys."""
        return self._keys

    def truth(self, key: np.uint64) -> ExampleTruth:
        """The example of a key; the one asked for last is kept."""
        if self._last is None or self._last[0] != key:
            place = int(self._rows[np.searchsorted(self._keys, key)])
            self._last = key, _truth(self._table.slice(place, 1).to_pylist()[0])
        return self._last[1]


def read_examples(archives: Sequence[RolloutArchive], rule: PairRule, wanted: NDArray[np.uint64]) -> ExampleRows:
    """Read the examples of these sorted keys, each from the first archive that has it."""
    found, missing = list[pa.RecordBatch](), np.ones(len(wanted), np.bool_)
    keys = [np.zeros(0, np.uint64)]
    for archive in archives:
        for batch in archive.examples([*_EXAMPLE_FIELDS, "masks", "ignore"]):
            own = np.array([rule.key(name) for name in batch["example_id"].to_pylist()], np.uint64)
            at = np.minimum(np.searchsorted(wanted, own), max(len(wanted) - 1, 0))
            hits = np.flatnonzero((wanted[at] == own) & missing[at]) if len(wanted) else np.zeros(0, np.int64)
            missing[at[hits]] = False
            if hits.size:
                keys.append(own[hits])
                found.append(batch.take(pa.array(hits)))
    table = pa.Table.from_batches(found).combine_chunks() if found else pa.table({})
    return ExampleRows(np.concatenate(keys), table)


def _truth(row: dict[str, Any]) -> ExampleTruth:
    height, width = row["height"], row["width"]
    instances = [spans_from_rle(counts, height, width) for counts in row["masks"]]
    union = Spans(np.zeros(height + 1, np.int64), np.zeros(0, np.int32))
    for instance in instances:
        union = Spans(*united(union, instance))
    ignore = None if row["ignore"] is None else spans_from_rle(row["ignore"], height, width)
    fields = {name: row[name] for name in _EXAMPLE_FIELDS}
    fields |= {"true_rle": rle_from_spans(union, width), "ignore_rle": row["ignore"]}
    return ExampleTruth(fields, Target.from_spans(instances, ignore, height, width))
