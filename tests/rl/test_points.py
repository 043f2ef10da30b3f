"""What outlines of few points reach on a config's data: the ways side by side, the page, and what cannot be asked."""

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rl.cli.data import data_app
from rl.data import DataConfig
from rl.points import measure, write_points_page

QUIET = Console(quiet=True)
SCENES = {"name": "cutout_scenes", "image_size": 64}
CONFIG = DataConfig(SCENES, {"name": "path_tokens", "box_bins": 64, "path_bins": 64}, {}, ("train",), None)


def test_more_points_and_better_chosen_ones_come_nearer_and_words_are_those_of_the_text(tmp_path: Path) -> None:
    found = measure(CONFIG, "train", 40, 0, [3, 12], QUIET)
    by = {(one.way, one.points): one for one in found}
    assert len(by) == 6 and {one.examples for one in found} == {40}
    for way in ("simplified", "chosen", "curved"):
        assert by[way, 12].iou.low > by[way, 3].iou.high
    # Four numbers of the box and two of each point; a polygon of one ring in svg_path has M and Z besides.
    assert by["simplified", 3].words == 4 + 2 * 3 and by["chosen", 3].words == 4 + 2 * 3 + 2
    assert by["curved", 12].iou.value > by["chosen", 12].iou.value > by["simplified", 12].iou.value + 0.01
    write_points_page(tmp_path / "page.html", "scenes", "train", found)
    page = (tmp_path / "page.html").read_text()
    assert "lines and curves" in page and f"{by['chosen', 12].iou.value:.3f}" in page and page.count("<svg") >= 2


def test_examples_with_more_instances_than_the_points_hold_are_left_out_of_those_rows() -> None:
    several = CONFIG.env | {"several_share": 1.0, "max_scale": 0.45}
    found = measure(DataConfig(several, CONFIG.codec, {}, ("train",), None), "train", 30, 0, [3, 12], QUIET)
    examples = {one.points: one.examples for one in found}
    assert examples[12] == 30 and examples.get(3, 0) < 15


def test_what_cannot_be_asked_is_refused_by_what_to_do() -> None:
    nothing = DataConfig(SCENES | {"absent_share": 1.0}, CONFIG.codec, {}, ("train",), None)
    with pytest.raises(ValueError, match=r"^of 5 examples of the split train none has a mask; name another by --split"):
        measure(nothing, "train", 5, 0, [12], QUIET)
    for given in ("2", "12,", "a", ""):
        error = CliRunner().invoke(data_app, ["points", "demo", "--points", given]).exception
        assert isinstance(error, ValueError) and "give numbers of 3 or more, such as 8,12,16" in str(error)
