import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.example import Example, ImageRef, Prompt, Truth
from envs.plugin import Plugin
from envs.polygons import Answer, AnswerStatus
from policies.families.base import Response, Routes
from rl.algorithms import gspo_token
from rl.algorithms.base import PolicyGradient
from rl.algorithms.gspo import Algorithm
from rl.learner.batches.batch import Batch, pack
from rl.learner.dropped import read_batch, write_batch
from rollout.records import Group, Rollout


def rollout(index: int, tokens: list[int], logprob: float) -> Rollout:
    response = Response(np.array(tokens), np.full(len(tokens), logprob, np.float32), "stop")
    return Rollout(index, response, "", Answer(AnswerStatus.EMPTY), 0, 0, 0.0, {}, policy_version=3, seed=index)


def group(name: str, answers: list[list[int]], totals: list[float]) -> Group:
    image = ImageRef(name, "0" * 64, 4, 4)
    example = Example(
        name, image, Prompt.of_text("the", name), Truth(np.zeros((0, 4, 4), np.bool_)), "train", "made", "CC0-1.0"
    )
    rollouts = tuple(rollout(k, tokens, -0.5 - k) for k, tokens in enumerate(answers))
    return Group("run", 0, 0, example, np.array([1, 2]), "0" * 64, 1.0, rollouts, tuple(totals))


GROUPS = [
    group("dog", [[5, 1], [6, 7, 1]], [0.0, 1.0]),
    group("cat", [[8, 1], [8, 1]], [0.3, 0.3]),
    group("cow", [[9, 1], [1]], [0.6, 0.2]),
]


def packed(groups: list[Group], algorithm: PolicyGradient) -> Batch:
    return pack(groups, algorithm.of_groups(groups))


def test_a_batch_holds_what_the_groups_asked_and_answered() -> None:
    batch = packed(GROUPS, Algorithm())
    assert len(batch) == 3
    assert [image.key for image in batch.images] == ["dog", "cat", "cow"]
    assert [prompt.text for prompt in batch.prompts] == ["the dog", "the cat", "the cow"]
    assert [tokens.tolist() for tokens in batch.choices[0]] == [[5, 1], [6, 7, 1]]
    assert [[values.tolist() for values in row] for row in batch.sampler_logprobs][2] == [[-0.5, -0.5], [-1.5]]
    assert batch.padded_sampler_logprobs(3)[2].tolist() == [[-0.5, -0.5, 0.0], [-1.5, 0.0, 0.0]]
    assert batch.prompt_lengths == (2, 2, 2)
    assert batch.answer_tokens().tolist() == [5, 4, 3]


def test_advantages_are_those_of_each_group_and_a_group_without_signal_keeps_its_place() -> None:
    batch = packed(GROUPS, Algorithm(std_floor=0.3))
    # Standard deviations 0.5, 0 and 0.2.
    np.testing.assert_allclose(batch.advantages, [[-0.625, 0.625], [0.0, 0.0], [0.4, -0.4]], rtol=1e-6)
    assert batch.advantages.dtype == np.float32
    assert batch.counts.tolist() == [True, False, True]


def test_a_part_takes_every_field_at_the_same_places() -> None:
    whole = packed(GROUPS, Algorithm())
    part = whole.part([2, 0])
    assert len(part) == 2
    assert [prompt.text for prompt in part.prompts] == ["the cow", "the dog"]
    assert [image.key for image in part.images] == ["cow", "dog"]
    assert part.choices == (whole.choices[2], whole.choices[0])
    assert part.sampler_logprobs == (whole.sampler_logprobs[2], whole.sampler_logprobs[0])
    assert part.advantages.tolist() == whole.advantages[[2, 0]].tolist()
    assert part.counts.tolist() == [True, True]
    assert replace(whole, prompt_lengths=(7, 8, 9)).part([2, 0]).prompt_lengths == (9, 7)
    assert len(whole.part([])) == 0


def test_groups_without_totals_or_of_unequal_size_are_no_batch() -> None:
    with pytest.raises(ValueError):
        packed([GROUPS[0], group("cat", [[1]] * 3, [0.0, 0.1, 0.2])], Algorithm())


@dataclass(frozen=True)
class ByPlace(gspo_token.Algorithm):
    """Each token of an answer has the answer's advantage plus its place, up to `most` tokens."""

    most: int = 9

    def token_advantages(self, groups: Any, advantages: Any) -> Any:
        return tuple(
            tuple(
                np.float32(advantages[b, g]) + np.arange(len(rollout.response.tokens), dtype=np.float32)[: self.most]
                for g, rollout in enumerate(group.rollouts)
            )
            for b, group in enumerate(groups)
        )


def test_advantages_of_tokens_are_padded_with_zeros_and_follow_their_groups() -> None:
    batch = packed(GROUPS, ByPlace(std_floor=0.3))
    padded = batch.padded_advantages(4)
    assert padded.dtype == np.float32
    np.testing.assert_allclose(padded[0], [[-0.625, 0.375, 0, 0], [0.625, 1.625, 2.625, 0]], rtol=1e-6)
    np.testing.assert_allclose(padded[2], [[0.4, 1.4, 0, 0], [-0.4, 0, 0, 0]], rtol=1e-6)
    assert np.array_equal(batch.part([2, 0]).padded_advantages(4), padded[[2, 0]])


def test_without_advantages_of_tokens_the_learner_gets_those_of_answers() -> None:
    batch = packed(GROUPS, gspo_token.Algorithm())
    assert batch.token_advantages is None
    assert batch.padded_advantages(4) is batch.advantages


def test_advantages_that_are_not_one_a_token_are_refused_with_the_lengths() -> None:
    with pytest.raises(ValueError, match=r"group 0 have the lengths \[\[2, 2\]\], its responses \[\[2, 3\]\] tokens"):
        packed(GROUPS, ByPlace(most=2))


def test_the_algorithms_of_the_docs_do_what_they_say(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/algorithms.md").read_text(encoding="utf-8")
    built = []
    for k, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        (tmp_path / f"own_{k}.py").write_text(code)
        built.append(
            Plugin("rl.algorithms", "Algorithm", "own", {"std_floor": 0.3}, str(tmp_path / f"own_{k}.py")).build()
        )
    of_others, of_parts = built
    assert of_others.advantages(np.array([[0.0, 0.3, 0.9]]))[0][0].tolist() == pytest.approx([-0.6, -0.15, 0.75])
    one, other = GROUPS[0].rollouts
    one = replace(one, terms={"box_iou": 0.9})
    other = replace(rollout(1, [1, 2, 3, 4, 5, 6], 0.0), terms={"box_iou": None})
    batch = packed([replace(GROUPS[0], rollouts=(one, other))], of_parts)
    box = 0.45 / (0.45 + 0.3)
    np.testing.assert_allclose(batch.padded_advantages(6)[0, 0], [box, box, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(batch.padded_advantages(6)[0, 1], [-box] * 4 + [0.625] * 2, rtol=1e-6)


def test_routes_stay_with_their_answers_and_are_none_where_nobody_told_any() -> None:
    assert packed(GROUPS, Algorithm()).routes is None
    told = Routes(np.zeros((1, 2, 2), np.int16), np.ones((2, 2, 2), np.int16))
    dog, cat = GROUPS[:2]
    first = replace(cat.rollouts[0], response=replace(cat.rollouts[0].response, routes=told))
    batch = packed([dog, replace(cat, rollouts=(first, cat.rollouts[1]))], Algorithm())
    assert batch.routes == ((None, None), (told, None))
    assert batch.part([1]).routes == ((told, None),)


def test_what_could_be_chosen_from_comes_back_beside_its_question(tmp_path: Path) -> None:
    dog, cat = GROUPS[:2]
    pool = np.random.default_rng(0).random((3, 4, 4)) < 0.4
    batch = packed([replace(dog, example=replace(dog.example, candidates=pool)), cat], Algorithm())
    write_batch(batch, tmp_path / "step.npz")
    for held in (batch, read_batch(tmp_path / "step.npz"), batch.part([0])):
        first, *others = held.questions(Blank())
        assert np.array_equal(first.candidates, pool) and all(other.candidates is None for other in others)
    assert packed(GROUPS, Algorithm()).candidates is None


def test_true_masks_come_back_where_a_decoder_learns_by_them_and_masks_are_asked_for(tmp_path: Path) -> None:
    dog, cat = GROUPS[:2]
    masks = np.random.default_rng(1).random((2, 4, 4)) < 0.4
    boxed = replace(cat, example=replace(cat.example, prompt=replace(cat.example.prompt, asked="box")))
    groups = [replace(dog, example=replace(dog.example, truth=replace(dog.example.truth, masks=masks))), boxed]
    whole = pack(groups, Algorithm().of_groups(groups), truths=True)
    write_batch(whole, tmp_path / "step.npz")
    for held in (whole, read_batch(tmp_path / "step.npz"), whole.part([0, 1])):
        first, second = held.true_masks()
        assert np.array_equal(first, masks) and second.shape == (0, 4, 4)
    assert pack(groups, Algorithm().of_groups(groups)).truths is None


class Blank:
    """An env whose images are black."""

    def image(self, ref: ImageRef) -> np.ndarray:
        return np.zeros((ref.height, ref.width, 3), np.uint8)


def test_a_dropped_step_keeps_which_experts_its_answers_went_to(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 9, (p, 3, 2)).astype(np.int16) for p in (4, 6)]

    def told(group: Group, prompt: np.ndarray, known: tuple[bool, bool]) -> Group:
        rollouts = [
            replace(one, response=replace(one.response, routes=routes_of(prompt, len(one.response.tokens), rng)))
            if has
            else one
            for one, has in zip(group.rollouts, known, strict=True)
        ]
        return replace(group, rollouts=tuple(rollouts))

    batch = packed(
        [told(GROUPS[0], prompts[0], (False, True)), GROUPS[1], told(GROUPS[2], prompts[1], (True, True))], Algorithm()
    )
    write_batch(batch, tmp_path / "step.npz")
    found = read_batch(tmp_path / "step.npz").routes
    assert [[each is None for each in row] for row in found] == [[True, False], [True, True], [False, False]]
    for row, expected in zip(found, batch.routes, strict=True):
        for one, other in zip(row, expected, strict=True):
            if other is not None:
                assert np.array_equal(one.prompt, other.prompt) and np.array_equal(one.answer, other.answer)


def routes_of(prompt: np.ndarray, tokens: int, rng: np.random.Generator) -> Routes:
    return Routes(prompt, rng.integers(0, 9, (tokens, 3, 2)).astype(np.int16))
