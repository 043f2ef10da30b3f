"""Tables of a benchmark: measured rows with intervals, published ones as their papers print them."""

import io

import pytest
from made_answers import four_rows, lines_with
from rich.console import Console

from rl.benchmark import differences, summary
from rl.benchmarks.judge import SetScores, judge_rows
from rl.benchmarks.published import Published, PublishedModel
from rl.benchmarks.tables import (
    as_printed,
    difference_table,
    escaped,
    latex,
    markdown,
    percent,
    score_tables,
    terminal,
)
from rl.evaluation.protocols.base import protocol_named


def scores(model: str = "mine", data: str = "grefcoco_val", protocol: str = "gres", refined: bool = False) -> SetScores:
    return judge_rows(model, data, protocol, protocol_named(protocol), four_rows(refined), refined)


def printed(*tables: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(*tables)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_measured_rows_come_first_and_published_ones_have_the_digits_of_their_papers() -> None:
    [table] = score_tables([scores(), scores("other")])
    assert [row.name for row in table.rows[:2]] == ["mine", "other"] and table.count == 4
    assert table.rows[0].source == "here" and not table.rows[2].measured
    rela = dict(zip(table.titles, table.rows[2].cells, strict=True))
    assert (table.rows[2].name, rela["cIoU"], rela["gIoU"], rela["N-acc"]) == ("ReLA, Swin-B", "62.42", "63.6", "")
    assert [as_printed(value / 100) for value in (80.0, 34.93, 66.7, 5)] == ["80.0", "34.93", "66.7", "5.0"]


def test_a_data_set_that_no_paper_names_and_each_protocol_have_tables_of_their_own() -> None:
    tables = score_tables([scores(data="mine_val"), scores(data="mine_val", protocol="res"), scores("b", "mine_val")])
    assert [(table.data, table.protocol, len(table.rows)) for table in tables] == [
        ("mine_val", "gres", 2),
        ("mine_val", "res", 1),
    ]


def test_a_score_is_percent_with_its_interval() -> None:
    cell = percent(scores().scores["gIoU"])
    value, interval = cell.split(" ", 1)
    low, high = (float(number) for number in interval.strip("[]").split(", "))
    assert value == "62.5" and 0 <= low <= 62.5 <= high <= 100 and low < high


def test_markdown_has_a_line_a_row_and_as_many_cells_as_titles() -> None:
    text = markdown(score_tables([scores(), scores(data="mine_val")]))
    head, rule, mine, rela = text.splitlines()[2:6]
    assert text.startswith("**grefcoco_val** under `gres`, 4 examples, percent with 95 % intervals")
    assert head.startswith("| model | gIoU | cIoU | N-acc |") and head.endswith("| unreadable | source |")
    assert {line.count("|") for line in (head, rule, mine, rela)} == {len(scores().scores) + 3}
    assert mine.startswith("| mine | 62.5 [") and rela.startswith("| ReLA, Swin-B | 63.6 | 62.42 |  |")
    assert "henghuiding/ReLA" in rela and "**mine_val** under `gres`" in text


def test_a_bar_in_a_name_ends_no_cell_of_markdown() -> None:
    [line] = lines_with(markdown(score_tables([scores("a|b", "mine_val")])), "62.5")
    assert line.startswith(r"| a\|b | 62.5")


def test_latex_escapes_what_it_reads_as_commands() -> None:
    assert escaped("a_b & 50% #1 $x {y}") == r"a\_b \& 50\% \#1 \$x \{y\}"
    assert escaped("a\\b^c~d") == r"a\textbackslash{}b\textasciicircum{}c\textasciitilde{}d"
    text = latex(score_tables([scores("my_model"), scores("no rule", "other_val")]))
    assert (
        next(lines_with(text, "my"))
        == "my\\_model & 62.5 & 50.0 & "
        + " & ".join(f"{100 * interval.value:.1f}" for interval in list(scores().scores.values())[2:])
        + r" \\"
    )
    lines = text.splitlines()
    assert lines[1] == r"\begin{tabular}{l" + "r" * len(scores().scores) + "}"
    # The published row stands below a rule of its own; a table without one has only that under its head.
    assert lines[lines.index(next(lines_with(text, "ReLA"))) - 1] == r"\midrule"
    assert text.count(r"\midrule") == 3 and text.count(r"\bottomrule") == 2


def test_the_terminal_shows_a_column_a_model_and_what_is_published_below() -> None:
    [table] = score_tables([scores(), scores("mine + refiner", refined=True)])
    said = printed(*terminal(table))
    [giou] = lines_with(said, "gIoU ", "62.5")
    assert "75.0 [" in giou and "grefcoco_val under gres, 4 examples, percent" in said
    assert "published on grefcoco_val" in said and "62.42" in said
    assert "published" not in printed(*terminal(score_tables([scores(data="mine_val")])[0]))


def test_names_in_brackets_are_shown_as_they_are() -> None:
    said = printed(*terminal(score_tables([scores("[bold]mine", "[red]set")])[0]))
    assert "[bold]mine" in said and "[red]set" in said


def test_differences_are_of_every_later_model_less_the_first_on_the_same_examples() -> None:
    found = [scores(), scores("refined", refined=True), scores("alone", "mine_val")]
    paired = differences(found)
    assert list(paired) == [("grefcoco_val", "gres")] and list(paired["grefcoco_val", "gres"]) == ["refined - mine"]
    of = paired["grefcoco_val", "gres"]["refined - mine"]
    assert of["gIoU"].value == 0.125 and of["cIoU"].value == pytest.approx(8 / 48)
    [giou] = lines_with(
        printed(difference_table(paired["grefcoco_val", "gres"], "grefcoco_val", "gres")), "gIoU ", "12.5"
    )
    assert giou.split()[1] == "12.5"


def test_the_summary_has_every_number_as_a_fraction_with_its_interval() -> None:
    found = [scores(), scores("refined", refined=True)]
    told = summary(found, differences(found))
    first = told["scores"][0]
    assert (first["model"], first["data"], first["examples"], first["unreadable"]) == ("mine", "grefcoco_val", 4, 1)
    assert first["scores"]["gIoU"]["value"] == 0.625 and set(first["scores"]["gIoU"]) == {"value", "low", "high"}
    assert first["errors"]["the outline as it was drawn"]["value"] == 0.5
    assert {kind["name"]: kind["examples"] for kind in first["kinds"]}["none"] == 1
    [pair] = told["differences"]
    assert (pair["pair"], pair["scores"]["gIoU"]["value"]) == ("refined - mine", 0.125)


def test_rows_of_ones_own_stand_below_those_of_papers_with_their_source() -> None:
    own = Published("Ours", "gres/rela", [PublishedModel("earlier", "report 7", {"grefcoco_val": {"cIoU": 50.25}})])
    [table] = score_tables([scores()], [own])
    [shipped] = score_tables([scores()])
    assert [row.name for row in table.rows] == [*(row.name for row in shipped.rows), "earlier"]
    [line] = lines_with(markdown([table]), "50.25")
    assert line.startswith("| earlier |") and line.endswith("| report 7 |")
