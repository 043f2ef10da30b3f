"""The hostile suite: its answers are what they claim, and each built-in reward is fit for what the manual says."""

from math import inf
from pathlib import Path

import numpy as np
import pytest

from envs.geometry.contours import mask_from_rings
from envs.plugin import Plugin, plugin_names
from rewards.hostile import Scene, Trick, tricks
from rewards.score import compare
from rewards.scorer import Scorer
from rewards.settings import RewardRecipe
from rewards.trial import CAREFUL, HASTY, TRICK, Trial, try_tricks
from rl.config.rewards import reward_parts

NAMES = [
    name
    for name in plugin_names("rewards.terms")
    if not RewardRecipe(Plugin("rewards.terms", "Reward", name, {})).needs_refined
]
SCENES = {trick.scene.name: trick.scene for trick in tricks()}
ROWS = {trick.name: k for k, trick in enumerate(tricks())}


@pytest.fixture(scope="module")
def everything() -> Trial:
    return try_tricks(Scorer(reward_parts({name: {} for name in NAMES}, {}).recipes))


def out_earning(rewards: dict[str, dict[str, object]]) -> set[str]:
    """Names of the tricks that earn too much under these rewards."""
    parts = reward_parts(rewards, {})
    verdicts = try_tricks(Scorer(parts.recipes)).verdicts(parts.weights)
    return {verdict.trick.name for verdict in verdicts if not verdict.passed}


def by_hand(scene: Scene, k: int) -> tuple[int, int]:
    """Intersection and union of the masks of a scene's k-th honest answer and its truth, pixel by pixel."""
    drawn = mask_from_rings((scene.careful, scene.hasty)[k].rings_px, 64, 64)
    return int((drawn & scene.target.mask).sum()), int((drawn | scene.target.mask).sum())


@pytest.mark.parametrize(
    ("name", "careful", "hasty"),
    [
        ("object", (620, 720), (610, 730)),
        ("large object", (2940, 3072), (2816, 3200)),
        ("two objects", (864, 1072), (976, 1168)),
    ],
)
def test_the_honest_answers_have_these_overlaps(name: str, careful: tuple[int, int], hasty: tuple[int, int]) -> None:
    assert (by_hand(SCENES[name], 0), by_hand(SCENES[name], 1)) == (careful, hasty)


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_a_careful_answer_is_right_about_box_centre_and_number_of_vertices(scene: Scene) -> None:
    careful, hasty = compare([scene.careful, scene.hasty], scene.target)
    assert (careful.box_px, careful.centroid_px) == (scene.target.box_px, scene.target.centroid_px)
    assert max(careful.num_vertices, hasty.num_vertices) <= 16
    assert min(careful.iou, hasty.iou) > 0.8


@pytest.mark.parametrize("trick", [trick for trick in tricks() if trick.same_pixels], ids=lambda trick: trick.name)
def test_a_trick_of_the_same_pixels_has_the_pixels_of_the_careful_answer(trick: Trick) -> None:
    drawn, careful = compare([trick.answer, trick.scene.careful], trick.scene.target)
    assert drawn.answer_area_px == careful.answer_area_px
    assert (drawn.iou, drawn.centroid_px, drawn.box_px) == (careful.iou, careful.centroid_px, careful.box_px)


def test_tricks_of_grammar_are_caught_by_the_codecs() -> None:
    wrong = {"truncated": "truncated", "brackets in prose": "unparsable", "two points": "degenerate"}
    wrong["numbers out of range"] = "out_of_range"
    for name, status in wrong.items():
        for form in ("path tokens", "point text"):
            assert tricks()[ROWS[f"{name}, {form}"]].answer.status == status


# Bands are 2 px wide here. The plus sign of the first scene has 720 px, 448 of them inside the band; the careful one
# 620 and 348, so the bands share 272 - 100 px of 372. Free are 16 vertices, and 8 where IoU is paid for by vertex; the
# plus signs need 12 and 11. Half an outline is a triangle of 180 px and an arm of 130. Three dots: not computed.
ORDER = ["boundary_iou", "box_iou", "centroid_distance", "length_penalty"]
ORDER += ["mask_iou", "matched_iou", "point_in_mask", "vertex_economy"]
CAREFUL_PLUS = (172 / 372, 1, 1, 1, 620 / 720, 620 / 720, 1, 620 / 720)
EARNED = {
    "500 vertices": (172 / 372, 1, 1, 0, 620 / 720, 620 / 720, 1, 620 / 720 * 12 / 500),
    "every vertex three times": (172 / 372, 1, 1, 92 / 112, 620 / 720, 620 / 720, 1, 620 / 720 / 3),
    "doubled ring": (172 / 372, 1, 1, 104 / 112, 620 / 720, 620 / 720, 1, 620 / 720 / 2),
    "ring gone round twice": (172 / 372, 1, 1, 104 / 112, 620 / 720, 620 / 720, 1, 620 / 720 / 2),
    "overlapping rings": (172 / 372, 1, 1, 104 / 112, 620 / 720, 620 / 720, 1, 620 / 720 / 2),
    "spikes": (172 / 372, 1, 1, 92 / 112, 620 / 720, 620 / 720, 1, 620 / 720 / 3),
    "whole image": (0, 1296 / 4096, 1, 1, 720 / 4096, 720 / 4096, 0, 720 / 4096),
    "tight box": (96 / 448, 1, 1, 1, 720 / 1296, 720 / 1296, 1, 720 / 1296),
    "figure eight": (..., 35 / 36, 1 - 0.25 / 720, 1, 360 / 1008, 360 / 1008, 1, 360 / 1008),
    "line": (0, 0, 0, 1, 0, 0, 0, 0),
    "speck in the middle": (0, 4 / 1296, 1, 1, 4 / 720, 4 / 720, 1, 4 / 720),
    "right size, wrong place": (0, 0, 95 / 720, 1, 0, 0, 0, 0),
    "a thousand specks": (68 / 1204, 1296 / 3969, ..., 0, 180 / 1540, 1 / 720e3, 0, ...),
    "hollow outline": (272 / 720, 1, 1, 104 / 112, 272 / 720, 272 / 720, 1, 136 / 720),
    "stopped early": (..., 23 * 34 / 1296, ..., 1, 310 / 720, 310 / 720, 1, 310 / 720),
    "right box said, speck drawn": (0, 4 / 1296, 208 / 720, 1, 0, 0, 0, 0),
    "empty on full": (0, 0, 0, 1, 0, 0, 0, 0),
    "whole image, large object": (256 / 736, 1, 1, 1, 0.75, 0.75, 1, 0.75),
    "speck, large object": (0, 4 / 4096, 1, 1, 4 / 3072, 4 / 3072, 1, 4 / 3072),
    "one box around both": (..., 1, 1, 1, 1072 / 3136, 536 / 3136 / 2, 0, 1072 / 3136),
    "both as one instance": (..., 1, 1, 1, 864 / 1072, 432 / 968 / 2, 1, ...),
    "each object three times": (..., 1, 1, 80 / 112, 864 / 1072, 2 * 432 / 536 / 6, 1, ...),
    "one of two": (..., 24**2 / 56**2, 1 - 512 / 1072, 1, 432 / 1072, 432 / 536 / 2, 1, 432 / 1072),
    "a tile everywhere": (0, 56**2 / 64**2, 1, 64 / 112, 1072 / 4096, 2 * 134 / 658 / 16, 0, ...),
    "empty on empty": (1, 1, None, 1, 1, 1, 1, 1),
    "area on empty": (0, 0, None, 0, 0, 0, 0, 0),
    "speck on empty": (0, 0, None, 0, 0, 0, 0, 0),
    "line on empty": (0, 0, None, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_trick_earns_what_was_computed_by_hand_and_0_where_it_is_invalid(name: str, everything: Trial) -> None:
    valid = tricks()[ROWS[name]].answer.status.valid
    expected = EARNED[name] if valid else (0,) * len(ORDER)
    for reward, value in zip(ORDER, expected, strict=True):
        if value is not ...:
            earned = everything.terms[reward][ROWS[name], TRICK]
            assert earned == pytest.approx(np.nan if value is None else value, nan_ok=True), reward


def test_a_careful_answer_earns_what_was_computed_by_hand(everything: Trial) -> None:
    earned = [everything.terms[reward][ROWS["whole image"], CAREFUL] for reward in ORDER]
    assert earned == pytest.approx(CAREFUL_PLUS)
    large = [
        everything.terms[name][ROWS["speck, large object"], CAREFUL] for name in ("boundary_iou", "vertex_economy")
    ]
    assert large == pytest.approx([364 / 628, 2940 / 3072 * 11 / 12])


def test_format_pays_every_shape_that_can_be_read_but_none_where_nothing_is_there(everything: Trial) -> None:
    for trick, earned in zip(tricks(), everything.terms["format"][:, TRICK], strict=True):
        right = trick.answer.status == "empty" or (trick.answer.status == "ok" and trick.scene.target.area_px > 0)
        assert earned == right


FITNESS = {
    "boundary_iou": ("passes", inf),
    "box_iou": ("beside_mask_iou", 2.08),
    "centroid_distance": ("beside_mask_iou", 54.95),
    "format": ("teaches_nothing", inf),
    "improvement": ("teaches_nothing", inf),
    "instance_f1": ("beside_mask_iou", inf),
    "length_penalty": ("beside_mask_iou", inf),
    "mask_iou": ("passes", inf),
    "matched_iou": ("passes", inf),
    "point_in_mask": ("beside_mask_iou", inf),
    "soft_matched_iou": ("passes", inf),
    "thinking_format": ("teaches_nothing", inf),
    "thinking_length": ("teaches_nothing", inf),
    "vertex_economy": ("passes", inf),
}


def test_each_built_in_reward_is_alone_fit_for_what_is_documented(everything: Trial) -> None:
    assert set(FITNESS) == set(NAMES)
    found = {name: (everything.fitness({name: 1.0}), everything.safe_weight(name)) for name in NAMES}
    assert {name: fitness.value for name, (fitness, _) in found.items()} == {n: f for n, (f, _) in FITNESS.items()}
    assert {n: safe for n, (_, safe) in found.items()} == pytest.approx({n: s for n, (_, s) in FITNESS.items()}, 1e-3)
    told = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    for name, (fitness, safe) in FITNESS.items():
        assert f"| `{name}` | `{fitness}` | {'any' if safe == inf else f'{safe:.2f}'} |" in told


@pytest.mark.parametrize("name", NAMES)
def test_beside_mask_iou_every_built_in_reward_is_safe_at_its_own_weight(name: str, everything: Trial) -> None:
    weight = reward_parts({name: {}}, {}).weights[name]
    verdicts = everything.verdicts({"mask_iou": 1.0, name: weight})
    assert [verdict for verdict in verdicts if not verdict.passed] == []
    assert everything.safe_weight(name) > weight


def test_boundary_iou_without_its_cap_falls_for_a_hollow_outline() -> None:
    assert "hollow outline" in out_earning({"boundary_iou": {"capped": False}})


def test_a_speck_that_says_the_true_box_is_paid_by_a_reward_of_said_boxes_but_not_beside_mask_iou() -> None:
    said = {"said": True, "weight": 0.5}
    assert "right box said, speck drawn" in out_earning({"box_iou": said})
    assert out_earning({"box_iou": said, "mask_iou": {"weight": 0.5}}) == set()


def test_a_heavy_price_on_vertices_makes_the_whole_image_pay_for_a_large_object() -> None:
    price = {"free_vertices": 6, "max_vertices": 16}
    # 0.88 + 0.4 w of the hasty answer, with 12 vertices, against 0.75 + w of four corners: equal at w = 0.13 / 0.6.
    assert out_earning({"mask_iou": {}, "length_penalty": price | {"weight": 0.216}}) == set()
    assert out_earning({"mask_iou": {}, "length_penalty": price | {"weight": 0.217}}) == {"whole image, large object"}


def test_the_safe_weight_is_where_the_first_trick_earns_as_much_as_a_hasty_answer() -> None:
    parts = reward_parts({"length_penalty": {"free_vertices": 6, "max_vertices": 16}}, {})
    assert try_tricks(Scorer(parts.recipes)).safe_weight("length_penalty") == pytest.approx(0.13 / 0.6)


def test_any_weight_of_format_is_safe_beside_mask_iou(everything: Trial) -> None:
    assert everything.safe_weight("format") == inf
    assert everything.safe_weight("centroid_distance") == pytest.approx((0.88 - 0.75) / (34.695652 - 32) ** 2 * 3072)


def test_tricks_are_measured_by_hasty_answers_and_those_of_the_careful_pixels_by_careful_ones(
    everything: Trial,
) -> None:
    k = ROWS["tight box"]
    alone, total = everything.verdicts({"box_iou": 1.0})[k], everything.verdicts({"box_iou": 1.0, "mask_iou": 1.0})[k]
    assert (alone.total, alone.careful, alone.hasty) == (1.0, 1.0, pytest.approx(35 / 37))
    assert (alone.honest, alone.earns_more, alone.passed) == (alone.hasty, True, False)
    assert total.honest == total.hasty == pytest.approx((35 / 37 + 610 / 730) / 2)
    assert everything.iou[k, HASTY] == 610 / 730
    doubled = everything.verdicts({"box_iou": 1.0})[ROWS["doubled ring"]]
    assert (doubled.honest, doubled.total, doubled.passed) == (1.0, 1.0, True)


def test_a_trick_that_earns_what_both_honest_answers_do_does_not_pass_unless_that_is_nothing(everything: Trial) -> None:
    speck = everything.verdicts({"point_in_mask": 1.0})[ROWS["speck in the middle"]]
    assert (speck.total, speck.careful, speck.hasty) == (1.0, 1.0, 1.0)
    assert (speck.earns_more, speck.earns_as_much, speck.passed) == (False, True, False)
    area = everything.verdicts({"centroid_distance": 1.0})[ROWS["area on empty"]]
    assert (area.total, area.careful, area.hasty, area.passed) == (0.0, 0.0, 0.0, True)
