"""What a benchmark writes of kept answers: the page with its numbers, tables, summary, and masks for other tools."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_answers import UNREADABLE, answered, prepared
from pycocotools import mask as coco_mask
from rich.console import Console

from envs.geometry.contours import outline
from envs.geometry.rle import mask_from_rle
from envs.polygons import answer_from_rings
from rl.benchmark import Benchmark, files_of, judged, write_files
from rl.benchmarks.models import benchmark_model
from rl.benchmarks.sets import benchmark_sets

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of one model on three examples: answered in full, not readably, and by nothing of a refined mask."""
    folder = tmp_path_factory.mktemp("benchmark")
    shards, out = prepared(folder), folder / "out"
    sets = benchmark_sets([f"mine={shards}:train"], None, out, QUIET)
    model = benchmark_model("my <model>=tiny", None, False, None, None)
    asked = Benchmark(out, [model], sets, ("gres", "res"))
    env = sets[0].env()
    first, second, third = (env[k] for k in range(3))
    exact, third_true = answer_from_rings(outline(first.truth.union, 99)), third.truth.union
    rows = [
        answered(first, exact),
        answered(second, UNREADABLE),
        answered(third, answer_from_rings([np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)]), third_true),
    ]
    files = files_of(asked, model, sets[0])
    files.begin({"by": "hand"})
    files.add(rows, 0)
    write_files(asked, judged(asked), QUIET)
    return out


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_page_holds_tables_kinds_errors_and_a_picture_an_answer(written: Path) -> None:
    page = text(written / "benchmark.html")
    assert page.count("<h2>mine ") == 2  # a table for each protocol
    assert page.count("<figure") == 3 and page.count("data:image/png") == 3 and "src=" not in page
    assert "my &lt;model&gt;" in page and "<model>" not in page
    # One of three is exact, one unreadable, one beside its object.
    assert re.search(r"<td>33\.3 \[", page) and re.search(r"1 of 3 answers [^<]*could not be read", page)
    assert "the outline as it was drawn" in page and "Objects that are meant: two" in page
    ious = [float(number) for number in re.findall(r"<div>IoU (\d\.\d{3})", page)]
    assert ious == sorted(ious) == [0, 0, 1] and "unparsable" in page


def test_refined_masks_are_a_model_of_their_own(written: Path) -> None:
    told = json.loads(text(written / "summary.json"))
    found = {(one["model"], one["protocol"]): one["scores"] for one in told["scores"]}
    assert found.keys() == {
        (name, protocol) for name in ("my <model>", "my <model> + refiner") for protocol in ("gres", "res")
    }
    assert found["my <model>", "res"]["mIoU"]["value"] == pytest.approx(1 / 3)
    assert found["my <model> + refiner", "res"]["mIoU"]["value"] == pytest.approx(2 / 3)
    assert [pair["pair"] for pair in told["differences"]] == ["my <model> + refiner - my <model>"] * 2


def test_tables_are_written_as_markdown_and_latex(written: Path) -> None:
    assert "**mine** under `gres`, 3 examples" in text(written / "tables.md")
    assert text(written / "tables.tex").count(r"\begin{tabular}") == 2


def test_masks_are_results_that_coco_tools_read(written: Path) -> None:
    drawn = json.loads(text(written / "results/my <model>/mine.json"))
    refined = json.loads(text(written / "results/my <model>/mine_refined.json"))
    assert [one["image_id"] for one in drawn] == [0, 1, 2] and {one["category_id"] for one in drawn} == {1}
    areas = [int(coco_mask.area(one["segmentation"])) for one in (*drawn, *refined)]
    assert areas[1] == areas[4] == 0 and areas[2] == 1 and areas[5] == 35 and areas[0] == areas[3]
    for one in drawn:
        mask = mask_from_rle(one["segmentation"]["counts"], *one["segmentation"]["size"])
        np.testing.assert_array_equal(coco_mask.decode(one["segmentation"]).astype(bool), mask)
