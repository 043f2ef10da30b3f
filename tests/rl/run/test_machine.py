"""What a machine lacks for a run is told before anything starts: shared memory, and room on its cards."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run import machine
from rl.run.machine import (
    idle_gpus_note,
    largest_card_bytes,
    rank_bytes,
    refuse_small_cards,
    refuse_small_shared_memory,
    shared_memory_note,
)
from rl.run.parts import run_parts
from rl.run.preflight import preflight

GIB = 2**30
SEVEN_B = 16 * GIB
"""Weights of a policy of 8.6 billion parameters in bfloat16."""


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def run(*overrides: str) -> RunConfig:
    return load_settings(RunConfig, Path("tiny"), ["run=unused", *overrides])


def shared_memory_of(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    real = shutil.disk_usage

    def usage(path: Path) -> object:
        return Usage(free, 0, free) if Path(path) == Path("/dev/shm") else real(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)


def test_a_store_that_ray_would_refuse_is_refused_before_with_what_docker_must_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", raising=False)
    shared_memory_of(monkeypatch, 64 * 2**20)  # Docker's own default
    told = (
        r"^Ray's object store takes 48\.25 GiB \(what weights and answers on their way need\), but /dev/shm has 0\.06 "
        r"GiB free; give it more \(docker run --shm-size=54g\), .* ray\.object_store_gb to 9 or less"
    )
    with pytest.raises(ValueError, match=told) as error:
        refuse_small_shared_memory(run(), 48 * GIB + GIB // 4)
    assert "\n" not in str(error.value)
    refuse_small_shared_memory(run("ray.address=auto"), 48 * GIB)  # another machine's affair
    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    refuse_small_shared_memory(run(), 48 * GIB)
    monkeypatch.delenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE")
    shared_memory_of(monkeypatch, 49 * GIB)
    refuse_small_shared_memory(run(), 48 * GIB)


def test_a_small_store_that_ray_would_put_on_the_disk_is_told_and_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shared_memory_of(monkeypatch, 64 * 2**20)
    refuse_small_shared_memory(run(), GIB)
    note = shared_memory_note(run("ray.object_store_gb=1"), GIB)
    assert note and "takes 1.00 GiB (ray.object_store_gb), but /dev/shm has 0.06 GiB free, so Ray keeps it on" in note
    shared_memory_of(monkeypatch, 2 * GIB)
    assert shared_memory_note(run(), GIB) is None


def test_preflight_refuses_it_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    shared_memory_of(monkeypatch, 64 * 2**20)
    monkeypatch.setattr("ray.init", None)
    config = run("ray.object_store_gb=11")
    with pytest.raises(ValueError, match=r"takes 11\.00 GiB \(ray\.object_store_gb\), but /dev/shm has 0\.06 GiB"):
        preflight(config, run_parts(config))


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of 64 MiB, as a container's /dev/shm."""
    place = tmp_path / "shm"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_free_memory_is_that_of_the_file_system_itself(small_tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", small_tmpfs)
    assert shared_memory_note(run(), 64 * 2**20) is None
    (small_tmpfs / "other").write_bytes(bytes(32 * 2**20))
    note = shared_memory_note(run(), 64 * 2**20)
    assert note and f"but {small_tmpfs} has 0.03 GiB free" in note


def test_a_rank_keeps_sixteen_bytes_a_bfloat16_weight_shared_as_zero_shares_them() -> None:
    ranks = ["learner.ranks=8", "learner.micro_groups=2", "learner.dtype=bfloat16", "policy.dtype=bfloat16"]
    plain = ["learner.average=0", *ranks]
    sizes = [
        rank_bytes(run(*plain, f"learner.zero_stage={stage}").learner, SEVEN_B) / SEVEN_B for stage in (0, 1, 2, 3)
    ]
    # Weights 2 bytes, gradients 2, float32 weights 4 and moments 8: (2 + 2 + 12) / 2 = 8 times the weights.
    assert sizes == [8.0, 1 + 1 + 6 / 8, 1 + (1 + 6) / 8, 8 / 8]
    offloaded = run(*plain, "learner.zero_stage=3", "learner.offload_optimizer=true").learner
    assert rank_bytes(offloaded, SEVEN_B) == 2 * SEVEN_B // 8
    adapters = run(*plain, "learner.zero_stage=2", "learner.lora={rank: 8}").learner
    assert rank_bytes(adapters, SEVEN_B) == SEVEN_B
    assert rank_bytes(run().learner, SEVEN_B) == 4 * SEVEN_B  # float32: 4 + 4 + 8 bytes, of 4


def test_a_card_too_small_for_what_always_lies_there_is_refused_with_the_arithmetic() -> None:
    asked = ["learner.average=0", "learner.ranks=8", "learner.micro_groups=2", "pool.workers=8", "learner.zero_stage=3"]
    bf16 = ["learner.dtype=bfloat16", "policy.dtype=bfloat16"]
    config = run(*asked, *bf16, "learner.gpus_per_rank=1", "pool.gpus_per_worker=1")
    refuse_small_cards(config, SEVEN_B, 24 * GIB)
    told = (
        r"^a learner rank keeps 16\.0 GiB on its card \(weights of 16\.0 GiB; learner.dtype bfloat16, "
        r"learner.zero_stage 3 on 8 ranks\), .* cards have 12\.0; raise learner.zero_stage"
    )
    with pytest.raises(ValueError, match=told):
        refuse_small_cards(config, SEVEN_B, 12 * GIB)
    with pytest.raises(ValueError, match=r"^a rollout worker keeps 16\.0 GiB on its card"):
        refuse_small_cards(config, SEVEN_B, 12 * GIB, learns=False)
    refuse_small_cards(run(*asked, *bf16), SEVEN_B, GIB)  # on the CPU


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 24564; echo 81559", 81559 * 2**20),
        ("echo 'NVIDIA-SMI has failed because it could not communicate'; exit 9", None),
        ("echo '[N/A]'", None),
    ],
)
def test_the_largest_card_is_as_large_as_the_driver_says(
    script: str, found: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert largest_card_bytes() == found


def test_gpus_that_a_run_leaves_idle_are_told() -> None:
    note = idle_gpus_note(run(), 8)
    assert note and note.startswith("this machine has 8 GPUs, and the run is on its CPUs, since learner.gpus_per_rank")
    assert idle_gpus_note(run(), 0) is None
    assert idle_gpus_note(run("learner.gpus_per_rank=1"), 8) is None
