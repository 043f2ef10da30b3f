"""SQL over runs: the same answers as reading the rows, and a mistake is one line that names the columns."""

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_archive import shard_bytes, write_steps
from rich.console import Console

from rl.browse.list import list_runs
from rl.browse.query import asked, print_json, print_table, write_rows
from rl.run.folder import archived_runs


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs, one in a folder with a name that SQL and patterns would read otherwise."""
    folders = [tmp_path / "a", tmp_path / "b's [1] *?"]
    for folder, steps in zip(folders, (2, 3), strict=True):
        write_steps(folder / "archive", range(steps)).close()
    return folders


def rows(runs: list[Path], sql: str) -> list[tuple]:
    with asked(runs, sql) as found:
        return list(found.rows())


def strict(text: str) -> object:
    """What a JSON text says; NaN and Infinity, which Python would read, are errors."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_views_hold_the_rows_of_all_runs_with_their_folder(runs: list[Path]) -> None:
    sql = "SELECT run_folder, count(*), max(step), avg(iou) FROM rollouts GROUP BY ALL ORDER BY 1"
    assert rows(runs, sql) == [(f"{runs[0]}", 8, 1, 0.5), (f"{runs[1]}", 12, 2, 0.5)]
    joined = "FROM rollouts r JOIN examples e USING (run_folder, example_id)"
    assert rows(runs, f"SELECT count(*), min(e.width) {joined}") == [(20, 10)]


@pytest.mark.parametrize("name", ["step=100", "iou=0.9", "seed=0", "run=x", "kind=3", "step=a b"])
def test_a_folder_called_key_value_is_a_name_and_no_column(tmp_path: Path, name: str) -> None:
    write_steps(tmp_path / name / "archive", range(2)).close()
    sql = "SELECT DISTINCT run_folder, run, step, iou, seed FROM rollouts ORDER BY step"
    folder = f"{tmp_path / name}"
    assert rows([tmp_path / name], sql) == [(folder, "run", step, 0.5, 2**64 - 1) for step in range(2)]
    with asked([tmp_path / name], "SELECT * FROM rollouts") as found:
        (shard, *_) = sorted((tmp_path / name).glob("archive/rollouts/*.parquet"))
        assert found.columns == ["run_folder", *pq.ParquetFile(shard).schema_arrow.names]


@pytest.mark.parametrize(
    ("columns", "names", "values"),
    [
        ("iou, total AS iou", ["iou", "iou_1"], (0.5, 0.25)),
        ("a.iou, b.iou, a.index, b.index", ["iou", "iou_1", "index", "index_1"], (0.5, 0.5, 0, 0)),
        ("1 AS iou_1, 2 AS iou, 3 AS IOU", ["iou_1", "iou", "IOU_2"], (1, 2, 3)),
        ("7, 7", ["7", "7_1"], (7, 7)),
    ],
)
def test_columns_of_one_name_are_told_apart_alike_in_table_json_csv_and_parquet(
    runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    columns: str,
    names: list[str],
    values: tuple[float, ...],
) -> None:
    source = "rollouts" if "total" in columns else "rollouts a JOIN rollouts b USING (step, position, index)"
    outs, console = [tmp_path / "out.csv", tmp_path / "out.parquet"], Console(width=80, record=True, file=io.StringIO())
    with asked(runs, f"SELECT {columns} FROM {source} ORDER BY 1, 2 LIMIT 1", outs) as found:
        print_json(found)
        print_table(found, console)
        for out in outs:
            write_rows(found, out)
    assert strict(capsys.readouterr().out) == [dict(zip(names, values, strict=True))]
    shown = [line.split() for line in console.export_text().splitlines() if line.strip(" ─")]
    assert shown[0] == names and [float(text) for text in shown[1]] == list(values)
    with (tmp_path / "out.csv").open() as file:
        header, row = csv.reader(file)
    assert header == names and [float(text) for text in row] == list(values)
    (stored,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert list(stored.items()) == list(zip(names, values, strict=True))


def test_the_order_asked_for_is_kept_where_columns_share_a_name(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with asked(runs, "SELECT i, -i AS i FROM range(3) t(i) ORDER BY i DESC", [out]) as found:
        assert list(found.rows()) == [(0, 0), (1, -1), (2, -2)] == found.relation.fetchall()
        write_rows(found, out)
    assert out.read_text().split() == ["i,i_1", "0,0", "1,-1", "2,-2"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("'nan'::DOUBLE", None),
        ("-'inf'::FLOAT", None),
        ("{'a': 'nan'::DOUBLE, 'b': [1.5, 'inf'::DOUBLE]}", {"a": None, "b": [1.5, None]}),
        ("[{'x': [{'y': 'nan'::FLOAT}]}]", [{"x": [{"y": None}]}]),
        ("MAP {'a': 'nan'::DOUBLE}", {"a": None}),
        ("MAP {1: MAP {DATE '2026-01-02': 'inf'::DOUBLE}}", {"1": {"2026-01-02": None}}),
        ("MAP {[1]: 2}", {"key": [[1]], "value": [2]}),
        ("MAP {'ab'::BLOB: 1}", {"6162": 1}),
        ("row(1, 'nan'::DOUBLE)", [1, None]),
        ("[['inf'::DOUBLE]]::DOUBLE[1][1]", [[None]]),
        ("union_value(k := 'nan'::FLOAT)", None),
        ("'ab'::BLOB", "6162"),
        ("DATE '2026-01-02'", "2026-01-02"),
        ("TIMESTAMP '2026-01-02 03:04:05.5'", "2026-01-02 03:04:05.500000"),
        ("INTERVAL 3 DAYS", "3 days, 0:00:00"),
        ("'00000000-0000-0000-0000-00000000002a'::UUID", "00000000-0000-0000-0000-00000000002a"),
        ("1.5::DECIMAL(30, 10)", 1.5),
        ("3::DECIMAL(30, 10)", 3),
        ("170141183460469231731687303715884105727::HUGEINT", 2**127 - 1),
        ("340282366920938463463374607431768211455::UHUGEINT", 2**128 - 1),
        ("'101'::BIT", "101"),
        ("seed", 2**64 - 1),
        ("chr(7) || '\"'", '\x07"'),
    ],
)
def test_json_is_valid_for_values_of_every_kind(
    runs: list[Path], capsys: pytest.CaptureFixture[str], value: str, said: object
) -> None:
    with asked(runs, f"SELECT {value} AS value FROM rollouts LIMIT 1") as found:
        print_json(found)
    assert strict(capsys.readouterr().out) == [{"value": said}]


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


def test_an_answer_is_not_written_over_a_shard(runs: list[Path], tmp_path: Path) -> None:
    before, shard = shard_bytes(tmp_path), next(runs[0].glob("archive/rollouts/*.parquet"))
    for out in (shard, runs[0] / "archive" / "new.csv", tmp_path / "a" / ".." / "a" / "archive" / "x.csv"):
        with pytest.raises(ValueError, match="lies in an archive, which is only read"), asked(runs, "SELECT 1", [out]):
            pass
    assert shard_bytes(tmp_path) == before


def test_json_csv_and_parquet_hold_every_row(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = "step, sum(position) AS total, 'nan'::DOUBLE AS odd, any_value(tokens) AS tokens"
    outs = [tmp_path / "out.csv", tmp_path / "out.parquet"]
    with asked(runs, f"SELECT {columns} FROM rollouts GROUP BY step ORDER BY step", outs) as found:
        print_json(found)
        for out in outs:
            write_rows(found, out)
    said = strict(capsys.readouterr().out)
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
    (tmp_path / "run" / "archive").symlink_to(Path(__file__).parents[2] / "archive_v1")
    asked = "SELECT DISTINCT max_tokens, grammar, thinking, temperature FROM rollouts WHERE bins IS NULL"
    assert rows([tmp_path / "run"], asked) == [(None, None, None, 0.5)]
    assert rows([tmp_path / "run"], "SELECT DISTINCT asked FROM examples") == [(None,)]


def test_a_list_of_runs_says_what_is_in_them(runs: list[Path], tmp_path: Path) -> None:
    found = list_runs(archived_runs([tmp_path]), Console(quiet=True))
    assert [(one.run, one.steps, one.answers, one.examples) for one in found] == [
        (f"{runs[0]}", 2, 8, 3),
        (f"{runs[1]}", 3, 12, 4),
    ]
    assert [(one.mean_iou, one.valid_share, one.schema, one.being_written) for one in found] == [
        (0.5, 1, "4", False)
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
