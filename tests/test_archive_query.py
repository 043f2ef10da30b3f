"""SQL over runs: the same answers as reading the rows, and a mistake is one line that names the columns."""

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_archive import shard_bytes, write_steps
from rich.console import Console

from rl.archive_list import list_runs
from rl.archive_query import asked, print_json, print_table, write_rows
from rl.run_folders import archived_runs


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs, one in a folder with a name that SQL and patterns would read otherwise."""
    folders = [tmp_path / "a", tmp_path / "b's [1] *?"]
    for folder, steps in zip(folders, (2, 3), strict=True):
        write_steps(folder / "archive", range(steps)).close()
    return folders


def rows(runs: list[Path], sql: str) -> list[tuple]:
    with asked(runs, sql) as found:
        return found.fetchall()


def test_views_hold_the_rows_of_all_runs_with_their_folder(runs: list[Path]) -> None:
    sql = "SELECT run_folder, count(*), max(step), avg(iou) FROM rollouts GROUP BY ALL ORDER BY 1"
    assert rows(runs, sql) == [(f"{runs[0]}", 8, 1, 0.5), (f"{runs[1]}", 12, 2, 0.5)]
    joined = "FROM rollouts r JOIN examples e USING (run_folder, example_id)"
    assert rows(runs, f"SELECT count(*), min(e.width) {joined}") == [(20, 10)]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (
            "SELECT iuo FROM rollouts",
            r"column \"iuo\" not found.*rollouts has run_folder, run.*iou.*examples",
        ),
        ("SELEC 1", r"syntax error at or near \"SELEC\".*rollouts has run_folder"),
        ("SELECT * FROM rolouts", "Table with name rolouts does not exist.*examples has run_folder, example_id"),
        ("SELECT CAST(text AS INTEGER) FROM rollouts", "Could not convert string.*rollouts has run_folder"),
        ("", "not one SELECT"),
        ("SELECT 1; SELECT 2", "not one SELECT"),
        ("COPY rollouts TO 'x.csv'", "is not one SELECT; an archive is only read"),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO 'x.csv'", "not one SELECT"),
        ("DROP VIEW rollouts", "not one SELECT"),
        ("ATTACH 'x.db'", "not one SELECT"),
    ],
)
def test_a_mistake_or_a_write_is_one_line_and_changes_nothing(
    runs: list[Path], sql: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = shard_bytes(tmp_path)
    with pytest.raises(ValueError, match=says) as caught:
        rows(runs, sql)
    assert "\n" not in str(caught.value)
    assert shard_bytes(tmp_path) == before and not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize(
    "asks",
    [
        "* FROM read_csv('{secret}')",
        "* FROM '{secret}'",
        "content FROM read_text('{secret}')",
        "content FROM read_text('{run}/archive/rollouts/../../config.yaml')",
        "* FROM glob('{folder}/*')",
        "count(*) FROM read_parquet('https://example.org/a.parquet')",
    ],
)
def test_a_query_reads_no_other_file_than_the_shards_of_its_runs(runs: list[Path], asks: str, tmp_path: Path) -> None:
    secret, run = tmp_path / "secret.csv", runs[0]
    secret.write_text("a,b\n1,2\n")
    (run / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ValueError, match=r"Cannot access file .*disabled by configuration") as caught:
        rows(runs, "SELECT " + asks.format(secret=secret, run=run, folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_runs_given_by_relative_paths_are_read_and_results_written_to_new_folders(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("made/here/steps.csv")
    with asked([Path(run.name) for run in runs], "SELECT count(*) AS n FROM rollouts", [out]) as found:
        write_rows(found, out)
    assert (tmp_path / out).read_text().split() == ["n", "20"] and len(list(out.parent.iterdir())) == 1


def test_json_csv_and_parquet_hold_every_row(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = "step, sum(position) AS total, 'nan'::DOUBLE AS odd, any_value(tokens) AS tokens"
    outs = [tmp_path / "out.csv", tmp_path / "out.parquet"]
    with asked(runs, f"SELECT {columns} FROM rollouts GROUP BY step ORDER BY step", outs) as found:
        print_json(found)
        for out in outs:
            write_rows(found, out)
    said = json.loads(capsys.readouterr().out)
    assert said == [{"step": k, "total": [4, 4, 2][k], "odd": None, "tokens": [0, 1, 2]} for k in range(3)]
    with (tmp_path / "out.csv").open() as file:
        assert [row["total"] for row in csv.DictReader(file)] == ["4", "4", "2"]
    assert pq.read_table(tmp_path / "out.parquet")["step"].to_pylist() == [0, 1, 2]
    with asked(runs, "SELECT 1 WHERE false") as found:
        print_json(found)
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("columns", ["step, iou", "*"])
def test_a_table_shows_the_first_rows_and_says_how_many_more_there_are(runs: list[Path], columns: str) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    with asked(runs, f"SELECT {columns} FROM rollouts, range(20)") as found:
        print_table(found, console)
    shown = 100 if columns == "step, iou" else 10
    text = console.export_text()
    assert f"and {400 - shown} rows more" in text
    assert "iou" in text and "0.5" in text and max(map(len, text.splitlines())) <= 80


def test_an_archive_of_schema_1_can_be_asked_for_todays_columns(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "archive").symlink_to(Path(__file__).parent / "archive_v1")
    assert rows([tmp_path / "run"], "SELECT DISTINCT max_tokens, grammar, temperature FROM rollouts") == [
        (None, None, 0.5)
    ]


def test_a_list_of_runs_says_what_is_in_them(runs: list[Path], tmp_path: Path) -> None:
    found = list_runs(archived_runs([tmp_path]), Console(quiet=True))
    assert [(one.run, one.steps, one.answers, one.examples) for one in found] == [
        (f"{runs[0]}", 2, 8, 3),
        (f"{runs[1]}", 3, 12, 4),
    ]
    assert [(one.mean_iou, one.valid_share, one.schema, one.being_written) for one in found] == [
        (0.5, 1, "2", False)
    ] * 2
    assert [one.size_bytes for one in found] == [sum(map(len, shard_bytes(run).values())) for run in runs]


def test_a_torn_shard_is_named_and_verify_with_it(runs: list[Path]) -> None:
    (runs[0] / "archive" / "rollouts" / "step-00000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"step-00000001\.parquet.*polytrace archive verify RUN"):
        rows(runs, "SELECT count(*) FROM rollouts")


def test_folders_without_an_archive_and_a_run_given_twice_are_refused(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no archive"):
        archived_runs([tmp_path / "empty"])
    with pytest.raises(ValueError, match="is given twice"):
        archived_runs([runs[0], tmp_path])
    (tmp_path / "empty" / "archive").mkdir()
    with pytest.raises(FileNotFoundError, match="no archived rollouts"):
        rows([tmp_path / "empty"], "SELECT 1")
