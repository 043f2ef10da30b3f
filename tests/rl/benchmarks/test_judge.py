"""Kept answers judged: scores, kinds and sources of error of four answers that are counted by hand."""

from dataclasses import replace

import numpy as np
import pytest
from made_answers import EMPTY, about, answered, block, box, four_rows

from rl.benchmarks.judge import SetScores, judge_rows
from rl.evaluation.protocols.base import protocol_named


def judged(protocol: str = "gres", refined: bool = False, rows: list | None = None) -> SetScores:
    rows = four_rows(refined) if rows is None else rows
    return judge_rows("model", "data", protocol, protocol_named(protocol), rows, refined)


def values(found: SetScores) -> dict[str, float]:
    return {title: interval.value for title, interval in found.scores.items()}


def test_scores_are_those_counted_by_hand() -> None:
    found = judged()
    # 1, 1/2, 0 and, for saying rightly that nothing fits, 1; 16 + 8 of 16 + 16 + 16 pixels.
    assert [one.iou for one in found.judged] == [1, 0.5, 0, 1]
    assert (values(found)["gIoU"], values(found)["cIoU"], values(found)["N-acc"]) == (0.625, 0.5, 1)
    assert values(found)["gIoU, targeted"] == 0.5 and values(found)["unreadable"] == 0.25
    assert (found.unreadable, found.model, found.protocol) == (1, "model", "gres")
    assert values(judged("res"))["mIoU"] == 0.375  # there, nothing true counts 0


def test_refined_masks_take_the_place_of_outlines_where_there_are_some() -> None:
    found = judged(refined=True)
    assert [one.iou for one in found.judged] == [1, 1, 0, 1]
    assert found.unreadable == 1 and values(found)["cIoU"] == pytest.approx(32 / 48)


def test_kinds_are_of_what_is_true_and_each_is_counted() -> None:
    found = {(kind.title, kind.name): (kind.count, kind.iou.value) for kind in judged().kinds}
    # The square root of 16 of 80 pixels is 0.447 of the side.
    assert found["Size of the object, of the image's side", "1/4 to 1/2"] == (3, 0.5)
    assert found["Parts of the object", "1"] == (3, 0.5)
    assert found["Objects that are meant", "none"] == (1, 1) and found["Objects that are meant", "one"] == (3, 0.5)
    several = [answered(about("two", block(0, 0, 2, 2), block(6, 6, 8, 8)), box(0, 0, 2, 2))]
    several.append(answered(about("five", *(block(2 * k, 0, 2 * k + 1, 1) for k in range(5))), EMPTY))
    found = {(kind.title, kind.name): (kind.count, kind.iou.value) for kind in judged(rows=several).kinds}
    assert found["Objects that are meant", "two"] == (1, 0.5)
    assert found["Objects that are meant", "three or more"] == (1, 0)


def test_each_source_of_error_is_taken_away_alone() -> None:
    errors = judged(refined=True).errors
    assert errors is not None
    found = [interval.value for interval in errors.values()]
    drawn, true_box, refined, bound = found
    # Of the three with something true: half of it drawn lies in the true box as the whole does.
    assert (drawn, true_box, refined) == (0.5, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert bound > 0.9 and next(iter(errors)) == "the outline as it was drawn"
    assert len(judged().errors or {}) == 3  # nothing was refined


def test_under_a_protocol_of_boxes_no_error_of_masks_is_told() -> None:
    found = judged("rec", rows=four_rows()[:3])
    assert found.errors is None and values(found)["Acc@0.5"] == pytest.approx(2 / 3)


def test_without_something_true_there_is_no_error_to_take_apart() -> None:
    assert judged(rows=[answered(about("none"), EMPTY)]).errors == {}


def test_without_a_row_and_with_an_example_twice_it_is_refused() -> None:
    with pytest.raises(ValueError, match="answer"):
        judged(rows=[])
    with pytest.raises(ValueError, match="'full' is judged twice"):
        judged(rows=[four_rows()[0]] * 2)


def test_ignored_pixels_of_a_row_count_neither_way() -> None:
    asked = about("ignoring", block(2, 2, 6, 4))
    asked = replace(asked, truth=replace(asked.truth, ignore=block(2, 4, 6, 6)))
    row = answered(asked, box(2, 2, 6, 6))
    assert judged(rows=[row]).judged[0].iou == 1
    assert judge_rows("m", "d", "p", protocol_named("gres", {"ignore": "target"}), [row], False).judged[0].iou == 1
    assert np.isclose(judged(rows=[row | {"ignore": None}]).judged[0].iou, 0.5)
