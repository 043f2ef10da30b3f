"""Our own engine on the random model: tokens a second, and a token's time against that to read the weights once."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from envs.example import Question
from rl.bench.gpu import subject
from rl.bench.gpu.clock import forget_peak, gb, memory_rate, peak_memory, seconds_of
from rl.bench.gpu.part import Measured, Site
from rollout.engines import shared
from rollout.settings import Sampling

_GROUP = 8
_FEW = 8
"""Tokens of the shorter unit; a CUDA graph is recorded after a few."""


@dataclass(frozen=True)
class Load:
    """What is sampled at once."""

    answers: int
    """Answers at once, in groups of eight; a multiple of that."""
    tokens: int
    """Tokens of each, exactly."""
    cuda_graph: bool
    """Whether a token is one CUDA graph."""


@dataclass(frozen=True)
class Speed:
    """How fast that went."""

    load: Load
    seconds: float
    """Seconds of a unit, its images and prompts included."""
    token_seconds: float
    """Time of one token of all answers, prompts left out."""
    peak_bytes: int | None
    """Most memory of tensors; None where it was not measured."""

    @property
    def tokens_per_second(self) -> float:
        """Rate of all answers together, prompts left out."""
        return self.load.answers / self.token_seconds


def answers_at_once(site: Site) -> tuple[int, ...]:
    """How many answers are sampled at once, each on its own."""
    return (32, 128) if site.on_card else (8,)


def measure(site: Site) -> Measured:
    """All loads, without and on a card with a CUDA graph; and whether the answers are the same."""
    rate = memory_rate(site.device, 2**30 if site.on_card else 2**24)
    questions = subject.random_questions(site, max(answers_at_once(site)) // _GROUP)
    ways = [_of_engine(site, graph, questions) for graph in ((False, True) if site.on_card else (False,))]
    least = ways[0].read_bytes / rate
    found = [speed for way in ways for speed in way.speeds]
    equal = sum(one == other for one, other in zip(ways[0].answers, ways[-1].answers, strict=True))
    numbers: dict[str, Any] = {
        "weights_read_bytes": ways[0].read_bytes,
        "memory_bytes_per_second": rate,
        "least_token_seconds": least,
        "equal_answers_with_and_without_graph": [equal, len(ways[0].answers)] if site.on_card else None,
        "cases": [asdict(each) | {"tokens_per_second": each.tokens_per_second} for each in found],
    }
    head = ("answers", "CUDA graph", "tokens a second", "ms a token", "times the read of the weights", "peak GB")
    notes = [f"weights of {gb(ways[0].read_bytes)} GB are read in {1e3 * least:.2f} ms at the rate of a copy"]
    if site.on_card:
        notes.append(f"{equal} of {len(ways[0].answers)} answers are the same with a CUDA graph and without")
    return Measured(head, tuple(_row(each, least) for each in found), numbers, notes=tuple(notes))


@dataclass(frozen=True)
class _Way:
    """The engine with one setting."""

    speeds: list[Speed]
    answers: list[list[int]]
    """Tokens of the answers to the first load."""
    read_bytes: int
    """Weights that a token of an answer has to read."""


def _of_engine(site: Site, cuda_graph: bool, questions: Sequence[Question]) -> _Way:
    """One engine alone on the device, so that memory is its own."""
    gc.collect()
    sampler = shared.SharedSampler(subject.random_plugin(site), shared.Engine(cuda_graph=cuda_graph), site.device)
    tower = sum(parameter.nbytes for parameter in sampler.policy.vision_tower.parameters())
    loads = [Load(answers, 64 if site.on_card else 24, cuda_graph) for answers in answers_at_once(site)]
    answered = [tokens for group in _sampled(sampler, loads[0], questions) for tokens in group]
    return _Way([timed(sampler, load, questions, site) for load in loads], answered, sampler.held_bytes - tower)


def timed(sampler: shared.SharedSampler, load: Load, questions: Sequence[Question], site: Site) -> Speed:
    """Time a unit, and one of few tokens, whose difference is that of all further tokens."""
    forget_peak(site.device)
    whole, first = (_warm_seconds(sampler, load, tokens, questions, site) for tokens in (load.tokens, _FEW))
    peak = peak_memory() if site.on_card else None
    return Speed(load, whole, max(whole - first, 1e-9) / (load.tokens - _FEW), peak)


def _warm_seconds(
    sampler: shared.SharedSampler, load: Load, tokens: int, questions: Sequence[Question], site: Site
) -> float:
    """Seconds of a unit, after one in which kernels are chosen and a graph is recorded."""

    def run() -> None:
        _sampled(sampler, replace(load, tokens=tokens), questions)

    run()
    return seconds_of(run, site.device)


def _sampled(sampler: shared.SharedSampler, load: Load, questions: Sequence[Question]) -> list[list[list[int]]]:
    asked = questions[: load.answers // _GROUP]
    seeds = subject.answer_seeds(len(asked), _GROUP)
    return subject.tokens_of(sampler.sample(asked, Sampling(1.0, load.tokens), seeds))


def _row(found: Speed, least: float) -> tuple[str, ...]:
    return (
        f"{found.load.answers}",
        "yes" if found.load.cuda_graph else "no",
        f"{found.tokens_per_second:,.0f}",
        f"{1e3 * found.token_seconds:.2f}",
        f"{found.token_seconds / least:.2f}",
        gb(found.peak_bytes),
    )
