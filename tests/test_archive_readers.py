"""The tables of an archive open unchanged, single or merged, with what people use: pyarrow, DuckDB, datasets."""

from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pytest
from made_archive import rows_of, write_steps

from rollout.archive import RolloutArchive
from rollout.compaction import Compaction


@pytest.fixture(params=["singles", "merged"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> RolloutArchive:
    made = write_steps(tmp_path / "archive", range(5))
    made.close()
    if request.param == "merged":
        list(Compaction(made.folder, 3).run())
    return made


def test_pyarrow(archive: RolloutArchive) -> None:
    assert ds.dataset(archive.folder / "rollouts").to_table().to_pylist() == rows_of(archive)
    answers = ds.dataset(archive.folder / "rollouts").to_table(["step", "iou"], filter=ds.field("step") > 2)
    assert answers["step"].to_pylist() == [3] * 4 + [4] * 4
    assert ds.dataset(archive.folder / "examples").count_rows() == 6


def test_duckdb(archive: RolloutArchive) -> None:
    files = f"{archive.folder}/rollouts/*.parquet"
    rows = duckdb.sql(f"SELECT * FROM '{files}' ORDER BY step, position, index").to_arrow_table().to_pylist()
    assert rows == rows_of(archive)
    asked = f"SELECT count(*) FROM '{files}' r JOIN '{archive.folder}/examples/*.parquet' e USING (example_id)"
    assert duckdb.sql(asked).fetchall() == [(20,)]


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
