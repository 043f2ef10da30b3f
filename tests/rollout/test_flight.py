"""How answers are followed on their way: looked at every few tokens, by the same calls, prepared; a CUDA graph."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask_all

from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.families.base import PromptRows, Response
from policies.families.vision_language import Policy
from policies.grammar import MaskTable
from rollout.engines import _flight
from rollout.engines._flight import Flight
from rollout.engines._token_graph import GraphedFlights
from rollout.engines.shared import Engine, sample
from rollout.settings import Sampling
from rollout.worker import RolloutWorker, Unit, WorkerSettings

PHRASES = ["dog", "the upper left banana", "cat"]


@pytest.fixture(scope="module")
def policy(tiny_untrained: Path) -> Policy:
    return Policy(tiny_untrained, Codec()).eval()


def rows_of(policy: Policy, num: int, seed: int = 0) -> PromptRows:
    images = list(np.random.default_rng(seed).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8))
    phrases = [PHRASES[k % 3] for k in range(num)]
    return policy.rows(ask_all(images, phrases), [[np.array([policy.processor.end_token])]] * num)


def draws_of(num: int, group: int, tokens: int, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed).random((num, group, tokens))
    draws[np.random.default_rng(seed + 1).random(draws.shape) < 0.08] = 0.0  # the end, at many times
    return draws


def same(found: list[Response], expected: list[Response], atol: float = 1e-5) -> bool:
    """Whether answers agree in every token, and in log-probabilities to `atol`."""
    pairs = list(zip(found, expected, strict=True))
    return all(
        one.tokens.tolist() == other.tokens.tolist()
        and one.finish == other.finish
        and np.allclose(one.logprobs, other.logprobs, rtol=0, atol=atol)
        for one, other in pairs
    )


@pytest.mark.parametrize("grammar", [False, True])
@pytest.mark.parametrize("max_answers", [None, 8])
def test_answers_are_the_same_however_seldom_it_is_looked_who_has_ended(
    policy: Policy, grammar: bool, max_answers: int | None
) -> None:
    rows, draws, sampling = rows_of(policy, 7), draws_of(7, 4, 24), Sampling(1.0, 24, grammar)
    expected = sample(policy, rows, sampling, draws, max_answers, look_every=1)
    assert len({len(response.tokens) for response in expected}) > 5
    for every in (3, 8, 100):
        assert same(sample(policy, rows, sampling, draws, max_answers, look_every=every), expected)


def test_looking_every_8_tokens_asks_the_device_3_times_in_24_tokens_in_place_of_24(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    settle = Flight.settle

    def counted(self: Flight) -> None:
        looks.append(1)
        settle(self)

    monkeypatch.setattr(_flight.Flight, "settle", counted)
    draws = np.full((2, 3, 24), 0.9)  # nobody ends early
    found = []
    for every in (1, 8):
        looks.clear()
        sample(policy, rows_of(policy, 2), Sampling(1.0, 24), draws, look_every=every)
        found.append(len(looks))
    assert found == [24, 3]


@torch.inference_mode()
@pytest.mark.parametrize("grammar", [False, True])
def test_the_same_calls_for_every_token_give_the_same_answers_unit_after_unit(policy: Policy, grammar: bool) -> None:
    sampling = Sampling(1.0, 16, grammar)
    longer, other = rows_of(policy, 5), rows_of(policy, 5, seed=1)
    flight = Flight(policy, longer, sampling, draws_of(5, 3, 16), at_once=2, same_calls=True)
    for rows, seed in ((longer, 0), (other, 5), (longer, 9)):
        draws = draws_of(5, 3, 16, seed)
        flight.begin(rows, draws)
        buffers = {name: part.data_ptr() for name, part in vars(flight).items() if isinstance(part, torch.Tensor)}
        while flight.running:
            flight.token()
            flight.follow()
            if flight.is_due(4):
                flight.settle()
        assert same(flight.responses(), sample(policy, rows, sampling, draws, 6, look_every=4))
        after = {name: part.data_ptr() for name, part in vars(flight).items() if isinstance(part, torch.Tensor)}
        assert after == buffers


def test_a_cuda_graph_without_a_gpu_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"pool.engine.cuda_graph is true and pool.gpus_per_worker 0") as refused:
        Engine(cuda_graph=True).check(Sampling(), 0.0)
    assert "\n" not in str(refused.value)
    Engine(cuda_graph=True).check(Sampling(), 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("grammar", [False, True])
def test_a_cuda_graph_gives_the_answers_of_single_calls_and_is_recorded_once_a_shape(
    tiny_untrained: Path, grammar: bool
) -> None:
    policy = Policy(tiny_untrained, Codec()).to("cuda").eval()
    graphed, sampling = GraphedFlights(policy), Sampling(1.0, 16, grammar)
    for seed in range(3):
        rows, draws = rows_of(policy, 5, seed), draws_of(5, 3, 16, seed)
        found = graphed.sample(rows, sampling, draws, 2, 8)
        assert same(found, sample(policy, rows, sampling, draws, 6, look_every=8), atol=1e-4)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(1.01)  # new weights where the old ones lay
    assert graphed.recorded == 1
    graphed.sample(rows, Sampling(0.5, 16, grammar), draws, 2, 8)
    assert graphed.recorded == 2


def test_masks_of_a_device_are_made_once_and_forgotten_where_they_would_take_too_much(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = policy.processor.token_grammar()
    ring = np.array([[2.0, 2.0], [28.0, 4.0], [20.0, 30.0], [4.0, 24.0]])
    answer = policy.processor.answer_tokens(policy.processor.codec.encode([[ring]], 32, 32))
    numbers = sorted(set(grammar.masks_of(answer.tolist(), 100)))
    assert len(numbers) >= 3
    for most in (2**27, 2 * policy.processor.vocabulary_size):
        monkeypatch.setattr("policies.grammar._MASK_BYTES", most)
        table = MaskTable(grammar, policy.processor.vocabulary_size, torch.device("cpu"))
        for asked in ([numbers[0]] * 3, numbers[:2], numbers[1:3], numbers, numbers[::-1]):
            assert torch.equal(table.allowed(asked), grammar.allowed(asked))


class _Counting:
    """Stands in the way of an image processor, and counts the images that go through it."""

    def __init__(self, processor: Any) -> None:
        self.seen = 0
        self._processor = processor

    def __call__(self, images: Any, **others: Any) -> Any:
        self.seen += len(images)
        return self._processor(images=images, **others)

    def __getattr__(self, name: str) -> Any:
        return vars(self._processor)[name]


def test_an_image_goes_through_the_image_processor_exactly_once_a_group(tiny_untrained: Path) -> None:
    plugin = Plugin("policies.families", "Policy", "vision_language", {"checkpoint": tiny_untrained, "codec": Codec()})
    env = Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 8})
    worker = RolloutWorker(WorkerSettings("run", 0, env, plugin), "worker")
    processor = worker._sampler.policy.processor
    counting = _Counting(processor.image_processor)
    processor.image_processor = counting
    worker.set_weights(0, worker.buckets())
    groups = worker.answer(Unit("train", 0, (0, 1, 2), (3, 4, 5), 4, Sampling(1.0, 6)), 0)
    assert [len(group.rollouts) for group in groups] == [4, 4, 4]
    assert counting.seen == 3
    assert all(len(group.prompt_tokens) > 16 for group in groups)
    assert counting.seen == 3


def test_questions_prepared_in_another_thread_get_the_answers_they_would_get_at_once(tiny_untrained: Path) -> None:
    plugin = Plugin("policies.families", "Policy", "vision_language", {"checkpoint": tiny_untrained, "codec": Codec()})
    sampler = Engine().open(plugin, "cpu")
    images = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    units, seeds, sampling = [ask_all([image], ["dog"]) for image in images], [[1, 2, 3]], Sampling(1.0, 12)
    expected = [sampler.sample(unit, sampling, seeds) for unit in units]
    with ThreadPoolExecutor(1) as beside:
        ahead = beside.submit(sampler.prepare, units[0], sampling)
        found = []
        for k in range(3):
            prepared = ahead.result()
            ahead = beside.submit(sampler.prepare, units[min(k + 1, 2)], sampling)
            found.append(sampler.sample_prepared(prepared, sampling, seeds))
    for one, other in zip(found, expected, strict=True):
        assert same(one[0], other[0], atol=0.0)
