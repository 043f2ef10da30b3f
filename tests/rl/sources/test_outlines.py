"""Rings that cross themselves: found by shapely, and what another rule of filling would change, counted by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
import shapely

from envs.polygons import flatten_rings
from envs.shapes import PolygonShape
from rl.sources.outlines import Crossing, crossings, filled_polygons

SQUARE = [(1, 1), (5, 1), (5, 4), (1, 4)]
# Its diagonals meet at (4, 2): in four rows, 1, 3, 3 and 1 pixels on either side.
BOW_TIE = [(0, 0), (8, 4), (8, 0), (0, 4)]
# Goes around the four pixels of columns 4 and 5, rows 2 and 3 twice.
TWICE_AROUND = [(0, 2), (8, 2), (8, 6), (4, 6), (4, 0), (6, 0), (6, 4), (0, 4)]


def shape(*rings: Sequence[tuple[float, float]]) -> PolygonShape:
    return PolygonShape(*flatten_rings([np.array(ring, np.float64) for ring in rings]))


def test_a_bow_tie_is_found_and_fills_alike_by_every_rule() -> None:
    assert crossings(shape(BOW_TIE), 8, 10) == [Crossing("Self-intersection[4 2]", 0, 0)]
    mask = shape(BOW_TIE).mask(4, 8)
    assert mask.sum(axis=1).tolist() == [2, 6, 6, 2]
    np.testing.assert_array_equal(filled_polygons(shapely.make_valid(shapely.Polygon(BOW_TIE)), 4, 8), mask)


def test_what_is_surrounded_twice_is_out_by_the_rule_of_formats_and_in_by_winding() -> None:
    [found] = crossings(shape(TWICE_AROUND), 8, 10)
    assert shape(TWICE_AROUND).mask(8, 10).sum() == 24
    assert (found.differs_px, found.mended_px) == (4, 0)
    assert found.told == "Self-intersection[4 4]; 4 px otherwise by winding, 0 px once mended"


@pytest.mark.parametrize("seed", range(20))
def test_a_bow_tie_off_the_grid_tells_of_no_pixel_that_only_rounding_changes(seed: int) -> None:
    # pycocotools rounds vertices to fifths of a pixel; that is no matter of the ring that crosses itself.
    shift = np.random.default_rng(seed).uniform(-0.4, 0.4, (4, 2))
    [found] = crossings(shape((np.array(BOW_TIE) * 3 + 5 + shift).tolist()), 40, 40)
    assert (found.differs_px, found.mended_px) == (0, 0)


def test_of_several_rings_only_those_that_cross_are_told_and_simple_or_short_ones_are_not() -> None:
    assert crossings(shape(SQUARE), 8, 10) == [] and crossings(shape([(0, 0), (3, 3)]), 8, 10) == []
    assert crossings(PolygonShape(np.zeros((0, 2)), np.zeros(1, np.int64)), 8, 10) == []
    found = crossings(shape(SQUARE, BOW_TIE, [(0, 0), (1, 1)], TWICE_AROUND), 8, 10)
    assert [one.differs_px for one in found] == [0, 4]


def test_lines_that_mending_leaves_over_and_holes_fill_nothing() -> None:
    # A square of 4 x 3 with a spike to (9, 1): mended, it is the square and a line.
    spiked = [(1, 1), (9, 1), (5, 1), (5, 4), (1, 4)]
    mended = shapely.make_valid(shapely.Polygon(spiked))
    assert mended.geom_type == "GeometryCollection" and filled_polygons(mended, 8, 10).sum() == 12
    holed = shapely.Polygon([(0, 0), (6, 0), (6, 6), (0, 6)], [[(2, 2), (4, 2), (4, 4), (2, 4)]])
    assert filled_polygons(holed, 8, 10).sum() == 32
    assert filled_polygons(shapely.LineString([(0, 0), (5, 5)]), 8, 10).sum() == 0
