"""Rows of answers judged under a protocol: scores with intervals, by kind of object, and where errors come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.polygons import AnswerStatus
from rl.evaluation.protocols.base import CodedTruth, Judged, MaskProtocol
from rl.evaluation.scores import Interval, mean_interval
from rl.refiner.errors import KINDS
from rollout.archive.schema import answer_from_row

OUTLINE, REFINED = "outline", "refined"
_SOURCES = {
    "mask": "the outline as it was drawn",
    "true_box": "the outline in the true box: what remains is the error of its shape",
    "refined": "what the refiner returns",
    "codec_bound": "the true mask through the codec: no policy with it can be expected to pass",
}


@dataclass(frozen=True)
class KindScore:
    """Answers about one kind of object."""

    title: str
    name: str
    count: int
    iou: Interval
    """Mean IoU with its interval."""


@dataclass(frozen=True)
class SetScores:
    """One model on one data set under one protocol."""

    model: str
    data: str
    protocol: str
    judged: Sequence[Judged]
    scores: Mapping[str, Interval]
    """By title, fractions."""
    unreadable: int
    """Answers that could not be read; they count as empty masks."""
    kinds: Sequence[KindScore] = ()
    errors: Mapping[str, Interval] | None = None
    """Mean IoU with one source of error taken away, by what it is in words; None under a protocol of boxes."""


def judge_rows(
    model: str, data: str, name: str, protocol: MaskProtocol, rows: Sequence[Mapping[str, Any]], refined: bool
) -> SetScores:
    """Scores of the rows of one model on one data set.

    name: of the protocol; refined: whether the refiner's masks are scored in place of outlines. Raises ValueError
    without a row.
    """
    truths, statuses = list(map(CodedTruth.of_row, rows)), [AnswerStatus(row["status"]) for row in rows]
    if refined:
        masks = [row["refined"] or row["mask"] for row in rows]
        judged = protocol.judge_masks(masks, statuses, truths)
    else:
        judged = protocol.judge([answer_from_row(row) for row in rows], truths)
    scores, unreadable = protocol.resampled(judged), sum(not status.valid for status in statuses)
    errors = None if judged[0].box_iou is not None else _errors(protocol, rows, statuses, truths)
    return SetScores(model, data, name, judged, scores, unreadable, _kinds(rows, judged), errors)


def _kinds(rows: Sequence[Mapping[str, Any]], judged: Sequence[Judged]) -> list[KindScore]:
    """Mean IoU by size, thinness and parts of what is true, and by the number of targets."""
    ious = np.array([one.iou for one in judged])
    found = []
    for kinds in KINDS:
        values = np.array([np.nan if row[kinds.trait] is None else row[kinds.trait] for row in rows], np.float64)
        places = np.where(np.isnan(values), -1, np.digitize(np.nan_to_num(values), kinds.starts))
        for k, name in enumerate(kinds.names):
            if (places == k).any():
                found.append(KindScore(kinds.title, name, int((places == k).sum()), mean_interval(ious[places == k])))
    targets = np.array([min(len(row["masks"]), 3) for row in rows])
    for number, name in enumerate(("none", "one", "two", "three or more")):
        if (targets == number).any():
            chosen = ious[targets == number]
            found.append(KindScore("Objects that are meant", name, len(chosen), mean_interval(chosen)))
    return found


def _errors(
    protocol: MaskProtocol,
    rows: Sequence[Mapping[str, Any]],
    statuses: Sequence[AnswerStatus],
    truths: list[CodedTruth],
) -> dict[str, Interval]:
    """Mean IoU over the examples with something true, of the answers and with one source of error taken away."""
    shown = [k for k, truth in enumerate(truths) if not truth.is_none]
    found = {}
    for column, words in _SOURCES.items():
        if not shown or all(rows[k][column] is None for k in shown):
            continue
        bound = column == "codec_bound"
        masks = [rows[k][column] or rows[k]["mask"] for k in shown]
        said = [AnswerStatus.OK if bound else statuses[k] for k in shown]
        judged = protocol.judge_masks(masks, said, [truths[k] for k in shown])
        found[words] = mean_interval([one.iou for one in judged])
    return found
