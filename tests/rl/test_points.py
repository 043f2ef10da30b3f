"""What outlines of few points reach on a config's data: the ways side by side, the page, and what cannot be asked."""

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rl.cli.data import data_app
from rl.data import DataConfig
from rl.points import measure, told, write_points_page

QUIET = Console(quiet=True)
SCENES = {"name": "cutout_scenes", "image_size": 64}
CONFIG = DataConfig(SCENES, {"name": "path_tokens", "box_bins": 64, "path_bins": 64}, {}, ("train",), None)


def test_more_points_and_better_chosen_ones_come_nearer_and_words_are_those_of_the_text(tmp_path: Path) -> None:
    found = measure(CONFIG, "train", 40, 0, [3, 12], QUIET)
    by = {(one.way, one.points): one for one in found.reached}
    assert len(by) == 6 and (found.examples, found.left_out) == (40, 0)
    for way in ("simplified", "chosen", "curved"):
        assert by[way, 12].iou.low > by[way, 3].iou.high
    # Four numbers of the box and two of each point; a polygon of one ring in svg_path has M and Z besides.
    assert by["simplified", 3].words == 4 + 2 * 3 and by["chosen", 3].words == 4 + 2 * 3 + 2
    assert by["curved", 12].iou.value > by["chosen", 12].iou.value > by["simplified", 12].iou.value + 0.01
    write_points_page(tmp_path / "page.html", "scenes", found)
    page = (tmp_path / "page.html").read_text()
    assert "lines and curves" in page and f"{by['chosen', 12].iou.value:.3f}" in page and page.count("<svg") >= 2


def test_all_rows_are_of_the_same_examples_and_of_the_grid_of_the_codec() -> None:
    several = DataConfig(
        CONFIG.env | {"several_share": 1.0, "max_scale": 0.45}, {"name": "svg_path"}, {}, ("train",), None
    )
    found = measure(several, "train", 30, 0, [6, 12], QUIET)
    assert found.examples + found.left_out == 30 and found.left_out > 5
    assert [one.points for one in found.reached] == [6] * 3 + [12] * 3
    assert (found.box_bins, found.path_bins) == (64, 960)  # its defaults
    assert f"{found.left_out} of more instances than the fewest points hold left out" in told(found)
    with pytest.raises(
        ValueError, match=r"^all \d+ examples with a mask have more than 1 instances, .* more than 3 points"
    ):
        measure(several, "train", 1, 3, [3], QUIET)


def test_what_cannot_be_asked_is_refused_by_what_to_do() -> None:
    nothing = DataConfig(SCENES | {"absent_share": 1.0}, CONFIG.codec, {}, ("train",), None)
    with pytest.raises(ValueError, match=r"^of 5 examples of the split train none has a mask; name another by --split"):
        measure(nothing, "train", 5, 0, [12], QUIET)
    for given in ("2", "12,", "a", "", "²", "5000"):
        error = CliRunner().invoke(data_app, ["points", "demo", "--points", given]).exception
        assert isinstance(error, ValueError) and "give whole numbers of 3 to 4096, such as 8,12,16" in str(error)
