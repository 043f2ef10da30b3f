"""Hostile choices among candidates: the pool is what it claims, and what each choice earns is computed by hand."""

import json
from io import StringIO
from math import inf
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rewards.hostile import Trick
from rewards.hostile_choices import NAMES, choice_tricks, pool, pool_scene
from rewards.scorer import Scorer
from rewards.trial import CAREFUL, HASTY, TRICK, Trial, try_tricks
from rl.config.rewards import load_rewards, reward_parts
from rl.lab.hostile import test_rewards as print_trial

ROWS = {trick.name: k for k, trick in enumerate(choice_tricks())}
USED = ("mask_iou", "matched_iou", "instance_f1")


@pytest.fixture(scope="module")
def trial() -> Trial:
    return try_tricks(Scorer(reward_parts({name: {} for name in USED}, {}).recipes), choice_tricks())


def test_the_pool_has_equal_empty_and_overlapping_candidates_and_none_that_is_right() -> None:
    by_name, target = dict(zip(NAMES, pool(), strict=True)), pool_scene().target
    assert by_name["first"].sum() == by_name["second"].sum() == 28**2 - 4 * 9**2 == 460
    assert np.array_equal(by_name["first"], by_name["first again"]) and not by_name["empty"].any()
    assert np.array_equal(by_name["both as one"], by_name["first"] | by_name["second"])
    assert not (by_name["half of first"] & ~by_name["first"]).any() and by_name["half of first"].sum() == 230
    assert by_name["largest"].sum() == 34**2 == max(mask.sum() for mask in pool())
    assert target.area_px == 2 * 528 and not any(np.array_equal(mask, target.mask) for mask in pool())


# One of 528 px has 460 in the careful choice; in the moved one 472, of 584 in their union. The neighbour is 400 px
# that belong to nothing; the largest holds the second object whole. Of eleven candidates one is empty.
EARNED = {
    "a part beside each": (460 / 528, 2 * 460 / 528 / 4, 2 * 2 / 6),
    "both as one beside each": (460 / 528, 2 * 460 / 528 / 3, 2 * 2 / 5),
    "both as one alone": (460 / 528, 460 / (920 + 68) / 2, 0),
    "an equal one twice": (460 / 528, 2 * 460 / 528 / 3, 2 * 2 / 5),
    "an empty one beside": (460 / 528, 460 / 528, 1),
    "all in": (..., 2 * 460 / 528 / 10, 2 * 2 / 12),
    "none in": (0, 0, 0),
    "the largest only": (528 / (1156 + 528), 528 / 1156 / 2, 0),
    "one of the two": (460 / 1056, 460 / 528 / 2, 2 / 3),
    "halves": (460 / 1056, 230 / 528, 0),
    "a neighbour beside": (920 / 1456, 2 * 460 / 528 / 3, 2 * 2 / 5),
    "none in, nothing there": (1, 1, 1),
    "an empty one, nothing there": (1, 1, 1),
    "all in, nothing there": (0, 0, 0),
    "the largest, nothing there": (0, 0, 0),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_choice_earns_what_was_computed_by_hand(name: str, trial: Trial) -> None:
    for reward, value in zip(USED, EARNED[name], strict=True):
        if value is not ...:
            assert trial.terms[reward][ROWS[name], TRICK] == pytest.approx(value), reward


def test_all_in_covers_what_a_loop_over_pixels_says(trial: Trial) -> None:
    covered, target = pool().any(axis=0), pool_scene().target.mask
    expected = (covered & target).sum() / (covered | target).sum()
    assert trial.terms["mask_iou"][ROWS["all in"], TRICK] == pytest.approx(expected)


def test_honest_choices_earn_what_was_computed_by_hand(trial: Trial) -> None:
    row = ROWS["all in"]
    for reward, careful, hasty in (
        ("mask_iou", 460 / 528, 472 / 584),
        ("matched_iou", 460 / 528, 472 / 584),
        ("instance_f1", 1, 1),
    ):
        assert trial.terms[reward][row, [CAREFUL, HASTY]].tolist() == pytest.approx([careful, hasty])


@pytest.mark.parametrize("trick", [trick for trick in choice_tricks() if trick.same_pixels], ids=lambda each: each.name)
def test_a_choice_of_the_same_pixels_covers_what_the_careful_one_does_and_never_pays_more(
    trick: Trick, trial: Trial
) -> None:
    row = trial.iou[ROWS[trick.name]]
    assert row[TRICK] == row[CAREFUL]
    for reward in USED:
        values = trial.terms[reward][ROWS[trick.name]]
        assert values[TRICK] <= values[CAREFUL]


@pytest.mark.parametrize("name", [*USED, "soft_matched_iou"])
def test_rewards_for_several_instances_pass_alone_and_a_copy_costs_where_instances_count(name: str) -> None:
    parts = reward_parts({name: {}}, {})
    found = try_tricks(Scorer(parts.recipes), choice_tricks())
    assert found.fitness(parts.weights) == "passes" and found.safe_weight(name) == inf
    copied = found.terms[name][ROWS["an equal one twice"]]
    # The union cannot tell a copy; what matches instances does.
    assert (copied[TRICK] < copied[CAREFUL]) == (name != "mask_iou")


def test_the_command_shows_choices_and_a_reward_of_covered_pixels_fails(tmp_path: Path) -> None:
    out = StringIO()
    passed = print_trial(load_rewards(Path("matched_iou")), Console(file=out, width=120), as_json=True, choices=True)
    told = json.loads(out.getvalue())
    assert passed and told["verdict"] == "passes" and [row["trick"] for row in told["tricks"]] == list(ROWS)
    module = tmp_path / "recall.py"
    module.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Reward:\n    weight: float = 1.0\n\n"
        "    def __call__(self, comparison):\n        area = comparison.target.area_px\n"
        "        return comparison.intersection_px / area if area else comparison.iou\n"
    )
    out = StringIO()
    assert not print_trial(load_rewards(module), Console(file=out, width=120), choices=True)
    assert "all in" in out.getvalue() and "earns more" in out.getvalue()
