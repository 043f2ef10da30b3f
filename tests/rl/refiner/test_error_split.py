import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from envs.codecs.path_tokens import Codec
from envs.example import Truth
from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.geometry.masks import tight_box_px
from envs.plugin import Plugin
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.families.base import VisionFeatures
from policies.refiner.mask_refiner import MaskRefiner
from policies.settings import RefinerSettings
from rl.refiner.errors import (
    TITLES,
    AnsweredScenes,
    OutlineBudget,
    codec_answer,
    reboxed,
    split_dict,
    split_errors,
    split_table,
)

SIZE = 32
BUDGET = OutlineBudget(Codec(box_bins=32, path_bins=32), max_vertices=16, max_rings=2)


class Tower:
    """Features of one channel: the mean brightness of each cell of 8 px."""

    def vision_features(self, images, early_block=0):
        pixels = torch.from_numpy(np.stack(images)).float().mean(dim=3)[:, None]
        cells = nn.functional.avg_pool2d(pixels, 8) / 255
        return VisionFeatures(cells, cells)


def refiner(features: str = "image", passes: int = 2) -> MaskRefiner:
    settings = RefinerSettings(crop_px=32, passes=passes, features=features)
    torch.manual_seed(0)
    return MaskRefiner(settings, Plugin("policies.heads", "Head", "pixel_head", {"channels": 4}), 1, 1, "none").eval()


def box_mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def ell(x: int, y: int, scale: int = 1) -> np.ndarray:
    """An L in a box of 8 x 12 px, times scale."""
    return box_mask(x, y, x + 3 * scale, y + 12 * scale) | box_mask(x, y + 8 * scale, x + 8 * scale, y + 12 * scale)


def scenes(*pairs: tuple[np.ndarray | Answer, np.ndarray]) -> AnsweredScenes:
    answers = [drawn if isinstance(drawn, Answer) else answer_from_rings(rings_from_mask(drawn)) for drawn, _ in pairs]
    truths = [Truth(mask[None] if mask.any() else np.zeros((0, SIZE, SIZE), np.bool_)) for _, mask in pairs]
    return AnsweredScenes([np.full((SIZE, SIZE, 3), 90, np.uint8)] * len(pairs), answers, truths)


def codec_mask(truth: Truth, budget: OutlineBudget) -> np.ndarray:
    return mask_from_rings(codec_answer(truth, budget).rings_px, SIZE, SIZE)


def gious(given: AnsweredScenes, features: str = "image") -> dict[str, float]:
    rows = split_errors(refiner(features), Tower(), given, BUDGET, batch_size=2)
    assert list(rows) == list(TITLES)
    return {name: row.giou.value for name, row in rows.items()}


@pytest.mark.parametrize("features", ["image", "crop"])
def test_the_right_path_in_a_wrong_box_is_an_error_of_the_box_alone(features):
    found = gious(scenes((ell(2, 2), ell(8, 10)), (ell(4, 3, 2), ell(20, 16))), features)
    assert found["outline"] < 0.3
    assert found["outline_true_box"] == 1
    assert found["refined_true_box"] > 0.8
    assert found["codec_bound"] == 1


def test_a_wrong_path_in_the_right_box_is_none_of_the_box():
    # An L of 4 * 8 + 3 * 8 = 56 px in its box of 8 x 12 = 96.
    found = gious(scenes((box_mask(4, 5, 12, 17), ell(4, 5))))
    assert found["outline"] == found["outline_true_box"] == pytest.approx(56 / 96)


def test_an_untrained_refiner_returns_the_outline_and_the_oracle_is_never_below_it():
    given = scenes((ell(3, 2), ell(4, 4)), (box_mask(8, 8, 30, 14), box_mask(6, 8, 29, 14)))
    found = gious(given)
    assert found["refined"] == pytest.approx(found["outline"], abs=0.05)
    assert found["refined_oracle"] >= max(found["refined"], found["outline"])


def test_the_crop_bounds_what_can_be_reached():
    # The answer's box of 4 x 4 px grows to the least size, 8: the truth of 20 x 20 is cut to 64 of its 400 px.
    found = gious(scenes((box_mask(14, 14, 18, 18), box_mask(6, 6, 26, 26))))
    assert found["crop_bound"] == pytest.approx(64 / 400)
    assert found["crop_bound_true_box"] == 1


def test_empty_answers_empty_truths_and_invalid_answers():
    nothing, some = box_mask(0, 0, 0, 0), ell(5, 5)
    found = gious(scenes((nothing, some)))
    assert {name: value for name, value in found.items() if value} == {"codec_bound": 1.0}
    assert set(gious(scenes((nothing, nothing))).values()) == {1.0}
    drawn_for_nothing = gious(scenes((some, nothing)))
    assert {name for name, value in drawn_for_nothing.items() if value} == {"codec_bound"}
    unread = gious(scenes((Answer(AnswerStatus.UNPARSABLE), nothing)))
    assert {name for name, value in unread.items() if value} == {"codec_bound"}


def test_images_of_two_sizes_go_together():
    one = scenes((ell(2, 2), ell(8, 10)))
    image = np.full((20, 24, 3), 90, np.uint8)
    small = AnsweredScenes([image], [Answer(AnswerStatus.EMPTY)], [Truth(np.zeros((0, 20, 24), np.bool_))])
    both = AnsweredScenes([*one.images, image], [*one.answers, *small.answers], [*one.truths, *small.truths])
    assert gious(both)["outline"] == pytest.approx((gious(one)["outline"] + 1) / 2)


def test_an_ignored_pixel_counts_neither_way():
    given = scenes((box_mask(4, 4, 12, 8), box_mask(4, 4, 8, 8)))
    crowd = AnsweredScenes(given.images, given.answers, [Truth(given.truths[0].masks, box_mask(10, 0, 32, 32))])
    assert gious(given)["outline"] == pytest.approx(16 / 32)
    assert gious(crowd)["outline"] == pytest.approx(16 / 24)


def test_the_codec_says_a_truth_of_two_instances_within_its_budget():
    truth = Truth(np.stack([ell(2, 2), box_mask(20, 20, 30, 30)]))
    assert np.array_equal(codec_mask(truth, BUDGET), truth.union)
    y, x = np.mgrid[:SIZE, :SIZE] - 15.5
    disc = Truth((x**2 + y**2 < 100)[None])
    tight = OutlineBudget(BUDGET.codec, max_vertices=4, max_rings=1)
    read = codec_mask(disc, tight)
    assert 0.5 < (read & disc.union).sum() / (read | disc.union).sum() < 0.9


def test_instances_share_the_codecs_limits_and_the_largest_are_said_where_not_all_can_be():
    y, x = np.mgrid[:SIZE, :SIZE]
    discs = [(x - cx) ** 2 + (y - cy) ** 2 < r**2 for cx, cy, r in ((8, 8, 7), (23, 8, 6), (15, 24, 5))]
    tight = OutlineBudget.of(Codec(box_bins=32, path_bins=32, max_rings=2, max_vertices=16))
    answer = codec_answer(Truth(np.stack(discs)), tight)
    assert [len(instance.vertices_px) for instance in answer.instances] == [8, 8]
    drawn = codec_mask(Truth(np.stack(discs)), tight)
    assert not (drawn & discs[2]).any()
    assert all((drawn & disc).sum() / disc.sum() > 0.9 for disc in discs[:2])


def test_a_truth_of_ignored_pixels_alone_is_said_as_nothing_and_bounds_the_codec_at_1():
    all_ignored = Truth(ell(4, 4)[None], ell(4, 4))
    assert codec_answer(all_ignored, BUDGET).status is AnswerStatus.EMPTY
    given = AnsweredScenes([np.full((SIZE, SIZE, 3), 90, np.uint8)], [answer_from_rings([])], [all_ignored])
    assert set(gious(given).values()) == {1.0}


@given(
    st.tuples(st.integers(0, 12), st.integers(0, 12)),
    st.tuples(st.integers(0, 10), st.integers(0, 6), st.integers(1, 20), st.integers(1, 25)),
)
def test_reboxed_rings_have_the_box_and_keep_their_path(place, box):
    rings = rings_from_mask(ell(*place))
    x, y, width, height = box
    moved = reboxed(rings, (x, y, x + width, y + height))
    assert np.concatenate(moved).min(axis=0) == pytest.approx([x, y])
    assert np.concatenate(moved).max(axis=0) == pytest.approx([x + width, y + height])
    back = reboxed(moved, tight_box_px(ell(*place)))
    assert all(a == pytest.approx(b) for a, b in zip(back, rings, strict=True))


def test_a_line_is_moved_onto_the_middle_of_the_box_and_no_ring_gives_none():
    line = np.array([[2.0, 3.0], [6.0, 3.0], [4.0, 3.0]])
    assert reboxed([line], (10, 10, 12, 20))[0].tolist() == [[10, 15], [12, 15], [11, 15]]
    assert reboxed([], (0, 0, 1, 1)) == []
    assert tight_box_px(box_mask(0, 0, 0, 0)) is None
    assert not mask_from_rings([], 4, 4).any()


def test_rows_as_table_and_json():
    rows = split_errors(refiner(), Tower(), scenes((ell(2, 2), ell(3, 2)), (ell(2, 2), ell(2, 3))), BUDGET)
    output = io.StringIO()
    Console(file=output, width=80).print(split_table(rows))
    assert "…" not in output.getvalue()
    assert all(title in output.getvalue() for title in TITLES.values())
    assert split_dict(rows)["outline"]["giou"] == rows["outline"].giou.value


def test_as_many_answers_as_images_are_asked_for():
    with pytest.raises(ValueError, match="1 images, 0 answers and 1 truths"):
        AnsweredScenes([np.zeros((2, 2, 3), np.uint8)], [], [Truth(np.zeros((0, 2, 2), np.bool_))])
