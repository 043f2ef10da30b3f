"""The archive commands one after another on one run, in this process; test_cli.py has them as a user starts them."""

import json
from pathlib import Path

import pytest
from made_archive import write_steps
from typer.testing import CliRunner

from rl.cli.archive import archive_app


def said(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(archive_app, arguments)
    assert done.exit_code == status, done.exception
    return done.stdout


def test_a_run_is_listed_compacted_verified_and_asked(tmp_path: Path) -> None:
    write_steps(tmp_path / "run" / "archive", range(5)).close()
    run = f"{tmp_path / 'run'}"
    (before,) = json.loads(said("ls", run, "--json"))
    assert (before["steps"], before["answers"], before["shards"]) == (5, 20, 10)
    assert "0.500" in said("ls", run)
    assert "10 shards are now 4" in said("compact", run, "--steps-per-shard", "4")
    assert "is whole" in said("verify", run)
    sql = "SELECT step, count(*) AS n FROM rollouts GROUP BY step ORDER BY step"
    assert json.loads(said("query", run, sql, "--json")) == [{"step": step, "n": 4} for step in range(5)]
    said("query", run, sql, "--csv", f"{tmp_path / 'out.csv'}")
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "0,4"
    said("show", run, "--best", "1", "--out", f"{tmp_path / 'best.html'}")
    assert (tmp_path / "best.html").exists()
    (tmp_path / "run" / "archive" / "rollouts" / "step-00000004.parquet").write_bytes(b"PAR1")
    assert "step-00000004.parquet is torn" in said("verify", run, status=1)


def test_a_run_still_written_is_not_compacted_but_can_be_listed_and_asked(tmp_path: Path) -> None:
    archive, run = write_steps(tmp_path / "run" / "archive", range(1)), f"{tmp_path / 'run'}"
    with pytest.raises(ValueError, match="is being written by another process"):
        raise CliRunner().invoke(archive_app, ["compact", run]).exception
    assert json.loads(said("ls", run, "--json"))[0]["being_written"] is True
    assert json.loads(said("query", run, "SELECT count(*) AS n FROM rollouts", "--json")) == [{"n": 4}]
    archive.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "RUN", "--out", "file/x.png"], "x.png cannot be written: .*/file is a file, and no folder"),
        (["show", "RUN", "--out", "made.html"], "made.html is a folder"),
        (["query", "RUN", "SELECT 1", "--csv", "file/x.csv"], "x.csv cannot be written: .*/file is a file, and no"),
        (["query", "RUN", "SELECT 1", "--csv", "new.csv", "--parquet", "made.parquet"], "made.parquet is a folder"),
        (["query", "RUN", "SELECT 1", "--csv", "x.parquet"], "--csv is x.parquet, which ends in .parquet; take --parq"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_archive_is_read_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    for name in ("made.html", "made.parquet", "run"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=says):
        raise CliRunner().invoke(archive_app, ["run" if word == "RUN" else word for word in arguments]).exception
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "made.html", "made.parquet", "run"]
