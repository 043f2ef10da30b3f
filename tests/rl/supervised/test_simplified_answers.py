"""How supervised outlines are simplified, and the sentences in which answers stand."""

import numpy as np
import pytest

from envs.codecs import path_tokens, point_text, svg_path
from envs.example import Example, ImageRef, Prompt, Truth
from envs.geometry.contours import mask_from_rings
from envs.geometry.masks import iou
from envs.polygons import AnswerStatus
from rl.config.outlines import Annotator
from rl.config.sft import SftSettings, SftStage
from rl.supervised.annotator import annotate
from rl.supervised.answers import answer_text

ROWS, COLUMNS = np.mgrid[:60, :80]
DISC = np.hypot(ROWS + 0.5 - 30, COLUMNS + 0.5 - 40) <= 22
LENIENT = point_text.Codec(coordinates="unit", reading="lenient")


def example(asked: str = "mask", name: str = "disc") -> Example:
    prompt = Prompt(Prompt.of_text("the disc").parts, asked)
    return Example(name, ImageRef("disc", "ab" * 32, 60, 80), prompt, Truth(DISC[None]), "train", "made", "CC0-1.0")


def drawn(**settings: object) -> tuple[int, float]:
    """Vertices of the disc's outline, and its IoU."""
    rings = annotate(DISC, SftSettings(**settings))
    return sum(map(len, rings)), iou(mask_from_rings(rings, *DISC.shape), DISC)


def test_each_rule_keeps_what_it_promises_and_the_budget_bounds_all_three() -> None:
    assert drawn(max_vertices=12)[0] == 12
    num, reached = drawn(simplify="iou", min_iou=0.95, max_vertices=64)
    assert reached >= 0.95 and drawn(max_vertices=num - 1)[1] < 0.95  # the fewest that do
    num, reached = drawn(simplify="douglas_peucker", peucker_share=0.01, max_vertices=64)
    assert num < 20 and reached > 0.9
    assert drawn(simplify="douglas_peucker", peucker_share=0.001, max_vertices=10)[0] == 10


def test_chosen_vertices_are_as_many_and_come_nearer() -> None:
    for num in (6, 8, 12):
        chosen, simplified = (drawn(simplify=name, max_vertices=num, max_rings=1) for name in ("chosen", "budget"))
        assert chosen[0] <= num == simplified[0] and chosen[1] > simplified[1]
    (ring,) = annotate(DISC, SftSettings(simplify="chosen", max_vertices=9))
    assert ring[0, 1] == ring[:, 1].min()  # from the topmost vertex, as all outlines are drawn


def test_traced_outlines_are_the_masks_own_and_the_codec_of_paths_fits_them() -> None:
    assert drawn(simplify="traced", max_vertices=10)[1] == 1.0
    codec = svg_path.Codec(max_vertices=9)
    text = answer_text(example(), codec, SftSettings(simplify="traced", max_vertices=10))
    reached = mask_from_rings(codec.read(text, 60, 80).rings_px, 60, 80)
    with pytest.raises(ValueError, match=r"^outlines are to be taught as they were traced .* codec\.name to svg_path"):
        answer_text(example(), path_tokens.Codec(), SftSettings(simplify="traced"))
    assert text.count("Q") + text.count("C") >= 1 and iou(reached, DISC) > 0.97


def test_answers_stand_in_sentences_that_lenient_reading_takes_and_an_example_keeps_its_own() -> None:
    settings = SftSettings(answers=["It is {answer}.", "{answer}."])
    texts = {answer_text(example(name=f"{k}"), LENIENT, settings) for k in range(20)}
    assert {text[:2] for text in texts} == {"It", "[["}
    assert len({answer_text(example(), LENIENT, settings) for _ in range(3)}) == 1
    for text in texts:
        assert (LENIENT.read(text, 60, 80).status, LENIENT.read(text, 60, 80).bare) == (AnswerStatus.OK, False)


def test_boxes_and_points_are_taught_as_such() -> None:
    assert answer_text(example("box"), LENIENT, SftSettings()) == "[0.225, 0.133, 0.775, 0.867]"
    x, y = (
        LENIENT.read_places(answer_text(example("point"), LENIENT, SftSettings()), "point", 60, 80)
        .instances[0]
        .vertices_px[0]
    )
    assert abs(x - 40) < 1.5 and abs(y - 30) < 1.5
    assert answer_text(example("box"), path_tokens.Codec(), SftSettings()) == "14 8 50 56"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"answers": ["It is there."]}, r"give texts with \{answer\} in each"),
        ({"answers": []}, r"sft\.answers is \[\]"),
        ({"answers": ["{answer}."], "stages": [SftStage("boxes", 1, lr=1.0, answer="box")]}, "leave out one of them"),
        ({"simplify": "visvalingam"}, r"sft\.simplify is 'visvalingam'"),
        (
            {"simplify": "traced", "order": "shuffled"},
            r"sft\.order is shuffled, but sft\.simplify is traced: the codec",
        ),
        (
            {"simplify": "traced", "annotators": [Annotator(order="any_start")]},
            r"sft\.annotators\[0\]\.order is any_start, but sft\.simplify is traced",
        ),
        ({"min_iou": 0.0}, r"sft\.min_iou is 0\.0"),
    ],
)
def test_settings_that_nothing_can_meet_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SftSettings(**settings)
