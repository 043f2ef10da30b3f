"""The archive that the bench generates is one that a run could have written, and what is measured is what is done."""

from pathlib import Path

import pyarrow.parquet as pq

from rl.bench.archive import Appended, ArchiveBench, Chosen, choose_and_write, first_steps, measure_appending, tables
from rl.bench.made_archive import PER_STEP, write_archive
from rollout.archive import RolloutArchive


def test_the_generated_archive_is_whole_and_a_run_goes_on_in_it(tmp_path: Path) -> None:
    write_archive(tmp_path / "whole", 3 * PER_STEP)
    archive = RolloutArchive(tmp_path / "whole")
    assert (archive.verify(), archive.num_steps) == ([], 3)
    appended = measure_appending(tmp_path / "whole", rounds=2)
    assert (appended.answers, archive.num_steps, archive.verify()) == (3 * PER_STEP, 6, [])
    assert appended.milliseconds > 0


def test_pairs_are_chosen_from_the_first_steps_and_written(tmp_path: Path) -> None:
    write_archive(tmp_path / "whole", 3 * PER_STEP)
    first_steps(tmp_path / "whole", 2 * PER_STEP, tmp_path / "part")
    part = RolloutArchive(tmp_path / "part")
    assert (part.verify(), part.num_steps) == ([], 2)
    assert choose_and_write(part.folder, 300, tmp_path / "pairs.parquet") == 300
    pairs = pq.read_table(tmp_path / "pairs.parquet")
    assert len(set(zip(pairs["example_id"].to_pylist(), pairs["coarse_rle"].to_pylist(), strict=True))) == 300


def test_the_tables_give_what_a_million_further_answers_cost() -> None:
    chosen = [Chosen(1_000_000, 5, 10.0, 400.0, 80.0, 100.0), Chosen(3_000_000, 5, 20.0, 400.0, 130.0, 300.0)]
    first, second = tables(ArchiveBench(chosen, [Appended(0, 0.5, 100.0)]))
    assert [list(column.cells)[1] for column in first.columns] == [
        *("3,000,000", "5", "20.0", "5.0", "400", "300", "130", "0.25")
    ]
    assert [list(column.cells) for column in second.columns] == [["0"], ["100.0"], ["0.50 s"]]
