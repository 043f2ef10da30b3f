"""Annotators that differ: the order of vertices, and several kinds at once."""

import numpy as np
import pytest

from envs.geometry.contours import mask_from_rings
from envs.polygons import signed_area_px
from rl.config.outlines import Annotator, OutlineSettings
from rl.supervised.annotator import annotate

MASK = np.zeros((20, 30), bool)
MASK[3:11, 5:25] = True
MASK[11:15, 5:9] = True
"""An L of six corners."""
CLOCKWISE = [[5, 3], [25, 3], [25, 11], [9, 11], [9, 15], [5, 15]]


def ring(order: str, example_id: str = "a") -> list[list[int]]:
    """The one ring of the L."""
    (found,) = annotate(MASK, OutlineSettings(order=order, max_vertices=12), example_id)
    return found.astype(int).tolist()


def test_the_orders_are_the_same_ring_from_the_same_place_from_any_and_in_none() -> None:
    assert ring("clockwise") == CLOCKWISE
    assert ring("counter_clockwise") == [CLOCKWISE[0], *CLOCKWISE[:0:-1]]
    starts = [ring("any_start", f"example {k}") for k in range(60)]
    assert {tuple(found[0]) for found in starts} == {tuple(vertex) for vertex in CLOCKWISE}
    assert all(found == CLOCKWISE[k:] + CLOCKWISE[:k] for found in starts for k in [CLOCKWISE.index(found[0])])
    shuffled = [ring("shuffled", f"example {k}") for k in range(60)]
    assert all(sorted(found) == sorted(CLOCKWISE) for found in shuffled)
    assert len({str(found) for found in shuffled}) > 50  # of 720 orders


def test_all_orders_but_none_at_all_fill_the_mask_and_a_hole_turns_the_other_way() -> None:
    holed = MASK.copy()
    holed[5:8, 10:14] = False
    for order, sign in (("clockwise", 1), ("counter_clockwise", -1), ("any_start", 1)):
        outer, hole = annotate(holed, OutlineSettings(order=order), "a")
        assert (mask_from_rings([outer, hole], 20, 30) == holed).all()
        assert np.sign(signed_area_px(outer)) == sign * np.sign(signed_area_px(annotate(MASK, OutlineSettings())[0]))
        assert np.sign(signed_area_px(hole)) == -np.sign(signed_area_px(outer))


def test_one_example_is_drawn_alike_always_and_all_kinds_draw_their_share() -> None:
    rows, columns = np.mgrid[:60, :80]
    disc = np.hypot(rows - 30, columns - 40) <= 22
    kinds = [Annotator(max_vertices=9), Annotator(outline_margin=0.2), Annotator(order="counter_clockwise")]
    settings = OutlineSettings(max_vertices=16, annotators=kinds)
    drawn = [annotate(disc, settings, f"example {k}")[0] for k in range(300)]
    assert all((one == annotate(disc, settings, f"example {k}")[0]).all() for k, one in enumerate(drawn))
    few = sum(len(one) == 9 for one in drawn)
    turned = sum(signed_area_px(one) < 0 for one in drawn)
    wide = sum(mask_from_rings([one], 60, 80).sum() > 1.2 * disc.sum() for one in drawn)
    assert few + turned + wide == 300  # each by one kind, which leaves the rest as it is for all
    assert all(70 < number < 130 for number in (few, turned, wide))


def test_a_kind_that_cannot_draw_is_refused_by_what_is_wrong() -> None:
    with pytest.raises(
        ValueError, match=r"annotators\[0\]\.max_vertices is 5, but max_rings is 3 .* or max_rings to 1"
    ):
        OutlineSettings(annotators=[Annotator(max_vertices=5)])
    with pytest.raises(ValueError, match="sideways"):
        OutlineSettings(annotators=[Annotator(order="sideways")])
