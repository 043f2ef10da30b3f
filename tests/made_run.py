"""A run as `polytrace train` leaves it, made in a moment: real scenes, answered by their true masks, damaged."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from envs.datasets.cutout_scenes import Env
from envs.example import Example
from envs.geometry.contours import outline
from envs.geometry.damage import DAMAGES, damaged
from envs.polygons import Answer, AnswerStatus, Ring, answer_from_rings
from policies.families.base import Response
from rewards.target import Target
from rollout.archive.archive import RolloutArchive
from rollout.records import Group, Rollout

SCENES = {"name": "cutout_scenes", "image_size": 32, "num_scenes": 40}
RESPONSE = Response(np.arange(2), np.zeros(2, np.float32), "stop")


def scored(asked: Example, rings: Sequence[Sequence[Ring]]) -> tuple[Rollout, ...]:
    """Rollouts of answers given as rings, none for one that says that nothing fits."""
    overlap = Target.from_truth(asked.truth).overlap(rings)
    return tuple(
        Rollout(
            index=k,
            response=RESPONSE,
            text="",
            answer=answer_from_rings(list(answer)),
            intersection_px=int(overlap.intersection[k]),
            answer_area_px=int(overlap.area[k]),
            iou=float(overlap.iou[k]),
            terms={"mask_iou": float(overlap.iou[k])},
            policy_version=7,
            seed=k,
        )
        for k, answer in enumerate(rings)
    )


def group_of(run: str, step: int, position: int, asked: Example, rollouts: tuple[Rollout, ...]) -> Group:
    return Group(run, step, position, asked, np.arange(2), "cd" * 32, 1.0, rollouts, (0.0,) * len(rollouts))


def make_run(folder: Path, steps: int = 3, groups: int = 4, first: int = 0, seed: int = 0) -> Path:
    """A finished run in `folder`: `groups` scenes a step from scene `first` on, six answers each, two of them alike."""
    env, rng = Env("train", image_size=32, num_scenes=40), np.random.default_rng(seed)
    archive = RolloutArchive(folder / "archive")
    for step in range(steps):
        asked = [env[(first + step * groups + k) % len(env)] for k in range(groups)]
        archive.append(
            step, [group_of(folder.name, step, k, example, _answers(example, rng)) for k, example in enumerate(asked)]
        )
    evaluation = {"num_scenes": 8, "final_scenes": 8}
    config = {"run": str(folder), "steps": steps, "env": SCENES, "evaluation": evaluation}
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return folder


def _answers(asked: Example, rng: np.random.Generator) -> tuple[Rollout, ...]:
    true = asked.truth.union
    masks = [damaged(true, kind, float(rng.uniform(0.3, 1)), rng) for kind in DAMAGES]
    rings = [outline(mask, 32) if mask.any() else [] for mask in masks]
    rollouts = scored(asked, [*rings, rings[0]])
    broken = Rollout(len(rollouts), RESPONSE, "", Answer(AnswerStatus.TRUNCATED), 0, 0, 0.0, {"mask_iou": 0.0}, 7, 9)
    return (*rollouts, broken)
