"""`polytrace archive query`: SQL over the archives of some runs, by DuckDB, which only reads them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import duckdb
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.reading import refuse_no_text
from rl.pages.json_text import json_text
from rollout.archive.table import ShardTable
from rollout.disk import partial_of, whole_file

VIEWS = ("rollouts", "examples")
"""Views that a query can ask: the tables of docs/archive.md, after a column `run_folder` with the folder of the run."""

_MOST_SHOWN, _MOST_BLOCKS, _NARROWEST, _LONGEST_CELL = 100, 10, 9, 60
_ROWS_AT_ONCE = 10_000
_NUMBERS = {"bigint", "integer", "double", "float", "hugeint", "ubigint", "decimal", "smallint", "uinteger"}


@dataclass(frozen=True)
class Found:
    """The answer to a query, computed as it is read, each time anew."""

    base: "duckdb.DuckDBPyConnection"
    select: "duckdb.Statement"
    relation: "duckdb.DuckDBPyRelation"
    """Result of `select`, planned."""

    @property
    def columns(self) -> list[str]:
        """Names, no two alike: of two columns called iou the second is iou_1, as DuckDB has it in the files written."""
        return list(self.relation.project("*").columns)

    def rows(self) -> Iterator[tuple[object, ...]]:
        """The values of each row in the order of the columns, a few thousand rows in memory at a time."""
        cursor = self.base.execute(self.select)
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            yield from rows


@contextmanager
def asked(runs: Sequence[Path], sql: str, outs: Sequence[Path] = ()) -> Iterator[Found]:
    """The answer to one SELECT over the views, computed as it is read; it can read no other file.

    outs: where `write_rows` is to write it.
    Raises ValueError, in one line that names the columns there are, where the SQL is wrong or is no SELECT, or an
    archive cannot be read, or would be written to; FileNotFoundError where no run has an answer.
    """
    refuse_no_text(sql, "the SQL")
    for out in outs:
        if any((run / "archive").resolve() in out.resolve().parents for run in runs):
            raise ValueError(f"{out} lies in an archive, which is only read; give the name of a file elsewhere.")
    with tempfile.TemporaryDirectory(prefix="polytrace-query-") as spill, duckdb.connect(":memory:") as base:
        # Nothing is fetched from the network for a query; what does not fit in memory goes to a folder of its own.
        base.execute(f"SET autoinstall_known_extensions = false; SET temp_directory = {_literal(spill)}")
        columns = "`polytrace archive verify RUN` says what is wrong with an archive."
        try:
            for view in VIEWS:
                base.execute(f"CREATE VIEW {view} AS {_union(runs, view)}")
            _lock(base, runs, Path(spill), outs)
            columns = " ".join(f"{view} has {', '.join(base.table(view).columns)}." for view in VIEWS)
            select = _select(base, sql)
            yield Found(base, select, base.sql(select))
        except duckdb.Error as error:
            first_line = str(error).strip().splitlines()[0].rstrip(".!")
            raise ValueError(f"{first_line}. {columns}") from error


def _lock(base: "duckdb.DuckDBPyConnection", runs: Sequence[Path], spill: Path, outs: Sequence[Path]) -> None:
    """From here on a query reads the shards of these runs and nothing else, and cannot change that."""
    tables = [f"{run / 'archive' / view}" for run in runs for view in VIEWS]
    folders = [*tables, *map(_as_glob, tables), f"{spill}"]  # a pattern is checked before it is looked up, and after
    files = [f"{partial_of(out.absolute())}" for out in outs]
    base.execute(f"SET allowed_directories = {_literals(folders)}; SET allowed_paths = {_literals(files)}")
    base.execute("SET enable_external_access = false; SET lock_configuration = true")


def _select(base: "duckdb.DuckDBPyConnection", sql: str) -> "duckdb.Statement":
    statements = base.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise ValueError(f"{sql!r} is not one SELECT; an archive is only read, so ask one question at a time.")
    return statements[0]


def _union(runs: Sequence[Path], view: str) -> str:
    """SQL for the rows of all runs; a reward that a run does not have is null there."""
    parts = []
    for run in runs:
        shards = ShardTable(run / "archive", view).shards()
        if shards:
            files = ", ".join(_literal(_as_glob(f"{shard.path}")) for shard in shards)
            # A run's folder may be called step=100: that is a name, and no column.
            read = f"read_parquet([{files}], union_by_name = true, hive_partitioning = false)"
            parts.append(f"SELECT {_literal(f'{run}')} AS run_folder, * FROM {read}")
    if not parts:
        raise FileNotFoundError(f"{' and '.join(map(str, runs))} hold no archived {view}; give a run that made a step.")
    if view == "rollouts":  # what rows of earlier schemas do not have is null there, and can be asked for
        later = "NULL::INTEGER AS max_tokens, NULL::BOOLEAN AS grammar, NULL::BOOLEAN AS bare"
        parts.append(f"SELECT {later}, NULL::VARCHAR AS thinking, NULL::SMALLINT[] AS bins WHERE false")
    else:
        parts.append("SELECT NULL::VARCHAR AS asked WHERE false")
    return " UNION ALL BY NAME ".join(parts)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _literals(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_literal, texts))}]::VARCHAR[]"


def _as_glob(path: str) -> str:
    """A pattern that only this path fits."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in path)


def print_table(found: Found, console: Console) -> None:
    """The first rows for people, and how many there are."""
    made, rows, names = Table(box=SIMPLE_HEAD, pad_edge=False), found.rows(), found.columns
    if len(names) * _NARROWEST > console.width:  # too many for lines: a block per row
        made = Table("column", "value", box=SIMPLE_HEAD, pad_edge=False)
        for row in islice(rows, _MOST_BLOCKS):
            for name, value in zip(names, row, strict=True):
                made.add_row(escape(name), _cell(value), end_section=name == names[-1])
    else:
        for name, kind in zip(names, found.relation.types, strict=True):
            made.add_column(escape(name), justify="right" if kind.id in _NUMBERS else "left", overflow="fold")
        for row in islice(rows, _MOST_SHOWN):
            made.add_row(*map(_cell, row))
    console.print(made)
    if more := sum(1 for _ in rows):
        console.print(f"and {more:,} rows more; --csv FILE, --parquet FILE or --json give them all", highlight=False)


def print_json(found: Found) -> None:
    """All rows on standard output, as a JSON list of objects (see `json_text`)."""
    names, before = found.columns, "["
    for row in found.rows():
        print(before + json_text(dict(zip(names, row, strict=True))), end="")
        before = ",\n "
    print("[]" if before == "[" else "]")


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else f"{value}"
    return escape(text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…")


def write_rows(found: Found, out: Path) -> None:
    """All rows in a file, Parquet where its name ends in .parquet, else CSV; whole or not there."""
    with whole_file(out.absolute()) as partial:
        if out.suffix == ".parquet":
            found.relation.write_parquet(f"{partial}")
        else:
            found.relation.write_csv(f"{partial}")
