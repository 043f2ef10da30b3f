"""Merged shards hold the same rows, a kill at any point loses and doubles none, and everything goes on as before."""

import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from made_archive import group, rows_of, shard_bytes, write_steps

from rollout.archive.archive import RolloutArchive
from rollout.archive.compact import Compaction
from rollout.archive.shards import content_sha256, open_shard, row_group_hashes, row_group_steps

PROCESSES = multiprocessing.get_context("fork")
KILLED = 9


def compact(folder: Path, steps_per_shard: int = 4) -> None:
    list(Compaction(folder, steps_per_shard).run())


def archived(folder: Path, num_steps: int) -> Path:
    write_steps(folder, range(num_steps)).close()
    return folder


def names(folder: Path, table: str) -> list[str]:
    return sorted(path.name for path in (folder / table).iterdir())


def examples_of(folder: Path) -> list[object]:
    return [row for batch in RolloutArchive(folder).examples() for row in batch.to_pylist()]


def killed_at_each_call(folder: Path, work: Callable[[], None], look: Callable[[], None]) -> int:
    """Do the work in children that are killed at their first, second, ... change of the folder, until one ends.

    Looks at the folder, put back between them, after each. Returns how many were killed.
    """
    kept = shutil.copytree(folder, folder.with_name("kept"))

    def child(last: int) -> None:
        calls = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal calls
            changes = event in {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir"}
            if changes or (event == "open" and "partial" in str(arguments[0])):
                calls += 1
                if calls > last:
                    os._exit(KILLED)

        sys.addaudithook(count)
        work()

    for last in range(1000):
        process = PROCESSES.Process(target=child, args=(last,))
        process.start()
        process.join()
        look()
        if process.exitcode == 0:
            return last
        assert process.exitcode == KILLED
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    raise AssertionError("the work never ended")


def test_rows_stay_and_shards_become_few(tmp_path: Path) -> None:
    archive = write_steps(archived(tmp_path, 6), range(6, 10))
    archive.close()
    rows, examples = rows_of(archive), examples_of(tmp_path)
    compact(tmp_path)
    assert (
        names(tmp_path, "rollouts")
        == names(tmp_path, "examples")
        == [f"step-{first:08d}-{last:08d}.parquet" for first, last in ((0, 3), (4, 7), (8, 9))]
    )
    assert (rows_of(archive), examples_of(tmp_path), archive.verify()) == (rows, examples, [])
    assert (archive.last_step, archive.num_steps, archive.reward_names) == (9, 10, ("format", "mask_iou"))
    assert {batch["step"][0].as_py(): batch.num_rows for batch in archive.rollouts()} == dict.fromkeys(range(10), 4)
    (batch,) = archive.rollouts(["step"], steps={6})
    assert batch["step"].to_pylist() == [6] * 4
    assert ds.dataset(tmp_path / "rollouts").count_rows() == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "examples", "rollouts"]


def test_a_merged_shard_keeps_a_row_group_and_its_checksum_a_step(tmp_path: Path) -> None:
    singles = [tmp_path / "single" / "rollouts" / f"step-{step:08d}.parquet" for step in range(3)]
    archived(tmp_path / "single", 3)
    compact(shutil.copytree(tmp_path / "single", tmp_path / "merged"))
    with open_shard(tmp_path / "merged" / "rollouts" / "step-00000000-00000002.parquet") as file:
        assert row_group_steps(file, 0) == [0, 1, 2]
        hashes = []
        for path in singles:
            with open_shard(path) as single:
                hashes += row_group_hashes(single)
        assert row_group_hashes(file) == hashes == [content_sha256(file.read_row_group(k)) for k in range(3)]


def test_equal_archives_are_equal_files_after_compacting_and_again_is_nothing_new(tmp_path: Path) -> None:
    for name in ("a", "b"):
        compact(archived(tmp_path / name, 7))
    once = shard_bytes(tmp_path / "a")
    assert once == shard_bytes(tmp_path / "b")
    compact(tmp_path / "a")
    assert once == shard_bytes(tmp_path / "a")


def test_a_run_goes_on_in_a_compacted_archive_and_its_new_shards_join_the_last_stretch(tmp_path: Path) -> None:
    compact(archived(tmp_path, 6))
    archive = write_steps(tmp_path, range(6, 9))
    assert archive.verify() == []
    archive.close()
    compact(tmp_path)
    assert names(tmp_path, "rollouts") == [
        *("step-00000000-00000003.parquet", "step-00000004-00000007.parquet", "step-00000008.parquet")
    ]
    whole = write_steps(tmp_path / "whole", range(9))
    assert (rows_of(archive), examples_of(tmp_path)) == (rows_of(whole), examples_of(whole.folder))


def test_missing_steps_stay_missing(tmp_path: Path) -> None:
    archived(tmp_path, 6)
    (tmp_path / "rollouts" / "step-00000002.parquet").unlink()
    compact(tmp_path, 100)
    assert names(tmp_path, "rollouts") == ["step-00000000-00000001.parquet", "step-00000003-00000005.parquet"]
    (finding,) = RolloutArchive(tmp_path).verify()
    assert finding.problem == "step 2 is missing"


def test_a_run_still_written_is_refused_until_its_writer_ends_or_is_killed(tmp_path: Path) -> None:
    archive = write_steps(tmp_path, range(3))
    other = RolloutArchive(tmp_path)
    assert other.being_written
    with pytest.raises(ValueError, match=r"is being written by another process; wait until that run has ended"):
        Compaction(tmp_path)
    with pytest.raises(ValueError, match="is being written by another process"):
        other.append(3, [group(3, 0, "a")])
    archive.close()
    assert not other.being_written
    child = PROCESSES.Process(target=lambda: (write_steps(tmp_path, range(3, 4)), os._exit(KILLED)))
    child.start()
    child.join()
    assert not other.being_written
    compact(tmp_path)
    assert other.num_steps == 4


def test_an_altered_shard_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    archived(tmp_path, 3)
    path = tmp_path / "rollouts" / "step-00000001.parquet"
    with open_shard(path) as file:
        place = file.metadata.row_group(0).column(0).data_page_offset + 40
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    before = names(tmp_path, "rollouts")
    with pytest.raises(ValueError, match=r"step-00000001\.parquet is altered; `polytrace archive verify RUN`"):
        compact(tmp_path)
    assert names(tmp_path, "rollouts") == before


def test_verify_says_which_steps_of_a_merged_shard_can_be_saved(tmp_path: Path) -> None:
    compact(archived(tmp_path, 4))
    path = tmp_path / "rollouts" / "step-00000000-00000003.parquet"
    with open_shard(path) as file:
        place = file.metadata.row_group(1).column(0).data_page_offset + 40
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    (finding,) = RolloutArchive(tmp_path).verify()
    assert finding.problem == "altered: 1 of 4 row groups differ from their checksum"
    assert finding.savable == "12 rows in whole row groups, of steps 0, 2 to 3; or resume from before step 0"


def test_verify_finds_steps_that_two_shards_hold_and_a_merged_shard_under_another_name(tmp_path: Path) -> None:
    archived(tmp_path, 4)
    single = (tmp_path / "rollouts" / "step-00000002.parquet").read_bytes()
    compact(tmp_path)
    (tmp_path / "rollouts" / "step-00000002.parquet").write_bytes(single)
    (finding,) = RolloutArchive(tmp_path).verify()
    assert finding.problem == "its steps are also those of step-00000000-00000003.parquet"
    (tmp_path / "rollouts" / "step-00000002.parquet").unlink()
    merged = tmp_path / "rollouts" / "step-00000000-00000003.parquet"
    merged.rename(merged.with_name("step-00000000-00000004.parquet"))
    (finding,) = RolloutArchive(tmp_path).verify()
    assert finding.problem == "holds answers of steps [0, 1, 2, 3], not of steps 0 to 4"


@pytest.mark.parametrize("last", [0, 1, 3, 4, 8])
def test_later_steps_are_cut_out_of_a_merged_shard_and_the_run_goes_on_to_the_same_rows(
    tmp_path: Path, last: int
) -> None:
    compact(archived(tmp_path / "run", 9))
    whole = RolloutArchive(archived(tmp_path / "whole", 9))
    archive = RolloutArchive(tmp_path / "run")
    moved = archive.set_aside_after(last)
    assert (archive.last_step, archive.verify()) == (last, [])
    tables = [ds.dataset([path for path in moved if path.parent.name == table]) for table in ("rollouts", "examples")]
    assert [table.count_rows() for table in tables if table.files] == [4 * (8 - last), 8 - last][: 2 * (last < 8)]
    for step in range(last + 1, 9):
        archive.append(step, [group(step, 0, "often asked"), group(step, 1, f"asked at {step}")])
    assert (rows_of(archive), archive.verify()) == (rows_of(whole), [])
    assert examples_of(archive.folder) == examples_of(whole.folder)


def test_a_reader_goes_on_undisturbed_while_the_archive_is_compacted(tmp_path: Path) -> None:
    archive = RolloutArchive(archived(tmp_path, 10))
    rows, reading = rows_of(archive), archive.rollouts()
    seen = [next(reading) for _ in range(2)]
    compact(tmp_path)
    seen += [next(reading) for _ in range(4)]
    compact(tmp_path, 100)
    assert [row for batch in [*seen, *reading] for row in batch.to_pylist()] == rows


@pytest.mark.slow
def test_compacting_killed_at_any_point_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    folder = archived(tmp_path / "archive", 3)
    rows, examples = rows_of(RolloutArchive(folder)), examples_of(folder)

    def look() -> None:
        archive = RolloutArchive(folder)
        assert (rows_of(archive), examples_of(folder)) == (rows, examples)
        assert {finding.problem for finding in archive.verify()} <= {"left from a write that was interrupted"}
        # For other readers a table is whole, or, between two renames, not there.
        assert all(ds.dataset(path).count_rows() == 12 for path in [folder / "rollouts"] if path.is_dir())
        archive.append(3, [group(3, 0, "often asked")])  # whatever the kill left, a run goes on in it
        archive.close()
        assert (rows_of(archive)[:12], archive.num_steps, archive.verify()) == (rows, 4, [])
        compact(folder, 2)
        assert (rows_of(archive)[:12], archive.num_steps, archive.verify()) == (rows, 4, [])
        assert len(names(folder, "rollouts")) == len(names(folder, "examples")) == 2

    assert killed_at_each_call(folder, lambda: compact(folder, 2), look) > 20


@pytest.mark.slow
def test_setting_aside_killed_at_any_point_is_finished_by_the_next_call(tmp_path: Path) -> None:
    compact(archived(tmp_path / "archive", 4), 3)
    folder = tmp_path / "archive"
    rows = rows_of(RolloutArchive(folder))

    def look() -> None:
        archive = RolloutArchive(folder)
        assert rows_of(archive) in (rows, rows[:8])
        archive.set_aside_after(1)
        archive.close()
        assert (rows_of(archive), len(examples_of(folder)), archive.verify()) == (rows[:8], 3, [])

    assert killed_at_each_call(folder, lambda: RolloutArchive(folder).set_aside_after(1), look) > 12
