"""The hot loop: every way through it gives the pixels of the raster rule, for any outline, and the invariances hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.geometry.raster import fill
from envs.geometry.spans import spans_from_mask
from envs.polygons import Ring, flat_answers, flatten_rings
from rewards.kernels.chains import seen_whole, span_table
from rewards.kernels.overlap import overlap
from rewards.score import Target

H, W = 40, 50
TRUTH = fill(np.array([[5.0, 4], [44, 9], [38, 33], [24, 21], [12, 36]]), np.array([0, 5]), H, W)
TRUTH[10:20, 20:24] = TRUTH[12:22, 30:31] = False  # rows of three spans: the table has several places
SPANS = spans_from_mask(TRUTH)
TABLE = span_table(SPANS)
quarters = st.integers(-20, 220).map(lambda quarter: quarter / 4)
halves = st.integers(-8, 104).map(lambda half: half / 2)
anywhere = st.floats(-30, 80)
seeds = st.integers(0, 2**32 - 1)


def points(coordinate: st.SearchStrategy[float], most: int = 12) -> st.SearchStrategy[Ring]:
    pairs = st.lists(st.tuples(coordinate, coordinate), max_size=most)
    return pairs.map(lambda found: np.array(found, np.float64).reshape(-1, 2))


outlines = st.one_of(points(quarters), points(halves), points(anywhere), points(st.floats(-1e4, 1e4)))


def star(seed: int, num: int) -> Ring:
    """A ring seen whole from its middle, most of the time: angles in order, any distances."""
    rng = np.random.default_rng(seed)
    turns = np.sort(rng.uniform(0, 2 * np.pi, num)) * rng.choice([-1, 1])
    reach = rng.uniform(6, 24, num) * rng.choice([0.1, 1.0])
    ring = np.stack([25 + reach * np.cos(turns), 20 + reach * np.sin(turns)], axis=1)
    return np.round(ring * 4) / 4 if rng.random() < 0.5 else ring


def counted(answer: list[Ring]) -> list[int]:
    pixels = fill(*flatten_rings(answer), H, W)
    rows, columns = np.nonzero(pixels)
    return [int((pixels & TRUTH).sum()), len(rows), int((2 * columns + 1).sum()), int((2 * rows + 1).sum())]


def overlaps(*answers: list[Ring]) -> NDArray[np.int64]:
    return np.asarray(overlap(*flat_answers(answers), SPANS, TABLE, W))


@settings(max_examples=600)
@given(st.lists(st.lists(outlines, max_size=3), min_size=1, max_size=4))
def test_any_outlines_count_as_their_bitmaps(answers: list[list[Ring]]) -> None:
    assert overlaps(*answers).tolist() == [counted(answer) for answer in answers]


@settings(max_examples=600)
@given(seeds, st.integers(3, 60))
def test_rings_seen_whole_from_their_middle_count_as_their_bitmaps(seed: int, num: int) -> None:
    ring = star(seed, num)
    assert overlaps([ring]).tolist() == [counted([ring])]


@settings(max_examples=300)
@given(seeds, st.integers(4, 40), st.integers(1, 3))
def test_self_crossing_doubled_and_overlapping_rings_count_as_their_bitmaps(seed: int, num: int, times: int) -> None:
    rng = np.random.default_rng(seed)
    wild = rng.uniform(-5, 55, (num, 2))
    several = [np.concatenate([star(seed, num)] * times), star(seed + 1, num) + 3, wild]
    assert overlaps(several, [wild]).tolist() == [counted(several), counted([wild])]


def test_the_three_ways_are_all_taken_by_these_tests() -> None:
    square = np.array([[10.0, 10], [30, 10], [30, 30], [10, 30]])
    bow = np.array([[10.0, 10], [30, 30], [30, 10], [10, 30]])
    assert seen_whole(square, 0, 4) and not seen_whole(bow, 0, 4)
    assert not seen_whole(np.concatenate([square, square]), 0, 8)
    assert len(TABLE.rows) == 3


@settings(max_examples=200)
@given(seeds, st.integers(3, 20), st.integers(0, 19))
def test_start_vertex_direction_and_doubled_vertices_change_nothing(seed: int, num: int, start: int) -> None:
    ring = star(seed, num) if seed % 2 else np.random.default_rng(seed).uniform(-5, 55, (num, 2))
    same = [np.roll(ring, start, axis=0), ring[::-1], np.repeat(ring, 2, axis=0), np.concatenate([ring, ring[:1]])]
    sums = overlaps([ring], *([other] for other in same))
    assert (sums == sums[0]).all()


@settings(max_examples=200)
@given(seeds, st.integers(3, 20), st.integers(-3, 3), st.integers(-3, 3))
def test_moving_truth_and_answer_by_whole_pixels_moves_only_the_centroid(seed: int, num: int, x: int, y: int) -> None:
    rng = np.random.default_rng(seed)
    ring, truth = rng.integers(40, 160, (num, 2)) / 4, rng.integers(40, 120, (6, 2)) / 4
    here, there = (
        Target.from_rings([truth + move], H + 20, W + 20).overlap([[ring + move]]) for move in ((0, 0), (x, y))
    )
    assert (here.intersection, here.area, here.iou) == (there.intersection, there.area, there.iou)
    assert np.allclose(here.centroid + np.array([x, y]), there.centroid, equal_nan=True)


def test_answers_of_no_one_and_two_points_have_no_pixel() -> None:
    few = [np.zeros((0, 2)), np.array([[3.5, 3.5]]), np.array([[3.5, 3.5], [20.5, 20.5]])]
    assert overlaps(*([ring] for ring in few), []).tolist() == [[0, 0, 0, 0]] * 4


@pytest.mark.parametrize("far", [np.nan, np.inf, -np.inf, 1e300, -1e300, 1e5 + 1, 2.0**31])
def test_wild_coordinates_count_as_their_bitmaps(far: float) -> None:
    ring = np.array([[5.0, 5], [far, 6], [30, far], [5, 30]])
    assert overlaps([ring], [np.array([[5.0, 5], [20, 5], [20, 20]])]).tolist()[0] == counted([ring])


def test_vertices_at_pixel_centres_and_on_edges_follow_the_raster_rule() -> None:
    centres = np.array([[10.5, 10.5], [20.5, 10.5], [20.5, 15.5], [10.5, 15.5]])
    assert overlaps([centres], [centres - 0.5], [centres + 1e-12], [centres - 1e-12])[:, 1].tolist() == [
        *(50, 50, 50, 50)
    ]
    assert overlaps([centres])[0, 2:].tolist() == [50 * 2 * 15, 50 * 2 * 12.5]


def test_many_chains_and_many_rings_go_the_general_way() -> None:
    comb = np.array([[x, 35.0 if x % 2 else 5.0] for x in range(1, 49)] + [[48.0, 38], [1, 38]])
    specks = [np.array([[x, y], [x + 0.9, y], [x + 0.9, y + 0.9], [x, y + 0.9]]) for x in range(40) for y in range(25)]
    assert overlaps([comb], specks).tolist() == [counted([comb]), counted(specks)]
