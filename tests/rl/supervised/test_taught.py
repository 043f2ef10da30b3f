"""What is taught: outlines of a coarse annotator as texts, and what of a text a stage scores."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.codecs.path_tokens import Codec
from envs.datasets.cutout_scenes import Env
from envs.geometry.contours import mask_from_rings
from policies.families.vision_language import Policy
from rl.config.sft import SftSettings, SftStage
from rl.supervised.annotator import annotate
from rl.supervised.answers import answer_text, taught

BOXES, OUTLINES = SftStage("boxes", 2, answer="box", lr=0.02), SftStage("outlines", 3, lr=0.003)
SETTINGS = SftSettings([BOXES, OUTLINES], scenes_per_step=2)
CODEC = Codec(max_rings=4, max_vertices=16)


def scenes(num: int = 4, **settings: float) -> Env:
    return Env("train", image_size=32, num_scenes=num, **settings)


def disc(radius: float, size: int = 64) -> NDArray[np.bool_]:
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    return x**2 + y**2 <= radius**2


def drawn(mask: NDArray[np.bool_], **settings: float) -> NDArray[np.bool_]:
    return mask_from_rings(annotate(mask, replace(SETTINGS, **settings)), *mask.shape)


def test_an_outline_without_margin_covers_a_disc_at_iou_0_95_with_12_vertices() -> None:
    mask = disc(20)
    (ring,) = annotate(mask, SETTINGS)
    filled = drawn(mask)
    assert len(ring) == 12
    assert (filled & mask).sum() / (filled | mask).sum() > 0.95


def test_a_rectangle_is_annotated_exactly() -> None:
    mask = np.zeros((20, 30), np.bool_)
    mask[3:11, 5:25] = True
    assert annotate(mask, SETTINGS)[0].tolist() == [[5, 3], [25, 3], [25, 11], [5, 11]]


def test_a_margin_is_drawn_outside_as_a_share_of_the_square_root_of_the_area() -> None:
    mask = disc(20)
    for margin in (0.06, 0.12):
        grown = drawn(mask, outline_margin=margin)
        # A disc of radius r grows by margin * sqrt(pi) * r.
        assert grown.sum() / mask.sum() == pytest.approx((1 + margin * math.sqrt(math.pi)) ** 2, rel=0.05)
        assert (grown & mask).sum() > 0.99 * mask.sum()


def test_a_hole_is_outlined_and_a_speck_is_not() -> None:
    mask = disc(20) & ~disc(9)
    mask[0, 0] = True
    rings = annotate(mask, replace(SETTINGS, max_vertices=24))
    assert len(rings) == 2
    assert not mask_from_rings(rings, 64, 64)[31, 31]


def test_outlines_of_scenes_stay_near_their_masks() -> None:
    examples = [example for index in range(8) for example in scenes(8).scene(index)]
    ious = []
    for example in examples:
        mask = example.truth.union
        filled = CODEC.read(answer_text(example, CODEC, SETTINGS), 32, 32).rings_px
        overlap = mask_from_rings(filled, 32, 32)
        ious.append((overlap & mask).sum() / (overlap | mask).sum())
    assert np.mean(ious) > 0.85


def test_the_answer_to_an_absent_thing_is_the_empty_one() -> None:
    absent = scenes(absent_share=1.0).scene(0)[-1]
    assert answer_text(absent, CODEC, SETTINGS) == "none"


def taught_texts(checkpoint: Path, env: Env, stage: SftStage) -> list[str]:
    """What of the answers about scene 0 is scored, as text."""
    processor = Policy.make_processor(checkpoint, CODEC)
    return [processor.tokenizer.decode(each.tokens) for each in taught(env.scene(0), env, processor, SETTINGS, stage)]


def test_a_box_stage_teaches_four_numbers_of_each_answer_and_an_outline_stage_all_of_it(tiny_untrained: Path) -> None:
    env = scenes()
    answers = [answer_text(example, CODEC, SETTINGS) for example in env.scene(0)]
    assert taught_texts(tiny_untrained, env, BOXES) == [" ".join(answer.split()[:4]) for answer in answers]
    assert taught_texts(tiny_untrained, env, OUTLINES) == [f"{answer} <|end|>" for answer in answers]


def test_absent_things_are_asked_about_only_where_a_stage_says_so(tiny_untrained: Path) -> None:
    env = scenes(absent_share=1.0)
    without, with_absent = (
        taught_texts(tiny_untrained, env, replace(OUTLINES, with_absent=asked)) for asked in (False, True)
    )
    assert with_absent == [*without, "none <|end|>"]


def test_a_stage_may_draw_looser_outlines_than_the_others(tiny_untrained: Path) -> None:
    env = scenes()
    own = taught_texts(tiny_untrained, env, replace(OUTLINES, outline_margin=0.2))
    loose = replace(SETTINGS, outline_margin=0.2)
    assert own == [f"{answer_text(example, CODEC, loose)} <|end|>" for example in env.scene(0)]
    assert own != taught_texts(tiny_untrained, env, OUTLINES)
