"""Small archives for the tests of what reads and writes them."""

from pathlib import Path

import numpy as np

from envs.example import Example, ImageRef, Prompt, Truth
from envs.polygons import Answer, answer_from_rings
from policies.families.base import Response
from rollout.archive.archive import RolloutArchive
from rollout.records import Group, Rollout

SQUARE = np.array([[2.0, 2.0], [6.0, 2.0], [6.0, 6.0], [2.0, 6.0]])


def example(name: str, num_instances: int = 1) -> Example:
    masks = np.zeros((num_instances, 8, 10), np.bool_)
    for k in range(num_instances):
        masks[k, 2:6, 2 + k : 6] = True
    ref = ImageRef(f"scene {name}", "ab" * 32, 8, 10)
    return Example(name, ref, Prompt.of_text("the", "square"), Truth(masks), "train", "made by hand", "CC0-1.0")


def rollout(index: int, answer: Answer | None = None, num_tokens: int = 3) -> Rollout:
    response = Response(np.arange(num_tokens), np.linspace(-1, 0, num_tokens, dtype=np.float32), "stop")
    answer = answer or answer_from_rings([SQUARE + index / 8])
    return Rollout(
        index, response, f"text {index}", answer, 9, 12, 0.5, {"mask_iou": 0.5, "format": None}, 3, 2**64 - 1
    )


def group(step: int, position: int, name: str, num_tokens: int = 3) -> Group:
    rollouts = tuple(rollout(index, num_tokens=num_tokens) for index in range(2))
    return Group("run", step, position, example(name), np.arange(4), "cd" * 32, 0.5, rollouts, (0.25, 0.75), 64, True)


def write_steps(folder: Path, steps: range) -> RolloutArchive:
    archive = RolloutArchive(folder)
    for step in steps:
        archive.append(step, [group(step, 0, "often asked"), group(step, 1, f"asked at {step}")])
    return archive


def rows_of(archive: RolloutArchive) -> list[dict[str, object]]:
    return [row for batch in archive.rollouts() for row in batch.to_pylist()]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}
