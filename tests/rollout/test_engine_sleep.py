"""A sampler that sleeps gives up its memory, and after it has taken weights again answers as if it had never slept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask_all

from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.families.base import Response
from policies.settings import LoraSettings
from policies.weights import is_adapter
from rollout.engines.shared import Engine, SharedSampler
from rollout.settings import Sampling
from rollout.worker import RolloutWorker, Unit, WorkerSettings

SAMPLING = Sampling(1.0, 12)
UNIT = Unit("train", 3, (0, 1), (4, 5), group_size=2, sampling=SAMPLING)


def policy(checkpoint: Path, **more: object) -> Plugin:
    settings = {"checkpoint": checkpoint, "codec": Codec()} | more
    return Plugin("policies.families", "Policy", "vision_language", settings)


def answers(sampler: SharedSampler) -> list[list[Response]]:
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    return sampler.sample(ask_all(images, ["dog", "cat"]), SAMPLING, [[1, 2], [3, 4]])


def told(found: list[list[Response]]) -> list[list[tuple[bytes, bytes]]]:
    return [[(one.tokens.tobytes(), one.logprobs.tobytes()) for one in group] for group in found]


@pytest.fixture
def sampler(tiny_untrained: Path) -> SharedSampler:
    return Engine().open(policy(tiny_untrained), "cpu", sleeps=True)


def test_a_sleeping_sampler_holds_no_byte_of_the_weights_and_awake_with_them_again_answers_the_same(
    sampler: SharedSampler,
) -> None:
    before, buckets, size = told(answers(sampler)), list(sampler.buckets()), sampler.held_bytes
    assert size == 4 * sum(parameter.numel() for parameter in sampler.policy.model.parameters()) > 100_000
    sampler.sleep(weights=True)
    assert sampler.held_bytes == 0
    sampler.sleep(weights=True)  # it sleeps already
    sampler.wake_weights()
    assert sampler.held_bytes == size
    for bucket in buckets:
        sampler.load_bucket(bucket)
    sampler.wake_caches()
    assert told(answers(sampler)) == before


def test_weights_that_were_given_up_are_not_those_that_were_held(sampler: SharedSampler) -> None:
    held = sampler.held_checksum()
    sampler.sleep(weights=True)
    sampler.wake_weights()
    for parameter in sampler.policy.model.parameters():
        parameter.data.zero_()  # the memory may by chance hold what it held
    assert sampler.held_checksum() != held


def test_a_sampler_that_keeps_its_weights_answers_after_sleep_without_new_ones(sampler: SharedSampler) -> None:
    before, size = told(answers(sampler)), sampler.held_bytes
    sampler.sleep(weights=False)
    assert sampler.held_bytes == size
    sampler.wake_weights()
    sampler.wake_caches()
    assert told(answers(sampler)) == before


def test_where_adapters_travel_alone_the_weights_below_them_stay(tiny_untrained: Path) -> None:
    adapted = Engine().open(policy(tiny_untrained, lora=LoraSettings(rank=2)), "cpu", sleeps=True)
    model = adapted.policy.model
    below = sum(p.nbytes for name, p in model.named_parameters() if not is_adapter(name))
    adapters = adapted.held_bytes - below
    assert adapters > 0
    adapted.sleep(weights=True)
    assert adapted.held_bytes == below
    adapted.wake_weights()
    assert adapted.held_bytes == below + adapters


def test_tied_weights_stay_tied(sampler: SharedSampler) -> None:
    model = sampler.policy.model
    embedding = model.get_input_embeddings().weight
    model.extra_head = torch.nn.Linear(1, 1, bias=False)
    model.extra_head.weight = embedding
    sampler.sleep(weights=True)
    sampler.wake_weights()
    assert model.extra_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr() != 0


def test_a_worker_on_a_shared_card_begins_asleep_and_each_set_of_weights_wakes_it(tiny_untrained: Path) -> None:
    env = Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 8})
    settings = WorkerSettings("a-run", 1, env, policy(tiny_untrained))
    always, buckets = RolloutWorker(settings, "one"), []
    buckets = list(always.buckets())
    always.set_weights(3, buckets)
    turns = RolloutWorker(replace(settings, sleeps=True), "one")
    for _ in range(2):
        assert turns._sampler.held_bytes == 0
        with pytest.raises(RuntimeError, match=r"holds weights of version -1, .* set_weights first"):
            turns.answer(UNIT, 3)
        turns.set_weights(3, buckets)
        found, expected = turns.answer(UNIT, 3), always.answer(UNIT, 3)
        assert [g.rollouts[1].text for g in found] == [g.rollouts[1].text for g in expected]
        assert np.array_equal(found[1].rollouts[0].response.logprobs, expected[1].rollouts[0].response.logprobs)
        turns.sleep()
