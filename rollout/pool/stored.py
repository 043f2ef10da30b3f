"""Weights in Ray's object store: buckets by reference, and what they add up to."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from policies.checksums import add_to_sha256, checksum_of, word_sums
from policies.weights import Bucket, BucketShape
from rollout import cluster

# What comes out of the store is read-only, and nobody writes into a bucket.
warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)


@dataclass(frozen=True)
class WeightRefs:
    """One state of the weights, by reference.

    The object store keeps the buckets for as long as somebody keeps this.
    """

    refs: tuple[Any, ...]
    """Ray references to StoredBucket, in order."""
    checksum: str
    """Checksum of the whole policy (policies.weights.held_checksum)."""
    sha256: str | None = None
    """SHA-256 of all its bytes in order; None where nobody asked for it."""


@dataclass(frozen=True)
class StoredBucket:
    """A bucket as Ray keeps it: an array lies in shared memory as it is, a tensor would be packed."""

    shape: BucketShape
    data: NDArray[np.uint8]
    """[bytes], as in Bucket."""

    @classmethod
    def of(cls, bucket: Bucket) -> "StoredBucket":
        """A bucket on the host."""
        return cls(bucket.shape, bucket.data.cpu().numpy())

    @property
    def bucket(self) -> Bucket:
        """The bucket itself, of the same memory."""
        return Bucket(self.shape, torch.from_numpy(self.data))


def put(buckets: Iterable[Bucket], strong: bool = False) -> WeightRefs:
    """Put buckets into the object store, one after the other.

    strong: whether to take SHA-256 of all bytes, too. The store itself raises where it is full.
    """
    digest = hashlib.sha256()
    refs: list[Any] = []
    names: list[str] = []
    sums: list[int] = []
    for bucket in buckets:
        refs.append(cluster.stored(StoredBucket.of(bucket)))
        names += bucket.shape.names
        sums += word_sums(bucket.parts)
        if strong:
            add_to_sha256(digest, [bucket.data])
    return WeightRefs(tuple(refs), checksum_of(names, sums), digest.hexdigest() if strong else None)


def fetched(refs: Iterable[Any]) -> Iterator[Bucket]:
    """The buckets behind references, one at a time."""
    for ref in refs:
        stored: StoredBucket = ray.get(ref)
        yield stored.bucket
