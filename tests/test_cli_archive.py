"""The archive commands as a user types them, one after another on one run."""

import json
from pathlib import Path

import pytest
from made_archive import write_steps
from test_cli import polytrace


def said(*arguments: str) -> str:
    done = polytrace("archive", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_is_listed_compacted_verified_and_asked(tmp_path: Path) -> None:
    write_steps(tmp_path / "run" / "archive", range(5)).close()
    run = f"{tmp_path / 'run'}"
    (before,) = json.loads(said("ls", run, "--json"))
    assert (before["steps"], before["answers"], before["shards"]) == (5, 20, 10)
    assert "10 shards are now 4" in said("compact", run, "--steps-per-shard", "4")
    assert "is whole" in said("verify", run)
    assert json.loads(
        said("query", run, "SELECT step, count(*) AS n FROM rollouts GROUP BY 1 ORDER BY 1", "--json")
    ) == [{"step": step, "n": 4} for step in range(5)]
    (tmp_path / "run" / "archive" / "rollouts" / "step-00000004.parquet").write_bytes(b"PAR1")
    done = polytrace("archive", "verify", run)
    assert done.returncode == 1 and "step-00000004.parquet is torn" in done.stdout


@pytest.mark.parametrize("command", [["compact"], ["query", "SELECT 1"]])
def test_a_run_still_written_is_not_compacted_but_can_be_asked(tmp_path: Path, command: list[str]) -> None:
    archive = write_steps(tmp_path / "run" / "archive", range(1))
    done = polytrace("archive", command[0], f"{tmp_path / 'run'}", *command[1:])
    assert ("is being written" in done.stderr, done.returncode) == ((True, 2) if command == ["compact"] else (False, 0))
    archive.close()
