"""Stages of labelling by hand-made images: what each adds, what it refuses, and that nothing vanishes."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.geometry.masks import iou
from envs.geometry.parts import edges_touched, largest_part, without_holes, without_specks
from envs.geometry.rle import rle_from_mask
from rollout.label.record import LabelImage, LabelObject, Origin, Shown, tight, with_mask
from rollout.label.stages import agreement, clean, found_again, grabcut, groups, own_name, templates
from rollout.label.stages.found_again import agreement as ious_with

SIZE = 64


def ellipse(x: float, y: float, a: float, b: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    return np.asarray(((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1)


def rectangle(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIZE, SIZE), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def shown(*objects: LabelObject, pixels: NDArray[np.uint8] | None = None, licence: str = "") -> Shown:
    image = LabelImage(0, Origin("one", licence=licence), SIZE, SIZE, "0", objects=objects, next_number=len(objects))
    return Shown(image, np.zeros((SIZE, SIZE, 3), np.uint8) if pixels is None else pixels)


def named(number: int, name: str, mask: NDArray[np.bool_], phrase: str | None = None) -> LabelObject:
    return replace(with_mask(LabelObject(number, name, (0, 0, 1, 1)), mask), phrase=phrase)


def noisy(mask: NDArray[np.bool_], inside: tuple[int, ...], outside: tuple[int, ...]) -> NDArray[np.uint8]:
    colours = np.where(mask[..., None], inside, outside) + np.random.default_rng(0).normal(0, 6, (SIZE, SIZE, 3))
    return np.clip(colours, 0, 255).astype(np.uint8)


def numbers_of(image: LabelImage) -> list[int]:
    """Numbers of all objects, kept or refused: none may vanish."""
    return sorted(each.number for each in (*image.objects, *(one.found for one in image.refused if one.found)))


def test_grabcut_finds_an_ellipse_of_another_colour_in_a_loose_box():
    truth = ellipse(30, 34, 14, 9)
    x0, y0, x1, y1 = tight(truth)
    one = shown(
        LabelObject(0, "egg", (x0 - 3, y0 - 2, x1 + 4, y1 + 3)), pixels=noisy(truth, (220, 60, 40), (40, 90, 160))
    )
    [image] = grabcut.Labeller().label([one])
    assert iou(image.mask(image.objects[0]), truth) > 0.97
    assert image.objects[0].box_px == tight(image.mask(image.objects[0]))


def test_grabcut_refuses_a_box_over_one_colour_or_the_whole_image_and_a_seed_that_nothing_is_like():
    pixels = np.full((SIZE, SIZE, 3), 90, np.uint8)
    whole = LabelObject(1, "all", (0, 0, SIZE, SIZE))
    [image] = grabcut.Labeller().label([shown(LabelObject(0, "fog", (20, 20, 40, 40)), whole, pixels=pixels)])
    assert [one.reason for one in image.refused] == [grabcut.NOTHING] * 2 and not image.objects
    assert numbers_of(image) == [0, 1]
    exact = ellipse(30, 30, 5, 5)  # just the seed of the box around it, so that nothing is added to what was told
    one = shown(LabelObject(0, "dot", (20, 20, 40, 40)), pixels=noisy(exact, (230, 230, 20), (20, 20, 230)))
    assert not grabcut.Labeller(seed=0.55).label([one])[0].objects


def test_grabcut_is_the_same_whatever_was_cut_before():
    truth = ellipse(30, 34, 14, 9)
    one = shown(LabelObject(0, "egg", tight(truth)), pixels=noisy(truth, (150, 120, 90), (110, 100, 95)))
    other = shown(LabelObject(0, "egg", (5, 5, 60, 60)), pixels=noisy(ellipse(20, 20, 9, 9), (200, 9, 9), (9, 9, 9)))
    stage = grabcut.Labeller(iterations=2)
    [alone] = stage.label([one])
    assert stage.label([other, one])[1] == alone


def test_parts_holes_and_specks_by_hand():
    mask = rectangle(10, 10, 30, 30)  # 400 pixels
    mask[15:17, 15:17] = False  # a hole of 4
    mask[0, 0] = True  # a speck
    assert largest_part(mask).sum() == 396
    assert without_specks(mask, 0.02).sum() == 396 and without_specks(mask, 0.0).sum() == 397
    assert without_holes(mask, 0.02).sum() == 401 and without_holes(mask, 0.005).sum() == 397
    ring = np.ones((SIZE, SIZE), np.bool_)
    ring[20:, 30:34] = False  # background that reaches the edge is no hole
    assert without_holes(ring, 1.0).sum() == ring.sum()
    assert edges_touched(ring) == 4 and edges_touched(mask) == 2


def test_clean_merges_fragments_and_repeats_and_refuses_by_size():
    large = named(0, "cat", rectangle(10, 10, 40, 40))
    ear = named(1, "", rectangle(36, 20, 42, 24))  # 16 of its 24 pixels lie in the cat
    inside = named(2, "cat", rectangle(12, 12, 20, 20))
    again = named(3, "cat", rectangle(10, 10, 40, 39))
    dog = named(4, "dog", rectangle(12, 12, 20, 20))  # in the cat as well, but something else
    speck = named(5, "fly", rectangle(50, 50, 51, 51))
    [image] = clean.Labeller(fragment_share=0.6, least_share=0.005).label(
        [shown(large, ear, inside, again, dog, speck)]
    )
    assert [found.number for found in image.objects] == [0, 4]
    assert image.mask(image.objects[0]).sum() == 900 + 8  # the ear's end outside was merged in
    reasons = {one.found.number: one.reason for one in image.refused if one.found}
    assert reasons == {1: clean.FRAGMENT, 2: clean.FRAGMENT, 3: clean.TWICE, 5: clean.SMALL}


def test_clean_refuses_clipped_and_huge_objects_and_images_without_a_licence():
    cut = named(0, "cat", rectangle(0, 10, 20, 30))
    huge = named(1, "sky", rectangle(0, 0, 64, 62))
    [image] = clean.Labeller(most_edges=0, most_share=0.9).label([shown(cut, huge)])
    assert {one.found.number: one.reason for one in image.refused if one.found} == {0: clean.CLIPPED, 1: clean.LARGE}
    [image] = clean.Labeller(needs_licence=True).label([shown(cut)])
    assert [one.reason for one in image.refused] == [clean.NO_LICENCE] and not image.is_open
    wanted = clean.Labeller(licences=("CC-BY-4.0",))
    assert wanted.label([shown(cut, licence="CC-BY-NC-4.0")])[0].refused[0].reason == clean.OTHER_LICENCE
    assert wanted.label([shown(cut, licence="CC-BY-4.0")])[0].is_open


def test_templates_tell_two_of_a_kind_apart_by_place():
    left, right = named(0, "pear", rectangle(2, 20, 12, 30)), named(1, "pear", rectangle(40, 22, 50, 32))
    nobody, dog = named(2, "", rectangle(20, 50, 30, 60)), named(3, "dog", rectangle(50, 50, 60, 60))
    [image] = templates.Labeller().label([shown(left, right, nobody, dog)])
    assert [found.phrase for found in image.objects] == ["the left pear", "the right pear", "dog"]
    assert [one.reason for one in image.refused] == [templates.NO_NAME]
    [image] = templates.Labeller(phrase="a photo of {name}", apart="").label([shown(left, right)])
    assert [found.phrase for found in image.objects] == ["a photo of pear"] * 2
    near = named(1, "pear", rectangle(6, 24, 16, 34))
    assert templates.place_of(left, near, (SIZE, SIZE), 0.15) == ""
    with pytest.raises(ValueError, match=r"has no \{name\}"):
        templates.Labeller(phrase="the thing").check()


def test_a_phrase_that_names_another_object_is_refused_and_a_longer_word_is_no_name():
    pineapple, apple = rectangle(2, 2, 12, 12), rectangle(30, 30, 40, 40)
    pair = shown(named(0, "pear", pineapple, "the green apple"), named(1, "apple", apple, "the red apple"))
    [image] = own_name.Labeller().label([pair])
    assert [(one.found and one.found.number, one.detail) for one in image.refused] == [(0, "apple")]
    assert own_name.named_instead("the pineapple", "fruit", {"apple", "fruit"}) is None
    same = shown(named(0, "pear", pineapple, "fruit"), named(1, "apple", apple, "fruit"))
    assert len(own_name.Labeller().label([same])[0].objects) == 2
    assert not own_name.Labeller(shared=False).label([same])[0].objects


def test_groups_by_name_colour_and_place():
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    red, blue, other = rectangle(2, 2, 12, 12), rectangle(40, 40, 50, 50), rectangle(4, 44, 14, 54)
    pixels[red], pixels[blue], pixels[other] = (220, 20, 20), (30, 40, 220), (225, 25, 25)
    objects = named(0, "pear", red, "pear"), named(1, "dog", blue, "dog"), named(2, "pear", other, "pear")
    [image] = groups.Labeller().label([shown(*objects, pixels=pixels)])
    found = {group.phrase: group.members for group in image.groups}
    assert found["all pear"] == (0, 2) and found["everything red"] == (0, 2) and found["everything blue"] == (1,)
    assert found["everything on the left"] == (0, 2) and found["everything on the top"] == (0,)
    across = named(3, "bar", rectangle(20, 30, 40, 34), "bar")
    [image] = groups.Labeller(by=("place",)).label([shown(*objects, across, pixels=pixels)])
    assert not image.groups  # it lies on both sides of either middle
    [image] = groups.Labeller(least=2).label([shown(*objects, pixels=pixels)])
    assert all(len(group.members) > 1 for group in image.groups) and image.groups
    with pytest.raises(ValueError, match="'size'"):
        groups.Labeller(by=("size",)).check()


def test_ious_with_what_a_policy_draws_are_those_of_the_best_outline_or_of_all_together():
    mask = rectangle(10, 10, 20, 20)
    halves = np.array([rectangle(10, 10, 15, 20), rectangle(15, 10, 20, 20)])
    assert ious_with(mask, halves) == (1.0, 1.0)  # together
    assert ious_with(mask, halves[:1]) == (0.5, 0.5)
    assert ious_with(mask, halves[:0]) == (0.0, 0.0)


def test_votes_are_counted_and_an_unmeasured_object_has_none():
    one = named(0, "cat", rectangle(2, 2, 12, 12)).with_numbers("a", mask_iou=0.9).with_numbers("b", mask_iou=0.75)
    two = named(1, "dog", rectangle(20, 20, 30, 30)).with_numbers("a", mask_iou=0.9)
    stage = agreement.Labeller(of=("a.mask_iou", "b.mask_iou"))
    [image] = stage.label([shown(one, two)])
    assert [found.number for found in image.objects] == [0]
    assert [(r.reason, r.found and r.found.numbers["agreement.votes"]) for r in image.refused] == [
        (agreement.TOO_FEW, 1.0)
    ]
    with pytest.raises(ValueError, match="votes is 2"):
        agreement.Labeller(of=("a.mask_iou",)).check()


class Answers:
    """Stands for a policy: draws the same for every phrase, and remembers what it was asked."""

    def __init__(self, *instances: NDArray[np.bool_]) -> None:
        self.instances = np.array(instances, np.bool_).reshape(-1, SIZE, SIZE)
        self.asked: list[str] = []

    def drawn(self, asked: list[tuple[NDArray[np.uint8], str]]) -> list[object]:
        self.asked += [phrase for _, phrase in asked]
        return [found_again_answer(self.instances) for _ in asked]


def found_again_answer(instances: NDArray[np.bool_]) -> object:
    from rollout.label.asking import Drawn

    return Drawn(instances, -0.1)


def verifier(answers: Answers, **settings: object) -> found_again.Labeller:
    stage = found_again.Labeller(policy=None, **settings)  # type: ignore[arg-type]
    stage.__dict__["_asker"] = answers
    return stage


def test_found_again_keeps_by_box_or_mask_and_tells_the_rest_apart():
    mask = rectangle(10, 10, 30, 30)
    lower = rectangle(10, 12, 30, 30)  # 0.9 of it
    [image] = verifier(Answers(lower)).label([shown(named(0, "cat", mask, "cat"))])
    assert image.objects[0].numbers == {"found_again.box_iou": 0.9, "found_again.mask_iou": 0.9}
    [image] = verifier(Answers(rectangle(40, 40, 50, 50))).label([shown(named(0, "cat", mask, "cat"))])
    assert image.refused[0].reason == found_again.ELSEWHERE
    [image] = verifier(Answers()).label([shown(named(0, "cat", mask, "cat"), named(1, "dog", mask))])
    assert [one.reason for one in image.refused] == [found_again.NOT_FOUND, found_again.UNREADY]
    frame = mask & ~rectangle(12, 12, 28, 28)  # the box is the same, the mask is not: 0.36
    assert verifier(Answers(frame)).label([shown(named(0, "cat", mask, "cat"))])[0].objects
    assert not verifier(Answers(frame), least_box_iou=1).label([shown(named(0, "cat", mask, "cat"))])[0].objects
    assert verifier(Answers(), measure=True).label([shown(named(0, "cat", mask, "cat"))])[0].objects


def test_found_again_in_the_mirror_turns_words_and_masks():
    mask = rectangle(2, 10, 22, 30)
    answers = Answers(mask[:, ::-1])
    [image] = verifier(answers, mirror=True).label([shown(named(0, "cat", mask, "the left cat"))])
    assert answers.asked == ["the right cat"] and image.objects[0].numbers["found_again.mask_iou"] == 1.0


def test_stages_leave_images_alone_that_are_not_open():
    closed = Shown(LabelImage(0, Origin("x")).refuse("decode", "cannot be opened"), np.zeros((0, 0, 3), np.uint8))
    stages = (clean, grabcut, groups, own_name, templates)
    for stage in (*(each.Labeller() for each in stages), agreement.Labeller(of=("a", "b")), verifier(Answers())):
        assert stage.label([closed]) == [closed.image]


def test_a_record_keeps_everything_through_a_block():
    from rollout.label.record import Group, HiddenTruth, from_block, to_block

    mask = rectangle(2, 2, 12, 12)
    origin = Origin("k", tags=("a", "b"), truths=(HiddenTruth("cat", rle_from_mask(mask)),), licence="CC0-1.0")
    image = LabelImage(3, origin, SIZE, SIZE, "f" * 64, (named(0, "cat", mask),), next_number=1)
    image = replace(image, groups=(Group("all cat", (0,), "category"),)).refuse("clean", "why", "detail")
    held = Shown(replace(image, refused=()), np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8))
    closed = Shown(image, np.zeros((0, 0, 3), np.uint8))
    back = from_block(to_block([held, closed]))
    assert back[0].image == held.image and np.array_equal(back[0].pixels, held.pixels)
    assert back[1].image == image and back[1].pixels.shape == (0, 0, 3)
