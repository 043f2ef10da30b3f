"""Archived answers under other rewards: no model, no GPU, a step in memory at a time.

Rows become arrays, never records: a step's answers are a few columns, and a group of them is a slice. An answer itself
is built only for a reward that asks for it. Letters: B groups of a step, G answers of a group, A = B G.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from envs.geometry.rle import spans_from_rle
from envs.polygons import Answer, AnswerStatus, FlatAnswers
from rewards.score import Answers, Comparisons, compare
from rewards.scorer import Scorer
from rewards.shaping import Shaper
from rewards.target import Target
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import ANSWER_COLUMNS, answer_from_row

_COLUMNS = ("step", "position", "example_id", "prompt", *ANSWER_COLUMNS, "total")
_STATUS = {status.value: status for status in AnswerStatus}


@dataclass(frozen=True)
class RescoredStep:
    """The answers of one step under the rewards that were asked for, and what the run itself made of them."""

    step: int
    example_ids: list[str]
    """[B]"""
    terms: dict[str, NDArray[np.float64]]
    """[B, G] each, by reward name; NaN where a reward does not apply."""
    totals: NDArray[np.float64]
    """[B, G]"""
    archived_terms: dict[str, NDArray[np.float64]]
    """[B, G] each, of the run's own rewards."""
    archived_totals: NDArray[np.float64]
    """[B, G]"""
    num_vertices: NDArray[np.int64]
    """[B, G] vertices of each answer, all rings together."""
    iou: NDArray[np.float64]
    """[B, G] as scored here; 0 for an answer that is not valid."""


class _ArchivedAnswers(Sequence[Answer]):
    """Answers of consecutive rows, each built when it is asked for."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, k: int) -> Answer:  # type: ignore[override]  # one at a time, not by slices
        return answer_from_row(self._rows.slice(k, 1).to_pylist()[0])


class _Targets:
    """Targets by example id, from the examples table, which is read as far as the steps have come."""

    def __init__(self, archive: RolloutArchive) -> None:
        self._batches = archive.examples(["example_id", "height", "width", "masks", "ignore", "asked"])
        self._rows: dict[str, tuple[pa.RecordBatch, int]] = {}

    def of(self, example_id: str) -> tuple[Target, str]:
        """The target of an example, and what was asked for. Raises ValueError where the archive does not hold it."""
        while example_id not in self._rows:
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError(
                    f"the archive holds answers to {example_id}, but not that example; "
                    "`polytrace archive verify` says what else is missing."
                )
            self._rows.update((name, (batch, row)) for row, name in enumerate(batch["example_id"].to_pylist()))
        batch, row = self._rows[example_id]
        height, width, masks, ignore = (batch[name][row].as_py() for name in ("height", "width", "masks", "ignore"))
        instances = [spans_from_rle(counts, height, width) for counts in masks]
        target = Target.from_spans(instances, ignore and spans_from_rle(ignore, height, width), height, width)
        return target, batch["asked"][row].as_py() or "mask"


@dataclass(frozen=True)
class _StepRows:
    """The rows of one step, in order."""

    rows: pa.Table

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """[B] first row and end row of each group."""
        positions = self.rows["position"].to_numpy()
        cuts = [0, *(np.flatnonzero(np.diff(positions)) + 1).tolist(), len(positions)]
        groups = list(pairwise(cuts))
        if len({end - first for first, end in groups}) != 1:
            raise ValueError(
                f"step {self.rows['step'][0].as_py()} has groups of different sizes; rescore a run of whole groups."
            )
        return groups

    @cached_property
    def flat(self) -> FlatAnswers:
        """The rings of all answers."""
        vertices, rings = self._list("vertices_px"), self._list("ring_offsets")
        first_vertex = vertices.offsets.to_numpy()[:-1] // 2
        num_rings = np.diff(rings.offsets.to_numpy()) - 1
        # Each answer counts its rings' vertices from 0; the leading 0 of all but the first is dropped.
        places = rings.values.to_numpy()
        shifted = places + np.repeat(first_vertex, num_rings + 1)
        inner = np.ones(len(places), bool)
        inner[rings.offsets.to_numpy()[:-1]] = False
        ring_offsets = np.concatenate([[0], shifted[inner]]).astype(np.int64)
        answer_offsets = np.concatenate([[0], np.cumsum(num_rings)]).astype(np.int64)
        return FlatAnswers(vertices.values.to_numpy().reshape(-1, 2), ring_offsets, answer_offsets)

    @cached_property
    def statuses(self) -> list[AnswerStatus]:
        """[A]"""
        return [_STATUS[name] for name in self.rows["status"].to_pylist()]

    @cached_property
    def num_vertices(self) -> list[int]:
        """[A]"""
        return (np.diff(self._list("vertices_px").offsets.to_numpy()) // 2).tolist()

    def _list(self, name: str) -> pa.ListArray:
        chunks = self.rows[name].combine_chunks()
        return chunks if isinstance(chunks, pa.ListArray) else chunks.chunk(0)

    def number(self, name: str) -> NDArray[np.float64]:
        """A column of numbers, [B, G]; NaN where it is null."""
        return self.rows[name].to_numpy().reshape(len(self.groups), -1).astype(np.float64)

    def answers(self, first: int, end: int) -> Answers:
        """The answers of rows first..end - 1."""
        whole = _ArchivedAnswers(self.rows.slice(first, end - first))
        return Answers(whole, self.statuses[first:end], self.num_vertices[first:end], self.flat.part(first, end))


def _steps(archive: RolloutArchive, columns: Sequence[str], steps: Container[int] | None) -> Iterator[_StepRows]:
    """The rows of each step."""
    held: list[pa.RecordBatch] = []
    for batch in archive.rollouts(columns, steps):
        if held and batch["step"][0].as_py() != held[0]["step"][0].as_py():
            yield _StepRows(pa.Table.from_batches(held).combine_chunks())
            held = []
        held.append(batch)
    if held:
        yield _StepRows(pa.Table.from_batches(held).combine_chunks())


def _comparisons(rows: _StepRows, targets: _Targets) -> list[Comparisons]:
    ids, phrases, found = rows.rows["example_id"], rows.rows["prompt"], []
    for first, end in rows.groups:
        name = ids[first].as_py()
        target, asked = targets.of(name)
        found.append(compare(rows.answers(first, end), target, name, phrases[first].as_py(), asked=asked))
    return found


def rescore(run: Path, scorer: Scorer, shaper: Shaper, steps: Container[int] | None = None) -> Iterator[RescoredStep]:
    """Every archived answer of a run (of some steps, where these are given), step by step, under other rewards.

    With the run's own rewards and shaping, and from its first step on, terms and totals are those that it archived, to
    the last bit. Raises FileNotFoundError without an archive, ValueError where one cannot be read, and what
    `Scorer.columns_of` raises.
    """
    archive = RolloutArchive(run / "archive")
    targets, names = _Targets(archive), archive.reward_names
    for rows in _steps(archive, [*_COLUMNS, *(f"reward_{name}" for name in names)], steps):
        step = rows.rows["step"][0].as_py()
        comparisons = _comparisons(rows, targets)
        columns = scorer.columns_of(comparisons)
        terms = {name: np.array([group[name] for group in columns], np.float64) for name in columns[0]}
        valid = np.array([status.valid for status in rows.statuses]).reshape(len(comparisons), -1)
        yield RescoredStep(
            step=step,
            example_ids=[group.example_id for group in comparisons],
            terms=terms,
            totals=shaper.totals(step, terms),
            archived_terms={name: rows.number(f"reward_{name}") for name in names},
            archived_totals=rows.number("total"),
            num_vertices=np.array(rows.num_vertices).reshape(len(comparisons), -1),
            iou=np.where(valid, np.array([group.iou for group in comparisons]), 0.0),
        )
