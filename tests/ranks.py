"""Learner ranks in processes of their own, since DeepSpeed keeps global state: what several test files need of them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from test_learner_rank import LEARNER, batch, free_port, settings

from rl.config.learner import LearnerSettings, RankPlace, RankSettings
from rl.learner.batch import Batch

__all__ = ["LEARNER", "Session", "batch", "of_dtype", "run", "together"]
Weights = NDArray[np.float32]


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


def run(checkpoint: Path, sessions: Sequence[Session], ranks: int = 1) -> list[list[Weights]]:
    """Of each session: all weights after loading and after each step, in float32, as rank 0 has them."""
    return together(_sessions, ranks, checkpoint, sessions)[0]


def together(function: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """function(place, *arguments) of each rank, each in a process that runs nothing else."""
    port = free_port()
    places = [RankPlace(rank, ranks, port=port) for rank in range(ranks)]
    with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as processes:
        running = [processes.submit(function, place, *arguments) for place in places]
        return [one.result(timeout=500) for one in running]


def _sessions(place: RankPlace, checkpoint: Path, sessions: Sequence[Session]) -> list[list[Weights]]:
    from rl.learner.rank import LearnerRank

    found = []
    for session in sessions:
        rank = LearnerRank(of_dtype(checkpoint, session.learner), place)
        if session.load is not None:
            rank.load(session.load.parent, session.load.name)
        weights = [all_weights(rank, session)]
        for each in session.batches:
            rank.step(each)
            weights.append(all_weights(rank, session))
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


def all_weights(rank: Any, session: Session) -> Weights:
    """What the rank would send."""
    dtype = getattr(torch, session.learner.dtype)
    parts = [torch.from_numpy(bucket.data.copy()).view(dtype).float() for bucket in rank.buckets(session.average)]
    return torch.cat(parts).numpy()
