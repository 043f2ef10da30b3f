"""What one split shows, no other does: no example, no image, and for held-out names no object and no word of it."""

import re
from functools import cache
from itertools import combinations

import pytest

from envs.datasets.cutout_scenes import Env
from envs.example import SPLITS

NUM_SCENES = 300
PAIRS = list(combinations(SPLITS, 2))


@cache
def examples(split, seed=0):
    """Every question about the first scenes of a split, some of them about something absent."""
    env = Env(split, seed=seed, absent_share=0.1)
    return [example for index in range(NUM_SCENES) for example in (env[index], *env.scene(index))]


@pytest.mark.parametrize("pair", PAIRS)
def test_two_splits_share_no_example_no_image_and_no_pixels(pair):
    first, second = map(examples, pair)
    assert not {example.id for example in first} & {example.id for example in second}
    assert not {example.image.key for example in first} & {example.image.key for example in second}
    assert not {example.image.sha256 for example in first} & {example.image.sha256 for example in second}


@pytest.mark.parametrize("split", SPLITS)
def test_no_two_scenes_of_a_split_are_the_same_image(split):
    assert len({example.image.key for example in examples(split)}) == NUM_SCENES
    assert len({example.image.sha256 for example in examples(split)}) == NUM_SCENES


@pytest.mark.parametrize("split", SPLITS)
def test_an_id_stands_for_one_image_and_one_phrase(split):
    meanings = {(example.id, example.image.sha256, example.prompt.text) for example in examples(split)}
    assert len({meaning[0] for meaning in meanings}) == len(meanings)
    assert {example.split for example in examples(split)} == {split}


def test_another_seed_gives_other_images_under_other_ids():
    first, second = examples("train"), examples("train", seed=1)
    assert not {example.id for example in first} & {example.id for example in second}
    assert not {example.image.sha256 for example in first} & {example.image.sha256 for example in second}


@pytest.mark.parametrize("split", SPLITS[:3])
def test_held_out_names_stand_in_no_phrase_of_another_split(split):
    held_out = Env("held_out_names").names
    assert len(held_out) == 6 and len(Env(split).names) == 57
    assert not set(held_out) & set(Env(split).names)
    anywhere = re.compile("|".join(rf"\b{name}\b" for name in held_out))
    assert not [example.prompt.text for example in examples(split) if anywhere.search(example.prompt.text)]


def test_phrases_of_held_out_names_name_nothing_else():
    held_out = Env("held_out_names").names
    phrases = {example.prompt.text for example in examples("held_out_names")}
    assert {re.sub(r"^the (left|right|upper|lower) ", "", phrase) for phrase in phrases} == set(held_out)


def test_a_few_hundred_scenes_show_every_name_of_their_split():
    for split in SPLITS:
        text = "\n".join(example.prompt.text for example in examples(split))
        assert all(name in text for name in Env(split).names)
