"""Whose answers may become pairs: examples of the training split whose id and image are in no other split.

What is compared are 64 bits of each id and of each image's SHA-256: a chance match bars an example needlessly, but no
example that must be barred escapes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from envs.example import Env
from rl.pair_rule import PairRule
from rollout.archive import RolloutArchive

USABLE, MISSING, NOT_TRAINING, HELD_OUT_ID, HELD_OUT_IMAGE = range(5)
"""What an example's answers may be used for, or why not."""


@dataclass(frozen=True)
class HeldOut:
    """Ids and images of examples that no pair may come from."""

    ids: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    """SHA-256 of their pixels."""

    def with_examples(self, env: Env, num_examples: int) -> "HeldOut":
        """These, and the first `num_examples` examples of an Env."""
        examples = [env[k] for k in range(min(num_examples, len(env)))]
        ids = self.ids.union(example.id for example in examples)
        return HeldOut(ids, self.images.union(example.image.sha256 for example in examples))


NOTHING_HELD_OUT = HeldOut()


@dataclass(frozen=True)
class ExampleIndex:
    """E examples of all archives, by key."""

    keys: NDArray[np.uint64]
    """[E] sorted keys (PairRule.key) of their ids."""
    verdicts: NDArray[np.int8]
    """[E] USABLE, NOT_TRAINING, HELD_OUT_ID or HELD_OUT_IMAGE."""

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
    keys, images, training = (np.concatenate(columns) for columns in zip(*batches, strict=True))
    order = np.argsort(keys, kind="stable")
    keys, images, training = keys[order], images[order], training[order]
    same = keys[1:] == keys[:-1]
    if (different := np.flatnonzero(same & (images[1:] != images[:-1]))).size:
        raise ValueError(_conflict(archives, rule, keys[different[0]]))
    barred_ids = np.array([rule.key(name) for name in held_out.ids], np.uint64)
    barred_ids = np.concatenate([barred_ids, keys[~training]])
    barred_images = np.concatenate([_leading_bits(sorted(held_out.images)), images[~training]])
    verdicts = np.full(len(keys), USABLE, np.int8)
    verdicts[np.isin(images, barred_images)] = HELD_OUT_IMAGE
    verdicts[np.isin(keys, barred_ids)] = HELD_OUT_ID
    verdicts[~training] = NOT_TRAINING
    first = np.concatenate([[True], ~same]) if len(keys) else np.zeros(0, np.bool_)
    return ExampleIndex(keys[first], verdicts[first])


def _parts(archive: RolloutArchive, rule: PairRule) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """(keys, 64 bits of the image's hash, whether it is of the training split) of examples, a batch at a time."""
    empty = np.zeros(0, np.uint64)
    yield empty, empty, np.zeros(0, np.bool_)
    for batch in archive.examples(["example_id", "split", "image_sha256"]):
        training = pc.equal(batch["split"], "train").to_numpy(zero_copy_only=False)
        yield _keys(batch["example_id"], rule), _leading_bits(batch["image_sha256"].to_pylist()), training


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
