"""Leave-one-out overlaps: each equals what the raster rule gives of the outline without that vertex."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.geometry.raster import fill
from envs.geometry.spans import Spans, spans_from_mask
from envs.polygons import FlatAnswers, flat_answers
from rewards.kernels.chains import SpanTable, span_table
from rewards.kernels.vertices import left_out

SQUARE = np.array([(1.0, 1.0), (5.0, 1.0), (5.0, 5.0), (1.0, 5.0)])


def spans(mask: NDArray[np.bool_]) -> Spans:
    return Spans(*spans_from_mask(mask))


def left(flat: FlatAnswers, truth: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> NDArray[np.int64]:
    true = spans(truth)
    found: NDArray[np.int64] = left_out(*flat, true, SpanTable(*span_table(true)), spans(ignore), truth.shape[1])
    return found


def naive(rings: list[Any], truth: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N, 2] by filling every outline that lacks a vertex."""
    found = []
    for r, ring in enumerate(rings):
        for v in range(len(ring)):
            rest = [np.delete(ring, v, axis=0) if k == r else other for k, other in enumerate(rings)]
            flat = flat_answers([rest])
            drawn = fill(flat.vertices, flat.ring_offsets, *truth.shape) & ~ignore
            found.append((int((drawn & truth).sum()), int(drawn.sum())))
    return np.array(found, np.int64).reshape(-1, 2)


def test_a_square_without_a_corner_is_the_triangle_of_the_others() -> None:
    # 4 x 4 pixels; without a corner 6 or 10 of them: the diagonal's centres are in for left and top edges alone.
    truth = np.zeros((6, 6), np.bool_)
    truth[1:3, 1:5] = True
    flat = flat_answers([[SQUARE]])
    sums = left(flat, truth, np.zeros_like(truth))
    assert sums[:, 1].tolist() == [10, 6, 6, 10]
    assert sums.tolist() == naive([SQUARE], truth, np.zeros_like(truth)).tolist()


@given(data=st.data())
def test_of_any_rings_it_is_what_filling_each_of_them_gives(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    truth, ignore = rng.random((2, height, width)) < [[[0.5]], [[0.2]]]
    truth &= ~ignore
    scale = data.draw(st.sampled_from([0.5, 1.0, 0.37]))
    answers = [
        [np.round(rng.uniform(-3, 14, (rng.integers(0, 8), 2)) / scale) * scale for _ in range(rng.integers(0, 4))]
        for _ in range(3)
    ]
    if data.draw(st.booleans()):
        for ring in answers[0]:
            ring[: len(ring) // 3] = [np.nan, np.inf]
    found = left(flat_answers(answers), truth, ignore)
    assert found.tolist() == [row for rings in answers for row in naive(rings, truth, ignore).tolist()]


@given(data=st.data())
def test_of_stars_around_their_middle_it_is_the_same_by_sums_over_edges(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    num = data.draw(st.integers(3, 12))
    angles = np.linspace(0, 2 * np.pi, num, endpoint=False) * data.draw(st.sampled_from([1.0, -1.0]))
    radii = rng.uniform(2, 14, num) if data.draw(st.booleans()) else np.full(num, 8.0)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + rng.uniform(0, 20, 2)
    if data.draw(st.booleans()):
        ring = np.round(ring * 2) / 2  # corners and edges through pixel centres
    truth = rng.random((height, width)) < 0.5
    nothing = np.zeros_like(truth)
    assert left(flat_answers([[ring]]), truth, nothing).tolist() == naive([ring], truth, nothing).tolist()


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_of_a_triangle_or_less_nothing_is_left(length: int) -> None:
    truth = np.ones((6, 6), np.bool_)
    sums = left(flat_answers([[SQUARE[:length]]]), truth, ~truth)
    assert sums.tolist() == [[0, 0]] * length
