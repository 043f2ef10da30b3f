"""Scores of a benchmark as tables: in the terminal, as Markdown and as LaTeX, published rows beside measured ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from rl.benchmarks.judge import SetScores
from rl.benchmarks.published import Published, published_rows
from rl.evaluation.scores import Interval

_LATEX = {sign: f"\\{sign}" for sign in "&%_#${}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    cells: Sequence[str]
    """Percent, a cell for each score; "" where there is none."""
    source: str
    """Who measured it."""
    measured: bool


@dataclass(frozen=True)
class ScoreTable:
    """All that is known of one data set under one protocol."""

    data: str
    protocol: str
    titles: Sequence[str]
    """Titles of the scores, in the order of the protocol."""
    rows: Sequence[Row]
    count: int
    """Examples behind each measured row."""

    @property
    def published(self) -> tuple[list[str], list[Row]]:
        """Titles that papers give anything of, and their rows with cells of these alone."""
        rows = [row for row in self.rows if not row.measured]
        places = [k for k in range(len(self.titles)) if any(row.cells[k] for row in rows)]
        return [self.titles[k] for k in places], [replace(row, cells=[row.cells[k] for k in places]) for row in rows]


def score_tables(found: Sequence[SetScores], own: Sequence[Published] = ()) -> list[ScoreTable]:
    """A table for each data set and protocol, measured rows first, then published ones, those of `own` last."""
    together: dict[tuple[str, str], list[SetScores]] = {}
    for one in found:
        together.setdefault((one.data, one.protocol), []).append(one)
    return [_table(data, protocol, of, own) for (data, protocol), of in together.items()]


def _table(data: str, protocol: str, of: Sequence[SetScores], own: Sequence[Published]) -> ScoreTable:
    titles = list(of[0].scores)
    measured = [Row(one.model, [_measured(one, title) for title in titles], "here", True) for one in of]
    printed = [
        Row(name, [as_printed(scores[title]) if title in scores else "" for title in titles], source, False)
        for name, source, scores in published_rows(data, protocol, own)
    ]
    return ScoreTable(data, protocol, titles, [*measured, *printed], len(of[0].judged))


def as_printed(fraction: float) -> str:
    """A published score in percent, to the digit that its paper has, one at least."""
    return f"{round(100 * fraction, 4)}"


def _measured(one: SetScores, title: str) -> str:
    """A score; "-" for the share of a kind of example that there is none of."""
    of_none = {"N-acc": True, "T-acc": False}.get(title)
    if of_none is not None and not any(row.is_none is of_none for row in one.judged):
        return "-"
    return percent(one.scores[title])


def percent(interval: Interval) -> str:
    """A score in percent with its interval, such as "62.4 [61.0, 63.8]"."""
    value, low, high = (100 * number for number in interval.numbers)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def terminal(table: ScoreTable) -> Iterator[Table]:
    """The table for a terminal: a line for each score, a column for each measured model; then what is published."""
    measured = [row for row in table.rows if row.measured]
    title = escape(f"{table.data} under {table.protocol}, {table.count:,} examples, percent")
    made = Table(title=title, box=SIMPLE_HEAD)
    made.add_column("score")
    for row in measured:
        made.add_column(escape(row.name), justify="right", no_wrap=True)
    for place, title in enumerate(table.titles):
        made.add_row(title, *(row.cells[place] for row in measured))
    yield made
    titles, printed = table.published
    if printed:
        beside = Table(title=escape(f"published on {table.data}, percent"), box=SIMPLE_HEAD)
        for title in ("model", *titles, "source"):
            beside.add_column(title)
        for row in printed:
            beside.add_row(escape(row.name), *row.cells, escape(row.source))
        yield beside


def markdown(tables: Sequence[ScoreTable]) -> str:
    """All tables as Markdown, with the source of every published row."""
    return "\n".join(line for table in tables for line in (*_markdown_lines(table), ""))


def _markdown_lines(table: ScoreTable) -> Iterator[str]:
    yield f"**{table.data}** under `{table.protocol}`, {table.count:,} examples, percent with 95 % intervals"
    yield ""
    yield f"| model | {' | '.join(table.titles)} | source |"
    yield f"| --- |{' ---: |' * len(table.titles)} --- |"
    for row in table.rows:
        yield f"| {_in_cell(row.name)} | {' | '.join(row.cells)} | {_in_cell(row.source)} |"


def _in_cell(text: str) -> str:
    """Text that ends no cell of a Markdown table."""
    return text.replace("|", r"\|")


def latex(tables: Sequence[ScoreTable]) -> str:
    """All tables as LaTeX (booktabs), values alone; published rows below a rule."""
    return "\n".join(line for table in tables for line in (*_latex_lines(table), ""))


def _latex_lines(table: ScoreTable) -> Iterator[str]:
    yield f"% {table.data} under {table.protocol}, {table.count} examples, percent"
    yield rf"\begin{{tabular}}{{l{'r' * len(table.titles)}}}"
    yield r"\toprule"
    yield f"model & {' & '.join(map(escaped, table.titles))} \\\\"
    yield r"\midrule"
    printed = False
    for row in table.rows:
        if not row.measured and not printed:
            printed = True
            yield r"\midrule"
        cells = (cell.partition(" ")[0] for cell in row.cells)
        yield f"{escaped(row.name)} & {' & '.join(cells)} \\\\"
    yield r"\bottomrule"
    yield r"\end{tabular}"


def escaped(text: str) -> str:
    """Text with the signs that LaTeX reads as commands escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def difference_table(differences: Mapping[str, Mapping[str, Interval]], data: str, protocol: str) -> Table:
    """Paired differences by name of the pair, in points of percent; a line for each score."""
    table = Table(title=escape(f"{data} under {protocol}: paired differences, points"), box=SIMPLE_HEAD)
    table.add_column("score")
    for pair in differences:
        table.add_column(escape(pair), justify="right", no_wrap=True)
    for title in next(iter(differences.values())):
        table.add_row(title, *(percent(of[title]) for of in differences.values()))
    return table
