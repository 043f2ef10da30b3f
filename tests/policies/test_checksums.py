"""One pass over memory tells any changed bit: by hand, by the kernel as by torch's operations, for every dtype."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.checksums import _ROW, _sum_where_it_is, bytes_of, checksum_of, sha256_of, word_sums

TWO_64 = 2**64


def test_sum_of_three_words_by_hand() -> None:
    # c = 1, 0x9E3779B97F4A7C15, 0x3C6EF372FE94F82B: multiples of the factor with the last bit set.
    words = torch.tensor([5, 1, 2])
    by_hand = 5 * 1 + 1 * 0x9E3779B97F4A7C15 + 2 * 0x3C6EF372FE94F82B
    assert word_sums([words]) == [by_hand % TWO_64]


def test_sum_is_that_of_python_integers_over_rows_and_rest() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(-(2**63), 2**63, size=2 * _ROW + 3)
    total = 0
    for i, word in enumerate(words.tolist()):
        of_word = (i % _ROW * 0x9E3779B97F4A7C15 % TWO_64) | 1
        of_row = (i // _ROW * 0xD1B54A32D192ED03 % TWO_64) | 1
        total += word * of_word * of_row
    assert word_sums([torch.from_numpy(words)]) == [total % TWO_64]


@pytest.mark.parametrize("num", [0, 1, 7, _ROW, 3 * _ROW, 64 * _ROW, 70 * _ROW + 11])
def test_torch_sums_as_the_kernel_does(num: int) -> None:
    words = torch.from_numpy(np.random.default_rng(num).integers(-(2**63), 2**63, size=num))
    assert [_sum_where_it_is(words).item() % TWO_64] == word_sums([words])


@pytest.mark.gpu
def test_a_gpu_sums_as_the_host_does() -> None:
    tensors = [torch.randn(3, 70_001, dtype=torch.bfloat16), torch.randn(5), torch.zeros(0)]
    assert word_sums([tensor.cuda() for tensor in tensors]) == word_sums(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.bool])
@given(data=st.data())
def test_any_flipped_bit_changes_the_sum(dtype: torch.dtype, data: st.DataObject) -> None:
    num = data.draw(st.integers(1, 200))
    flat = torch.from_numpy(np.random.default_rng(num).integers(0, 2, size=num * dtype.itemsize).astype(np.uint8))
    tensor = flat.view(dtype)
    before = word_sums([tensor])
    place, bit = data.draw(st.integers(0, len(flat) - 1)), data.draw(st.integers(0, 7))
    flat[place] ^= 1 << bit
    assert word_sums([tensor]) != before


def test_sum_does_not_depend_on_where_the_bytes_lie() -> None:
    flat = torch.arange(64, dtype=torch.uint8)
    shifted = torch.cat([torch.zeros(3, dtype=torch.uint8), flat])[3:]
    rows = torch.arange(12.0).view(3, 4)
    assert word_sums([flat, shifted, shifted.clone()]) == word_sums([flat]) * 3
    assert word_sums([rows.t()]) == word_sums([rows.t().contiguous()]) != word_sums([rows])
    assert bytes_of(rows).data_ptr() == rows.data_ptr()


def test_checksum_tells_names_and_order() -> None:
    one = checksum_of(["a", "b"], [1, 2])
    assert one == hashlib.sha256(b"a 0000000000000001\nb 0000000000000002\n").hexdigest()[:32]
    assert len({one, checksum_of(["a", "b"], [2, 1]), checksum_of(["b", "a"], [1, 2]), checksum_of(["a"], [1])}) == 4


def test_sha256_of_tensors_is_that_of_their_bytes() -> None:
    tensors = [torch.arange(6, dtype=torch.int32).view(2, 3), torch.tensor([1.5], dtype=torch.bfloat16)]
    assert sha256_of(tensors) == hashlib.sha256(tensors[0].numpy().tobytes() + b"\xc0\x3f").hexdigest()
