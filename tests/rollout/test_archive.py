import errno
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_archive import SQUARE, example, group, rollout, rows_of, shard_bytes, write_steps

from envs.geometry.raster import RASTER_VERSION
from envs.polygons import Answer, AnswerStatus, Instance, instance_from_rings
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import ANSWER_COLUMNS, answer_from_row, example_table, rollout_table, truth_from_row
from rollout.archive.shards import content_sha256, write_shard

PROCESSES = multiprocessing.get_context("fork")  # no imports in the child: it writes at once


def test_rows_hold_what_was_appended(tmp_path: Path) -> None:
    archive = write_steps(tmp_path, range(2))
    rows = rows_of(archive)
    assert [(row["step"], row["position"], row["index"]) for row in rows] == [
        *((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1))
    ]
    row = rows[3]
    assert (row["run"], row["example_id"], row["prompt"]) == ("run", "asked at 0", "the square")
    assert (row["tokens"], row["logprobs"], row["text"], row["finish"]) == ([0, 1, 2], [-1, -0.5, 0], "text 1", "stop")
    assert (row["policy_version"], row["policy_checksum"], row["seed"]) == (3, "cd" * 32, 2**64 - 1)
    assert (row["max_tokens"], row["grammar"], row["bare"]) == (64, True, True)
    assert (row["temperature"], row["total"], row["reward_mask_iou"], row["reward_format"]) == (0.5, 0.75, 0.5, None)
    assert (row["intersection_px"], row["answer_area_px"], row["iou"]) == (9, 12, 0.5)
    assert row["vertices_px"][:2] == [2.125, 2.125]
    assert archive.last_step == 1


def test_what_further_heads_chose_is_kept_place_by_place_and_null_where_there_are_none(tmp_path: Path) -> None:
    bins = np.array([[5, -1, -1], [-1, 7, 1023], [-1, -1, -1]], np.int16)
    plain = group(0, 0, "a")
    chosen = tuple(replace(one, response=replace(one.response, bins=bins + one.index)) for one in plain.rollouts)
    archive = RolloutArchive(tmp_path)
    archive.append(0, [replace(plain, rollouts=chosen), group(0, 1, "b")])
    first, second, *others = rows_of(archive)
    assert first["bins"] == [5, -1, -1, -1, 7, 1023, -1, -1, -1]
    assert np.array_equal(np.reshape(second["bins"], (3, 3)), bins + 1)
    assert [row["bins"] for row in others] == [None, None]
    assert (first["tokens"], first["logprobs"]) == (others[0]["tokens"], others[0]["logprobs"])


def test_groups_are_stored_in_the_order_of_their_positions(tmp_path: Path) -> None:
    RolloutArchive(tmp_path).append(0, [group(0, 1, "b"), group(0, 0, "a")])
    assert [row["example_id"] for row in rows_of(RolloutArchive(tmp_path))] == ["a", "a", "b", "b"]


def test_an_example_is_stored_once_in_a_run_also_after_reopening(tmp_path: Path) -> None:
    write_steps(tmp_path, range(2))
    write_steps(tmp_path, range(2, 4))
    ids = [name for batch in RolloutArchive(tmp_path).examples(["example_id"]) for name in batch[0].to_pylist()]
    assert ids == ["often asked", "asked at 0", "asked at 1", "asked at 2", "asked at 3"]


def test_equal_runs_are_equal_files_and_a_resumed_run_too(tmp_path: Path) -> None:
    write_steps(tmp_path / "a", range(3))
    write_steps(tmp_path / "b", range(2))
    write_steps(tmp_path / "b", range(2, 3))
    assert len(shard_bytes(tmp_path / "a")) == 6
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "b")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(AnswerStatus.EMPTY),
        Answer(AnswerStatus.EMPTY, bare=False),
        Answer(AnswerStatus.EMPTY, thinking=""),
        Answer(AnswerStatus.UNPARSABLE, thinking="the left\none, ärgerlich"),
        Answer(AnswerStatus.TRUNCATED),
        Answer(AnswerStatus.OK, (instance_from_rings([SQUARE, SQUARE[::-1] / 3]), instance_from_rings([SQUARE + 0.1]))),
        Answer(
            AnswerStatus.OK,
            (
                instance_from_rings([SQUARE], (2.0, 2.0, 6.0, 6.5)),
                Instance(SQUARE, np.array([0, 4]), None, "apple", 0.875),
            ),
        ),
    ],
)
def test_an_answer_comes_back_exactly(tmp_path: Path, answer: Answer) -> None:
    one = replace(group(0, 0, "a"), rollouts=(rollout(0, answer),), totals=(0.0,))
    archive = RolloutArchive(tmp_path)
    archive.append(0, [one])
    (row,) = next(archive.rollouts(ANSWER_COLUMNS)).to_pylist()
    back = answer_from_row(row)
    assert (back.status, back.bare, back.thinking) == (answer.status, answer.bare, answer.thinking)
    assert len(back.instances) == len(answer.instances)
    for ours, theirs in zip(back.instances, answer.instances, strict=True):
        np.testing.assert_array_equal(ours.vertices_px, theirs.vertices_px, strict=True)
        np.testing.assert_array_equal(ours.ring_offsets, theirs.ring_offsets, strict=True)
        assert (ours.box_px, ours.label, ours.score) == (theirs.box_px, theirs.label, theirs.score)


@pytest.mark.parametrize("num_instances", [0, 1, 3])
def test_a_truth_comes_back_exactly(num_instances: int) -> None:
    truth = replace(example("a", num_instances).truth, ignore=np.eye(8, 10, dtype=np.bool_))
    (row,) = example_table([replace(example("a"), truth=truth)]).to_pylist()
    np.testing.assert_array_equal(truth_from_row(row).masks, truth.masks, strict=True)
    np.testing.assert_array_equal(truth_from_row(row).ignore, truth.ignore, strict=True)


def test_text_that_is_not_unicode_is_archived_with_a_mark(tmp_path: Path) -> None:
    one = replace(group(0, 0, "a"), rollouts=(replace(rollout(0), text="M\ud8001"),), totals=(0.0,))
    RolloutArchive(tmp_path).append(0, [one])
    assert rows_of(RolloutArchive(tmp_path))[0]["text"] == "M?1"


def test_the_tables_open_unchanged_with_pyarrow_dataset(tmp_path: Path) -> None:
    write_steps(tmp_path, range(3))
    (tmp_path / "rollouts" / ".step-00000003.parquet.partial").write_bytes(b"torn")
    answers = ds.dataset(tmp_path / "rollouts").to_table(["step", "iou"], filter=ds.field("step") > 0)
    assert (answers.num_rows, answers["iou"].to_pylist()) == (8, [0.5] * 8)
    assert ds.dataset(tmp_path / "examples").count_rows() == 4


def test_columns_and_steps_are_pruned_and_an_unknown_column_is_refused(tmp_path: Path) -> None:
    archive = write_steps(tmp_path, range(3))
    (batch,) = archive.rollouts(["total", "step"], steps={1})
    assert batch.to_pydict() == {"total": [0.25, 0.75] * 2, "step": [1] * 4}
    with pytest.raises(ValueError, match=r"no column reward; it has run, step"):
        list(archive.rollouts(["reward"]))


def test_a_shard_names_its_versions_and_its_checksum_can_be_made_again(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1))
    with pq.ParquetFile(tmp_path / "rollouts" / "step-00000000.parquet") as file:
        notes, table = file.metadata.metadata, file.read()
    assert notes[b"polytrace.schema_version"] == b"4"
    assert notes[b"polytrace.version"] == version("polytrace").encode()
    assert notes[b"polytrace.row_group_steps"] == b"0"
    assert notes[b"polytrace.raster_version"] == f"{RASTER_VERSION}".encode()
    assert notes[b"polytrace.row_group_sha256"].decode() == content_sha256(table)


def test_the_checksum_sees_values_and_not_how_they_are_cut() -> None:
    table = rollout_table([group(0, 0, "a"), group(0, 1, "b")])
    assert content_sha256(pa.concat_tables([table[:1], table[1:]])) == content_sha256(table)
    assert content_sha256(table.take([1, 0, 2, 3])) != content_sha256(table)
    halves = [pa.table({"a": pa.array(rows, pa.list_(pa.int32()))}) for rows in ([[1], [2, 3]], [[1, 2], [3]])]
    assert content_sha256(halves[0]) != content_sha256(halves[1])
    nulls = [pa.table({"a": pa.array(rows, pa.float64())}) for rows in ([0.0], [None])]
    assert content_sha256(nulls[0]) != content_sha256(nulls[1])


@pytest.mark.parametrize("step", [0, 2])
def test_a_step_is_appended_once_and_in_order(tmp_path: Path, step: int) -> None:
    archive = write_steps(tmp_path, range(3))
    with pytest.raises(ValueError, match=rf"Step {step} cannot.*reaches step 2.*set_aside_after\({step - 1}\)"):
        archive.append(step, [group(step, 0, "a")])


def test_what_does_not_fit_the_archive_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    archive = write_steps(tmp_path, range(1))
    before = shard_bytes(tmp_path)
    fit = group(1, 0, "new")
    other = tuple(replace(one, terms={"mask_iou": 1.0}) for one in fit.rollouts)
    with pytest.raises(ValueError, match=r"rewards.*use another run folder"):
        archive.append(1, [replace(fit, rollouts=other)])
    with pytest.raises(ValueError, match="0 totals for 2 answers"):
        archive.append(1, [replace(fit, totals=())])
    with pytest.raises(ValueError, match="position 0 is of step 1"):
        archive.append(2, [fit])
    with pytest.raises(ValueError, match="no answer"):
        archive.append(1, [])
    assert shard_bytes(tmp_path) == before


def test_verify_finds_nothing_in_a_whole_archive_and_refuses_a_folder_without_one(tmp_path: Path) -> None:
    assert write_steps(tmp_path / "archive", range(3)).verify() == []
    with pytest.raises(FileNotFoundError, match="No archive in"):
        RolloutArchive(tmp_path).verify()
    with pytest.raises(FileNotFoundError, match="No archive in"):
        list(RolloutArchive(tmp_path).rollouts())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), table=st.sampled_from(["rollouts", "examples"]))
def test_verify_finds_any_altered_byte_and_any_cut(tmp_path_factory, data: st.DataObject, table: str) -> None:
    folder = tmp_path_factory.mktemp("archive")
    archive = write_steps(folder, range(1))
    path = folder / table / "step-00000000.parquet"
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:place])
    assert path in {finding.path for finding in archive.verify()}
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    assert path in {finding.path for finding in archive.verify()}


def test_an_altered_row_group_is_told_from_whole_ones(tmp_path: Path) -> None:
    archive = write_steps(tmp_path, range(1))
    path = tmp_path / "rollouts" / "step-00000000.parquet"
    with pq.ParquetFile(path) as file:
        place = file.metadata.row_group(0).column(0).data_page_offset + 40
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    (finding,) = archive.verify()
    assert finding.problem == "altered: 1 of 1 row groups differ from their checksum"
    assert finding.savable.startswith("0 rows")
    with pytest.raises(ValueError, match=r"step-00000000\.parquet is altered"):
        rows_of(archive)


def test_verify_finds_a_missing_step_a_missing_example_and_a_misnamed_shard(tmp_path: Path) -> None:
    archive = write_steps(tmp_path, range(4))
    (tmp_path / "rollouts" / "step-00000001.parquet").unlink()
    (tmp_path / "examples" / "step-00000003.parquet").unlink()
    (tmp_path / "rollouts" / "step-00000002.parquet").rename(tmp_path / "rollouts" / "step-00000004.parquet")
    assert [(finding.path.name, finding.problem) for finding in archive.verify()] == [
        ("step-00000003.parquet", "1 of its examples are not in the examples table, asked at 3 first"),
        ("step-00000004.parquet", "holds answers of steps [2], not of step 4"),
        ("step-00000001.parquet", "step 1 is missing"),
        ("step-00000002.parquet", "step 2 is missing"),
    ]


def test_verify_finds_leftovers_and_strangers(tmp_path: Path) -> None:
    archive = write_steps(tmp_path, range(1))
    (tmp_path / "rollouts" / ".step-00000001.parquet.partial").write_bytes(b"PAR1")
    (tmp_path / "examples" / "notes.txt").write_text("mine")
    assert [(finding.path.name, finding.problem) for finding in archive.verify()] == [
        ("notes.txt", "not a shard of this archive"),
        (".step-00000001.parquet.partial", "left from a write that was interrupted"),
    ]


def test_another_schema_version_is_refused_with_the_version_that_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_steps(tmp_path, range(1))
    monkeypatch.setattr("rollout.archive.shards.READABLE_VERSIONS", (7,))
    told = f"has archive schema version 4, this Polytrace .* reads 7; read it with Polytrace {version('polytrace')}"
    assert re.search(told, archive.verify()[0].problem)
    with pytest.raises(ValueError, match=told):
        rows_of(archive)


def test_an_archive_of_schema_1_is_read_as_if_it_were_of_today_and_a_run_goes_on_in_it(tmp_path: Path) -> None:
    """The files in archive_v1 were written by the code of schema 1, with the `write_steps` of this file."""
    shutil.copytree(Path(__file__).parents[1] / "archive_v1", tmp_path / "old")
    old, new = RolloutArchive(tmp_path / "old"), write_steps(tmp_path / "new", range(2))
    assert old.verify() == []
    unknown = {"max_tokens": None, "grammar": None, "bare": None, "thinking": None}
    assert rows_of(old) == [row | unknown for row in rows_of(new)]
    assert next(old.rollouts(["grammar", "step"])).to_pydict() == {"grammar": [None] * 4, "step": [0] * 4}
    assert next(old.rollouts(["grammar"])).to_pydict() == {"grammar": [None] * 4}
    of_old, of_new = ([row for batch in each.examples() for row in batch.to_pylist()] for each in (old, new))
    assert of_old == [row | {"asked": None} for row in of_new]
    assert {row["asked"] for row in of_new} == {"mask"}
    old.append(2, [group(2, 0, "asked at 0")])
    assert (old.verify(), rows_of(old)[-1]["grammar"]) == ([], True)


def test_reasoning_that_is_no_utf_8_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    archive = RolloutArchive(tmp_path)
    one = replace(
        group(0, 0, "a"), rollouts=(rollout(0, Answer(AnswerStatus.EMPTY, thinking="so\ud800")),), totals=(0.5,)
    )
    archive.append(0, [one])
    assert (archive.verify(), rows_of(archive)[0]["thinking"]) == ([], "so?")


def test_later_steps_are_set_aside_and_doing_so_twice_clashes_with_nothing(tmp_path: Path) -> None:
    whole = shard_bytes(write_steps(tmp_path, range(4)).folder)
    (tmp_path / "rollouts" / ".step-00000004.parquet.partial").write_bytes(b"PAR1")
    archive = RolloutArchive(tmp_path)
    for attempt in (1, 2):
        moved = archive.set_aside_after(1)
        assert {str(path.relative_to(tmp_path / "set_aside")) for path in moved} == {
            f"{attempt:04d}/{table}/step-0000000{step}.parquet" for table in ("rollouts", "examples") for step in (2, 3)
        }
        assert (archive.last_step, archive.verify()) == (1, [])
        for step in (2, 3):
            archive.append(step, [group(step, 0, "often asked"), group(step, 1, f"asked at {step}")])
    assert archive.set_aside_after(3) == []
    again = {name: data for name, data in shard_bytes(tmp_path).items() if not name.startswith("set_aside")}
    assert again == whole


def test_a_fresh_archive_has_no_last_step_and_nothing_to_set_aside(tmp_path: Path) -> None:
    archive = RolloutArchive(tmp_path / "archive")
    assert (archive.last_step, archive.set_aside_after(-1)) == (None, [])
    assert not archive.folder.exists()


def next_step(archive: RolloutArchive) -> int:
    return 0 if archive.last_step is None else archive.last_step + 1


def append_forever(folder: Path) -> None:
    archive = RolloutArchive(folder)
    while True:
        step = next_step(archive)
        archive.append(step, [group(step, k, f"{step} {k}", num_tokens=2000) for k in range(8)])


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was never written"
        time.sleep(0.002)


def test_a_writer_killed_at_any_moment_leaves_whole_shards_only(tmp_path: Path) -> None:
    moments = random.Random(0)
    for _ in range(12):
        first = next_step(RolloutArchive(tmp_path))
        child = PROCESSES.Process(target=append_forever, args=(tmp_path,))
        child.start()
        wait_for(tmp_path / "rollouts" / f"step-{first:08d}.parquet")
        time.sleep(moments.uniform(0, 0.05))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        archive = RolloutArchive(tmp_path)
        assert all(finding.path.name.endswith(".partial") for finding in archive.verify())
        archive.set_aside_after(archive.last_step)
        archive.close()
        assert archive.verify() == []
    assert sum(batch.num_rows for batch in archive.rollouts(["step"])) == 16 * next_step(archive)


def append_with_a_full_disk(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    write_steps(folder, range(2, 3))
    RolloutArchive(folder).append(3, [group(3, 0, "long", num_tokens=200_000)])


def test_a_full_disk_is_an_error_that_names_the_file_and_the_archive_stays_whole(tmp_path: Path) -> None:
    write_steps(tmp_path, range(2))
    with ProcessPoolExecutor(1, mp_context=PROCESSES) as pool:
        error = pool.submit(append_with_a_full_disk, tmp_path).exception()
    path = tmp_path / "rollouts" / "step-00000003.parquet"
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.EFBIG, str(path))
    assert "this shard was not written" in str(error)
    archive = RolloutArchive(tmp_path)
    assert (archive.last_step, archive.verify()) == (2, [])
    archive.append(3, [group(3, 0, "long", num_tokens=200_000)])
    assert archive.verify() == []


def test_an_interrupted_step_is_completed_by_the_same_groups_and_other_groups_are_told_what_to_do(
    tmp_path: Path,
) -> None:
    write_steps(tmp_path, range(1)).close()
    write_shard(tmp_path / "examples" / "step-00000001.parquet", example_table([example("a")]))
    archive = RolloutArchive(tmp_path)
    with pytest.raises(ValueError, match=r"step 1 that was interrupted; call set_aside_after\(0\)"):
        archive.append(1, [group(1, 0, "b")])
    archive.append(1, [group(1, 0, "a")])
    assert archive.verify() == []
