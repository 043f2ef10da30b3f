"""Writing beside the main loop: a step is handed over at once, and nothing that goes wrong stays silent."""

import threading
from pathlib import Path

import pytest
from made_archive import group, rows_of, shard_bytes, write_steps

from rollout.archive.archive import RolloutArchive
from rollout.archive.writer import ArchiveWriter


class Held(RolloutArchive):
    """An archive whose disk is as slow as the test wants."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.goes_on = threading.Event()

    def append(self, step, groups) -> None:  # type: ignore[no-untyped-def]
        assert self.goes_on.wait(60)
        super().append(step, groups)


def step_groups(step: int) -> list:
    return [group(step, 0, "often asked"), group(step, 1, f"asked at {step}")]


def test_a_step_is_handed_over_without_waiting_for_the_disk_and_read_after_a_flush(tmp_path: Path) -> None:
    archive = Held(tmp_path)
    writer = ArchiveWriter(archive)
    for step in range(2):
        writer.append(step, step_groups(step))  # would never come back if it waited for the disk
    assert RolloutArchive(tmp_path).last_step is None
    archive.goes_on.set()
    writer.flush()
    assert [row["step"] for row in rows_of(RolloutArchive(tmp_path))] == [0] * 4 + [1] * 4
    writer.close()


def test_no_more_than_two_steps_wait_so_that_memory_is_bounded(tmp_path: Path) -> None:
    archive = Held(tmp_path)
    writer = ArchiveWriter(archive, most_waiting=2)
    third = threading.Thread(target=lambda: [writer.append(step, step_groups(step)) for step in range(3)])
    third.start()
    third.join(0.5)
    assert third.is_alive()
    archive.goes_on.set()
    third.join(60)
    writer.close()
    assert RolloutArchive(tmp_path).num_steps == 3


def test_files_are_those_of_an_archive_written_in_the_loop(tmp_path: Path) -> None:
    writer = ArchiveWriter(RolloutArchive(tmp_path / "beside"))
    for step in range(4):
        writer.append(step, step_groups(step))
    writer.close()
    write_steps(tmp_path / "loop", range(4))
    assert shard_bytes(tmp_path / "beside") == shard_bytes(tmp_path / "loop")


def test_an_error_in_writing_is_raised_from_then_on_and_no_later_step_is_written(tmp_path: Path) -> None:
    (tmp_path / "rollouts").write_text("a file where the folder of the shards would be made")
    archive = Held(tmp_path)
    writer = ArchiveWriter(archive)
    writer.append(0, step_groups(0))
    writer.append(1, step_groups(1))
    archive.goes_on.set()
    for _ in range(2):
        with pytest.raises(OSError, match=r"rollouts/step-00000000\.parquet"):
            writer.flush()
    with pytest.raises(OSError, match=r"step-00000000\.parquet"):
        writer.append(2, step_groups(2))
    with pytest.raises(OSError, match=r"step-00000000\.parquet"):
        writer.close()
    assert [path.name for path in (tmp_path / "examples").iterdir()] == ["step-00000000.parquet"]
    assert not RolloutArchive(tmp_path).being_written
