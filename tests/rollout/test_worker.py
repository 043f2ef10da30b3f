import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from envs.datasets.cutout_scenes import Env
from envs.geometry.contours import mask_from_rings
from envs.plugin import Plugin
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.families.vision_language import Policy
from policies.tiny_model import TinySizes, write_untrained
from policies.weights import bucket_checksum, bucket_names, held_checksum, make_bucket
from rewards.score import Target, compare
from rewards.scorer import Scorer
from rewards.settings import RewardRecipe
from rollout.records import Group
from rollout.settings import Sampling
from rollout.worker import RolloutWorker, Unit, WorkerSettings, answer_seed

REWARDS = {
    name: RewardRecipe(Plugin("rewards.terms", "Reward", name, {}))
    for name in ("mask_iou", "centroid_distance", "format")
}
UNIT = Unit("train", 3, positions=(4, 5), indices=(7, 11), group_size=5, sampling=Sampling(1.0, 12))


GATE = """
import os, time
from dataclasses import dataclass


@dataclass
class Reward:
    folder: str
    weight: float = 1.0

    def __call__(self, comparison):
        open(os.path.join(self.folder, comparison.example_id.replace("/", "-")), "w").close()
        while not os.path.exists(os.path.join(self.folder, "open")):
            time.sleep(0.01)
        return 0.5
"""
"""A reward that leaves a file named like the example when it is asked, and answers when there is a file `open`."""


@dataclass(frozen=True)
class TriangleCodec:
    """Reads every text as the same valid triangle."""

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        return answer_from_rings([np.array([[0.0, 0.0], [width, 0.0], [0.0, height]])])


@dataclass(frozen=True)
class LooseCodec:
    """Reads something out of the babble of an untrained model: numbers are corners of a triangle on a grid of 64."""

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        numbers = [int(word) for word in text.split() if word.isdigit()]
        if truncated and len(numbers) % 2:
            return Answer(AnswerStatus.TRUNCATED)
        ring = np.array(numbers[:6] + [0, 0, 64, 0, 32, 64][len(numbers) :], np.float64).reshape(3, 2)
        return answer_from_rings([ring / 64 * [width, height]] if len(numbers) > 1 else [])


def settings(checkpoint: Path, seed: int = 1) -> WorkerSettings:
    return WorkerSettings(
        run="a-run",
        seed=seed,
        env=Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 20}),
        policy=Plugin(
            "policies.families", "Policy", "vision_language", {"checkpoint": checkpoint, "codec": LooseCodec()}
        ),
        rewards=REWARDS,
    )


def worker(checkpoint: Path, name: str = "one", seed: int = 1) -> RolloutWorker:
    """One that holds its own checkpoint's weights as version 0."""
    made = RolloutWorker(settings(checkpoint, seed), name)
    made.set_weights(0, [])
    return made


@pytest.fixture(scope="module")
def groups(tiny_untrained: Path) -> list[Group]:
    return worker(tiny_untrained).answer(UNIT, 0)


def sampled(groups: list[Group]) -> list[list[list[float]]]:
    return [
        [[*rollout.response.tokens, *rollout.response.logprobs.tolist()] for rollout in group.rollouts]
        for group in groups
    ]


def test_two_workers_answer_a_unit_alike_to_the_bit(tiny_untrained: Path, groups: list[Group]) -> None:
    again = worker(tiny_untrained, name="two").answer(UNIT, 0)
    assert sampled(again) == sampled(groups)
    assert [[rollout.terms for rollout in group.rollouts] for group in again] == [
        [rollout.terms for rollout in group.rollouts] for group in groups
    ]


def test_another_seed_step_or_position_gives_other_answers_and_nothing_else_does(
    tiny_untrained: Path, groups: list[Group]
) -> None:
    one = worker(tiny_untrained)
    assert sampled(one.answer(replace(UNIT, step=4), 0)) != sampled(groups)
    assert sampled(one.answer(replace(UNIT, positions=(6, 7)), 0)) != sampled(groups)
    assert sampled(worker(tiny_untrained, seed=2).answer(UNIT, 0)) != sampled(groups)
    assert sampled(one.answer(UNIT, 0)) == sampled(groups)


def test_groups_are_complete(tiny_untrained: Path, groups: list[Group]) -> None:
    env = Env("train", image_size=32, num_scenes=20)
    policy = Policy(tiny_untrained, LooseCodec())
    assert [group.position for group in groups] == [4, 5]
    for group, index in zip(groups, UNIT.indices, strict=True):
        assert (group.run, group.step, group.temperature, group.totals) == ("a-run", 3, 1.0, ())
        assert group.example.id == env[index].id
        prompt = policy.processor.prompt_tokens(env[index].question(env.image(env[index].image)))
        assert group.prompt_tokens.tolist() == prompt.tolist()
        assert group.policy_checksum == held_checksum(policy.model)
        assert [rollout.index for rollout in group.rollouts] == [0, 1, 2, 3, 4]
        assert {rollout.policy_version for rollout in group.rollouts} == {0}
        for rollout in group.rollouts:
            assert rollout.seed == answer_seed(1, 3, group.position, rollout.index)
            assert rollout.text == policy.processor.text(rollout.response)
            assert len(rollout.response.tokens) == len(rollout.response.logprobs)


def test_scores_equal_pixel_counts_and_what_the_rewards_say(groups: list[Group]) -> None:
    scorer = Scorer(REWARDS)
    for group in groups:
        truth = group.example.truth.union
        answers = [rollout.answer for rollout in group.rollouts]
        expected = scorer.columns(compare(answers, Target.from_truth(group.example.truth)))
        for name, terms in expected.items():
            assert [rollout.terms[name] for rollout in group.rollouts] == list(terms)
        for rollout in group.rollouts:
            mask = mask_from_rings(rollout.answer.rings_px, 32, 32)
            assert rollout.answer_area_px == mask.sum()
            assert rollout.intersection_px == (mask & truth).sum()
            assert rollout.iou == (mask & truth).sum() / (mask | truth).sum()
            assert rollout.terms["mask_iou"] == rollout.iou * rollout.answer.status.valid
    ious = {rollout.iou for group in groups for rollout in group.rollouts}
    assert len(ious) > 4 and max(ious) > 0.1


def test_a_unit_of_other_weights_is_refused_by_the_workers_name_and_both_versions(tiny_untrained: Path) -> None:
    one = RolloutWorker(settings(tiny_untrained), "north-3")
    with pytest.raises(RuntimeError, match=r"worker north-3 holds weights of version -1, the unit of step 3 wants 0"):
        one.answer(UNIT, 0)
    one.set_weights(6, [])
    with pytest.raises(RuntimeError, match=r"worker north-3 holds weights of version 6, the unit of step 3 wants 7"):
        one.answer(UNIT, 7)


def test_a_delivery_that_breaks_off_leaves_a_worker_without_a_version(tiny_untrained: Path) -> None:
    one = worker(tiny_untrained)
    (bucket,) = one.buckets()
    with pytest.raises(KeyError):
        one.set_weights(1, [replace(bucket, shape=replace(bucket.shape, names=("no such parameter",)))])
    with pytest.raises(RuntimeError, match="version -1"):
        one.answer(UNIT, 0)


def test_new_weights_are_proved_by_checksum_and_answered_with(
    tiny_untrained: Path, groups: list[Group], tmp_path: Path
) -> None:
    sizes = TinySizes(
        image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
    )
    words = [
        word
        for word, _ in sorted(
            Policy(tiny_untrained, LooseCodec()).processor.tokenizer.get_vocab().items(), key=lambda x: x[1]
        )
    ]
    write_untrained(tmp_path, words, sizes, seed=9)
    sender = Policy(tmp_path, LooseCodec())
    sent = [make_bucket(part) for part in bucket_names(sender.model)]
    one = worker(tiny_untrained)
    assert one.set_weights(5, iter(sent)) == bucket_checksum(sent) == held_checksum(sender.model)
    answered = one.answer(UNIT, 5)
    assert sampled(answered) != sampled(groups)
    assert sampled(answered) == sampled(worker(tmp_path).answer(UNIT, 0))
    assert {group.policy_checksum for group in answered} == {held_checksum(sender.model)}
    assert {rollout.policy_version for group in answered for rollout in group.rollouts} == {5}
    assert bucket_checksum(one.buckets()) == held_checksum(sender.model)


def test_a_loaded_checkpoint_has_no_version_until_it_is_given_one(tiny_untrained: Path, groups: list[Group]) -> None:
    one = worker(tiny_untrained)
    one.load_checkpoint(tiny_untrained)
    with pytest.raises(RuntimeError, match="version -1"):
        one.answer(UNIT, 0)
    one.set_weights(0, one.buckets())
    assert sampled(one.answer(UNIT, 0)) == sampled(groups)


def test_a_slow_reward_in_a_process_does_not_keep_the_next_unit_from_being_sampled(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    (tmp_path / "gate.py").write_text(GATE)
    gate = RewardRecipe(Plugin("", "Reward", "gate", {"folder": str(tmp_path)}, str(tmp_path / "gate.py")), processes=2)
    policy = Plugin(
        "policies.families", "Policy", "vision_language", {"checkpoint": tiny_untrained, "codec": TriangleCodec()}
    )
    one = RolloutWorker(replace(settings(tiny_untrained), policy=policy, rewards={"gate": gate}), "one")
    one.set_weights(0, [])
    units = [replace(UNIT, positions=(index,), indices=(index,), group_size=1) for index in (7, 11)]
    env = Env("train", image_size=32, num_scenes=20)
    asked = [tmp_path / env[index].id.replace("/", "-") for index in (7, 11)]
    with ThreadPoolExecutor(2) as threads:
        answered = [threads.submit(one.answer, unit, 0) for unit in units]
        deadline = time.monotonic() + 60
        while not all(path.exists() for path in asked) and time.monotonic() < deadline:
            time.sleep(0.02)
        were_asked = [path.exists() for path in asked]
        (tmp_path / "open").touch()
        groups = [group for future in answered for group in future.result()]
    one.scorer.close()
    assert were_asked == [True, True]
    assert [group.position for group in groups] == [7, 11]
    assert [group.rollouts[0].terms for group in groups] == [{"gate": 0.5}] * 2


def test_the_images_of_the_next_unit_are_read_while_one_is_sampled(
    tiny_untrained: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = worker(tiny_untrained)
    sampler, meet = one._sampler, Barrier(2)
    prepare, sample = sampler.prepare, sampler.sample_prepared
    calls: list[str] = []

    # The second unit's images and the first one's answers wait for each other, so that they must be under way together.
    def preparing(*asked: Any) -> Any:
        calls.append("prepare")
        if calls.count("prepare") == 2:
            meet.wait(60)
        return prepare(*asked)

    def sampling(*asked: Any) -> Any:
        calls.append("sample")
        if calls.count("sample") == 1:
            meet.wait(60)
        return sample(*asked)

    monkeypatch.setattr(sampler, "prepare", preparing)
    monkeypatch.setattr(sampler, "sample_prepared", sampling)
    with ThreadPoolExecutor(2) as threads:
        answered = list(threads.map(lambda _: one.answer(UNIT, 0), range(2)))
    assert [sampled(each) for each in answered] == [sampled(groups)] * 2


def test_threads_that_ask_one_worker_get_what_one_thread_gets(tiny_untrained: Path, groups: list[Group]) -> None:
    one = worker(tiny_untrained)
    with ThreadPoolExecutor(3) as threads:
        again = list(threads.map(lambda _: one.answer(UNIT, 0), range(3)))
    assert [sampled(each) for each in again] == [sampled(groups)] * 3


def test_seeds_of_answers_differ_by_every_part_of_their_key_and_are_spread_evenly() -> None:
    seeds = {answer_seed(s, step, p, k) for s in range(3) for step in range(10) for p in range(10) for k in range(10)}
    assert len(seeds) == 3000
    counts = np.histogram([seed / 2**64 for seed in seeds], bins=10, range=(0, 1))[0]
    assert chisquare(counts).pvalue > 0.01


def test_a_worker_gets_units_ahead_on_a_gpu_and_where_a_reward_has_processes_of_its_own(tiny_untrained: Path) -> None:
    plain = settings(tiny_untrained)
    apart = {"mask_iou": replace(REWARDS["mask_iou"], processes=1)}
    found = [each.works_ahead for each in (plain, replace(plain, device="cuda"), replace(plain, rewards=apart))]
    assert found == [False, True, True]
