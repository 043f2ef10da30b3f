"""Greedy answers on scenes that nobody trained on, scored by the same raster rule as everything else."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.datasets.base import Env
from rl.config.run import RunConfig
from rl.evaluation.scores import SceneScore, by_part, score_answer, score_mask
from rl.pages.pictures import COLOURS, overlay
from rl.run.metrics import MetricsWriter
from rollout.pool.pool import WorkerPool
from rollout.records import Group
from rollout.worker import Unit

_GROUPS_PER_UNIT = 64
"""Scenes answered in one batch on CPUs; it bears on the last bits of what is answered, so it stays what it is."""


def greedy_units(config: RunConfig, split: str, num_scenes: int, begin: int = 0) -> Iterator[Unit]:
    """The first `num_scenes` examples of a split from number `begin` on, one greedy answer each."""
    sampling = replace(config.sampling, temperature=0.0, routing_replay=False)
    # A card has room for as many prompts and images as training asks at once; 64 photos can be more.
    at_once = config.unit_groups if config.pool.gpus_per_worker else _GROUPS_PER_UNIT
    for first in range(begin, num_scenes, at_once):
        places = tuple(range(first, min(first + at_once, num_scenes)))
        yield Unit(split, step=0, positions=places, indices=places, group_size=1, sampling=sampling)


def greedy_groups(pool: WorkerPool, config: RunConfig, split: str, num_scenes: int, checkpoint: Path) -> list[Group]:
    """Greedy answers of a checkpoint (a Hugging Face folder) to the first `num_scenes` examples of a split."""
    pool.set_weights(pool.checkpoint_weights(checkpoint), version=0)
    return pool.answer(greedy_units(config, split, num_scenes))


def score_groups(groups: Sequence[Group]) -> list[SceneScore]:
    """A score for the first answer of each group: what its rewards were told of it."""
    return [
        score_answer(group.rollouts[0].answer, group.example.truth, group.example.id, group.example.prompt.asked)
        for group in groups
    ]


def score_masks(masks: Sequence[NDArray[np.bool_]], groups: Sequence[Group]) -> list[SceneScore]:
    """Scores of masks [H, W] made from the first answer of each group; the status stays that of the answer.

    So an `ok` answer where nothing is true scores 0 also where a refiner has emptied its mask, and an outline without a
    pixel, which nothing refines, 0 in any case.
    """
    return [
        score_mask(mask, group.example.truth, group.rollouts[0].answer.status, group.example.id)
        for mask, group in zip(masks, groups, strict=True)
    ]


def record_evaluation(
    metrics: MetricsWriter, step: int, groups: Sequence[Group], scores: Sequence[SceneScore], env: Env
) -> float:
    """Write an evaluation's numbers and its first eight pictures; returns the greedy gIoU."""
    giou = float(np.mean([score.iou for score in scores]))
    metrics.scalars(
        step,
        {
            "greedy/giou": giou,
            "greedy/boundary_iou": float(np.mean([score.boundary_iou for score in scores])),
            "greedy/valid": float(np.mean([score.valid for score in scores])),
        }
        | {f"greedy/giou_{part}": float(np.mean([one.iou for one in of])) for part, of in by_part(scores).items()},
    )
    pictures = {
        f"greedy/{k}_{group.example.prompt.told.replace(' ', '_')}": overlay(
            env.image(group.example.image), group.rollouts[0].answer.rings_px, COLOURS["rl"]
        )
        for k, group in enumerate(groups[:8])
    }
    metrics.pictures(step, pictures)
    metrics.flush()
    return giou
