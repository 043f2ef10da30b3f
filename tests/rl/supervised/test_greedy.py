"""Greedy answers in this process, scored as rewards and `evaluate` score them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.datasets.cutout_scenes import Env
from envs.example import Example, ImageRef
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.families.vision_language import Policy
from rewards.score import Target, compare
from rl.config.sft import SftLearner
from rl.supervised.greedy import greedy_sums


def scenes(num: int, **settings: float) -> Env:
    return Env("train", image_size=32, num_scenes=num, **settings)


def greedy_means(policy: Policy, env: Env, num_scenes: int, max_tokens: int, **learner: int) -> tuple[float, float]:
    """Mean IoU and share of valid answers to the first examples, as far as there are so many."""
    examples = [env[index] for index in range(min(num_scenes, len(env)))]
    iou, valid = greedy_sums(policy, env, examples, max_tokens, SftLearner(**learner))
    return iou / len(examples), valid / len(examples)


@dataclass(frozen=True)
class OneAnswer:
    """A codec that reads every text as the same answer."""

    answer: Answer

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        return self.answer


def test_greedy_means_of_an_answer_that_is_always_the_left_half_equal_those_by_hand(tiny_untrained: Path) -> None:
    left = answer_from_rings([np.array([[0.0, 0.0], [16.0, 0.0], [16.0, 32.0], [0.0, 32.0]])])
    env, half = scenes(3), np.arange(32) < 16
    truths = [env[index].truth.union for index in range(3)]
    expected = np.mean([(truth & half).sum() / (truth | half).sum() for truth in truths])
    assert 0 < expected < 1
    # Three scenes are all there are.
    giou, valid = greedy_means(Policy(tiny_untrained, OneAnswer(left)), env, num_scenes=10, max_tokens=2)
    assert (giou, valid) == (pytest.approx(expected), 1.0)


@dataclass(frozen=True)
class Crowded:
    """The scenes of `scenes`, all that is not the object ignored."""

    scenes: Env

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Example:
        example = self.scenes[index]
        return replace(example, truth=replace(example.truth, ignore=~example.truth.union))

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        return self.scenes.image(ref)


def test_greedy_means_leave_ignored_pixels_out_as_rewards_do(tiny_untrained: Path) -> None:
    whole = answer_from_rings([np.array([[0.0, 0.0], [32.0, 0.0], [32.0, 32.0], [0.0, 32.0]])])
    policy = Policy(tiny_untrained, OneAnswer(whole))
    areas = [scenes(3)[index].truth.union.sum() for index in range(3)]
    assert greedy_means(policy, scenes(3), 3, 2) == (pytest.approx(np.mean(areas) / 1024), 1.0)
    assert greedy_means(policy, Crowded(scenes(3)), 3, 2) == (1.0, 1.0)
    [rewarded] = compare([whole], Target.from_truth(Crowded(scenes(3))[0].truth)).iou
    assert rewarded == 1.0


def test_greedy_means_of_an_outline_without_a_pixel_where_nothing_is_there_are_0(tiny_untrained: Path) -> None:
    thin = answer_from_rings([np.array([[2.6, 2.6], [2.9, 2.6], [2.9, 2.9]])])
    policy = Policy(tiny_untrained, OneAnswer(thin))
    assert greedy_means(policy, scenes(3, absent_share=1.0), 3, 2) == (0.0, 1.0)


def test_greedy_means_of_unreadable_and_of_empty_answers(tiny_untrained: Path) -> None:
    unreadable, empty = (
        Policy(tiny_untrained, OneAnswer(Answer(s))) for s in (AnswerStatus.UNPARSABLE, AnswerStatus.EMPTY)
    )
    nothing_there = scenes(3, absent_share=1.0)
    assert greedy_means(unreadable, nothing_there, 3, 2) == (0.0, 0.0)
    assert greedy_means(empty, nothing_there, 3, 2) == (1.0, 1.0)
    assert greedy_means(empty, scenes(3), 3, 2) == (0.0, 1.0)


def test_answers_do_not_depend_on_how_many_are_asked_at_once(tiny_untrained: Path) -> None:
    left = answer_from_rings([np.array([[0.0, 0.0], [16.0, 0.0], [16.0, 32.0], [0.0, 32.0]])])
    policy, env = Policy(tiny_untrained, OneAnswer(left)), scenes(5)
    whole = greedy_means(policy, env, 5, 2)
    assert greedy_means(policy, env, 5, 2, micro_scenes=2) == pytest.approx(whole)
    assert greedy_means(policy, env, 5, 2, token_budget=1) == pytest.approx(whole)
