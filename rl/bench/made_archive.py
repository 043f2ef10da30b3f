"""A generated run of many answers for the bench: real scenes, each asked by a few steps, answered by moved outlines.

Written a block of steps at a time, by as many processes as there are processors: nothing grows with the answers but the
disk. Answers are the true outline in a few vertices, moved as a whole and vertex by vertex; IoU and total are of what
was drawn, while tokens, text and log-probabilities are noise of the size that a run's have.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.random import Generator
from numpy.typing import NDArray
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track

from envs.datasets.cutout_scenes import Env
from envs.example import Example, ImageRef, Prompt, Truth
from envs.geometry.contours import outline
from envs.geometry.raster import fill
from envs.polygons import FlatAnswers, answer_from_rings, flatten_rings
from policies.families.base import Response
from rewards.target import Target
from rl.bench.outlines import smooth
from rollout.archive.schema import example_table, rollout_schema
from rollout.archive.shards import write_shard
from rollout.archive.table import ShardTable
from rollout.records import Group, Rollout

_GROUPS, _ANSWERS, _VERTICES, _TOKENS, _SIDE = 128, 8, 12, 32, 64
_TURNS = 4
"""Steps that ask the same examples, one after the other."""
_UNPARSABLE_SHARE, _MOST_MOVED = 0.05, 0.7
"""Answers that cannot be read; how far vertices move at most, as a share of the object's size."""
PER_STEP = _GROUPS * _ANSWERS
"""Answers of a step."""


def num_steps(num_answers: int) -> int:
    """Steps of an archive of at least so many answers; whole blocks."""
    return -(-num_answers // (PER_STEP * _TURNS)) * _TURNS


def write_archive(folder: Path, num_answers: int, processes: int | None = None) -> None:
    """An archive of at least `num_answers` answers in `folder`; what it holds already is left as it is.

    processes: None for one a processor.
    """
    num = num_steps(num_answers) // _TURNS
    wanted = processes or min(num, len(os.sched_getaffinity(0)))
    bar = partial(track, description="writing an archive", total=num, console=Console(stderr=True), transient=True)
    if wanted == 1:
        for block in bar(range(num)):
            write_block(folder, block)
        return
    with ProcessPoolExecutor(wanted, get_context("spawn")) as pool:
        for _ in bar(pool.map(partial(write_block, folder), range(num))):
            pass


def write_config(run: Path, num_answers: int) -> None:
    """The config.yaml of a finished run over the scenes of such an archive."""
    steps = num_steps(num_answers)
    env = {"name": "cutout_scenes", "image_size": _SIDE, "num_scenes": steps // _TURNS * _GROUPS}
    OmegaConf.save(OmegaConf.create({"run": f"{run}", "steps": steps, "env": env}), run / "config.yaml")


def write_block(folder: Path, block: int) -> None:
    """The examples of one block and the steps that ask them, a function of its number; nothing where it is there."""
    examples, rollouts = ShardTable(folder, "examples"), ShardTable(folder, "rollouts")
    first = block * _TURNS
    if rollouts.path(first + _TURNS - 1).exists():
        return
    env, rng = Env("train", image_size=_SIDE, num_scenes=(block + 1) * _GROUPS), np.random.default_rng(block)
    asked = [env[block * _GROUPS + k] for k in range(_GROUPS)]
    write_shard(examples.path(first), example_table(asked), first)
    scenes = [_Scene.of(example) for example in asked]
    for step in range(first, first + _TURNS):
        write_shard(rollouts.path(step), _answers(scenes, step, rng), step)


@dataclass(frozen=True, eq=False)
class _Scene:
    """An example and what is needed to draw about its truth."""

    example: Example
    target: Target
    vertices: NDArray[np.float64]
    """[V, 2] px, of its outline."""
    ring_offsets: NDArray[np.int64]
    """[R + 1]."""

    @classmethod
    def of(cls, example: Example) -> "_Scene":
        rings = outline(example.truth.union, _VERTICES)
        return cls(example, Target.from_truth(example.truth), *flatten_rings(rings))

    def drawn(self, rng: Generator) -> FlatAnswers:
        """A group of answers: the outline, moved by up to _MOST_MOVED of the object's size."""
        num, rings = len(self.vertices), len(self.ring_offsets) - 1
        most = rng.uniform(0, _MOST_MOVED, (_ANSWERS, 1, 1)) * np.sqrt(self.target.area_px)
        moves = rng.uniform(-1, 1, (_ANSWERS, 1, 2)) + rng.uniform(-1, 1, (_ANSWERS, num, 2))
        moved = np.clip(np.round((self.vertices + most / 2 * moves) * 32) / 32, 0, _SIDE)
        starts = num * np.arange(_ANSWERS)[:, None]
        offsets = np.append(0, (self.ring_offsets[1:] + starts).reshape(-1))
        return FlatAnswers(moved.reshape(-1, 2), offsets, rings * np.arange(_ANSWERS + 1))


def _answers(scenes: Sequence[_Scene], step: int, rng: Generator) -> pa.Table:
    """A step's rows of the rollouts table, a group per scene."""
    drawn = [scene.drawn(rng) for scene in scenes]
    overlaps = [scene.target.overlap_flat(flat) for scene, flat in zip(scenes, drawn, strict=True)]
    read = rng.random(PER_STEP) >= _UNPARSABLE_SHARE
    iou = np.where(read, np.concatenate([overlap.iou for overlap in overlaps]), 0.0)
    own = _with_outlines(scenes, drawn, read) | {
        "position": np.repeat(np.arange(_GROUPS), _ANSWERS),
        "index": np.tile(np.arange(_ANSWERS), _GROUPS),
        "example_id": np.repeat([scene.example.id for scene in scenes], _ANSWERS),
        "prompt": np.repeat([scene.example.prompt.text for scene in scenes], _ANSWERS),
        "seed": rng.integers(0, 2**64, PER_STEP, np.uint64),
        "status": np.where(read, "ok", "unparsable"),
        "intersection_px": np.where(read, np.concatenate([overlap.intersection for overlap in overlaps]), 0),
        "answer_area_px": np.where(read, np.concatenate([overlap.area for overlap in overlaps]), 0),
        **dict.fromkeys(("iou", "total", "reward_mask_iou"), iou),
    }
    same = {"run": "made", "step": step, "finish": "stop", "policy_version": step, "policy_checksum": "0" * 64}
    same |= {"temperature": 1.0, "max_tokens": 64, "grammar": False}
    columns = own | _written(rng) | {name: [value] * PER_STEP for name, value in same.items()}
    nothing = [None] * PER_STEP
    schema = rollout_schema(["mask_iou"])
    return pa.table({name: columns.get(name, nothing) for name in schema.names}, schema)


def _with_outlines(
    scenes: Sequence[_Scene], drawn: Sequence[FlatAnswers], read: NDArray[np.bool_]
) -> dict[str, pa.Array]:
    """The columns of outlines, which answers that could not be read have none of."""
    vertices = [row for flat in drawn for row in flat.vertices.reshape(_ANSWERS, -1)]
    rings = [scene.ring_offsets for scene in scenes for _ in range(_ANSWERS)]
    kept: dict[str, list[NDArray[Any]]] = {
        "vertices_px": [row if ok else row[:0] for row, ok in zip(vertices, read, strict=True)],
        "ring_offsets": [row if ok else row[:1] for row, ok in zip(rings, read, strict=True)],
        "instance_offsets": [np.array([0, len(row) - 1][: 1 + ok]) for row, ok in zip(rings, read, strict=True)],
    }
    return {name: _lists(rows) for name, rows in kept.items()}


def _written(rng: Generator) -> dict[str, pa.Array | list[str]]:
    """Tokens, text and log-probabilities of a step."""
    tokens = rng.integers(0, 200, (PER_STEP, _TOKENS), np.int32)
    return {
        "tokens": _lists(list(tokens)),
        "text": [" ".join(map(str, row)) for row in tokens.tolist()],
        "logprobs": _lists(list(-rng.random((PER_STEP, _TOKENS), np.float32))),
    }


def _lists(rows: Sequence[NDArray[np.generic]]) -> pa.Array:
    values = np.concatenate(rows)
    kept = values.astype(np.int32) if values.dtype.kind == "i" else values
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, rows)]).astype(np.int32)), pa.array(kept))


def step_groups(step: int, name: str) -> list[Group]:
    """A step as a run makes it, of _GROUPS groups; the odd ones of a later step ask examples of step 0 again."""
    rng, outline_offsets = np.random.default_rng(step), np.array([0, _VERTICES])
    groups = []
    for position in range(_GROUPS):
        mask = fill(smooth(rng, _VERTICES, _SIDE, _SIDE), outline_offsets, _SIDE, _SIDE)
        asked = f"{name} {0 if position % 2 else step}/{position}"
        example = Example(
            *(asked, ImageRef(asked, "0" * 64, _SIDE, _SIDE), Prompt.of_text("the thing"), Truth(mask[None])),
            *("train", "drawn for a bench", "CC0-1.0"),
        )
        response = Response(np.arange(_TOKENS), np.zeros(_TOKENS, np.float32), "stop")
        answer = answer_from_rings([smooth(rng, _VERTICES, _SIDE, _SIDE)])
        terms: dict[str, float | None] = {"mask_iou": 0.5}
        rollouts = [Rollout(k, response, "drawn", answer, 9, 12, 0.5, terms, step, k) for k in range(_ANSWERS)]
        totals = (0.5,) * _ANSWERS
        numbers = np.arange(70)
        groups.append(
            Group("bench", step, position, example, numbers, "0" * 64, 1.0, tuple(rollouts), totals, 64, True)
        )
    return groups
