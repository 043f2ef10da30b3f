"""The columns of an archive, and groups as its rows: records to rows and back, as docs/archive.md says.

Vertices and boxes are pixels (x right, y down), masks COCO's RLE.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from envs.example import Example, Truth
from envs.geometry.rle import mask_from_rle, rle_from_mask
from envs.polygons import Answer, AnswerStatus, Instance, flatten_rings
from rollout.records import Group, Rollout

_INTS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float64())
_ROLLOUT_COLUMNS = {
    "run": pa.string(),
    "step": pa.int64(),
    "position": pa.int32(),
    "index": pa.int32(),
    "example_id": pa.string(),
    "prompt": pa.string(),
    "tokens": _INTS,
    "text": pa.string(),
    "logprobs": pa.list_(pa.float32()),
    "bins": pa.list_(pa.int16()),
    "finish": pa.string(),
    "policy_version": pa.int64(),
    "policy_checksum": pa.string(),
    "seed": pa.uint64(),
    "temperature": pa.float64(),
    "max_tokens": pa.int32(),
    "grammar": pa.bool_(),
    "status": pa.string(),
    "bare": pa.bool_(),
    "thinking": pa.string(),
    "vertices_px": _FLOATS,
    "ring_offsets": _INTS,
    "instance_offsets": _INTS,
    "boxes_px": _FLOATS,
    "labels": pa.list_(pa.string()),
    "scores": _FLOATS,
    "intersection_px": pa.int64(),
    "answer_area_px": pa.int64(),
    "iou": pa.float64(),
    "total": pa.float64(),
}
_NULLABLE = {"asked", "boxes_px", "labels", "scores", "ignore", "max_tokens", "grammar", "bare", "thinking", "bins"}

_OUTLINE_COLUMNS = ("vertices_px", "ring_offsets", "instance_offsets", "boxes_px", "labels", "scores")
ANSWER_COLUMNS = ("status", "bare", "thinking", *_OUTLINE_COLUMNS)
"""The columns that `answer_from_row` needs."""

EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=name in _NULLABLE)
        for name, kind in {
            "example_id": pa.string(),
            "split": pa.string(),
            "source": pa.string(),
            "licence": pa.string(),
            "prompt": pa.string(),
            "image_key": pa.string(),
            "image_sha256": pa.string(),
            "height": pa.int32(),
            "width": pa.int32(),
            "masks": pa.list_(pa.string()),
            "ignore": pa.string(),
            "asked": pa.string(),
        }.items()
    ]
)


def rollout_schema(reward_names: Sequence[str]) -> pa.Schema:
    """Schema of the rollouts table: the fixed columns, then a nullable float64 column `reward_<name>` a reward."""
    fixed = [pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in _ROLLOUT_COLUMNS.items()]
    return pa.schema(fixed + [pa.field(f"reward_{name}", pa.float64()) for name in reward_names])


def current_schema(stored: Sequence[str]) -> pa.Schema:
    """The schema today of rows with the columns `stored`, with what came later; in rows from before that is null."""
    if "masks" in stored:
        return EXAMPLE_SCHEMA
    return rollout_schema([name.removeprefix("reward_") for name in stored if name.startswith("reward_")])


def reward_names(groups: Sequence[Group]) -> tuple[str, ...]:
    """Names of all reward terms in these groups, sorted."""
    return tuple(sorted({name for group in groups for rollout in group.rollouts for name in rollout.terms}))


def rollout_table(groups: Sequence[Group]) -> pa.Table:
    """One row per answer, in the order of the groups; every group needs its totals."""
    rows = [
        _rollout_row(group, rollout, total)
        for group in groups
        for rollout, total in zip(group.rollouts, group.totals, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=rollout_schema(reward_names(groups)))


def example_table(examples: Sequence[Example]) -> pa.Table:
    """One row per example, its true masks as COCO RLE."""
    return pa.Table.from_pylist([_example_row(example) for example in examples], schema=EXAMPLE_SCHEMA)


def _rollout_row(group: Group, rollout: Rollout, total: float) -> dict[str, object]:
    return {
        "run": group.run,
        "step": group.step,
        "position": group.position,
        "index": rollout.index,
        "example_id": group.example.id,
        "prompt": group.example.prompt.told,
        "tokens": rollout.response.tokens.astype(np.int32),
        "text": _as_utf8(rollout.text),
        "logprobs": rollout.response.logprobs.astype(np.float32),
        "bins": None if rollout.response.bins is None else rollout.response.bins.ravel(),
        "finish": rollout.response.finish,
        "policy_version": rollout.policy_version,
        "policy_checksum": group.policy_checksum,
        "seed": rollout.seed,
        "temperature": group.temperature,
        "max_tokens": group.max_tokens,
        "grammar": group.grammar,
        **answer_columns(rollout.answer),
        "intersection_px": rollout.intersection_px,
        "answer_area_px": rollout.answer_area_px,
        "iou": rollout.iou,
        "total": total,
        **{f"reward_{name}": value for name, value in rollout.terms.items()},
    }


def answer_schema() -> list[pa.Field]:
    """The fields of ANSWER_COLUMNS, in that order."""
    return [pa.field(name, _ROLLOUT_COLUMNS[name], nullable=name in _NULLABLE) for name in ANSWER_COLUMNS]


def answer_columns(answer: Answer) -> dict[str, object]:
    """ANSWER_COLUMNS of an answer, which `answer_from_row` reads."""
    vertices, ring_offsets = flatten_rings(answer.rings_px)
    num_rings = [len(instance.ring_offsets) - 1 for instance in answer.instances]
    boxes = [instance.box_px or (None,) * 4 for instance in answer.instances]
    return {
        "status": answer.status.value,
        "bare": answer.bare,
        "thinking": None if answer.thinking is None else _as_utf8(answer.thinking),
        "vertices_px": vertices.ravel(),
        "ring_offsets": ring_offsets.astype(np.int32),
        "instance_offsets": np.cumsum([0, *num_rings], dtype=np.int32),
        "boxes_px": _null_if_none([edge for box in boxes for edge in box]),
        "labels": _null_if_none([instance.label for instance in answer.instances]),
        "scores": _null_if_none([instance.score for instance in answer.instances]),
    }


def _as_utf8(text: str) -> str:
    # A lone surrogate is legal in a str but not in UTF-8, and model output must never be an error.
    return text.encode("utf-8", "replace").decode("utf-8")


def _null_if_none(values: Sequence[object]) -> Sequence[object] | None:
    return values if any(value is not None for value in values) else None


def _example_row(example: Example) -> dict[str, object]:
    ignore = example.truth.ignore
    return {
        "example_id": example.id,
        "split": example.split,
        "source": example.source,
        "licence": example.licence,
        "prompt": example.prompt.told,
        "image_key": example.image.key,
        "image_sha256": example.image.sha256,
        "height": example.image.height,
        "width": example.image.width,
        "masks": [rle_from_mask(mask) for mask in example.truth.masks],
        "ignore": None if ignore is None else rle_from_mask(ignore),
        "asked": example.prompt.asked,
    }


def answer_from_row(row: Mapping[str, Any]) -> Answer:
    """The Answer of a row of the rollouts table, exactly as archived; the row has at least ANSWER_COLUMNS.

    Rows from before schema 3 do not say whether anything stood around the answer, and count as bare, without reasoning.
    """
    vertices_px = np.asarray(row["vertices_px"], np.float64).reshape(-1, 2)
    ring_offsets = np.asarray(row["ring_offsets"], np.int64)
    num_instances = len(row["instance_offsets"]) - 1
    boxes = row["boxes_px"] or [None] * (4 * num_instances)
    labels = row["labels"] or [None] * num_instances
    scores = row["scores"] or [None] * num_instances
    instances = []
    for k, (first, end) in enumerate(pairwise(row["instance_offsets"])):
        offsets = ring_offsets[first : end + 1]
        vertices = vertices_px[offsets[0] : offsets[-1]]
        box = None if boxes[4 * k] is None else tuple(boxes[4 * k : 4 * k + 4])
        instances.append(Instance(vertices, offsets - offsets[0], box, labels[k], scores[k]))
    return Answer(AnswerStatus(row["status"]), tuple(instances), row["bare"] is not False, row["thinking"])


def truth_from_row(row: Mapping[str, Any]) -> Truth:
    """The Truth of a row of the examples table: masks [K, H, W] and, where there is one, ignore [H, W]."""
    height, width = row["height"], row["width"]
    masks = [mask_from_rle(counts, height, width) for counts in row["masks"]]
    ignore = None if row["ignore"] is None else mask_from_rle(row["ignore"], height, width)
    return Truth(np.array(masks, np.bool_).reshape(-1, height, width), ignore)
