"""What a rank logs of its passes, against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from envs.example import ImageRef
from rl.algorithms.base import LossTerms
from rl.learner.batches.batch import Batch
from rl.learner.batches.stats import (
    WEIGHT_CAP,
    Mean,
    importance_stats,
    loss_stats,
    masked_mean,
    sampler_stats,
    sampler_warning,
    signal_warning,
    step_stats,
)

MASK = torch.tensor([[[True, True, False], [True, False, False]]])


def part(*sampled: list[float]) -> Batch:
    """One group of answers whose tokens the sampler gave these log-probabilities."""
    logprobs = tuple(np.array(values, np.float32) for values in sampled)
    tokens = tuple(np.zeros(len(values), np.int64) for values in sampled)
    image = ImageRef("image", "0" * 64, 4, 4)
    return Batch((image,), ("it",), (tokens,), (logprobs,), np.zeros((1, len(sampled)), np.float32), np.ones(1, bool))


def step_of(*passes: dict[str, Mean]) -> dict[str, float]:
    return step_stats(list(passes))


def test_ratios_are_those_of_the_tokens_that_are_there_in_groups_that_count() -> None:
    ratio = torch.tensor([[[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]], [[8.0] * 3] * 2])
    terms = LossTerms(torch.zeros(2, 2), ratio, ratio > 1.5, MASK.expand(2, 2, 3))
    counts = torch.tensor([[True, True], [False, False]])
    share = Mean(pytest.approx(2 / 3), 3)
    # Of 1, 2 and 3 two have moved: their log ratios are 0.693 and 1.099.
    change = Mean(pytest.approx(0.896, abs=1e-3), 2)
    assert loss_stats(terms, counts) == {
        "ratio_mean": (2.0, 3),
        "ratio_max": (3.0, 3),
        "clip_fraction": share,
        "ratio_change": change,
        "changed_clip_fraction": Mean(1.0, 2),
    }
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    still = dict.fromkeys(("clip_fraction", "ratio_change", "changed_clip_fraction"), (0.0, 0))
    assert loss_stats(terms, nothing) == {"ratio_mean": (1.0, 0), "ratio_max": (1.0, 0)} | still


def test_the_difference_from_the_sampler_is_a_mean_and_a_largest_over_tokens() -> None:
    old = torch.tensor([[[-1.0, -2.0, 5.0], [-0.5, 5.0, 5.0]]])
    stats = step_of(sampler_stats(part([-1.25, -2.0], [-0.25]), MASK, old))
    assert stats["sampler_logprob_difference"] == pytest.approx(0.5 / 3)
    assert stats["sampler_logprob_difference_max"] == pytest.approx(0.25)


def test_the_effective_sample_size_by_hand_also_over_two_passes() -> None:
    old = torch.tensor([[[-1.0, -2.0, 5.0], [-0.5, 5.0, 5.0]]])
    # Weights of whole answers: halves of tokens multiply up to 1/4; 1 where nothing differs.
    first = sampler_stats(part([-1 + math.log(2), -2 + math.log(2)], [-0.5]), MASK, old)
    second = sampler_stats(part([-1.0, -2.0], [-0.5]), MASK, old)
    assert step_of(first)["sampler_effective_sample_size"] == pytest.approx(1.25**2 / (2 * (1 + 1 / 16)))
    assert step_of(second)["sampler_effective_sample_size"] == 1.0
    assert step_of(first, second)["sampler_effective_sample_size"] == pytest.approx(3.25**2 / (4 * (3 + 1 / 16)))


@pytest.mark.parametrize(("change", "weight"), [(1.0, 2.0), (1e4, 2.0), (-1e4, math.exp(-10))])
def test_an_importance_weight_is_truncated_and_never_overflows(change: float, weight: float) -> None:
    old = torch.tensor([[[-1.0 + change, -2.0, 5.0], [-0.5, 5.0, 5.0]]])
    size = step_of(sampler_stats(part([-1.0, -2.0], [-0.5]), MASK, old))["sampler_effective_sample_size"]
    assert size == pytest.approx((1 + weight) ** 2 / (2 * (1 + weight**2)), rel=1e-6)
    assert WEIGHT_CAP == 2.0


def test_a_step_is_the_mean_of_what_its_passes_are_means_over_and_the_largest_of_what_is_a_maximum() -> None:
    weights = {"sampler_weight": Mean(1.0, 2), "sampler_weight_square": Mean(1.0, 2)}
    passes = [
        {"clip_fraction": Mean(1.0, 3), "ratio_max": Mean(3.0, 3)} | weights,
        {"clip_fraction": Mean(0.2, 1), "ratio_max": Mean(1.0, 1)} | weights,
        # A repeat, or a pass without signal: of nothing.
        {"clip_fraction": Mean(math.nan, 0), "ratio_max": Mean(9.0, 0)} | weights,
    ]
    expected = {"clip_fraction": pytest.approx(0.8), "ratio_max": 3.0, "sampler_effective_sample_size": 1.0}
    assert step_of(*passes) == expected
    assert step_of(passes[2] | {"clip_fraction": Mean(0.0, 0)})["clip_fraction"] == 0.0


def test_importance_weights_are_logged_of_the_answers_that_count_as_they_were_used() -> None:
    weights = torch.tensor([[[0.5], [4.0]], [[9.0], [9.0]]])
    counted = torch.tensor([[[True], [True]], [[False], [False]]])
    expected = {"importance_mean": (1.25, 2), "importance_max": (2.0, 2), "importance_capped": (0.5, 2)}
    assert importance_stats(weights, 2.0, counted) == expected
    none = {"importance_mean": (1.0, 0), "importance_max": (1.0, 0), "importance_capped": (0.0, 0)}
    assert importance_stats(weights, 2.0, torch.zeros_like(counted)) == none


def test_a_mean_over_what_counts_is_0_where_nothing_does() -> None:
    values = torch.tensor([1.0, 2.0, math.nan])
    assert masked_mean(values, torch.tensor([True, True, False])) == (1.5, 2)
    assert masked_mean(values, torch.tensor([False, False, False])) == (0.0, 0)


def test_a_warning_comes_above_the_limit_and_at_nan_and_names_the_setting() -> None:
    names = ("sampler_logprob_difference", "sampler_logprob_difference_max", "sampler_effective_sample_size")
    numbers = {f"learner/{name}": value for name, value in zip(names, (0.03, 0.8, 0.71), strict=True)}
    assert sampler_warning(numbers, 0.03) is None
    warning = sampler_warning(numbers, 0.02)
    assert warning is not None
    assert "differ by 0.03 a token" in warning and "(largest 0.8, effective sample size 0.71 of 1)" in warning
    assert "learner.warn_sampler_difference 0.02" in warning
    assert sampler_warning(numbers | {"learner/sampler_logprob_difference": math.nan}, 0.02) is not None


def test_steps_without_any_signal_are_told_with_what_the_answers_are() -> None:
    numbers = {
        "reward/mean": 0.0,
        "answer/status_ok": 0.25,
        "answer/status_empty": 0.75,
        "answer/status_truncated": 0.0,
    }
    assert signal_warning(numbers, 2) is None
    warning = signal_warning(numbers, 3)
    assert warning is not None
    assert warning.startswith("nothing was learned in 3 steps") and "(mean 0; answers: 75% empty, 25% ok)" in warning
