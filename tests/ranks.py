"""Learner ranks in processes of their own, since DeepSpeed keeps global state: what several test files need of them."""

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from processes import forks

from envs.codecs import box_masks, mask_group
from envs.codecs.base import AnswerCodec
from envs.codecs.path_tokens import Codec
from envs.example import Example
from envs.geometry.rle import rle_from_mask
from envs.plugin import Plugin
from policies.decoders.box_guided import DecoderSizes
from rl.algorithms.gspo import Algorithm
from rl.config.learner import LearnerSettings, RankPlace, RankSettings
from rl.learner.batches.batch import Batch

Weights = NDArray[np.float32]
ENV = Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 8})
ALGORITHM = Algorithm(clip_low=0.003, clip_high=0.004)
LEARNER = LearnerSettings(lr=1e-3, warmup_steps=1, minibatches=2, micro_groups=1, threads=1)
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Kind:
    """A policy, and data with which it can be asked."""

    name: str
    """Of the policy's file."""
    codec: AnswerCodec
    env: Plugin
    own: dict[str, Any] = field(default_factory=dict)
    """Settings of the policy beside its checkpoint and codec."""

    def plugin(self, checkpoint: Path) -> Plugin:
        own = {"checkpoint": checkpoint, "codec": self.codec, **self.own}
        return Plugin("policies.families", "Policy", self.name, own)

    def text(self, example: Example, rng: np.random.Generator) -> str:
        """A random answer: of any length, of a place for each candidate, or of up to three boxes."""
        if example.candidates is not None:
            return mask_group.text_of((rng.random(len(example.candidates)) < 0.5).tolist())
        if isinstance(self.codec, box_masks.Codec):
            boxes = [(*rng.integers(0, 32, 2), *rng.integers(33, 65, 2)) for _ in range(rng.integers(0, 4))]
            return " ; ".join(" ".join(map(str, (*box, "M"))) for box in boxes) or "none"
        return " ".join(map(str, rng.integers(0, 64, rng.integers(1, 9))))


WRITES = Kind("vision_language", Codec(), ENV)
_POOLS = {"candidates": 6, "max_scale": 0.45, "several_share": 1.0, "same_share": 0.5, "seed": 15}
CHOOSES = Kind(
    "mask_selection",
    mask_group.Codec(),
    ENV.with_settings(**_POOLS),
)
"""Of the first four questions the first and the last refer to a mask, so that in each mini-batch one rank of two has a
reference and the other none."""
DRAWS = Kind(
    "box_decoder",
    box_masks.Codec(box_bins=64, mask_token="M"),
    ENV.with_settings(several_share=0.9, same_share=0.9, max_scale=0.45),
    {
        "decoder": DecoderSizes(width=16, heads=2, mlp=32, blocks=1, frequencies=4, places=4),
        "mask_cells": 32,
        "freeze_decoder": True,
    },
)
"""With a word for a mask that the untrained model's tokenizer has."""


@dataclass(frozen=True)
class Outcome:
    """What a test looks at, in float32 bytes or numbers that a process can send back."""

    weights: list[Weights]
    """All parameters after each step, first of all those before any."""
    stats: list[dict[str, float]]
    """Of each step."""


@dataclass(frozen=True)
class Session:
    """What one learner does in its life."""

    learner: LearnerSettings
    batches: Sequence[Batch] = ()
    load: Path | None = None
    save: Path | None = None
    """After the last step."""
    policy: Path | None = None
    """Where the policy is written at the end."""
    average: bool = False
    """Whether the weights to report are the running average."""


def settings(
    checkpoint: Path, learner: LearnerSettings, algorithm: Plugin | None = None, kind: Kind = WRITES
) -> RankSettings:
    algorithm = algorithm or Plugin("rl.algorithms", "Algorithm", "gspo", dict(vars(ALGORITHM)))
    policy = kind.plugin(checkpoint)
    return RankSettings(learner, policy, kind.env, algorithm, TEMPERATURE, groups_per_step=4, seed=0)


def batch(checkpoint: Path, seed: int, signal: bool = True, kind: Kind = WRITES) -> Batch:
    """Four groups of three random answers of uneven length, with log-probabilities as a sampler would report them."""
    policy, env = kind.plugin(checkpoint).build(), kind.env.build(split="train")
    rng = np.random.default_rng(seed)
    examples = [env[index] for index in range(4)]
    texts = [[kind.text(example, rng) for _ in range(3)] for example in examples]
    tokens = tuple(tuple(policy.processor.answer_tokens(text) for text in row) for row in texts)
    rows = policy.rows([example.question(env.image(example.image)) for example in examples], tokens)
    logprobs = policy(rows, TEMPERATURE).detach().numpy()
    sampled = [[logprobs[b, g, : len(t)] for g, t in enumerate(row)] for b, row in enumerate(tokens)]
    totals = rng.random((4, 3)) if signal else np.full((4, 3), 0.3)
    totals[1] = 0.5
    advantages, counts = ALGORITHM.advantages(totals)
    images, prompts = (tuple(part) for part in zip(*((e.image, e.prompt) for e in examples), strict=True))
    made = Batch(images, prompts, tokens, tuple(map(tuple, sampled)), advantages.astype(np.float32), counts)
    pools = [None if e.candidates is None else tuple(map(rle_from_mask, e.candidates)) for e in examples]
    return made if pools[0] is None else replace(made, candidates=tuple(pools))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result from a process that runs nothing else."""
    with ProcessPoolExecutor(1, mp_context=forks()) as process:
        return process.submit(function, *arguments).result(timeout=500)


def together(
    function: Callable[..., Any], ranks: int, *arguments: Any, context: BaseContext | None = None
) -> list[Any]:
    """function(place, *arguments) of each rank, each in a process that runs nothing else."""
    port = free_port()
    places = [RankPlace(rank, ranks, port=port) for rank in range(ranks)]
    with ProcessPoolExecutor(ranks, mp_context=context or forks()) as processes:
        running = [processes.submit(function, place, *arguments) for place in places]
        return [one.result(timeout=500) for one in running]


def steps(rank: Any, batches: list[Batch]) -> Outcome:
    weights, stats = [all_weights(rank)], []
    for each in batches:
        stats.append(rank.step(each))
        weights.append(all_weights(rank))
    return Outcome(weights, stats)


def run(checkpoint: Path, sessions: Sequence[Session], ranks: int = 1) -> list[list[Weights]]:
    """Of each session: all weights after loading and after each step, in float32, as rank 0 has them."""
    return together(_sessions, ranks, checkpoint, sessions)[0]


def _sessions(place: RankPlace, checkpoint: Path, sessions: Sequence[Session]) -> list[list[Weights]]:
    from rl.learner.rank import LearnerRank

    found = []
    for session in sessions:
        rank = LearnerRank(of_dtype(checkpoint, session.learner), place)
        if session.load is not None:
            rank.load(session.load.parent, session.load.name)
        weights = [all_weights(rank, session.average, session.learner.dtype)]
        for each in session.batches:
            rank.step(each)
            weights.append(all_weights(rank, session.average, session.learner.dtype))
        if session.save is not None:
            rank.save(session.save.parent, session.save.name)
        if session.policy is not None:
            rank.save_policy(session.policy)
        found.append(weights)
    return found


def of_dtype(checkpoint: Path, learner: LearnerSettings) -> RankSettings:
    """Settings of a rank whose policy has the learner's dtype, as every run's has."""
    plain = settings(checkpoint, learner)
    return replace(plain, policy=plain.policy.with_settings(dtype=learner.dtype))


def all_weights(rank: Any, average: bool = False, dtype: str = "float32") -> Weights:
    """What the rank would send, in float32."""
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    return torch.cat([b.data.clone().view(kind).float() for b in rank.buckets(average)]).numpy()
