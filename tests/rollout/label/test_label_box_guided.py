"""A policy that decodes masks behind boxes, as the segmenter of boxes that others found."""

from pathlib import Path

import numpy as np
import pytest
from mask_policies import drawer
from ranks import DRAWS, WRITES

from envs.geometry.masks import iou
from envs.images import View
from rollout.label.asking import AskedPolicy
from rollout.label.record import LabelImage, LabelObject, Origin, Shown
from rollout.label.stages import box_guided
from rollout.settings import Sampling

BOXES = [(4.0, 6.0, 22.0, 26.0), (16.0, 0.0, 30.0, 20.0), (8.0, 8.0, 28.0, 26.0)]


@pytest.fixture(scope="module")
def asked(tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> AskedPolicy:
    folder = drawer(tiny_untrained, tmp_path_factory.mktemp("drawer"))
    return AskedPolicy(DRAWS.plugin(folder), Sampling(max_tokens=16), View())


def shown(scale: int = 1) -> Shown:
    """One scene, its objects three boxes, one without an extent, and one outside of the image."""
    env = DRAWS.env.build(split="train")
    pixels = env.image(env[0].image).repeat(scale, 0).repeat(scale, 1)
    boxes = [tuple(scale * place for place in box) for box in BOXES]
    boxes += [(5.0, 5.0, 5.0, 5.0), (90.0 * scale, 90.0 * scale, 95.0 * scale, 99.0 * scale)]
    objects = tuple(LabelObject(k, env[0].prompt.text, box) for k, box in enumerate(boxes))
    image = LabelImage(0, Origin("a"), *pixels.shape[:2], "0", objects=objects, next_number=len(objects))
    return Shown(image, pixels)


def test_each_box_gets_what_the_decoder_draws_in_it_whatever_stands_beside(asked: AskedPolicy) -> None:
    closed = Shown(LabelImage(1, Origin("b")).refuse("decode", "cannot be opened"), np.zeros((0, 0, 3), np.uint8))
    one = shown()
    labelled, unopened = box_guided.Labeller(asked).label([one, closed])
    assert unopened == closed.image
    assert [found.number for found in labelled.objects] == [0, 1, 2]
    for found, (x0, y0, x1, y1) in zip(labelled.objects, BOXES, strict=True):
        box = np.zeros((32, 32), np.bool_)
        box[int(y0) : int(y1), int(x0) : int(x1)] = True
        assert iou(labelled.mask(found), box) > 0.5  # it was taught to fill boxes
        assert 0 <= found.numbers["box_guided.predicted_iou"] <= 1
    # A box without an extent, and one outside of the image.
    assert [(each.found.number, each.reason) for each in labelled.refused] == [
        (3, box_guided.NOTHING),
        (4, box_guided.NOTHING),
    ]
    [again] = box_guided.Labeller(asked, batch=1).label([one])
    assert [found.mask for found in again.objects] == [found.mask for found in labelled.objects]


def test_boxes_are_those_of_the_image_where_the_policy_sees_a_smaller_view(asked: AskedPolicy) -> None:
    viewed = AskedPolicy(asked.plugin, asked.sampling, View(side=32))
    [labelled], [small] = (box_guided.Labeller(viewed).label([shown(scale)]) for scale in (4, 1))
    assert labelled.height == 128
    for large, found in zip(labelled.objects, small.objects, strict=True):
        assert iou(labelled.mask(large), small.mask(found).repeat(4, 0).repeat(4, 1)) > 0.9


def test_what_the_decoder_is_not_sure_of_is_refused_with_its_mask(asked: AskedPolicy) -> None:
    [labelled] = box_guided.Labeller(asked, least_quality=1.0).label([shown()])
    unsure = [each for each in labelled.refused if each.reason == box_guided.UNSURE]
    assert not labelled.objects and len(unsure) >= 3 and all(each.found.mask for each in unsure)


def test_a_policy_that_writes_outlines_is_refused_before_anything_starts(tiny_untrained: Path) -> None:
    writes = AskedPolicy(WRITES.plugin(tiny_untrained), Sampling(), View())
    with pytest.raises(ValueError, match="asked by the stage box_guided, but draws no masks behind boxes"):
        box_guided.Labeller(writes).check()
