"""Answers that may become pairs, of a batch of an archive, and why the others may not."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from envs.polygons import AnswerStatus
from rl.pair_examples import HELD_OUT_ID, HELD_OUT_IMAGE, MISSING, NOT_TRAINING, ExampleIndex
from rl.pair_rule import PairRule
from rl.pair_shortlist import CANDIDATE

LEFT_OUT = {
    "example_missing": "its example is not in the archive",
    "not_training": "its example is not of the training split",
    "example_held_out": "its example is also in another split",
    "image_held_out": "its image is also in an example of another split",
    "unparsable": "the answer could not be read",
    "no_outline": "the answer was that nothing fits",
    "wrong_object": "its IoU is below min_iou: another object than the phrase means",
    "too_good": "its IoU is above max_iou",
    "nothing_there": "its true mask is empty",
    "near_duplicate": "nearly the same mask as a kept answer to this example",
    "over_per_example": "its example has per_example pairs without it, or others of its IoU came first",
    "over_limit": "the limit was reached without it",
}
"""Why an answer is no pair; the first reason that holds is counted."""

_VERDICT_REASONS = {
    MISSING: "example_missing",
    NOT_TRAINING: "not_training",
    HELD_OUT_ID: "example_held_out",
    HELD_OUT_IMAGE: "image_held_out",
}
PLACE_COLUMNS = ("step", "position", "index")
"""Columns that find an answer in the archive of its run."""


def candidates_of(
    batch: pa.RecordBatch, index: ExampleIndex, rule: PairRule, left_out: Counter[str]
) -> NDArray[np.void]:
    """The answers of a batch that may be chosen, their run and order not yet set; counts why the others may not."""
    keys, verdicts = index.look_up(batch["example_id"], rule)
    iou = batch["iou"].to_numpy(zero_copy_only=False)
    is_ok, is_empty = (
        pc.equal(batch["status"], status.value).to_numpy(zero_copy_only=False)
        for status in (AnswerStatus.OK, AnswerStatus.EMPTY)
    )
    tests = [(verdicts == verdict, reason) for verdict, reason in _VERDICT_REASONS.items()]
    tests += [(~is_ok & ~is_empty, "unparsable"), (is_empty, "no_outline")]
    tests += [(iou < rule.min_iou, "wrong_object"), (iou > rule.max_iou, "too_good")]
    usable = np.ones(batch.num_rows, np.bool_)
    for holds, reason in tests:
        left_out[reason] += int((usable & holds).sum())
        usable &= ~holds
    candidates = np.empty(int(usable.sum()), CANDIDATE)
    candidates["example"], candidates["iou"] = keys[usable], iou[usable]
    candidates["stratum"] = rule.iou_stratum(iou[usable])
    for name in PLACE_COLUMNS:
        candidates[name] = batch[name].to_numpy(zero_copy_only=False)[usable]
    return candidates
