"""Which answers may become pairs, found in one pass and in bounded memory, and why the others may not.

Three parts, in the order in which `rl.pairs.select.choose` uses them: the index of all examples, which says whose
answers may be used at all; the candidates of a batch of answers; and the shortlist, which keeps of each example and
stratum of IoU the first few candidates in a seeded order.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from envs.datasets.base import Env
from envs.polygons import AnswerStatus
from rl.config.pairs import PairRule
from rollout.archive.archive import RolloutArchive

USABLE, MISSING, NOT_TRAINING, HELD_OUT_ID, HELD_OUT_IMAGE, NO_MASK_ASKED = range(6)
"""Verdicts on an example: its answers may become pairs, or why they may not."""


@dataclass(frozen=True)
class HeldOut:
    """Ids and images of examples that no pair may come from."""

    ids: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    """Content hashes of the images (`envs.example.image_sha256`)."""

    def with_examples(self, env: Env, num_examples: int) -> "HeldOut":
        """What is held out here, and the first `num_examples` examples of an Env."""
        examples = [env[k] for k in range(min(num_examples, len(env)))]
        ids = self.ids.union(example.id for example in examples)
        return HeldOut(ids, self.images.union(example.image.sha256 for example in examples))


NOTHING_HELD_OUT = HeldOut()


@dataclass(frozen=True)
class ExampleIndex:
    """E examples of all archives, by key."""

    keys: NDArray[np.uint64]
    """Keys [E] of the examples' ids (PairRule.key), sorted."""
    verdicts: NDArray[np.int8]
    """Verdicts [E]: USABLE, NOT_TRAINING, HELD_OUT_ID or HELD_OUT_IMAGE."""

    def look_up(self, ids: pa.Array, rule: PairRule) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
        """(keys, verdicts) of a column of example ids; MISSING where no archive holds the example."""
        coded = ids.dictionary_encode()
        keys = _keys(coded.dictionary, rule)
        places = np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))
        verdicts = np.full(len(keys), MISSING, np.int8)
        if len(self.keys):
            verdicts = np.where(self.keys[places] == keys, self.verdicts[places], verdicts)
        indices = coded.indices.to_numpy(zero_copy_only=False)
        return keys[indices], verdicts[indices]


def index_examples(archives: Sequence[RolloutArchive], rule: PairRule, held_out: HeldOut) -> ExampleIndex:
    """Read ids, splits and image hashes of all examples of these archives.

    Raises ValueError where two archives have an example of the same id over different images.
    """
    batches = [part for archive in archives for part in _parts(archive, rule)]
    keys, images, training, of_masks = (np.concatenate(columns) for columns in zip(*batches, strict=True))
    order = np.argsort(keys, kind="stable")
    keys, images, training, of_masks = keys[order], images[order], training[order], of_masks[order]
    same = keys[1:] == keys[:-1]
    if (different := np.flatnonzero(same & (images[1:] != images[:-1]))).size:
        raise ValueError(_conflict(archives, rule, keys[different[0]]))
    barred_ids = np.array([rule.key(name) for name in held_out.ids], np.uint64)
    barred_ids = np.concatenate([barred_ids, keys[~training]])
    barred_images = np.concatenate([_leading_bits(sorted(held_out.images)), images[~training]])
    verdicts = np.where(of_masks, USABLE, NO_MASK_ASKED).astype(np.int8)
    verdicts[np.isin(images, barred_images)] = HELD_OUT_IMAGE
    verdicts[np.isin(keys, barred_ids)] = HELD_OUT_ID
    verdicts[~training] = NOT_TRAINING
    first = np.concatenate([[True], ~same]) if len(keys) else np.zeros(0, np.bool_)
    return ExampleIndex(keys[first], verdicts[first])


def _parts(archive: RolloutArchive, rule: PairRule) -> Iterator[tuple[NDArray, NDArray, NDArray, NDArray]]:
    """(keys, 64 bits of the image's hash, whether it is of the training split, whether it asks for a mask) of examples.

    A batch at a time.
    """
    empty, neither = np.zeros(0, np.uint64), np.zeros(0, np.bool_)
    yield empty, empty, neither, neither
    for batch in archive.examples(["example_id", "split", "image_sha256", "asked"]):
        training = pc.equal(batch["split"], "train").to_numpy(zero_copy_only=False)
        of_masks = np.array([asked in (None, "mask") for asked in batch["asked"].to_pylist()], np.bool_)
        yield _keys(batch["example_id"], rule), _leading_bits(batch["image_sha256"].to_pylist()), training, of_masks


def _keys(ids: pa.Array, rule: PairRule) -> NDArray[np.uint64]:
    return np.array([rule.key(name) for name in ids.to_pylist()], np.uint64)


def _leading_bits(hashes: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([int(sha256[:16], 16) for sha256 in hashes], np.uint64)


def _conflict(archives: Sequence[RolloutArchive], rule: PairRule, key: np.uint64) -> str:
    """The message about an example whose image is not the same in all archives."""
    found = [
        f"{row['example_id']} has {row['image_sha256'][:12]} in {archive.folder}"
        for archive in archives
        for batch in archive.examples(["example_id", "image_sha256"])
        for row in batch.to_pylist()
        if rule.key(row["example_id"]) == key
    ]
    return (
        f"an example has different images in these runs ({'; '.join(found)}); one of them was changed between the "
        "runs: export the runs apart."
    )


CANDIDATE = np.dtype(
    [
        ("stratum", np.int8),
        ("run", np.int32),
        ("example", np.uint64),
        ("order", np.uint64),
        ("step", np.int64),
        ("position", np.int32),
        ("index", np.int32),
        ("iou", np.float64),
    ]
)
"""An answer that may be chosen: stratum of its IoU, number of its run, key of its example (its place in the seeded
order of examples), its place in the seeded order of answers, where it is in the archive, and its IoU."""

LEFT_OUT = {
    "example_missing": "its example is not in the archive",
    "not_training": "its example is not of the training split",
    "example_held_out": "its example is also in another split",
    "image_held_out": "its image is also in an example of another split",
    "no_mask_asked": "its question asks for a box or a point",
    "unparsable": "the answer could not be read",
    "no_outline": "the answer was that nothing fits",
    "wrong_object": "its IoU is below min_iou: another object than the phrase means",
    "too_good": "its IoU is above max_iou",
    "nothing_there": "its true mask is empty",
    "near_duplicate": "nearly the same mask as a kept answer to this example",
    "over_per_example": "its example has per_example pairs without it, or others of its IoU came first",
    "over_limit": "the limit was reached without it",
}
"""Reasons why an answer is no pair; the first one that holds is counted."""

_VERDICT_REASONS = {
    MISSING: "example_missing",
    NOT_TRAINING: "not_training",
    HELD_OUT_ID: "example_held_out",
    HELD_OUT_IMAGE: "image_held_out",
    NO_MASK_ASKED: "no_mask_asked",
}
PLACE_COLUMNS = ("step", "position", "index")
"""Columns that find an answer in the archive of its run."""


def candidates_of(
    batch: pa.RecordBatch, index: ExampleIndex, rule: PairRule, left_out: Counter[str]
) -> NDArray[np.void]:
    """The answers of a batch that may be chosen, their run and order not yet set; counts why the others may not."""
    keys, verdicts = index.look_up(batch["example_id"], rule)
    iou = batch["iou"].to_numpy(zero_copy_only=False)
    is_ok, is_empty = (
        pc.equal(batch["status"], status.value).to_numpy(zero_copy_only=False)
        for status in (AnswerStatus.OK, AnswerStatus.EMPTY)
    )
    tests = [(verdicts == verdict, reason) for verdict, reason in _VERDICT_REASONS.items()]
    tests += [(~is_ok & ~is_empty, "unparsable"), (is_empty, "no_outline")]
    tests += [(iou < rule.min_iou, "wrong_object"), (iou > rule.max_iou, "too_good")]
    usable = np.ones(batch.num_rows, np.bool_)
    for holds, reason in tests:
        left_out[reason] += int((usable & holds).sum())
        usable &= ~holds
    candidates = np.empty(int(usable.sum()), CANDIDATE)
    candidates["example"], candidates["iou"] = keys[usable], iou[usable]
    candidates["stratum"] = rule.iou_stratum(iou[usable])
    for name in PLACE_COLUMNS:
        candidates[name] = batch[name].to_numpy(zero_copy_only=False)[usable]
    return candidates


_SPARE = 1.25
"""Shortlisted pairs over the limit: near-duplicates on two sides of a stratum's edge are found only by their masks."""
_MIN_PENDING = 1 << 16


class Shortlist:
    """Takes candidates a batch at a time."""

    def __init__(self, rule: PairRule) -> None:
        self.rule = rule
        self.left_out: Counter[str] = Counter()
        self._wanted = None if rule.limit is None else math.ceil(rule.limit * _SPARE)
        self._kept = np.empty(0, CANDIDATE)
        self._pending: list[NDArray[np.void]] = []
        self._num_pending = 0
        # By stratum, the last example that may still be chosen.
        self._last = np.full(rule.iou_strata, np.iinfo(np.uint64).max)

    def offer(self, candidates: NDArray[np.void]) -> None:
        """Keep what may still be chosen of an array of CANDIDATE, and count why the rest is not."""
        hopeful = candidates[candidates["example"] <= self._last[candidates["stratum"]]]
        self.left_out["over_limit"] += len(candidates) - len(hopeful)
        self._pending.append(hopeful)
        self._num_pending += len(hopeful)
        if self._num_pending > max(_MIN_PENDING, len(self._kept) // 2):
            self.compact()

    def chosen(self) -> NDArray[np.void]:
        """The shortlist, sorted by example, then stratum, then order."""
        self.compact()
        kept = self._kept
        if self._wanted is not None:
            kept = self._first_examples(kept, self._level(kept, self._wanted))
        return kept[np.lexsort((kept["order"], kept["stratum"], kept["example"]))]

    def compact(self) -> None:
        """Let go of what can no longer be chosen."""
        rows = np.concatenate([self._kept, *self._pending])
        self._kept, self._pending, self._num_pending = rows[:0], [], 0
        rows = rows[np.lexsort((rows["order"], rows["example"], rows["stratum"]))]
        few = _rank(_new_example(rows)) < self.rule.per_example
        self.left_out["over_per_example"] += int((~few).sum())
        rows = rows[few]
        if self._wanted is not None and len(rows):
            rows = self._first_examples(rows, self._safe_level(rows, self._wanted))
            last = np.flatnonzero(np.diff(rows["stratum"], append=-1))
            numbers = _example_number(rows)[last] + 1
            full = last[numbers == self._safe_level(rows, self._wanted)]
            self._last[rows["stratum"][full]] = rows["example"][full]
        self._kept = rows

    def _first_examples(self, rows: NDArray[np.void], level: int) -> NDArray[np.void]:
        """The rows of the first `level` examples of each stratum."""
        near = _example_number(rows) < level
        self.left_out["over_limit"] += int((~near).sum())
        return rows[near]

    def _safe_level(self, rows: NDArray[np.void], wanted: int) -> int:
        """No less than `_level` will be, whatever is offered yet.

        The examples of all strata are counted here; at worst each is in all strata, and gives per_example pairs.
        """
        strata, per_example = self.rule.iou_strata, self.rule.per_example
        sizes = np.bincount(rows["stratum"][_new_example(rows)], minlength=strata)
        needed = math.ceil(wanted * max(1, strata / per_example))
        return wanted if sizes.sum() <= needed else min(wanted, int(even_shares(sizes, needed).max()))

    def _level(self, rows: NDArray[np.void], wanted: int) -> int:
        """How many examples each stratum gives, as far as it has them, so that all give `wanted` pairs together."""
        number, first = _example_number(rows), _new_example(rows)
        low, high = 1, max(1, int(number.max(initial=0)) + 1)
        while low < high:
            middle = (low + high) // 2
            if _promised(rows["example"][first & (number < middle)], self.rule.per_example) >= wanted:
                high = middle
            else:
                low = middle + 1
        return low


def _promised(examples: NDArray[np.uint64], per_example: int) -> int:
    """Pairs that examples can give, named once per stratum: one per stratum, since the rest there may be duplicates."""
    _, counts = np.unique(examples, return_counts=True)
    return int(np.minimum(counts, per_example).sum())


def _new_example(rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """[A] whether another example or stratum begins, in rows sorted by stratum and example."""
    first = np.ones(len(rows), np.bool_)
    for name in ("stratum", "example"):
        first[1:] &= rows[name][1:] == rows[name][:-1]
    first[1:] = ~first[1:]
    return first


def _rank(first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[A] place 0, 1, ... after the last True."""
    places = np.arange(len(first))
    return places - np.maximum.accumulate(np.where(first, places, 0))


def _example_number(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """[A] number 0, 1, ... of the example within its stratum, in rows sorted by stratum and example."""
    numbers = np.cumsum(_new_example(rows)) - 1
    strata, first = np.unique(rows["stratum"], return_index=True)
    starts = numbers[first]
    return numbers - starts[np.searchsorted(strata, rows["stratum"])]


def even_shares(sizes: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """What each heap of these sizes gives, evenly as far as they reach, so that they give `wanted` or all they have."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:
        middle = (low + high) // 2
        if np.minimum(sizes, middle).sum() >= wanted:
            high = middle
        else:
            low = middle + 1
    shares = np.minimum(sizes, low)
    spare = max(0, int(shares.sum()) - wanted)
    shares[np.flatnonzero(shares == low)[::-1][:spare]] -= 1
    return shares
