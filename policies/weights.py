"""Weights in flight: parameters cut into buckets, so that no one ever holds two full copies, and what proves them.

The checksum of a policy is made of one sum a parameter (policies/checksums.py). A receiver computes it from the
parameters it then has, not from what it was sent: a delivery that did not arrive cannot agree.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from policies.checksums import bytes_of, checksum_of, sha256_of, word_sums
from policies.sharing.token_rows import ROWS

BUCKET_BYTES = 32 * 2**20
"""A bucket is closed when it has this many bytes or more."""


@dataclass(frozen=True)
class BucketShape:
    """What a bucket holds, without its bytes."""

    names: tuple[str, ...]
    """Names of the parameters in it, in order."""
    sizes: tuple[int, ...]
    """Bytes of each."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all parameters in it."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Bucket:
    """Some parameters, one after the other."""

    shape: BucketShape
    data: Tensor
    """[bytes] uint8: the parameters in order, each contiguous; on the host or on a GPU."""

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The bytes of each parameter, shared with `data`."""
        return self.data.split(list(self.shape.sizes))


def shape_of(parameters: Sequence[tuple[str, Tensor]]) -> BucketShape:
    """What a bucket of named tensors would hold; sharded ones count their full size."""
    return BucketShape(tuple(name for name, _ in parameters), tuple(_num_bytes(tensor) for _, tensor in parameters))


def make_bucket(parameters: Sequence[tuple[str, Tensor]]) -> Bucket:
    """A bucket of named tensors, where they are; a copy."""
    return Bucket(shape_of(parameters), torch.cat([bytes_of(tensor) for _, tensor in parameters]))


_WHOLE = ("selection.",)
"""Beginnings of names that learn whole beside adapters, and are learned in RL."""


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of a low-rank adapter (policies/lora.py), or of rows of tokens beside some
    (policies/sharing/token_rows.py): what a plain model has not."""
    return is_low_rank(name) or name.removeprefix("model.").startswith(f"{ROWS}.")


def is_low_rank(name: str) -> bool:
    """Whether a parameter's name is that of a low-rank adapter."""
    return ".lora_A." in name or ".lora_B." in name


def travelling(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The named parameters that a learner sends and a worker proves: all of them, or if there are adapters these and
    what learns whole beside them alone."""
    named = list(module.named_parameters())
    if not any(is_adapter(name) for name, _ in named):
        return named
    return [(name, parameter) for name, parameter in named if is_adapter(name) or name.startswith(_WHOLE)]


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
        size += _num_bytes(parameter)
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
    refuse_other_sizes(bucket.shape, {name: parameters[name] for name in bucket.shape.names})
    for name, part in zip(bucket.shape.names, bucket.parts, strict=True):
        parameters[name].copy_(as_tensor(part, parameters[name]))


def as_tensor(part: Tensor, like: Tensor) -> Tensor:
    """The bytes of one parameter as a tensor of the dtype and shape of `like`, where the bytes are."""
    if part.storage_offset() % like.element_size():
        part = part.clone()  # torch reads wider numbers only where they are aligned
    return part.view(like.dtype).view(like.shape)


def refuse_other_sizes(shape: BucketShape, parameters: dict[str, nn.Parameter]) -> None:
    """Raise ValueError where a bucket brings other numbers of bytes than the parameters that it names have."""
    expected = shape_of(list(parameters.items()))
    if shape != expected:
        raise ValueError(
            f"a bucket brings {shape.num_bytes} bytes for parameters of {expected.num_bytes} bytes (from "
            f"{shape.names[0]} on): the two models differ; give policy.dtype and learner.dtype the same value, and all "
            "parts the same checkpoint."
        )


def held_checksum(module: nn.Module) -> str:
    """Checksum of the weights that `module` holds now (not sharded)."""
    named = travelling(module)
    return checksum_of([name for name, _ in named], word_sums([parameter for _, parameter in named]))


def bucket_checksum(buckets: Iterable[Bucket]) -> str:
    """Checksum of a policy whose weights these are, as `held_checksum` gives it of who has taken them."""
    names: list[str] = []
    sums: list[int] = []
    for bucket in buckets:
        names += bucket.shape.names
        sums += word_sums(bucket.parts)
    return checksum_of(names, sums)


def held_sha256(module: nn.Module) -> str:
    """SHA-256 over the hashes of the buckets of `module`, 64 hex digits: what stands in a folder on the disk."""
    return _joined(sha256_of(parameter for _, parameter in part) for part in bucket_names(module))


def stored_sha256(module: nn.Module, checkpoint: Path) -> str | None:
    """What `held_sha256` would be of `module` with the weights that a Hugging Face folder stores for it.

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
        tensors = [_stored(files[prefixes[0] + name], prefixes[0] + name) for name, _ in part]
        if any(tensor.shape != parameter.shape for tensor, (_, parameter) in zip(tensors, part, strict=True)):
            return None
        dtypes = [parameter.dtype for _, parameter in part]
        hashes.append(sha256_of(tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)))
    return _joined(hashes)


def _joined(hashes: Iterable[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _num_bytes(tensor: Tensor) -> int:
    # Under ZeRO-3 a parameter is empty until gathered; ds_numel is its full size.
    return vars(tensor).get("ds_numel", tensor.numel()) * tensor.element_size()


def _stored_names(file: Path) -> list[str]:
    with safe_open(file, "pt") as stored:
        return list(stored.keys())


def _stored(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as stored:
        return stored.get_tensor(name)
