"""Weights in flight: parameters cut into buckets, each with its checksum, so that no one ever holds two full copies.

The checksum of a policy is the hash of its buckets' hashes. A receiver computes it from the parameters it then has, not
from what it was sent: a delivery that did not arrive cannot agree.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

BUCKET_BYTES = 32 * 2**20
"""A bucket is closed when it has this many bytes or more."""


@dataclass(frozen=True)
class Bucket:
    """Some parameters, one after the other."""

    names: tuple[str, ...]
    data: NDArray[np.uint8]
    """Bytes of the parameters in the order of `names`, each contiguous."""
    sha256: str
    """SHA-256 of `data`, 64 hex digits."""


def make_bucket(parameters: Sequence[tuple[str, Tensor]]) -> Bucket:
    """A bucket of named tensors."""
    data = np.concatenate([_bytes(tensor) for _, tensor in parameters])
    return Bucket(tuple(name for name, _ in parameters), data, hashlib.sha256(data.data).hexdigest())


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of a low-rank adapter (policies/lora.py)."""
    return ".lora_A." in name or ".lora_B." in name


def travelling(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The named parameters that a learner sends and a worker proves: all of them, or the adapters alone if there are
    any."""
    named = list(module.named_parameters())
    return [(name, parameter) for name, parameter in named if is_adapter(name)] or named


def bucket_names(module: nn.Module, bucket_bytes: int = BUCKET_BYTES) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """What travels of `module`, in order, a part being closed at `bucket_bytes`."""
    return in_buckets(travelling(module), bucket_bytes)


def in_buckets(
    named: Iterable[tuple[str, nn.Parameter]], bucket_bytes: int = BUCKET_BYTES
) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Named parameters in order, a part being closed at `bucket_bytes`; sharded ones count their full size."""
    part: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in named:
        part.append((name, parameter))
        # Under ZeRO-3 a parameter is empty until gathered; ds_numel is its full size.
        size += vars(parameter).get("ds_numel", parameter.numel()) * parameter.element_size()
        if size >= bucket_bytes:
            yield part
            part, size = [], 0
    if part:
        yield part


@torch.no_grad()
def load_bucket(module: nn.Module, bucket: Bucket) -> None:
    """Copy a bucket into the parameters it names; shapes and dtypes are those of `module`.

    Raises ValueError, before anything is copied, where the bucket does not have their size.
    """
    parameters = dict(module.named_parameters())
    expected = sum(parameters[name].numel() * parameters[name].element_size() for name in bucket.names)
    if len(bucket.data) != expected:
        raise ValueError(
            f"a bucket brings {len(bucket.data)} bytes for parameters of {expected} bytes (from {bucket.names[0]} "
            "on): the two "
            "models differ; give policy.dtype and learner.dtype the same value, and all parts the same checkpoint."
        )
    start = 0
    for name in bucket.names:
        parameter = parameters[name]
        size = parameter.numel() * parameter.element_size()
        # A copy, since what arrives through shared memory is read-only.
        flat = torch.from_numpy(bucket.data[start : start + size].copy()).view(parameter.dtype)
        parameter.copy_(flat.view(parameter.shape))
        start += size


def checksum(hashes: Iterable[str]) -> str:
    """SHA-256 over the buckets' hashes, in order: the checksum of the whole policy."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def held_checksum(module: nn.Module) -> str:
    """Checksum of the weights that `module` holds now (not sharded)."""
    return checksum(make_bucket(part).sha256 for part in bucket_names(module))


def stored_checksum(module: nn.Module, checkpoint: Path) -> str | None:
    """What `held_checksum` would be of `module` with the weights that a Hugging Face folder stores for it.

    module: part of a model, on the meta device too: of its parameters only names, shapes and dtypes are looked at. At
    most one bucket is in memory. None where the folder's files name no such part, or more than one.
    """
    files = {name: file for file in sorted(checkpoint.glob("*.safetensors")) for name in _stored_names(file)}
    named = list(module.named_parameters())
    ends = [name.removesuffix(named[0][0]) for name in files if f".{name}".endswith(f".{named[0][0]}")] if named else []
    prefixes = [prefix for prefix in ends if all(prefix + name in files for name, _ in named)]
    if len(prefixes) != 1:
        return None
    hashes = []
    for part in bucket_names(module):
        tensors = [(name, _stored(files[prefixes[0] + name], prefixes[0] + name)) for name, _ in part]
        if any(tensor.shape != parameter.shape for (_, tensor), (_, parameter) in zip(tensors, part, strict=True)):
            return None
        dtypes = [parameter.dtype for _, parameter in part]
        held = [(name, tensor.to(dtype)) for (name, tensor), dtype in zip(tensors, dtypes, strict=True)]
        hashes.append(make_bucket(held).sha256)
    return checksum(hashes)


def _stored_names(file: Path) -> list[str]:
    with safe_open(file, "pt") as stored:
        return list(stored.keys())


def _stored(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as stored:
        return stored.get_tensor(name)


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
