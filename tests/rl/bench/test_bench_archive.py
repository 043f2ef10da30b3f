"""The archive that the bench generates is one that a run could have written, and what is measured is what is done."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from envs.geometry.rle import mask_from_rle
from rl.bench.archive import (
    Appended,
    ArchiveBench,
    Chosen,
    Exported,
    as_json,
    first_steps,
    measure_appending,
    measure_choice,
    measure_choosing,
    measure_export,
    tables,
)
from rl.bench.made_archive import PER_STEP, num_steps, write_archive
from rollout.archive.archive import RolloutArchive


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "whole"
    write_archive(folder, 5 * PER_STEP, processes=1)
    return folder


def test_the_generated_archive_is_whole_and_a_run_goes_on_in_it(made: Path, tmp_path: Path) -> None:
    assert [num_steps(num) for num in (1, 4 * PER_STEP, 5 * PER_STEP)] == [4, 4, 8]
    first_steps(made, 5 * PER_STEP, tmp_path / "run")
    archive = RolloutArchive(tmp_path / "run/archive")
    assert (archive.verify(), archive.num_steps) == ([], 8)
    appended = measure_appending(archive.folder, rounds=2)
    assert (appended.answers, archive.num_steps, archive.verify()) == (8 * PER_STEP, 11, [])
    assert appended.milliseconds > 0 and RolloutArchive(made).num_steps == 8


def test_an_archive_that_is_there_is_made_longer_without_another_byte_in_what_it_holds(
    made: Path, tmp_path: Path
) -> None:
    write_archive(tmp_path, 1, processes=1)
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.parquet")}
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in files}
    write_archive(tmp_path, 5 * PER_STEP, processes=1)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in files} == times
    whole = {path.relative_to(made): path.read_bytes() for path in made.rglob("*.parquet")}
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.parquet")} == whole


def test_the_iou_of_a_generated_answer_is_that_of_its_outline_with_the_scenes_mask(made: Path, tmp_path: Path) -> None:
    first_steps(made, 1, tmp_path / "run")
    found = measure_choice(tmp_path / "run", 200, tmp_path / "pairs.parquet")
    pairs = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert found["pairs"] == len(pairs) == 200 == len({(pair["example_id"], pair["coarse_rle"]) for pair in pairs})
    for pair in pairs:
        coarse, true = (mask_from_rle(pair[name], 64, 64) for name in ("coarse_rle", "true_rle"))
        assert pair["iou"] == (coarse & true).sum() / (coarse | true).sum()
    assert np.ptp([pair["iou"] for pair in pairs]) > 0.4


def test_pairs_are_exported_with_their_images_and_in_a_process_of_its_own_the_same_are_chosen(
    made: Path, tmp_path: Path
) -> None:
    first_steps(made, 1, tmp_path / "run")
    found = measure_export(tmp_path / "run", 50, tmp_path / "out")
    assert found["pairs"] == 50 and found["written_mb"] > 0.1
    shard = pq.read_table(tmp_path / "out/data/train-00000.parquet")
    assert shard.num_rows == 50 and shard["image"][0].as_py()["bytes"].startswith(b"\x89PNG")
    chosen = measure_choosing(tmp_path / "run", 50)
    assert (chosen.answers, chosen.pairs) == (4 * PER_STEP, 50)
    assert chosen.peak_mb > 50 and chosen.read_mb > 0


def test_a_further_million_answers_that_take_as_long_as_the_first_are_linear() -> None:
    chosen = [Chosen(1_000_000, 5, 10.0, 1.0, 400.0, 80.0, 100.0), Chosen(3_000_000, 5, 30.0, 1.0, 400.0, 130.0, 300.0)]
    found = ArchiveBench(chosen, Exported(3_000_000, 5, 40.0, 500.0, 2.0), [Appended(0, 0.5, 100.0)])
    assert (found.linearity, found.share_read) == (1.0, 0.25)
    assert as_json(found)["linearity"] == 1.0
    first, second, third, _ = tables(found)
    assert [list(column.cells)[1] for column in first.columns] == [
        *("3,000,000", "5", "30.0", "10.0", "1.0", "400", "300", "130")
    ]
    assert [list(column.cells) for column in second.columns] == [
        *(["3,000,000"], ["5"], ["40.0"], ["500"], ["1,000"], ["2"])
    ]
    assert [list(column.cells) for column in third.columns] == [["0"], ["100.0"], ["0.50 s"]]
