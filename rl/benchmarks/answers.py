"""Answers of a model to a data set, one row each, kept as they come: what every score of a benchmark is made of.

OUT/answers/MODEL/DATA/answers-00000.parquet   so many examples, in the order of the data set; whole or not at all
OUT/answers/MODEL/DATA/asked.json              what was asked how; an OUT that holds other answers is refused

A row has the truth, the answer and the refined mask as COCO run lengths, so that any protocol can judge it again and
other programs can read it. Frames: pixels of the photo as it was prepared.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from envs.codecs import mask_group
from envs.example import Example, MaskPart
from envs.geometry.contours import mask_from_rings
from envs.geometry.masks import tight_box_px
from envs.geometry.pools import best_choice
from envs.geometry.rle import rle_from_mask, rle_from_rings
from envs.polygons import Answer, AnswerStatus, flatten_rings
from rl.refiner.errors import OutlineBudget, codec_answer, reboxed, traits
from rollout.archive.schema import answer_columns, answer_schema
from rollout.disk import replace_text, whole_file, writing
from rollout.records import Group

CHUNK = 256
"""Examples of a file, and those that are lost where a benchmark is stopped."""

SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("phrase", pa.string(), nullable=False),
        pa.field("asked", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("masks", pa.list_(pa.string()), nullable=False),
        pa.field("ignore", pa.string()),
        pa.field("points_at_a_mask", pa.bool_(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        *answer_schema(),
        pa.field("mask", pa.string(), nullable=False),
        pa.field("refined", pa.string()),
        pa.field("true_box", pa.string()),
        pa.field("codec_bound", pa.string()),
        pa.field("size", pa.float64()),
        pa.field("thinness", pa.float64()),
        pa.field("parts", pa.int32()),
    ]
)


@dataclass(frozen=True)
class AnswerFiles:
    """The answers of one model to one data set."""

    folder: Path

    def num_kept(self, total: int) -> int:
        """Examples from the first on, of `total`, whose answers are kept.

        A file of fewer than CHUNK, as a smaller limit leaves it, counts where it goes as far as `total`; else what it
        holds is asked again.
        """
        kept = sum(self._counts())
        return kept if kept >= total else kept - kept % CHUNK

    def _path(self, place: int) -> Path:
        return self.folder / f"answers-{place:05d}.parquet"

    def _counts(self) -> list[int]:
        """Rows of the files, up to the first that is not there or not full."""
        counts: list[int] = []
        while (not counts or counts[-1] == CHUNK) and self._path(len(counts)).is_file():
            counts.append(pq.read_metadata(self._path(len(counts))).num_rows)
        return counts

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Begin, or go on with the answers that are there; raises ValueError where they were asked otherwise."""
        path, now = self.folder / "asked.json", json.loads(json.dumps(asked))
        if path.is_file():
            held = json.loads(path.read_text(encoding="utf-8"))
            for key in (key for key in now if held.get(key) != now[key]):
                raise ValueError(
                    f"{self.folder} holds answers that were asked otherwise: {key} there is {held.get(key)}, here "
                    f"{now[key]}; give another --out, or delete that folder."
                )
            return
        replace_text(path, json.dumps(now, indent=1) + "\n")

    def add(self, rows: Sequence[Mapping[str, Any]], first: int) -> None:
        """Write the file whose first answer is to example `first`, a multiple of CHUNK."""
        path = self._path(first // CHUNK)
        with writing(path.name, path), whole_file(path) as partial:
            pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), partial, compression="zstd")

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, in the order of the data set."""
        for place in range(len(self._counts())):
            yield from pq.read_table(self._path(place)).to_pylist()


def answer_row(
    group: Group, refined: NDArray[np.bool_] | None, budget: OutlineBudget | None, text: str
) -> dict[str, Any]:
    """The row of a greedy answer.

    refined: the refiner's mask [H, W]; None without one. budget: what the codec can say, for its bound; None for a
    codec without limits. text: what was written.
    """
    example, rollout = group.example, group.rollouts[0]
    true = example.truth.union
    found = traits(true)
    return {
        **_asked_columns(example),
        "text": text.encode("utf-8", "replace").decode("utf-8"),
        "tokens": len(rollout.response.tokens),
        **answer_columns(rollout.answer),
        "mask": rle_of(rollout.answer, example.image.height, example.image.width),
        "refined": None if refined is None else rle_from_mask(refined),
        "true_box": _in_true_box(rollout.answer, true),
        "codec_bound": _codec_bound(example, budget),
        "size": found and found.size,
        "thinness": found and found.thinness,
        "parts": found and found.parts,
    }


def oracle_row(example: Example) -> dict[str, Any]:
    """The row of the best choice from an example's candidates (envs/geometry/pools.py); of none from no candidates.

    Pixels that count neither way do not bear on the choice.
    """
    truth, height, width = example.truth, example.image.height, example.image.width
    pool = np.zeros((0, height, width), np.bool_) if example.candidates is None else example.candidates
    counted = np.ones((height, width), np.bool_) if truth.ignore is None else ~truth.ignore
    chosen = best_choice(pool & counted, truth.union & counted)
    answer, found = mask_group.answer_of(chosen, pool), traits(truth.union)
    return {
        **_asked_columns(example),
        "text": mask_group.text_of(chosen.tolist()),
        "tokens": len(pool),
        **answer_columns(answer),
        "mask": rle_of(answer, height, width),
        "refined": None,
        "true_box": None,
        "codec_bound": None,
        "size": found and found.size,
        "thinness": found and found.thinness,
        "parts": found and found.parts,
    }


def _asked_columns(example: Example) -> dict[str, Any]:
    """What is asked, and what is true."""
    truth = example.truth
    return {
        "example_id": example.id,
        "image": example.image.key,
        "phrase": example.prompt.told,
        "asked": example.prompt.asked,
        "height": example.image.height,
        "width": example.image.width,
        "masks": [rle_from_mask(mask) for mask in truth.masks],
        "ignore": None if truth.ignore is None else rle_from_mask(truth.ignore),
        "points_at_a_mask": any(isinstance(part, MaskPart) for part in example.prompt.parts),
    }


def rle_of(answer: Answer, height: int, width: int) -> str:
    """Run lengths of the mask that an answer fills; of nothing where it cannot be read."""
    rings = answer.rings_px if answer.status is AnswerStatus.OK else []
    return rle_from_rings(*flatten_rings(rings), height, width)


def _in_true_box(answer: Answer, true: NDArray[np.bool_]) -> str | None:
    """Run lengths of the outline, moved and stretched into the true box; None where nothing is true or drawn."""
    box = tight_box_px(true)
    if box is None or answer.status is not AnswerStatus.OK:
        return None
    rings = reboxed(answer.rings_px, (float(box[0]), float(box[1]), float(box[2]), float(box[3])))
    return rle_from_mask(mask_from_rings(rings, *true.shape))


def _codec_bound(example: Example, budget: OutlineBudget | None) -> str | None:
    """What the codec itself could say of the truth; None where that is not known, or nothing is true."""
    if budget is None or not example.truth.masks.any() or example.prompt.asked != "mask":
        return None
    try:
        said = codec_answer(example.truth, budget)
    except ValueError:  # beyond its limits
        return None
    return rle_of(said, example.image.height, example.image.width)
