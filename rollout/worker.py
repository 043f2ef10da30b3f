"""One rollout worker: answers prompts in groups, reads the answers as polygons, scores them.

A plain class; Ray only wraps it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.datasets.base import Env
from envs.example import Example, Question
from envs.plugin import Plugin
from envs.polygons import Answer, FlatAnswers
from policies.families.base import Response
from policies.weights import Bucket, bucket_names
from rewards.kernels import overlap as kernels
from rewards.score import Comparisons, Target, compare
from rewards.scorer import Columns, Scorer
from rewards.settings import RewardRecipe
from rollout.engines.base import Sampler
from rollout.records import Group, Rollout
from rollout.refined import AnswerRefiner
from rollout.settings import RefinedSettings, Sampling
from rollout.token_places import token_places

_SHARED = Plugin("rollout.engines", "Engine", "shared", {})


@dataclass(frozen=True)
class Unit:
    """A fixed piece of a step: the groups that are sampled in one batch, whoever samples them."""

    split: str
    step: int
    positions: tuple[int, ...]
    """Places of the groups in the step."""
    indices: tuple[int, ...]
    """Example of each, by index in the split."""
    group_size: int
    sampling: Sampling


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker builds itself from; small, since it travels."""

    run: str
    """Name of the run."""
    seed: int
    env: Plugin
    policy: Plugin
    engine: Plugin = _SHARED
    """What samples."""
    rewards: Mapping[str, RewardRecipe] = field(default_factory=dict)
    threads: int = 1
    """Torch threads of one worker."""
    refined: RefinedSettings | None = None
    """The refiner whose masks rewards see beside the answers; None: they see none."""
    device: str = "cpu"
    """What it samples on: cuda or cpu."""
    sleeps: bool = False
    """Whether it sleeps whenever no weights are set, as where a learner rank shares its card; it begins asleep."""
    sleeps_without_weights: bool = True
    """Whether it gives up its weights for that."""

    @property
    def works_ahead(self) -> bool:
        """Whether it is worthwhile to give a worker a unit before it is done with the last one.

        So it is where a reward has processes of its own, which it waits for, and on a GPU, which would wait for images.
        """
        return self.device == "cuda" or any(recipe.processes for recipe in self.rewards.values())


def answer_seed(seed: int, step: int, position: int, index: int) -> int:
    """Key of the random stream of one answer, 0 .. 2**64 - 1."""
    return int(np.random.SeedSequence([seed, step, position, index]).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class _Prepared:
    """A unit with all done that needs no weights."""

    unit: Unit
    examples: Sequence[Example]
    images: Sequence[NDArray[np.uint8]]
    questions: Sequence[Question]
    rows: Any
    """What the sampler made of the questions."""


@dataclass(frozen=True)
class _Sampled:
    """A group with all that needs the policy done; what is left is to score it."""

    group: Group
    """Without rollouts."""
    texts: tuple[str, ...]
    responses: tuple[Response, ...]
    comparisons: Comparisons
    policy_version: int
    seeds: tuple[int, ...]
    token_places: tuple[NDArray[np.int16] | None, ...]
    """Token places of each answer, as Rollout has them."""


class RolloutWorker:
    """A policy, the data, and the rewards, in one process. Several threads may ask it at once."""

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        torch.set_num_threads(settings.threads)
        kernels.warm()
        self.name = name
        # One thread samples, or takes weights, at a time; scoring is free of it, since a reward may be slow.
        self._sampling = Lock()
        # Another one reads images beside it; not several, since data sets may hold open files.
        self._reading = Lock()
        self._settings = settings
        self._sampler: Sampler[Any] = settings.engine.build().open(settings.policy, settings.device, settings.sleeps)
        refined = settings.refined
        self._refiner = None if refined is None else AnswerRefiner(refined, self._sampler.policy)
        self.scorer = Scorer(settings.rewards)
        self._envs: dict[str, Env] = {}
        self._version = -1
        self._checksum = ""
        if settings.sleeps:
            self.sleep()

    def set_weights(self, version: int, buckets: Iterable[Bucket]) -> str:
        """Take over weights; returns the checksum of what this worker now holds, computed from its own parameters.

        Raises ValueError where these are of another vision tower than the refiner's.
        """
        with self._sampling:
            self._version = -1
            self._sampler.wake_weights()
            for bucket in buckets:
                self._sampler.load_bucket(bucket)
            self._sampler.wake_caches()
            if self._refiner is not None:
                self._refiner.refuse_other_tower(self._sampler.policy)
            self._checksum = self._sampler.held_checksum()
            self._version = version
            return self._checksum

    def sleep(self) -> None:
        """Let go of the GPU's memory, and of what the settings say of the weights, until `set_weights`."""
        with self._sampling:
            self._version = -1
            self._sampler.sleep(self._settings.sleeps_without_weights)

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Replace the weights by those of a Hugging Face folder.

        They have no version until `set_weights` gives them one.
        """
        with self._sampling:
            self._version = -1
            self._sampler.load_checkpoint(checkpoint)

    @property
    def device(self) -> str:
        """Where this worker takes weights: cuda or cpu."""
        return self._settings.device

    def buckets(self) -> Iterator[Bucket]:
        """The weights that this worker holds, cut into buckets."""
        return self._sampler.buckets()

    def num_buckets(self) -> int:
        """Number of `buckets`."""
        return sum(1 for _ in bucket_names(self._sampler.policy.model))

    def held_checksum(self) -> str:
        """Checksum of the weights that this worker holds by now, computed from its own parameters."""
        return self._sampler.held_checksum()

    def answer(self, unit: Unit, version: int) -> list[Group]:
        """Sample and score a unit's groups with the weights of `version`.

        While its images are read, and while it is scored, another unit may be sampled.
        Raises RuntimeError where this worker holds other weights: a stale answer must never pass for a fresh one. What
        `Scorer.columns` raises passes through.
        """
        # Torch counts its threads by the thread that asks, which need not be the one that built this worker.
        torch.set_num_threads(self._settings.threads)
        with self._reading:
            prepared = self._prepared(unit)
        with self._sampling:
            sampled = self._sampled(prepared, version)
        columns = self.scorer.columns_of([group.comparisons for group in sampled])
        return [_scored(*parts) for parts in zip(sampled, columns, strict=True)]

    def _prepared(self, unit: Unit) -> _Prepared:
        env = self._env(unit.split)
        examples = [env[index] for index in unit.indices]
        images = [env.image(example.image) for example in examples]
        questions = [example.question(image) for example, image in zip(examples, images, strict=True)]
        return _Prepared(unit, examples, images, questions, self._sampler.prepare(questions, unit.sampling))

    def _sampled(self, prepared: _Prepared, version: int) -> list[_Sampled]:
        unit, examples, questions = prepared.unit, prepared.examples, prepared.questions
        if version != self._version:
            raise RuntimeError(
                f"worker {self.name} holds weights of version {self._version}, the unit of step {unit.step} wants "
                f"{version}; set_weights first."
            )
        seeds = [
            [answer_seed(self._settings.seed, unit.step, position, k) for k in range(unit.group_size)]
            for position in unit.positions
        ]
        responses = self._sampler.sample_prepared(prepared.rows, unit.sampling, seeds)
        comparisons = self._compared(examples, prepared.images, responses)
        texts = [tuple(map(self._sampler.policy.processor.text, group)) for group in responses]
        return [
            _Sampled(
                self._group(unit, n, examples[n], questions[n]),
                texts=texts[n],
                responses=tuple(responses[n]),
                comparisons=comparisons[n],
                policy_version=self._version,
                seeds=tuple(seeds[n]),
                token_places=self._token_places(responses[n], texts[n], comparisons[n]),
            )
            for n in range(len(examples))
        ]

    def _token_places(
        self, responses: Sequence[Response], texts: Sequence[str], comparisons: Comparisons
    ) -> tuple[NDArray[np.int16] | None, ...]:
        if comparisons.asked != "mask":
            return (None,) * len(responses)
        processor = self._sampler.policy.processor
        each = zip(responses, texts, comparisons.answers.whole, strict=True)
        return tuple(token_places(processor, response, text, answer) for response, text, answer in each)

    def _compared(
        self, examples: Sequence[Example], images: Sequence[NDArray[np.uint8]], responses: Sequence[Sequence[Response]]
    ) -> list[Comparisons]:
        """The responses to each example read, refined where the run asks for it, and compared with what is true."""
        policy = self._sampler.policy
        answers = [
            [policy.processor.read_answer(response, example) for response in group]
            for group, example in zip(responses, examples, strict=True)
        ]
        refined: Sequence[FlatAnswers | None] = [None] * len(answers)
        if self._refiner is not None:
            refined = self._refiner.refine(policy, images, answers)
        return [
            _compared(group, example, masks) for group, example, masks in zip(answers, examples, refined, strict=True)
        ]

    def _env(self, split: str) -> Env:
        if split not in self._envs:
            self._envs[split] = self._settings.env.build(split=split)
        return self._envs[split]

    def _group(self, unit: Unit, n: int, example: Example, question: Question) -> Group:
        """The n-th group of a unit, without rollouts."""
        return Group(
            run=self._settings.run,
            step=unit.step,
            position=unit.positions[n],
            example=example,
            prompt_tokens=self._sampler.policy.processor.prompt_tokens(question),
            policy_checksum=self._checksum,
            temperature=unit.sampling.temperature,
            rollouts=(),
            max_tokens=unit.sampling.max_tokens,
            grammar=unit.sampling.grammar,
        )


def _compared(answers: Sequence[Answer], example: Example, refined: FlatAnswers | None) -> Comparisons:
    """Answers to an example compared with what is true; only masks are refined."""
    asked, target = example.prompt.asked, Target.from_truth(example.truth)
    return compare(answers, target, example.id, example.prompt.told, refined if asked == "mask" else None, asked)


def _scored(sampled: _Sampled, columns: Columns) -> Group:
    """The group with its rollouts; columns: the term of each answer, by reward name."""
    parts = zip(sampled.responses, sampled.texts, sampled.comparisons, sampled.seeds, sampled.token_places, strict=True)
    rollouts = tuple(
        Rollout(
            index=k,
            response=response,
            text=text,
            answer=comparison.answer,
            intersection_px=comparison.intersection_px,
            answer_area_px=comparison.answer_area_px,
            iou=comparison.iou,
            terms={name: terms[k] for name, terms in columns.items()},
            policy_version=sampled.policy_version,
            seed=seed,
            token_places=places,
        )
        for k, (response, text, comparison, seed, places) in enumerate(parts)
    )
    return replace(sampled.group, rollouts=rollouts)
