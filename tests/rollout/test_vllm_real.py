"""vLLM itself, its CPU build, beside the policy and our own engine; `make test-vllm` installs it and runs these.

What differs on a GPU: kernels, CUDA graphs, and vLLM's second model runner, which needs Triton. On a CPU, prompts of
one call may have 4,096 tokens together: vLLM's first model runner cannot part a seeded request there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask_all
from test_vision_language import write_qwen2_5_vl
from vllm_on_cpu import Engine

from envs.codecs.path_tokens import Codec
from envs.datasets.cutout_scenes import Env
from envs.example import Question
from envs.plugin import Plugin
from policies.families.base import Response
from policies.families.vision_language import Policy
from policies.weights import bucket_checksum, bucket_names, held_checksum, make_bucket
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.parts import run_parts, worker_settings
from rollout import cluster
from rollout.engines import shared
from rollout.engines.vllm import VllmSampler, installed_release
from rollout.pool.pool import WorkerPool
from rollout.pool.stored import put
from rollout.settings import Sampling
from rollout.worker import Unit

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        installed_release() is None, reason="vLLM is not installed here; `make test-vllm` installs its CPU build"
    ),
]

TINY = Path(str(files("policies") / "tiny"))
ENGINE = Path(__file__).parents[1] / "vllm_on_cpu.py"


def plugin(checkpoint: Path, **settings: str) -> Plugin:
    given = {"checkpoint": checkpoint, "codec": Codec(), **settings}
    return Plugin("policies.families", "Policy", "vision_language", given)


@pytest.fixture(scope="module")
def sampler() -> VllmSampler:
    return Engine(max_model_len=256).open(plugin(TINY), "cpu")


@pytest.fixture(autouse=True)
def first_weights(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test loaded, the next one finds the embedded checkpoint."""
    yield
    if "sampler" in request.fixturenames:
        request.getfixturevalue("sampler").load_checkpoint(TINY)


def scenes(num: int, first: int = 0) -> list[Question]:
    env = Env("train")
    examples = [env[first + k] for k in range(num)]
    return [example.question(env.image(example.image)) for example in examples]


def seeds(num: int, size: int, first: int = 0) -> list[list[int]]:
    return np.random.default_rng(first).integers(0, 2**64, (num, size), dtype=np.uint64).tolist()


def tokens(groups: Sequence[Sequence[Response]]) -> list[list[list[int]]]:
    return [[response.tokens.tolist() for response in group] for group in groups]


@torch.no_grad()
def differences(
    policy: Policy, questions: Sequence[Question], groups: Sequence[Sequence[Response]], temperature: float
) -> np.ndarray:
    """|sampler's log-probability - the policy's| of every sampled token."""
    rows = policy.rows(questions, [[response.tokens for response in group] for group in groups])
    own = policy(rows, temperature).numpy()
    found = [
        np.abs(own[b, g, : len(response.tokens)] - response.logprobs)
        for b, group in enumerate(groups)
        for g, response in enumerate(group)
    ]
    return np.concatenate(found)


def told(record: Callable[[str, object], None], name: str, off: np.ndarray) -> None:
    record(name, f"max {off.max():.2e}, mean {off.mean():.2e} of {off.size} tokens")


def shaken(policy: Policy, seed: int) -> Policy:
    """The policy with noise on every weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return policy


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_prompts_are_the_policy_s_own_and_log_probabilities_are_those_of_forward(
    sampler: VllmSampler, temperature: float, record_testsuite_property: Callable[[str, object], None]
) -> None:
    questions = scenes(8)
    answers = sampler.sample(questions, Sampling(temperature, 48), seeds(8, 7))  # raises for another prompt
    off = differences(Policy(TINY, Codec()), questions, answers, temperature or 1.0)
    told(record_testsuite_property, f"temperature {temperature}", off)
    assert off.size > 1000 and off.max() < 1e-4 and off.mean() < 1e-5


def test_greedy_answers_are_those_of_our_own_engine(sampler: VllmSampler) -> None:
    questions, greedy = scenes(32, first=100), Sampling(0.0, 48)
    own = shared.Engine().open(plugin(TINY), "cpu").sample(questions, greedy, seeds(32, 1))
    assert tokens(sampler.sample(questions, greedy, seeds(32, 1))) == tokens(own)


def test_an_answer_is_repeated_from_its_own_seed_alone_and_in_another_batch(sampler: VllmSampler) -> None:
    questions, keys, drawn = scenes(5), seeds(5, 8), Sampling(1.0, 48)
    first = tokens(sampler.sample(questions, drawn, keys))
    assert tokens(sampler.sample(questions, drawn, keys)) == first
    alone = [sampler.sample([questions[b]], drawn, [[keys[b][g]]])[0][0] for b, g in ((0, 0), (2, 7), (4, 3))]
    assert [response.tokens.tolist() for response in alone] == [first[0][0], first[2][7], first[4][3]]
    others = [*scenes(4, first=50), *questions[::-1]]
    assert tokens(sampler.sample(others, drawn, [*seeds(4, 4, first=1), *keys[::-1]]))[4:] == first[::-1]


def test_other_seeds_give_other_answers_and_so_do_those_of_one_group(
    sampler: VllmSampler, record_testsuite_property: Callable[[str, object], None]
) -> None:
    questions = scenes(6)
    first, second = (tokens(sampler.sample(questions, Sampling(1.0, 48), seeds(6, 8, first=k))) for k in (0, 1))
    pairs = [pair for groups in zip(first, second, strict=True) for pair in zip(*groups, strict=True)]
    other = sum(one != another for one, another in pairs)
    distinct = [len({tuple(each) for each in group}) for group in first]
    record_testsuite_property("other seeds", f"{other} of 48 answers differ; distinct of 8: {distinct}")
    assert other >= 44 and sum(distinct) >= 40  # where the policy is sure, answers may be the same by chance


def test_a_delivery_is_proved_by_vllms_own_parameters_and_answered_with(
    sampler: VllmSampler, record_testsuite_property: Callable[[str, object], None]
) -> None:
    questions, keys, drawn = scenes(6), seeds(6, 8), Sampling(1.0, 48)
    assert sampler.held_checksum() == held_checksum(Policy(TINY, Codec()).model)
    first = sampler.sample(questions, drawn, keys)
    policy = shaken(Policy(TINY, Codec()), 3)
    for part in bucket_names(policy.model, 300_000):
        sampler.load_bucket(make_bucket(part))
    assert sampler.held_checksum() == bucket_checksum(sampler.buckets()) == held_checksum(policy.model)
    moved = sampler.sample(questions, drawn, keys)
    new, old = (differences(each, questions, moved, 1.0) for each in (policy, Policy(TINY, Codec())))
    told(record_testsuite_property, "after a delivery, new policy", new)
    told(record_testsuite_property, "after a delivery, old policy", old)
    assert new.max() < 2e-4 and old.mean() > 0.05
    # Keys, values and image features of the old weights are gone, in both directions.
    sampler.load_checkpoint(TINY)
    again = sampler.sample(questions, drawn, keys)
    assert tokens(again) == tokens(first)


def test_a_flipped_bit_in_vllms_joined_matrix_changes_the_checksum(sampler: VllmSampler) -> None:
    before = sampler.held_checksum()
    place = [name for name in sampler._shapes if name.endswith("layers.2.self_attn.v_proj.weight")]
    held = dict(zip(sampler._shapes, sampler._held(), strict=True))[place[0]]
    held.data.view(torch.int32)[17, 3] ^= 1
    assert sampler.held_checksum() != before
    held.data.view(torch.int32)[17, 3] ^= 1
    assert sampler.held_checksum() == before


def test_qwen2_5_vl_with_images_to_be_resized(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    write_qwen2_5_vl(tmp_path, width=64)  # vLLM's attention on a CPU takes heads of 32 and more
    policy, sampler = Policy(tmp_path, Codec()), Engine(max_model_len=512).open(plugin(tmp_path), "cpu")
    assert sampler.held_checksum() == held_checksum(policy.model)
    sizes = [(32, 32), (57, 90), (200, 31), (3, 700), (120, 100)]
    noise = [np.random.default_rng(h).integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]
    questions = ask_all(noise, ["dog", "the banana", "left dog", "upper banana", "the dog"])
    answers = sampler.sample(questions, Sampling(1.0, 32), seeds(5, 6))
    off = differences(policy, questions, answers, 1.0)
    told(record_testsuite_property, "Qwen2.5-VL", off)
    assert off.max() < 1e-5
    for part in bucket_names(shaken(policy, 5).model):
        sampler.load_bucket(make_bucket(part))
    assert sampler.held_checksum() == held_checksum(policy.model)
    moved = differences(policy, questions, sampler.sample(questions, Sampling(1.0, 32), seeds(5, 6)), 1.0)
    told(record_testsuite_property, "Qwen2.5-VL after a delivery", moved)
    assert moved.max() < 1e-5


def test_in_bfloat16_sampler_and_policy_differ_by_hundredths(
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    settings = plugin(TINY, dtype="bfloat16")
    sampler, policy, questions = Engine(max_model_len=256).open(settings, "cpu"), settings.build(), scenes(6)
    assert sampler.held_checksum() == held_checksum(policy.model)
    off = differences(policy, questions, sampler.sample(questions, Sampling(1.0, 48), seeds(6, 8)), 1.0)
    told(record_testsuite_property, "bfloat16", off)
    assert 0.001 < off.mean() < 0.04


def test_a_pool_proves_a_vllm_workers_weights_in_every_step(tmp_path: Path) -> None:
    config = load_settings(RunConfig, Path("tiny"), ["run=unused", "pool.workers=1", "pool.verify_every=1"])
    config = replace(config, pool=replace(config.pool, engine={"name": "vllm_on_cpu", "module": str(ENGINE)}))
    cluster.start(None, num_cpus=2)
    try:
        parts = run_parts(config)
        pool = WorkerPool(config.pool, worker_settings(config, parts))
        pool.set_weights(pool.checkpoint_weights(TINY), version=1)
        unit = Unit("train", 1, tuple(range(8)), tuple(range(8)), 7, Sampling(1.0, 48))
        before = pool.answer([unit])
        policy = shaken(Policy(TINY, Codec()), 3)
        pool.set_weights(put(make_bucket(part) for part in bucket_names(policy.model)), version=2)
        after = pool.answer([unit])
        pool.close()
    finally:
        cluster.stop()
    assert {group.policy_checksum for group in after} == {held_checksum(policy.model)}
    assert {rollout.policy_version for group in after for rollout in group.rollouts} == {2}
    assert before[0].policy_checksum == held_checksum(Policy(TINY, Codec()).model)
    assert any(rollout.iou > 0.5 for group in before for rollout in group.rollouts)
