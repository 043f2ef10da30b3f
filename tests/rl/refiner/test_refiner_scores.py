import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from envs.example import Truth
from envs.polygons import AnswerStatus
from policies.heads.base import Unrolled
from rl.refiner.scores import MaskScores, joined, refiner_table, score_unrolled, summarise_refined


def bar(start: int, end: int) -> np.ndarray:
    """Columns start..end of the first row of 4 x 10 px."""
    mask = np.zeros((4, 10), np.bool_)
    mask[0, start:end] = True
    return mask


def truth(mask: np.ndarray, ignore: np.ndarray | None = None) -> Truth:
    return Truth(mask[None] if mask.any() else np.zeros((0, 4, 10), np.bool_), ignore)


def unrolled(masks: list[list[np.ndarray]], predicted: list[list[float]]) -> Unrolled:
    values = torch.tensor(predicted)
    return Unrolled(torch.from_numpy(np.array(masks)), values, values / 2)


def four() -> MaskScores:
    """Better by pass 2, worse by pass 1, kept as it came, and empty; truths of 8, 8, 4 and no pixels."""
    masks = [
        [bar(0, 4), bar(0, 8), bar(0, 4), bar(0, 0)],
        [bar(0, 6), bar(0, 6), bar(0, 3), bar(0, 0)],
        [bar(0, 8), bar(0, 2), bar(0, 2), bar(0, 0)],
    ]
    predicted = [[0.5, 0.6, 0.95, 0.0], [0.7, 0.85, 0.8, 0.0], [0.95, 0.85, 0.7, 0.0]]
    truths = [truth(bar(0, 8)), truth(bar(0, 8)), truth(bar(0, 4)), truth(bar(0, 0))]
    return score_unrolled(unrolled(masks, predicted), 0.005, truths)


def test_scores_are_of_the_pass_that_the_stop_rule_returns():
    scores = four()
    assert scores.taken.tolist() == [2, 1, 0, 0]
    assert scores.passes.tolist() == [2, 2, 1, 0]
    assert scores.coarse_iou.tolist() == [0.5, 1, 1, 1]
    assert scores.refined_iou.tolist() == [1, 0.75, 1, 1]
    assert scores.predicted_iou == pytest.approx([0.95, 0.85, 0.95, 0])
    assert scores.raw_iou == pytest.approx([0.475, 0.425, 0.475, 0])
    assert scores.predicted_coarse_iou == pytest.approx([0.5, 0.6, 0.95, 0])
    assert scores.drawn.tolist() == [True, True, True, False]
    assert scores.gain_boundary_iou == pytest.approx([0.5, -0.25, 0, 0])  # a row of pixels is all boundary


def test_summary_by_hand():
    summary = summarise_refined(four())
    value = {name: interval.value for name, interval in summary.intervals.items()}
    assert value["gain_iou"] == pytest.approx((0.5 - 0.25) / 4)
    assert value["gain_iou"] == pytest.approx(value["refined_iou"] - value["coarse_iou"])
    assert (value["worse"], value["clearly_worse"], value["unchanged"]) == (0.25, 0.25, 0.5)
    assert (summary.num_masks, summary.num_drawn, summary.mean_passes) == (4, 3, pytest.approx(5 / 3))
    assert summary.passes_run == (0, 1, 2)
    assert summary.passes_taken == (1, 1, 1)
    # Drawn: predicted 0.95, 0.85, 0.95 of 1, 0.75, 1, so two gaps of 0.05 and one of 0.1; raw is half of each, all in
    # one bin; the coarse 0.5, 0.6, 0.95 are of 0.5, 1, 1.
    assert summary.reliability["refined_calibrated"].error == pytest.approx((2 * 0.05 + 0.1) / 3)
    assert summary.reliability["refined_raw"].error == pytest.approx(2.75 / 3 - 1.375 / 3)
    assert summary.reliability["coarse_calibrated"].error == pytest.approx((0 + 0.4 + 0.05) / 3)


def test_a_loss_below_a_rounding_error_is_no_loss_and_a_small_one_is_not_clear():
    base = four()
    values = {**vars(base), "coarse_iou": np.array([0.5, 0.5, 0.5]), "refined_iou": np.array([0.5 - 1e-12, 0.495, 0.4])}
    scores = MaskScores(**{name: array[:3] for name, array in values.items()})
    intervals = summarise_refined(scores).intervals
    assert intervals["worse"].value == pytest.approx(2 / 3)
    assert intervals["clearly_worse"].value == pytest.approx(1 / 3)


def test_ignored_pixels_count_neither_way():
    # Truth 0..4, ignored 6..10: drawing 0..8 is 4 right and 2 too many, 2 of them ignored.
    given = unrolled([[bar(0, 8)], [bar(0, 10)]], [[0.5], [0.4]])
    scores = score_unrolled(given, 0.005, [truth(bar(0, 4), bar(6, 10))])
    assert scores.coarse_iou.tolist() == [pytest.approx(4 / 6)]


def test_an_invalid_answer_scores_0_even_where_nothing_is_true():
    nothing = unrolled([[bar(0, 0)]] * 2, [[0.0]] * 2)
    assert score_unrolled(nothing, 0.005, [truth(bar(0, 0))]).coarse_iou.tolist() == [1]
    scores = score_unrolled(nothing, 0.005, [truth(bar(0, 0))], [AnswerStatus.TRUNCATED])
    assert (scores.coarse_iou.tolist(), scores.refined_iou.tolist()) == ([0], [0])


def test_parts_join_in_their_order_and_nothing_has_no_summary():
    both = joined([four(), four().selected(np.array([True, False, False, False]))])
    assert both.refined_iou.tolist() == [1, 0.75, 1, 1, 1]
    assert both.taken.dtype == np.int64
    with pytest.raises(ValueError, match="at least one scene"):
        joined([])
    with pytest.raises(ValueError, match="at least one scene"):
        summarise_refined(four().selected(np.array([], np.int64)))


def test_answers_that_are_all_empty_have_a_summary():
    summary = summarise_refined(four().selected(np.array([3])))
    assert (summary.num_drawn, summary.mean_passes, summary.passes_run) == (0, 0.0, ())
    assert summary.reliability["refined_raw"].count == ()


def test_summary_is_json_and_its_table_fits_80_characters():
    summary = summarise_refined(four())
    read = json.loads(json.dumps(summary.as_dict()))
    assert read["gain_iou"] == pytest.approx(0.0625)
    assert set(read["intervals"]["worse"]) == {"low", "high"}
    assert read["reliability"]["coarse_raw"]["count"]
    output = io.StringIO()
    Console(file=output, width=80).print(refiner_table(summary))
    assert "made worse by more than 0.01" in output.getvalue()
    assert "…" not in output.getvalue()
