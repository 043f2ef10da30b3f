"""Signs of the first steps: each shows at the numbers that it names, once, and not on those of a run that helps."""

import re

import numpy as np
import pytest
import torch

from rl.algorithms.base import clipped_objective
from rl.evaluation.early_signs import EarlySigns, clip_width

FINE = {
    "sampled/giou": 0.63,
    "reward/group_std": 0.05,
    "group/without_signal": 0.0,
    "reward/mean": 0.7,
    "learner/gradient_cosine": 0.3,
}


def told(numbers: dict[str, float], steps: int, greedy: tuple[float, ...] = (0.65,)) -> list[str]:
    """What is told of a run whose steps all have these numbers, the greedy gIoUs coming before the first and last."""
    signs = EarlySigns(temperature=0.6, groups=16)
    said = signs.evaluated(greedy[0])
    for step in range(steps):
        said += signs.stepped(FINE | {"reward/mean": 0.7 + 0.001 * step} | numbers)
    return said + [text for giou in greedy[1:] for text in signs.evaluated(giou)]


def test_a_run_that_helps_shows_no_sign() -> None:
    assert told({}, 60, (0.65, 0.69, 0.7)) == []


@pytest.mark.parametrize(
    ("numbers", "greedy", "said"),
    [
        (
            {"sampled/giou": 0.43},
            (0.75,),
            "samples at temperature 0.6 have a mean IoU of 0.430, the greedy answers 0.750",
        ),
        ({"reward/group_std": 0.01}, (0.65,), r"rewards within groups differ by 0.010 .*, and 0% of the groups"),
        ({"group/without_signal": 0.8}, (0.65,), "80% of the groups teach nothing"),
        ({"learner/gradient_cosine": 0.02}, (0.65,), "cosine of 0.020 .half noise at 784 groups or more"),
        ({"learner/gradient_cosine": -0.02}, (0.65,), "no agreement at all"),
        (
            {"learner/update_cosine": -0.2},
            (0.65,),
            "have a mean cosine of -0.200: the second takes back what the first",
        ),
        (
            {"learner/changed_clip_fraction": 0.45, "learner/ratio_change": 0.02},
            (0.65,),
            r"45% are clipped: they move by 0.02 .* Set clip_low to 0.022 and clip_high to 0.029,",
        ),
        ({}, (0.65, 0.63), "the reward of samples rose by 0.0.. while greedy answers fell by 0.020"),
    ],
)
def test_each_sign_is_told_once_with_its_numbers(
    numbers: dict[str, float], greedy: tuple[float, ...], said: str
) -> None:
    found = told(numbers, 40, greedy)
    assert len(found) == 1
    assert re.search(said, found[0])


def test_at_the_width_that_is_told_0_15_of_normal_ratios_are_clipped() -> None:
    rng = np.random.default_rng(0)
    log_ratio = torch.from_numpy(rng.normal(0, 0.01, 100_000))
    low = clip_width(float(log_ratio.abs().mean()))
    advantages = torch.from_numpy(rng.choice([-1.0, 1.0], 100_000))
    _, _, clipped = clipped_objective(log_ratio, advantages, low, low * 4 / 3)
    assert float(clipped.float().mean()) == pytest.approx(0.15, abs=0.01)


def test_cosines_that_scatter_so_that_there_may_be_agreement_are_no_sign() -> None:
    signs = EarlySigns(0.6, 16)
    signs.evaluated(0.65)
    said = [signs.stepped(FINE | {"learner/gradient_cosine": 0.011 + 0.08 * (-1) ** step}) for step in range(50)]
    assert not any(said)


def test_what_comes_after_the_first_fifty_steps_is_not_told() -> None:
    signs = EarlySigns(0.6, 16)
    signs.evaluated(0.65)
    for _ in range(60):
        assert signs.stepped(FINE) == []
    assert signs.evaluated(0.69) == []
    assert signs.stepped(FINE | {"reward/group_std": 0.0}) == [] and signs.evaluated(0.5) == []


def test_a_run_that_goes_on_is_not_taken_for_one_that_begins() -> None:
    signs = EarlySigns(0.6, 16, over=True)
    assert signs.evaluated(0.65) == []
    assert not any(signs.stepped(FINE | {"sampled/giou": 0.2, "reward/group_std": 0.0}) for _ in range(30))


def test_fewer_mini_batches_are_advised_where_there_are_several() -> None:
    for minibatches, advised in ((2, True), (1, False)):
        signs = EarlySigns(0.6, 16, minibatches)
        signs.evaluated(0.65)
        found = [text for _ in range(30) for text in signs.stepped(FINE | {"learner/gradient_cosine": -0.02})]
        assert len(found) == 1 and ("lower learner.minibatches" in found[0]) == advised
