"""Weights by reference, and which of them a unit wants."""

from dataclasses import dataclass
from typing import Any

from policies.weights import checksum


@dataclass(frozen=True)
class WeightRefs:
    """One state of the weights, by reference: buckets in Ray's object store and what they add up to.

    The object store keeps the buckets for as long as somebody keeps this.
    """

    refs: tuple[Any, ...]
    """Ray references to policies.weights.Bucket, in order."""
    hashes: tuple[str, ...]
    """SHA-256 of each bucket."""

    @property
    def checksum(self) -> str:
        """Checksum of the whole policy."""
        return checksum(self.hashes)


@dataclass(frozen=True)
class WeightVersion:
    """Weights under the number that answers carry."""

    number: int
    weights: WeightRefs

    @property
    def key(self) -> tuple[int, str]:
        """Number and checksum: a step's weights and their running average share the number."""
        return self.number, self.weights.checksum
