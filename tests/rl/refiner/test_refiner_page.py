import re
import xml.etree.ElementTree as ET

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

from envs.example import Truth
from envs.polygons import AnswerStatus
from rl.evaluation.scores import Interval, score_mask
from rl.pages.charts import Chart
from rl.refiner.errors import KINDS, TITLES, SplitRow, gain_by_kind, traits
from rl.refiner.judge import smoothed
from rl.refiner.page import BeforeAfter, RefinerPage, choose_changes, render, write_refiner_page
from rl.refiner.scores import MaskScores, summarise_refined

SIZE = 64
NUM = 80


def blob(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE]
    cy, cx, ry, rx = *rng.uniform(20, 44, 2), *rng.uniform(4, 18, 2)
    angle = np.arctan2((y - cy) / ry, (x - cx) / rx)
    radius = np.hypot((y - cy) / ry, (x - cx) / rx)
    return radius < 1 + 0.25 * np.sin(rng.integers(2, 6) * angle + rng.uniform(0, 6))


def masks_of(rng: np.random.Generator, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A coarse mask and a refined one, mostly better."""
    shifted = np.roll(true, rng.integers(-3, 4, 2), (0, 1))
    coarse = binary_dilation(shifted, iterations=2) if rng.random() < 0.6 else binary_erosion(shifted, iterations=1)
    coarse = coarse if coarse.any() else shifted
    lot = rng.random()
    if lot < 0.25:
        return coarse, coarse if lot < 0.15 else binary_dilation(coarse)
    return coarse, np.roll(smoothed(true, 1.5), rng.integers(-1, 2), rng.integers(2))


def made() -> tuple[MaskScores, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(7)
    triples = [(*masks_of(rng, true), true) for true in (blob(rng) for _ in range(NUM))]
    before = [score_mask(coarse, Truth(true[None]), AnswerStatus.OK, "") for coarse, _, true in triples]
    after = [score_mask(refined, Truth(true[None]), AnswerStatus.OK, "") for _, refined, true in triples]
    coarse_iou, refined_iou = np.array([s.iou for s in before]), np.array([s.iou for s in after])
    boast = rng.normal(0.05, 0.05, (2, NUM))
    taken = np.where([np.array_equal(a, b) for a, b, _ in triples], 0, rng.integers(1, 4, NUM))
    scores = MaskScores(
        coarse_iou=coarse_iou,
        refined_iou=refined_iou,
        coarse_boundary_iou=np.array([s.boundary_iou for s in before]),
        refined_boundary_iou=np.array([s.boundary_iou for s in after]),
        predicted_iou=(refined_iou + boast[0] - 0.05).clip(0, 1),
        raw_iou=(0.6 + 0.45 * refined_iou + boast[0]).clip(0, 1),
        predicted_coarse_iou=(coarse_iou + boast[1] - 0.05).clip(0, 1),
        raw_coarse_iou=(0.3 + 0.6 * coarse_iou + boast[1]).clip(0, 1),
        passes=np.minimum(taken + 1, 3),
        taken=taken,
        drawn=np.ones(NUM, np.bool_),
    )
    return scores, triples


def around(value: float) -> Interval:
    return Interval(value, value - 0.012, value + 0.011)


def small_page() -> RefinerPage:
    scores, triples = made()
    rng = np.random.default_rng(1)
    pictures = []
    for choice, k in choose_changes(scores):
        coarse, refined, true = triples[k]
        image = np.full((SIZE, SIZE, 3), rng.integers(40, 200, 3), np.uint8)
        image[true] = rng.integers(0, 255, 3)
        numbers = scores.selected(np.array([k]))
        pictures.append(
            BeforeAfter(
                *(f"blobs/64px/test/{k}", f"the <b>{k}</b> & blob", choice, image, coarse, refined, true),
                coarse_iou=float(numbers.coarse_iou[0]),
                refined_iou=float(numbers.refined_iou[0]),
                predicted_coarse_iou=float(numbers.predicted_coarse_iou[0]),
                predicted_iou=float(numbers.predicted_iou[0]),
                taken=int(numbers.taken[0]),
            )
        )
    steps = list(range(0, 600, 20))
    loss = [float(0.7 * np.exp(-s / 150) + 0.1 + n) for s, n in zip(steps, rng.normal(0, 0.01, 30), strict=True)]
    levels = [0.741, 0.826, 0.779, 0.861, 0.801, 0.951, 0.972, 0.868]
    objects = [traits(true) for _, _, true in triples]
    return RefinerPage(
        title="The refiner of blobs",
        summary=summarise_refined(scores),
        split="held_out_names",
        by_kind=[gain_by_kind(scores, objects, kinds) for kinds in KINDS],
        errors={name: SplitRow(around(v), around(v - 0.1)) for name, v in zip(TITLES, levels, strict=True)},
        baselines=[("outline, smoothed", SplitRow(around(0.744), around(0.645)))],
        pictures=pictures,
        charts=[
            Chart("Loss", "loss", {"training": (steps, loss)}),
            Chart("IoU of held-out pairs", "mean IoU", {"refined": (steps, [1 - v for v in loss])}),
            Chart("Not recorded", "nothing", {}),
        ],
        facts=[("head", "pixel_head"), ("settings", "crop_px: 48\npasses: 3")],
    )


def test_page_is_well_formed_and_loads_nothing_from_elsewhere(tmp_path):
    write_refiner_page(tmp_path / "new/refiner.html", small_page())
    page = (tmp_path / "new/refiner.html").read_text(encoding="utf-8")
    assert ET.fromstring(page).tag == "html"
    links = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)|@import', page)
    assert links
    assert all(link[0].startswith("data:image/") for link in links)
    assert "<script" not in page


def test_page_shows_the_numbers_of_summary_and_rows():
    shown = small_page()
    page = render(shown).replace("&#160;", "\N{NO-BREAK SPACE}")
    of = shown.summary.intervals
    assert f"<b>{of['refined_iou'].value:.3f}</b>" in page
    assert f"<strong>{of['gain_boundary_iou'].value:+.3f}</strong>" in page
    assert f"<b>{100 * of['worse'].value:.1f}\N{NO-BREAK SPACE}%</b>" in page
    assert all(f"error <b>{each.error:.3f}</b>" in page for each in shown.summary.reliability.values())
    assert all(title in page for title in TITLES.values())
    assert all(row.name in page for rows in shown.by_kind for row in rows)
    assert "outline, smoothed" in page
    assert "Not recorded" not in page
    assert "the &lt;b&gt;" in page


def test_points_of_the_diagram_lie_where_the_bins_are():
    shown = small_page()
    tree = ET.fromstring(render(shown))
    found = shown.summary.reliability["refined_raw"]
    diagram = next(f for f in tree.iter("figure") if f.find("figcaption").text == "Predicted IoU of the mask returned")
    raw = next(g for g in diagram.iter("g") if g.get("class") == "curve c1")
    places = [(float(c.get("cx")), float(c.get("cy"))) for c in raw.iter("circle")]
    # The square spans 56..296 across and 12..252 down.
    wanted = [(56 + 240 * p, 252 - 240 * a) for p, a in zip(found.predicted, found.actual, strict=True)]
    assert np.allclose(places, wanted, atol=0.006)


def test_random_masks_are_drawn_without_their_scores_and_the_others_did_change():
    scores, _ = made()
    chosen = choose_changes(scores)
    other = MaskScores(**{**vars(scores), "refined_iou": scores.refined_iou[::-1]})
    lot = [index for choice, index in chosen if choice == "random"]
    assert lot == [index for choice, index in choose_changes(other) if choice == "random"]
    assert len({index for _, index in chosen}) == len(chosen)
    rest = np.setdiff1d(np.arange(NUM), lot)
    best, worst = ([index for choice, index in chosen if choice == name] for name in ("best", "worst"))
    assert scores.gain_iou[best].tolist() == sorted(scores.gain_iou[rest])[:-5:-1]
    assert scores.gain_iou[worst].tolist() == sorted(scores.gain_iou[rest])[:4]
    assert (scores.gain_iou[worst] < 0).all()
    still = MaskScores(**{**vars(scores), "refined_iou": scores.coarse_iou})
    assert {choice for choice, _ in choose_changes(still)} == {"random"}


def test_a_page_without_a_drawn_mask_has_no_diagram():
    scores, _ = made()
    empty = MaskScores(**{**vars(scores), "drawn": np.zeros(NUM, np.bool_)})
    bare = RefinerPage("Nothing", summarise_refined(empty), "test", [[], [], []], {}, [], [], [], [])
    page = render(bare)
    assert "80 of them drew nothing" in page
    assert "How well it knows" not in page
    assert "<table" not in page


def test_a_photo_is_shown_small_and_around_the_mask():
    true = np.zeros((1200, 1600), np.bool_)
    true[300:700, 300:800] = True
    image = np.full((1200, 1600, 3), 120, np.uint8)
    row = BeforeAfter("photo", "it", "random", image, true, true, true, 1.0, 1.0, 0.9, 0.9, 0)
    shown = small_page()
    page = render(RefinerPage(**{**vars(shown), "pictures": [row]}))
    # 500 px wide, so the window is 1000 x 1000, shown at 320 px: the mask begins at (250, 300) * 0.32.
    assert 'viewBox="0 0 320 320"' in page
    assert "M80 96L240 96" in page
