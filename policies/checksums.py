"""A checksum of weights that costs one pass over memory, taken wherever they are: on the host or on a GPU.

The bytes of a tensor are read as 64-bit words w. Word i counts with an odd number of its own, and the sum is taken
modulo 2^64:

    S = sum over i of w[i] * c[i mod n] * d[i div n]

Odd numbers have inverses modulo 2^64, and so do their products: another value of any one word, thus any flipped bit,
always changes S. Several changes at once go unseen with a chance of about 2^-64, unless somebody means them to: this is
a proof against accidents, not against people. SHA-256 of the same bytes takes about ten times as long on a core, and
asks for a copy where they are on a GPU.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import config, njit
from numpy.typing import NDArray
from torch import Tensor

from envs.geometry.kernel_cache import kernel_cache_folder

config.CACHE_DIR = config.CACHE_DIR or kernel_cache_folder()  # type: ignore[attr-defined]  # Numba makes it at run time

_ROW = 2**15
"""n, words of a row."""
_SLAB = 64
"""Rows whose products are held at once on a GPU: 16 MiB."""
_OF_WORDS = 0x9E3779B97F4A7C15
_OF_ROWS = 0xD1B54A32D192ED03


def word_sums(tensors: Sequence[Tensor]) -> list[int]:
    """S of each tensor's bytes in memory order, 0 .. 2**64 - 1; any dtype, any device, all on the same one."""
    sums = [_word_sum(tensor) for tensor in tensors]
    signed = torch.stack(sums).tolist() if sums else []  # one wait for a GPU, not one a tensor
    return [value % 2**64 for value in signed]


def checksum_of(names: Sequence[str], sums: Sequence[int]) -> str:
    """The checksum of weights by name with their word sums, in order: 32 hex digits."""
    lines = "".join(f"{name} {value:016x}\n" for name, value in zip(names, sums, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()[:32]


def sha256_of(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the bytes of all tensors, one after the other: 64 hex digits. Copies each to the host."""
    digest = hashlib.sha256()
    add_to_sha256(digest, tensors)
    return digest.hexdigest()


def add_to_sha256(digest: Any, tensors: Iterable[Tensor]) -> None:
    """Go on with the SHA-256 of tensors by more of them; digest: of hashlib."""
    for tensor in tensors:
        digest.update(bytes_of(tensor).cpu().numpy().data)


def bytes_of(tensor: Tensor) -> Tensor:
    """[bytes] uint8: the tensor's bytes in memory order, where it is; shared with it where it is contiguous."""
    if not tensor.numel():
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)  # torch views no empty tensor as bytes
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _word_sum(tensor: Tensor) -> Tensor:
    """S as an int64 of no axes, on the tensor's device."""
    flat = bytes_of(tensor)
    short = -flat.numel() % 8
    if short or flat.storage_offset() % 8:
        flat = torch.nn.functional.pad(flat, (0, short))  # zeros count nothing; the copy begins at a whole word
    words = flat.view(torch.int64)
    if words.device.type == "cpu":
        factors = _odd(_ROW, _OF_WORDS), _odd(-(-len(words) // _ROW), _OF_ROWS)
        return torch.tensor(_host_sum(words.numpy(), *factors), dtype=torch.int64)
    return _sum_where_it_is(words)


@njit(cache=True, nogil=True)
def _host_sum(words: NDArray[np.int64], of_words: NDArray[np.int64], of_rows: NDArray[np.int64]) -> np.int64:
    """S on the host; int64 wraps around as unsigned numbers do."""
    total = np.int64(0)
    row = len(of_words)
    for k in range(len(of_rows)):
        first = k * row
        of_row = np.int64(0)
        for i in range(min(row, len(words) - first)):
            of_row += words[first + i] * of_words[i]
        total += of_row * of_rows[k]
    return total


def _sum_where_it_is(words: Tensor) -> Tensor:
    """S by torch's own operations, a slab of rows at a time."""
    whole = len(words) // _ROW
    of_words = torch.from_numpy(_odd(_ROW, _OF_WORDS)).to(words.device)
    of_rows = torch.from_numpy(_odd(whole + 1, _OF_ROWS)).to(words.device)
    rows = words[: whole * _ROW].view(whole, _ROW)
    sums = [(slab * of_words).sum(1) for slab in rows.split(_SLAB)]
    rest = words[whole * _ROW :]
    sums.append((rest * of_words[: len(rest)]).sum().view(1))
    return (torch.cat(sums) * of_rows).sum()


@cache
def _odd(num: int, factor: int) -> NDArray[np.int64]:
    """[num] odd numbers: k * factor modulo 2^64, the last bit set."""
    return (np.arange(num, dtype=np.uint64) * np.uint64(factor) | np.uint64(1)).view(np.int64)
