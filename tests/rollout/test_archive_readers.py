"""The tables of an archive open unchanged, single or merged, with what people use: pyarrow, DuckDB, datasets.

The run's folder is called like a partition, iou=0.9, which none of them may take for a column.
"""

from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from made_archive import rows_of, write_steps

from rollout.archive.archive import RolloutArchive
from rollout.archive.compact import Compaction


@pytest.fixture(params=["singles", "merged"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> RolloutArchive:
    made = write_steps(tmp_path / "iou=0.9" / "archive", range(5))
    made.close()
    if request.param == "merged":
        list(Compaction(made.folder, 3).run())
    return made


def test_pyarrow(archive: RolloutArchive) -> None:
    assert ds.dataset(archive.folder / "rollouts").to_table().to_pylist() == rows_of(archive)
    answers = ds.dataset(archive.folder / "rollouts").to_table(["step", "iou"], filter=ds.field("step") > 2)
    assert answers["step"].to_pylist() == [3] * 4 + [4] * 4
    assert ds.dataset(archive.folder / "examples").count_rows() == 6
    files = sorted((archive.folder / "rollouts").glob("*.parquet"))
    assert pq.read_table(files, partitioning=None).to_pylist() == rows_of(archive)
    assert [row for file in files for row in pq.read_table(file).to_pylist()] == rows_of(archive)  # as indices are read


def test_duckdb(archive: RolloutArchive) -> None:
    rollouts, examples = (
        f"read_parquet('{archive.folder}/{table}/*.parquet', hive_partitioning = false)"
        for table in ("rollouts", "examples")
    )
    rows = duckdb.sql(f"SELECT * FROM {rollouts} ORDER BY step, position, index").to_arrow_table().to_pylist()
    assert rows == rows_of(archive)
    assert duckdb.sql(f"SELECT count(*) FROM {rollouts} JOIN {examples} USING (example_id)").fetchall() == [(20,)]


def test_hugging_face_datasets(archive: RolloutArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    files = {"rollouts": f"{archive.folder}/rollouts/*.parquet", "examples": f"{archive.folder}/examples/*.parquet"}
    for table, num in (("rollouts", 20), ("examples", 6)):
        loaded = datasets.load_dataset("parquet", data_files=files[table], split="train", cache_dir=f"{tmp_path}/cache")
        assert loaded.num_rows == num
    loaded = datasets.load_dataset(
        "parquet", data_files=files["rollouts"], split="train", cache_dir=f"{tmp_path}/cache"
    )
    assert list(loaded) == rows_of(archive)
