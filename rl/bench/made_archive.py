"""A generated archive for the bench: columns as in a run of small images, their values drawn anew each step."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from envs.example import Example, ImageRef, Prompt, Truth
from envs.polygons import answer_from_rings
from envs.raster import fill
from policies.base import Response
from rl.bench.outlines import smooth
from rollout.records import Group, Rollout, example_table, rollout_table
from rollout.shards import write_shard

_GROUPS, _ANSWERS, _VERTICES, _TOKENS, _SIDE = 128, 8, 12, 32, 64
PER_STEP = _GROUPS * _ANSWERS
"""Answers of a step."""


def write_archive(folder: Path, num_answers: int) -> None:
    """An archive of about `num_answers` generated answers: columns as in a run of small images, values drawn anew."""
    rng, groups = np.random.default_rng(0), step_groups(0, "made")
    answers, examples = rollout_table(groups), example_table([group.example for group in groups])
    steps = range(max(1, num_answers // PER_STEP))
    for step in track(steps, "writing an archive", console=Console(stderr=True), transient=True):
        ids = [f"a drawn scene {step}/{k}" for k in range(_GROUPS)]
        hashes = [f"{step:08x}{k:08x}" * 4 for k in range(_GROUPS)]
        write_shard(folder / "examples" / f"step-{step:08d}.parquet", _examples(examples, ids, hashes), step)
        write_shard(folder / "rollouts" / f"step-{step:08d}.parquet", _answers(answers, ids, step, rng), step)


def _examples(table: pa.Table, ids: list[str], hashes: list[str]) -> pa.Table:
    return _with(table, {"example_id": pa.array(ids), "image_key": pa.array(ids), "image_sha256": pa.array(hashes)})


def _answers(table: pa.Table, ids: list[str], step: int, rng: np.random.Generator) -> pa.Table:
    num = len(table)
    angles = np.sort(rng.uniform(0, 2 * np.pi, (num, _VERTICES)), axis=1)
    radius = rng.uniform(8, 28, (num, _VERTICES))
    vertices = np.stack([32 + radius * np.cos(angles), 32 + radius * np.sin(angles)], axis=-1)
    iou = rng.beta(4, 2, num)
    columns = {
        "step": pa.array(np.full(num, step)),
        "example_id": pa.array(np.repeat(ids, _ANSWERS)),
        "tokens": _lists(rng.integers(0, 200, (num, _TOKENS), np.int32)),
        "logprobs": _lists(-rng.random((num, _TOKENS), np.float32)),
        "policy_version": pa.array(np.full(num, step)),
        "seed": pa.array(rng.integers(0, 2**63, num).astype(np.uint64)),
        "status": pa.array(np.where(rng.random(num) < 0.1, "unparsable", "ok")),
        "vertices_px": _lists(np.round(vertices.reshape(num, -1) * 32) / 32),
        "iou": pa.array(iou),
        "reward_mask_iou": pa.array(iou),
        "total": pa.array(iou),
    }
    return _with(table, columns)


def _lists(rows: NDArray[np.generic]) -> pa.Array:
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1)))


def _with(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    arrays = [columns.get(field.name, table[field.name]) for field in table.schema]
    return pa.table([array.cast(field.type) for array, field in zip(arrays, table.schema, strict=True)], table.schema)


def step_groups(step: int, name: str) -> list[Group]:
    """A step as a run makes it, of _GROUPS groups; the odd ones of a later step ask examples of step 0 again."""
    rng, outline = np.random.default_rng(step), np.array([0, _VERTICES])
    groups = []
    for position in range(_GROUPS):
        mask = fill(smooth(rng, _VERTICES, _SIDE, _SIDE), outline, _SIDE, _SIDE)
        asked = f"{name} {0 if position % 2 else step}/{position}"
        example = Example(
            *(asked, ImageRef(asked, "0" * 64, _SIDE, _SIDE), Prompt(("the thing",)), Truth(mask[None])),
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
