import numpy as np
import pytest

from rl.refiner.errors import KINDS, Traits, gain_by_kind, traits
from rl.refiner.scores import MaskScores


def mask_of(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((40, 40), np.bool_)
    for y0, x0, y1, x1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize(
    ("box", "size", "thinness"),
    [
        ((5, 5, 15, 15), 0.25, 1.0),  # a square of 10 of 40 px
        ((0, 0, 9, 9), 9 / 40, 1.0),  # odd, at the image's border
        ((3, 2, 7, 18), 0.2, 2.0),  # 4 x 16: sqrt(64) / 4
        ((3, 2, 4, 38), 0.15, 6.0),  # a line of 36 px
    ],
)
def test_a_rectangle_by_hand(box, size, thinness):
    found = traits(mask_of(box))
    assert (found.size, found.thinness, found.parts) == (pytest.approx(size), pytest.approx(thinness), 1)


def test_a_disc_is_as_compact_as_can_be():
    y, x = np.mgrid[:40, :40] - 19.5
    assert traits(x**2 + y**2 < 15**2).thinness == pytest.approx(np.sqrt(np.pi) / 2, abs=0.05)


def test_pieces_that_touch_at_a_corner_are_one():
    assert traits(mask_of((0, 0, 5, 5), (5, 5, 9, 9))).parts == 1
    assert traits(mask_of((0, 0, 5, 5), (6, 6, 9, 9), (20, 0, 22, 2))).parts == 3
    assert traits(mask_of()) is None


def test_every_mask_with_an_object_is_in_one_row():
    objects = [Traits(0.05, 1, 1), Traits(0.125, 1, 1), Traits(0.3, 1, 2), None, Traits(0.2, 3, 7)]
    gains = np.array([0.1, 0.2, 0.3, 9.0, 0.4])
    zeros, whole = np.zeros(5), np.zeros(5, np.int64)
    scores = MaskScores(zeros, gains, zeros, gains / 2, *[zeros] * 4, whole, whole, whole.astype(np.bool_))
    by_size = gain_by_kind(scores, objects, KINDS[0])
    assert [(row.name, row.num_masks) for row in by_size] == [("under 1/8", 1), ("1/8 to 1/4", 2), ("1/4 to 1/2", 1)]
    assert by_size[1].gain_iou.value == pytest.approx(0.3)
    assert by_size[1].gain_boundary_iou.value == pytest.approx(0.15)
    assert [(row.name, row.num_masks) for row in gain_by_kind(scores, objects, KINDS[2])] == [
        ("1", 2),
        ("2", 1),
        ("3 or more", 1),
    ]
