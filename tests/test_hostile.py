"""The hostile suite: its answers are what they claim, and no built-in reward or shipped config pays for them."""

import io
import json
import subprocess
import sys
from math import inf
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from envs.contours import mask_from_rings
from envs.plugin import Plugin, plugin_names
from rewards.hostile import Scene, Trick, tricks
from rewards.score import compare
from rewards.scorer import RewardRecipe, Scorer
from rewards.trial import CAREFUL, HASTY, TRICK, Trial, try_tricks
from rl import reward_test
from rl.reward_settings import load_rewards, reward_parts
from rl.settings import shipped_configs

NAMES = [
    name
    for name in plugin_names("rewards", "Reward")
    if not RewardRecipe(Plugin("rewards", "Reward", name, {})).needs_refined
]
SCENES = {trick.scene.name: trick.scene for trick in tricks()}
ROWS = {trick.name: k for k, trick in enumerate(tricks())}
FOLDER = Path(__file__).parent.parent / "configs"
TEXTS = {name: (FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in shipped_configs()}
JOBS = [name for name, text in TEXTS.items() if "\nrewards:" in text and "\nrefined:" not in text]
CONFIGS = [*JOBS, *(f"rewards/{name}" for name in shipped_configs("rewards"))]
AREA_RATIO = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Reward:
    weight: float = 1.0

    def __call__(self, comparison):
        drawn, true = comparison.answer_area_px, comparison.target.area_px
        return min(drawn, true) / max(drawn, true) if drawn and true else float(drawn == true)
"""


@pytest.fixture(scope="module")
def everything() -> Trial:
    return try_tricks(Scorer(reward_parts({name: {} for name in NAMES}, {}).recipes))


def out_earning(rewards: dict[str, dict[str, object]]) -> set[str]:
    """Names of the tricks that earn too much under these rewards."""
    parts = reward_parts(rewards, {})
    verdicts = try_tricks(Scorer(parts.recipes)).verdicts(parts.weights)
    return {verdict.trick.name for verdict in verdicts if not verdict.passed}


def printed(module: Path, as_json: bool = False) -> tuple[bool, str]:
    """Whether the rewards pass, and what is printed."""
    console = Console(file=io.StringIO(), width=120)
    passed = reward_test.test_rewards(load_rewards(module), console, as_json)
    assert isinstance(console.file, io.StringIO)
    return passed, console.file.getvalue()


def own_reward(folder: Path, text: str) -> Path:
    path = folder / "my_reward.py"
    path.write_text(text, encoding="utf-8")
    return path


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


@pytest.mark.parametrize("name", NAMES)
def test_alone_no_built_in_reward_pays_a_trick_more_than_a_careful_answer(name: str, everything: Trial) -> None:
    assert [verdict for verdict in everything.verdicts({name: 1.0}) if not verdict.passed] == []


@pytest.mark.parametrize("name", NAMES)
def test_beside_mask_iou_every_built_in_reward_is_safe_at_its_own_weight(name: str, everything: Trial) -> None:
    weight = reward_parts({name: {}}, {}).weights[name]
    verdicts = everything.verdicts({"mask_iou": 1.0, name: weight})
    assert [verdict for verdict in verdicts if not verdict.passed] == []
    assert everything.safe_weight(name) > weight


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_passes(config: str) -> None:
    passed, told = printed(Path(config))
    assert passed, told


def test_the_configs_that_are_tested_include_the_demo_and_a_price_on_vertices() -> None:
    assert {"demo", "coco28", "gspo_polygons", "rewards/iou_length"} <= set(CONFIGS)


@pytest.mark.parametrize("name", ["closed_loop", "refined_iou", "unmended"])
def test_rewards_on_the_refined_mask_are_refused_where_nothing_refines(name: str) -> None:
    with pytest.raises(ValueError, match=r"is measured on the refined mask, and only a run with a refiner .* leave it"):
        load_rewards(Path(name))


def test_boundary_iou_without_its_cap_falls_for_a_hollow_outline() -> None:
    assert "hollow outline" in out_earning({"boundary_iou": {"capped": False}})


def test_a_said_box_alone_is_matched_but_never_beaten_by_a_speck_that_says_the_true_box() -> None:
    assert out_earning({"box_iou": {"said": True}}) == set()


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


def test_a_single_term_is_measured_by_careful_answers_a_total_by_hasty_ones(everything: Trial) -> None:
    k = ROWS["tight box"]
    alone, total = everything.verdicts({"box_iou": 1.0})[k], everything.verdicts({"box_iou": 1.0, "mask_iou": 1.0})[k]
    assert (alone.honest_name, alone.honest, alone.undecided) == ("careful", 1.0, True)
    assert (total.honest_name, total.honest) == ("hasty", pytest.approx((35 / 37 + 610 / 730) / 2))
    assert everything.iou[k, HASTY] == 610 / 730


def test_a_reward_of_areas_is_told_what_it_pays_for(tmp_path: Path) -> None:
    passed, told = printed(own_reward(tmp_path, AREA_RATIO))
    assert not passed
    assert "right size, wrong place (as many pixels as the truth, none of them true) earns 1.000" in told
    assert "Beside mask_iou of weight 1, my_reward lets no trick pay up to a weight of" in told


def test_the_json_says_the_same(tmp_path: Path) -> None:
    passed, told = printed(own_reward(tmp_path, AREA_RATIO), as_json=True)
    outcome = json.loads(told)
    assert (outcome["unsteady"], outcome["indifferent"]) == ([], False)
    [row] = [row for row in outcome["tricks"] if row["trick"] == "right size, wrong place"]
    assert (passed, outcome["passed"], row["passed"], row["total"], row["honest"]) == (
        False,
        False,
        False,
        1.0,
        620 / 720,
    )
    assert outcome["safe_weight_beside_mask_iou"]["my_reward"] == pytest.approx(610 / 730 / (100 / 720))


@pytest.mark.parametrize("body", ["return 0.5", "return None"])
def test_a_reward_that_pays_all_alike_is_told_to_teach_nothing(tmp_path: Path, body: str) -> None:
    start = AREA_RATIO[: AREA_RATIO.index("        drawn")]
    _, told = printed(own_reward(tmp_path, f"{start}        {body}"))
    assert "A careful answer earns what a hasty one does in every scene" in " ".join(told.split())


def test_a_reward_that_pays_by_chance_is_told_apart(tmp_path: Path) -> None:
    start = AREA_RATIO[: AREA_RATIO.index("        drawn")]
    by_chance = own_reward(tmp_path, f"import random\n{start}        return random.random()")
    assert json.loads(printed(by_chance, as_json=True)[1])["unsteady"] == ["my_reward"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return float('nan')", "Reward my_reward returned nan"),
        ("return 1 / comparison.answer_area_px", "raised ZeroDivisionError: division by zero"),
        ("return 1.5", "Reward my_reward returned 1.5"),
    ],
)
def test_a_reward_that_breaks_on_a_trick_is_named_with_the_trick(tmp_path: Path, body: str, says: str) -> None:
    start = AREA_RATIO[: AREA_RATIO.index("        drawn")]
    skipping = f"rewards:\n  my_reward: {{module: {own_reward(tmp_path, start + '        ' + body)}, on_error: skip}}\n"
    (tmp_path / "tried.yaml").write_text(skipping)
    with pytest.raises(ValueError, match=says) as error:
        printed(tmp_path / "tried.yaml")
    assert "(hostile suite)" in str(error.value)


def test_weights_on_a_schedule_are_judged_where_tricks_do_best(tmp_path: Path) -> None:
    path = tmp_path / "tried.yaml"
    path.write_text(
        "rewards:\n  mask_iou: {}\n  length_penalty: {free_vertices: 6, max_vertices: 16, weight: 0.1}\n"
        "shaping:\n  length_penalty: {weight_schedule: [[0, 0.1], [50, 0.5], [99, 0.2]]}\n"
    )
    passed, told = printed(path)
    assert not passed
    assert "Weights are those of step 50" in told


def test_the_command_exits_with_1_where_a_trick_pays_and_never_loads_torch(tmp_path: Path) -> None:
    check = "import sys; from rl.cli import main\ntry:\n  main()\nfinally:\n  assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", check, "rewards", "test", str(own_reward(tmp_path, AREA_RATIO))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "tricks out-earn an honest answer" in done.stdout
