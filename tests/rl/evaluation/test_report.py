import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from envs.example import Truth
from envs.geometry.contours import rings_from_mask
from envs.geometry.raster import fill
from envs.geometry.vector import svg_path
from envs.polygons import AnswerStatus, Ring, flatten_rings
from rl.evaluation.missing import FAULTS, Missing
from rl.evaluation.page import Drawn, Report, SceneRow, choose_scenes, render, write_report
from rl.evaluation.scores import SceneScore, paired_difference, score_mask, summarise
from rl.pages.charts import chart, line_chart, nice_ticks
from rl.pages.pictures import COLOURS, overlay, svg_overlay

SIZE = 64
SVG = "{http://www.w3.org/2000/svg}"


def circle(radius: float, num: int, x: float = 32.0, y: float = 32.0) -> Ring:
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def filled(rings: list[Ring]) -> np.ndarray:
    return fill(*flatten_rings(rings), SIZE, SIZE)


def scene_image(seed: int, mask: np.ndarray) -> np.ndarray:
    generator = np.random.default_rng(seed)
    slope = np.linspace(0, 1, SIZE)[:, None, None]
    image = slope * generator.uniform(60, 220, 3) + (1 - slope) * generator.uniform(60, 220, 3) + np.zeros((1, SIZE, 1))
    image[mask] = generator.uniform(0, 255, 3)
    return (image + generator.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def stage_answers(index: int) -> dict[str, tuple[list[Ring], AnswerStatus]]:
    """Answers that get closer to a circle of radius 18 stage by stage; every ninth scene defeats the first stage."""
    offset = np.random.default_rng(index).normal(0, 5, 2)
    coarse, better = (
        circle(14, 6, 32 + offset[0], 32 + offset[1]),
        circle(17, 9, 32 + offset[0] / 2, 32 + offset[1] / 2),
    )
    fine = rings_from_mask(filled([circle(18, 40, 32 + offset[0] / 4, 32)]))
    first = ([], AnswerStatus.TRUNCATED) if index % 9 == 0 else ([coarse], AnswerStatus.OK)
    return {"sft": first, "rl": ([better], AnswerStatus.OK), "refined": (fine, AnswerStatus.OK)}


def small_report(num_scenes: int = 40) -> Report:
    truth_rings = [circle(18, 60)]
    truth = Truth(filled(truth_rings)[None])
    answers = [stage_answers(index) for index in range(num_scenes)]
    scores: dict[str, list[SceneScore]] = {
        stage: [score_mask(filled(a[stage][0]), truth, a[stage][1], f"circle-{i:03}") for i, a in enumerate(answers)]
        for stage in ("sft", "rl", "refined")
    }
    rows = [
        SceneRow(
            f"circles/7/{index}",
            f"the <b>{index}</b> & ball",
            choice,
            scene_image(index, truth.union),
            truth_rings,
            {
                stage: Drawn(answers[index][stage][0], scores[stage][index].iou, answers[index][stage][1])
                for stage in scores
            },
        )
        for choice, index in choose_scenes(scores["refined"])
    ]
    steps = list(range(60))
    noise = np.random.default_rng(0).normal(0, 0.02, 60)
    curves = {
        "reward/mean": (steps, [float(0.5 + 0.002 * s + n) for s, n in zip(steps, noise, strict=True)]),
        "sampled/giou": (steps, [float(0.42 + 0.002 * s + n) for s, n in zip(steps, noise[::-1], strict=True)]),
        "validation/giou": ([0, 10, 20, 30, 40, 50], [0.5, 0.52, 0.55, 0.56, 0.565, 0.58]),
        "clip": (steps, [float(abs(n) * 8) for n in noise]),
    }
    charts = [
        chart("Reward", "reward", curves, {"mean of sampled answers": "reward/mean"}),
        chart("IoU", "gIoU", curves, {"sampled": "sampled/giou", "greedy, validation": "validation/giou"}),
        chart("Clipping", "share of sequences", curves, {"clipped": "clip"}),
        chart("Not recorded", "nothing", curves, {"absent": "absent"}),
    ]
    stages = {stage: summarise(scenes) for stage, scenes in scores.items()}
    paired = {
        "rl_minus_sft": paired_difference(scores["sft"], scores["rl"]),
        "refined_minus_rl": paired_difference(scores["rl"], scores["refined"]),
    }
    facts = [("wall time", "12 min 30 s"), ("peak memory", "5.1 GiB"), ("config", "seed: 7\nsteps: 60")]
    missing = {"rl": Missing(0.6125, dict.fromkeys(FAULTS, 0.125) | {"order": -0.0625})}
    return Report("Circles, drawn better", stages, paired, missing, num_scenes, "validation", rows, charts, facts)


def test_page_is_well_formed_and_loads_nothing_from_elsewhere(tmp_path):
    write_report(tmp_path / "new/report.html", small_report())
    page = (tmp_path / "new/report.html").read_text(encoding="utf-8")
    assert ET.fromstring(page).tag == "html"
    links = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)|@import', page)
    assert links
    assert all(link[0].startswith("data:image/") for link in links)
    assert "<script" not in page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_page_shows_every_stage_score_and_gain():
    report = small_report()
    page = render(report)
    for scores in report.stages.values():
        assert all(f"{interval.value:.3f}" in page for interval in scores.intervals().values())
    assert f"+{report.paired['rl_minus_sft'].value:.3f}" in page
    assert "the interval is above 0" in page
    for said in ("Where the missing IoU lies", *FAULTS.values(), "0.613", "0.125"):
        assert said in page


def test_a_chart_of_curves_that_were_not_recorded_is_left_out():
    page = render(small_report())
    assert page.count('<figure class="chart">') == 3
    assert "Not recorded" not in page


def test_phrases_are_escaped():
    page = render(small_report())
    assert "the <b>" not in page
    assert "the &lt;b&gt;" in page


def test_an_unreadable_answer_is_said_under_its_picture():
    report = small_report()
    failed = [row for row in report.scenes if row.drawn["sft"].status is AnswerStatus.TRUNCATED]
    assert failed
    assert render(report).count("IoU 0.00, truncated") == len(failed)


def test_page_of_one_stage_without_scenes_or_curves_renders():
    full = small_report()
    page = render(Report("Bare", {"sft": full.stages["sft"]}, {}, {}, 40, "test", [], [], []))
    assert "Curves" not in page
    assert "Scenes</h2>" not in page


def test_random_scenes_do_not_depend_on_scores_and_none_is_shown_twice():
    scores = [SceneScore(f"s{i:02}", i / 50, 0, 1, 0.0, True, AnswerStatus.OK) for i in range(50)]
    chosen, reverse = choose_scenes(scores), choose_scenes(scores[::-1])
    lot = [index for choice, index in chosen if choice == "random"]
    assert lot == [index for choice, index in reverse if choice == "random"]
    assert len({index for _, index in chosen}) == len(chosen) == 18


def test_best_worst_and_median_are_those_of_the_ranking():
    scores = [SceneScore(f"s{i:02}", i / 50, 0, 1, 0.0, True, AnswerStatus.OK) for i in range(11)]
    chosen = choose_scenes(scores, num_random=0, num_each=2)
    assert chosen == [("best", 10), ("best", 9), ("median", 4), ("median", 5), ("worst", 0), ("worst", 1)]


@pytest.mark.parametrize("num", [0, 1, 4, 7, 9])
def test_few_scenes_are_each_shown_once(num):
    scores = [SceneScore(f"s{i}", 0.5, 0, 1, 0.0, True, AnswerStatus.OK) for i in range(num)]
    assert sorted(index for _, index in choose_scenes(scores)) == list(range(num))


def test_svg_path_of_a_square_with_a_hole():
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], np.float64)
    hole = np.array([[1, 1], [1, 2.5], [2.5, 2.5]])
    assert svg_path([square, hole]) == "M0 0L4 0L4 4L0 4ZM1 1L1 2.5L2.5 2.5Z"
    assert svg_path([]) == ""


def test_svg_path_numbers_read_back_to_the_last_bit():
    ring = np.random.default_rng(0).uniform(0, 112, (50, 2)) * np.array([1.0, 1e-7])
    numbers = [float(text) for text in re.findall(r"[\d.]+", svg_path([ring]))]
    assert numbers == ring.ravel().tolist()


def test_svg_overlay_is_xml_with_the_exact_image_and_the_pixel_frame():
    image = np.random.default_rng(1).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    svg = ET.fromstring(svg_overlay(image, [circle(4, 5)], COLOURS["rl"], 'a < "b" & c', outline=[circle(3, 5)]))
    assert svg.get("viewBox") == "0 0 20 10"
    assert svg.findtext(f"{SVG}title") == 'a < "b" & c'
    kind, data = svg.find(f"{SVG}image").get("href").split(",")
    assert kind == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == image).all()
    assert [path.get("fill") for path in svg.findall(f"{SVG}path")] == [COLOURS["rl"], "none"]
    assert svg.find(f"{SVG}path").get("fill-rule") == "nonzero"


def test_svg_overlay_without_rings_has_no_path():
    svg = ET.fromstring(svg_overlay(np.zeros((4, 4, 3), np.uint8), [], "#ffffff", "nothing"))
    assert svg.findall(f"{SVG}path") == []


def test_overlay_tints_inside_and_leaves_the_rest():
    image = np.full((SIZE, SIZE, 3), 100, np.uint8)
    picture = overlay(image, [circle(16, 40)], "#ff0000")
    assert picture.shape == (256, 256, 3)
    assert picture.dtype == np.uint8
    assert picture[128, 128].tolist() == [154, 65, 65]  # 0.65 * 100 + 0.35 * (255, 0, 0)
    assert picture[4, 4].tolist() == [100, 100, 100]
    assert picture[128, 192].tolist() == [255, 0, 0]  # the outline, at x = (32 + 16) * 4


def test_overlay_of_nothing_is_the_enlarged_image():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert (overlay(image, [], "#ff0000")[::86, ::86] == image).all()


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.5, 1]), (0.31, 0.58, [0.3, 0.4, 0.5, 0.6]), (0, 40, [0, 10, 20, 30, 40]), (-3, 4, [-4, -2, 0, 2, 4])],
)
def test_ticks_are_round_and_enclose_the_values(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-9, 1e9])
def test_ticks_of_one_value_enclose_it(value):
    ticks = nice_ticks(value, value)
    assert len(ticks) >= 2
    assert ticks[0] <= value <= ticks[-1]


def test_chart_spans_its_frame_with_larger_values_higher():
    placed = line_chart({"a": ([0, 10], [0.0, 1.0]), "none": ([], [])})
    assert [curve.name for curve in placed.curves] == ["a"]
    assert placed.curves[0].points[0][:2] == pytest.approx((placed.left, placed.bottom))
    assert placed.curves[0].points[1][:2] == pytest.approx((placed.right, placed.top))
    assert [tick.label for tick in placed.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert [tick.label for tick in placed.y_ticks] == ["0.0", "0.5", "1.0"]


def test_chart_of_one_point_or_none_has_a_finite_frame():
    for series in ({"a": ([5], [0.3])}, {}):
        placed = line_chart(series)
        places = [tick.at for tick in placed.x_ticks + placed.y_ticks]
        assert len(placed.x_ticks) >= 1
        assert np.isfinite(places).all()
