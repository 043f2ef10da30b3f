from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from policies.weights import (
    Bucket,
    bucket_checksum,
    bucket_names,
    held_checksum,
    held_sha256,
    load_bucket,
    make_bucket,
    stored_sha256,
)


def module(seed: int) -> nn.Module:
    """Five parameters of 40, 80, 4, 40 and 6 bytes: float64, float32 (two, one a scalar), int-like bit patterns,
    bfloat16."""
    torch.manual_seed(seed)
    made = nn.Module()
    made.a = nn.Parameter(torch.randn(5, dtype=torch.float64))
    made.b = nn.Parameter(torch.randn(4, 5))
    made.scale = nn.Parameter(torch.randn(()))
    made.c = nn.Parameter(torch.randn(5, 2).T)
    made.d = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
    return made


def buckets(of: nn.Module, bucket_bytes: int = 100) -> list[Bucket]:
    return [make_bucket(part) for part in bucket_names(of, bucket_bytes)]


def bits(of: nn.Module) -> list[bytes]:
    return [
        parameter.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for parameter in of.parameters()
    ]


def test_weights_come_through_buckets_bit_for_bit() -> None:
    sender, receiver = module(0), module(1)
    with torch.no_grad():
        sender.b[0, :4] = torch.tensor([torch.nan, torch.inf, -0.0, 1e-45])
        sender.b[1].view(torch.int32)[0] = 0x7FC12345
    assert bits(sender) != bits(receiver)
    for bucket in buckets(sender):
        load_bucket(receiver, bucket)
    assert bits(sender) == bits(receiver)


def test_a_bucket_is_closed_by_the_parameter_that_fills_it() -> None:
    assert [bucket.shape.names for bucket in buckets(module(0), 100)] == [("a", "b"), ("scale", "c", "d")]
    assert [bucket.shape.names for bucket in buckets(module(0), 120)] == [("a", "b"), ("scale", "c", "d")]
    assert [bucket.shape.names for bucket in buckets(module(0), 121)] == [("a", "b", "scale"), ("c", "d")]
    assert [bucket.shape.names for bucket in buckets(module(0), 1)] == [("a",), ("b",), ("scale",), ("c",), ("d",)]
    assert [bucket.shape.names for bucket in buckets(module(0), 10**6)] == [("a", "b", "scale", "c", "d")]
    assert [len(bucket.data) for bucket in buckets(module(0), 100)] == [120, 50]


def test_tied_weights_travel_once() -> None:
    tied = module(0)
    tied.again = tied.b
    assert sum(len(bucket.data) for bucket in buckets(tied)) == 170


def test_one_flipped_bit_changes_both_checksums() -> None:
    sender = module(0)
    before = held_checksum(sender), held_sha256(sender)
    with torch.no_grad():
        sender.d.view(torch.int16)[2] ^= 1
    after = held_checksum(sender), held_sha256(sender)
    assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize("bucket_bytes", [1, 100, 121, 10**6])
def test_checksum_of_buckets_is_that_of_who_takes_them_however_they_are_cut(bucket_bytes: int) -> None:
    sender = module(0)
    assert bucket_checksum(buckets(sender, bucket_bytes)) == held_checksum(sender)
    assert bucket_checksum(buckets(module(1), bucket_bytes)) != held_checksum(sender)


def test_a_receiver_holds_the_senders_checksum_only_after_the_last_bucket() -> None:
    sender, receiver = module(0), module(1)
    held = [held_checksum(receiver)]
    for bucket in buckets(sender):
        load_bucket(receiver, bucket)
        held.append(held_checksum(receiver))
    assert all(first != second for first, second in pairwise(held))
    assert [one == held_checksum(sender) for one in held] == [False, False, True]


def test_what_was_loaded_does_not_share_memory_with_the_bucket() -> None:
    sender, receiver = module(0), module(1)
    for bucket in buckets(sender):
        frozen = np.frombuffer(bucket.data.numpy().tobytes(), np.uint8)  # read-only, as from shared memory
        load_bucket(receiver, Bucket(bucket.shape, torch.from_numpy(frozen)))
        bucket.data[:] = 0
    with torch.no_grad():
        receiver.b += 1
    assert torch.equal(receiver.b, sender.b + 1)


def test_a_bucket_of_another_dtype_is_refused_before_anything_is_copied() -> None:
    receiver = module(0)
    before = bits(receiver)
    (bucket,) = buckets(module(1).to(torch.bfloat16), 10**6)
    with pytest.raises(ValueError, match=r"brings 78 bytes for parameters of 170 bytes \(from a on\).*policy.dtype"):
        load_bucket(receiver, bucket)
    assert bits(receiver) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("embedded", [True, False])
def test_the_files_of_a_checkpoint_tell_the_checksum_of_the_tower_that_a_policy_would_hold(
    dtype: str, embedded: bool, tiny_untrained: Path
) -> None:
    checkpoint = Path(str(files("policies") / "tiny")) if embedded else tiny_untrained
    built = Policy(checkpoint, Codec(), dtype=dtype)
    without = Policy(checkpoint, Codec(), dtype=dtype, weights=False)
    assert next(without.vision_tower.parameters()).is_meta
    assert stored_sha256(without.vision_tower, checkpoint) == built.vision_checksum()


def test_stored_weights_are_found_in_several_files_under_any_one_name_of_the_part(tmp_path: Path) -> None:
    part, names = module(3), [name for name, _ in module(3).named_parameters()]
    stored = {f"model.tower.{name}": parameter.detach().contiguous() for name, parameter in part.named_parameters()}
    for k, one in enumerate((names[:2], names[2:])):
        save_file({f"model.tower.{name}": stored[f"model.tower.{name}"] for name in one}, tmp_path / f"{k}.safetensors")
    assert stored_sha256(part.to("meta"), tmp_path) == held_sha256(module(3))
    save_file({f"other.{name}": torch.zeros(2) for name in names}, tmp_path / "2.safetensors")
    assert stored_sha256(part, tmp_path) is None  # which of the two is meant?
    (tmp_path / "0.safetensors").unlink()
    assert stored_sha256(part, tmp_path) is None  # the other one is not of its shapes
