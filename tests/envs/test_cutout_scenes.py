"""Composed scenes: equal anywhere, masks that show their objects, phrases that are true, and mistakes named."""

import hashlib
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from envs.datasets._cutouts import split_names
from envs.datasets._scene import Scene, mirrored, mirrored_phrase
from envs.datasets.cutout_scenes import Env
from envs.example import ImageRef, image_sha256

ROOT = Path(__file__).parents[2]
SPATIAL = re.compile(r"the (left|right|upper|lower) (.+)")
NAMES = tuple(f"thing {letter}" for letter in "abcdefghijklmnopqrst")
COLOURS = {name: (250 - 12 * k, 12 * k, 100 + 100 * (k % 2)) for k, name in enumerate(NAMES)}


def folder_of_cards(folder, names=NAMES, colours=COLOURS):
    """A folder of opaque cards of one colour each, all edges sharp."""
    folder.mkdir(exist_ok=True)
    for k, name in enumerate(names):
        Image.new("RGB", (60 + k, 40 + 2 * k), colours[name]).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"{name}\n")
    return str(folder)


def name_of(phrase):
    """The name in a phrase, spatial or not."""
    match = SPATIAL.fullmatch(phrase)
    return match[2] if match else phrase


def digest(examples, env):
    """One hash over ids, phrases, masks and pixels."""
    whole = hashlib.sha256()
    for example in examples:
        whole.update(f"{example.id} {example.prompt.text} {example.image.sha256}".encode())
        whole.update(example.truth.masks.tobytes() + env.image(example.image).tobytes())
    return whole.hexdigest()


BACKWARDS = """
import hashlib
from envs.datasets.cutout_scenes import Env
for split in ("train", "held_out_names"):
    env = Env(split, seed=5, absent_share=0.2)
    examples = [env[index] for index in reversed(range(30))][::-1]
    whole = hashlib.sha256()
    for example in examples:
        whole.update(f"{example.id} {example.prompt.text} {example.image.sha256}".encode())
        whole.update(example.truth.masks.tobytes() + env.image(example.image).tobytes())
    print(whole.hexdigest())
"""


def test_another_process_that_asks_in_another_order_gets_the_same_bytes():
    found = []
    for split in ("train", "held_out_names"):
        env = Env(split, seed=5, absent_share=0.2)
        found.append(digest([env[index] for index in range(30)], env))
    other = subprocess.run([sys.executable, "-c", BACKWARDS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert other.stdout.split() == found


def test_a_pickled_env_is_equal_and_gives_the_same_examples():
    env = Env("validation", seed=3)
    examples = [env[index] for index in range(5)]
    again = pickle.loads(pickle.dumps(env))
    assert again == env and hash(again) == hash(env)
    assert digest([again[index] for index in range(5)], again) == digest(examples, env)


def test_seed_split_and_index_each_change_the_scene():
    refs = [Env("train")[0], Env("train")[1], Env("train", seed=1)[0], Env("test")[0]]
    assert len({example.image.sha256 for example in refs}) == 4


def test_an_example_is_complete():
    env = Env("test", num_scenes=7)
    assert len(env) == 7 and len(list(env)) == 7
    example = env[3]
    assert re.fullmatch(r"cutout_scenes/openmoji-[0-9a-f]{8}/64px/test/0/3", example.image.key)
    assert example.id == f"{example.image.key}/{example.prompt.text.replace(' ', '-')}"
    assert (example.image.height, example.image.width, example.split) == (64, 64, "test")
    assert example.licence == "CC-BY-SA-4.0" and example.truth.masks.shape == (1, 64, 64)
    pixels = env.image(example.image)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert image_sha256(pixels) == example.image.sha256


def test_masks_of_a_scene_are_disjoint_not_empty_and_leave_background():
    env = Env("train")
    counts = set()
    for index in range(150):
        masks = np.concatenate([example.truth.masks for example in env.scene(index)])
        assert masks.any(axis=(1, 2)).all()
        assert masks.sum(axis=0).max() == 1 and not masks.all()
        counts.add(len(masks))
    assert counts == {1, 2, 3, 4}


def test_every_pixel_of_a_mask_shows_its_object_and_no_other_pixel_does(tmp_path):
    env = Env("train", folder=folder_of_cards(tmp_path / "cards"), twin_share=0.3, max_overlap=0.4)
    hidden = 0
    for index in range(60):
        image = env.image(env[index].image)
        examples = env.scene(index)
        for name in {name_of(example.prompt.text) for example in examples}:
            mine = [example.truth.union for example in examples if name_of(example.prompt.text) == name]
            np.testing.assert_array_equal((image == COLOURS[name]).all(axis=2), np.any(mine, axis=0))
        for mask in (example.truth.union for example in examples):
            ys, xs = np.nonzero(mask)
            hidden += mask.sum() < (np.ptp(ys) + 1) * (np.ptp(xs) + 1)  # no longer a rectangle
    assert hidden > 20


def test_objects_measure_what_the_scales_say(tmp_path):
    env = Env(
        "train", folder=folder_of_cards(tmp_path / "cards"), image_size=100, min_scale=0.3, max_scale=0.5, max_objects=1
    )
    longest = []
    for index in range(60):
        ys, xs = np.nonzero(env[index].truth.union)
        longest.append(max(np.ptp(ys), np.ptp(xs)) + 1)
    assert 30 <= min(longest) <= 34 and 46 <= max(longest) <= 50


def test_a_name_alone_is_its_phrase_and_of_twins_exactly_one_true_spatial_word_is_said():
    env = Env("train", twin_share=1.0)
    num_twins = 0
    for index in range(200):
        examples = env.scene(index)
        phrases = [example.prompt.text for example in examples]
        assert len(set(phrases)) == len(phrases)
        names = [name_of(phrase) for phrase in phrases]
        for k, name in enumerate(names):
            others = [n for n, other in enumerate(names) if other == name and n != k]
            assert (phrases[k] == name) == (not others)
            if others:
                num_twins += 1
                here, there = (ndimage.center_of_mass(examples[n].truth.union) for n in (k, others[0]))
                down, across = np.subtract(here, there).round(9)
                true = (
                    ("right" if across > 0 else "left")
                    if abs(across) >= abs(down)
                    else ("lower" if down > 0 else "upper")
                )
                assert phrases[k] == f"the {true} {name}"
    assert num_twins > 100


def test_twins_stand_in_about_their_share_of_the_scenes_with_room_for_two():
    env = Env("train", twin_share=0.0)
    assert not any(SPATIAL.fullmatch(example.prompt.text) for index in range(150) for example in env.scene(index))
    env = Env("train", twin_share=1.0)
    scenes = [[example.prompt.text for example in env.scene(index)] for index in range(150)]
    assert all(any(map(SPATIAL.fullmatch, phrases)) for phrases in scenes if len(phrases) == env.max_objects)


def blank_scene(names, masks):
    return Scene(np.zeros((*masks.shape[1:], 3), np.uint8), names, masks)


def test_a_mirrored_scene_swaps_left_and_right_and_keeps_upper_and_lower():
    masks = np.zeros((5, 9, 9), bool)
    masks[0, 4, 0] = masks[1, 4, 8] = masks[2, 0, 4] = masks[3, 8, 4] = masks[4, 4, 4] = True
    scene = blank_scene(("cup", "cup", "ox", "ox", "dog"), masks)
    assert scene.phrases == ("the left cup", "the right cup", "the upper ox", "the lower ox", "dog")
    assert mirrored(scene).phrases == ("the right cup", "the left cup", "the upper ox", "the lower ox", "dog")
    assert mirrored(scene).masks[0, 4, 8] and mirrored(scene).names == scene.names


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("the left red apple", "the right red apple"),
        ("the right ox", "the left ox"),
        ("the upper ox", "the upper ox"),
        ("bright leftovers", "bright leftovers"),
    ],
)
def test_a_mirrored_phrase_changes_whole_words_only(phrase, expected):
    assert mirrored_phrase(phrase) == expected
    assert mirrored_phrase(expected) == phrase


@given(arrays(np.bool_, (2, 7, 7)).filter(lambda masks: masks.any(axis=(1, 2)).all()))
@settings(max_examples=300)
def test_phrases_of_a_mirrored_scene_are_the_mirrored_phrases_even_at_a_tie(masks):
    first, second = (np.array(ndimage.center_of_mass(mask)) for mask in masks)
    assume(np.abs(first - second).max() > 1e-6)  # two of a kind on one another: no word tells them apart
    scene = blank_scene(("cup", "cup"), masks)
    assert len(set(scene.phrases)) == 2
    assert mirrored(scene).phrases == tuple(map(mirrored_phrase, scene.phrases))
    np.testing.assert_array_equal(mirrored(mirrored(scene)).masks, masks)


def test_a_tie_that_rounding_errors_would_break_is_a_tie_in_the_mirror_too():
    masks = np.zeros((2, 8, 8), bool)
    for mask, corner in zip(masks, (2, 1), strict=True):  # an L of three pixels; its centre is at thirds
        mask[corner, corner] = mask[corner + 1, corner] = mask[corner, corner + 1] = True
    scene = blank_scene(("mouse", "mouse"), masks)
    assert scene.phrases == ("the right mouse", "the left mouse")
    assert mirrored(scene).phrases == ("the left mouse", "the right mouse")


def test_about_the_absent_share_of_the_questions_names_something_that_is_not_there():
    env, same_scenes = Env("train", absent_share=0.2), Env("train")
    num_absent = 0
    for index in range(800):
        example = env[index]
        assert example.image == same_scenes[index].image
        if len(example.truth.masks) == 0:
            num_absent += 1
            shown = {name_of(other.prompt.text) for other in same_scenes.scene(index)}
            assert example.prompt.text in env.names and example.prompt.text not in shown
            assert example.truth.masks.shape == (0, 64, 64) and not example.truth.union.any()
    assert 0.2 - 0.045 < num_absent / 800 < 0.2 + 0.045  # three standard deviations


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 50)])
def test_an_absent_share_of_0_or_1_means_never_or_always(share, expected):
    env = Env("train", absent_share=share)
    assert sum(len(env[index].truth.masks) == 0 for index in range(50)) == expected


def test_a_scene_asks_about_each_object_once_and_about_something_absent_in_its_share():
    env, present = Env("train", absent_share=0.15), Env("train")
    shares = []
    for index in range(400):
        examples = env.scene(index)
        num = len(present.scene(index))
        assert [example.id for example in examples[:num]] == [example.id for example in present.scene(index)]
        assert present[index].id in {example.id for example in examples}
        absent = examples[num:]
        assert len(absent) <= 1 and all(len(example.truth.masks) == 0 for example in absent)
        shares.append(len(absent) / len(examples))
    assert 0.11 < np.mean(shares) < 0.19  # the mean over scenes of the share in a scene


@pytest.mark.parametrize(
    "wrong", [{"seed": 1}, {"split": "test"}, {"image_size": 96}, {"min_scale": 0.5}, {"max_objects": 1}]
)
def test_an_image_reference_of_other_settings_is_refused(wrong):
    env = Env("train")
    ref = next(env[index].image for index in range(20) if len(env.scene(index)) > 2)
    with pytest.raises(ValueError, match=r"no longer has the pixels.*composed with other env settings"):
        replace(env, **wrong).image(ref)


def test_an_altered_reference_is_refused():
    env = Env("train", num_scenes=10)
    ref = env[0].image
    assert image_sha256(env.image(ref)) == ref.sha256
    for key in (f"{ref.key}0", ref.key[:-1] + "1", ref.key[:-1] + "-1", ref.key + "²", "photos/cat.png", "3", ""):
        with pytest.raises(ValueError, match=r"no longer has the pixels"):
            env.image(replace(ref, key=key))
    with pytest.raises(ValueError, match=ref.key):
        env.image(ImageRef(ref.key, "0" * 64, 64, 64))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "dev"}, r"env split is 'dev'; it must be one of train, validation, test, held_out_names"),
        ({"image_size": 31}, r"env\.image_size is 31"),
        ({"min_scale": 0.0}, r"env\.min_scale 0\.0"),
        ({"min_scale": 0.7}, r"env\.min_scale 0\.7, env\.max_scale 0\.68"),
        ({"max_scale": 1.1}, r"env\.max_scale 1\.1"),
        ({"max_objects": 0}, r"env\.max_objects 0"),
        ({"held_out_share": -0.1}, r"env\.held_out_share is -0\.1"),
        ({"held_out_share": 1.5}, r"env\.held_out_share is 1\.5"),
        ({"held_out_share": 1.0}, r"split train has 0 names with env\.held_out_share 1\.0; it needs 2 or more"),
        ({"twin_share": 2.0}, r"env\.twin_share is 2\.0"),
        ({"absent_share": float("nan")}, r"env\.absent_share is nan"),
        ({"max_overlap": 1.0}, r"env\.max_overlap is 1\.0.*hide objects whole"),
        ({"num_scenes": 0}, r"env\.num_scenes 0"),
        ({"seed": -1}, r"env\.seed -1"),
        ({"split": "held_out_names", "absent_share": 0.1, "max_objects": 6}, r"env\.absent_share is 0\.1.*has 6 names"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_and_value(wrong, message):
    with pytest.raises(ValueError, match=message):
        Env(**{"split": "train", **wrong})


def test_an_index_outside_is_an_index_error_that_names_the_range():
    env = Env("train", num_scenes=3)
    for index in (-1, 3):
        for ask in (env.__getitem__, env.scene):
            with pytest.raises(IndexError, match=rf"example {index} is outside 0\.\.2 \(env\.num_scenes is 3\)"):
                ask(index)


def test_a_folder_of_cutouts_serves_all_splits(tmp_path):
    folder = folder_of_cards(tmp_path / "cards")
    train, held_out = Env("train", folder=folder), Env("held_out_names", folder=folder)
    assert (len(train.names), len(held_out.names)) == (18, 2)
    assert sorted(train.names + held_out.names) == sorted(NAMES)
    example = train[0]
    assert example.source == f"cut-outs of {folder}" and example.licence == "see folder"
    assert re.fullmatch(r"cutout_scenes/folder-[0-9a-f]{8}/64px/train/0/0", example.image.key)
    assert image_sha256(train.image(example.image)) == example.image.sha256
    for env in (train, held_out):
        asked = {name_of(env[index].prompt.text) for index in range(200)}
        assert asked == set(env.names)


def test_pictures_of_held_out_names_leave_no_trace_in_the_other_splits(tmp_path):
    _, held_out = split_names(NAMES, 0.1)
    first = folder_of_cards(tmp_path / "first")
    second = folder_of_cards(tmp_path / "second", colours=COLOURS | dict.fromkeys(held_out, (0, 0, 0)))
    for split, differing in (("train", 0), ("validation", 0), ("held_out_names", 30)):
        pairs = [[Env(split, folder=folder)[index].image.sha256 for folder in (first, second)] for index in range(30)]
        assert sum(one != other for one, other in pairs) == differing


def test_a_folder_with_too_few_names_is_refused(tmp_path):
    folder = folder_of_cards(tmp_path / "cards", NAMES[:3])
    with pytest.raises(ValueError, match=r"split held_out_names has 0 names .*it needs 2 or more: add cut-outs"):
        Env("held_out_names", folder=folder)
    with pytest.raises(ValueError, match=r"env\.absent_share is 0\.5.*has 3 names.*env\.max_objects 4"):
        Env("train", folder=folder, absent_share=0.5)
    assert len(Env("train", folder=folder, absent_share=0.5, max_objects=2)[0].prompt.text) > 0


def test_a_scene_of_cutouts_too_faint_to_see_says_which(tmp_path):
    dotted = np.zeros((90, 90, 4), np.uint8)
    dotted[::3, ::3] = 255
    for k, name in enumerate(("mist", "haze")):
        Image.fromarray(dotted).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(name)
    env = Env("train", folder=str(tmp_path), held_out_share=0.0)
    with pytest.raises(
        ValueError, match=r"nothing could be placed in scene 0 of split train: .*(mist|haze).*env\.min_scale"
    ):
        env[0]


def test_few_training_scenes_come_again_with_other_questions_and_other_splits_are_as_they_were() -> None:
    few, all_of_them = Env("train", num_scenes=400, train_scenes=10), Env("train", num_scenes=400)
    assert len(few) == 400 and len({few[k].image.key for k in range(400)}) == 10
    assert [few[k].id for k in range(10)] == [all_of_them[k].id for k in range(10)]
    ids = {few[k].id for k in range(400)}
    assert ids == {example.id for k in range(10) for example in all_of_them.scene(k)}
    assert [one.id for one in few.scene(13)] == [one.id for one in all_of_them.scene(3)]
    image = few.image(few[25].image)
    assert (image == all_of_them.image(all_of_them[5].image)).all()
    assert few.fingerprint != all_of_them.fingerprint
    test = Env("test", num_scenes=400, train_scenes=10)
    assert (
        test.fingerprint == Env("test", num_scenes=400).fingerprint
        and len({test[k].image.key for k in range(50)}) == 50
    )
    with pytest.raises(ValueError, match=r"env\.train_scenes is 0; set it to 1 or more"):
        Env("train", train_scenes=0)


def test_where_several_are_asked_for_a_bare_name_means_all_of_its_kind_and_other_scenes_stay() -> None:
    env = Env("train", several_share=1.0, max_objects=4, min_scale=0.2, max_scale=0.35)
    scenes = [env.scene(index) for index in range(120)]
    for scene in scenes:
        assert len({example.prompt.text for example in scene}) == len(scene)  # every kind is asked for once
        assert not any(SPATIAL.fullmatch(example.prompt.text) for example in scene)
        assert sum(len(example.truth.masks) for example in scene) <= 4
    targets = [max(len(example.truth.masks) for example in scene) for scene in scenes]
    counts = [targets.count(number) for number in (1, 2, 3, 4)]
    # Two, three and four are equally likely; small objects nearly always find a place.
    assert counts[0] < 5 and all(25 < count < 55 for count in counts[1:])
    assert {len(env[index].truth.masks) for index in range(60)} == {1, 2, 3, 4}
    mixed, plain = Env("train", several_share=0.5), Env("train")
    several = sum(len(example.truth.masks) > 1 for index in range(200) for example in mixed.scene(index))
    assert 60 < several < 110
    assert mixed.scene(0)[0].image.key != plain.scene(0)[0].image.key


def test_several_of_a_kind_need_room_for_two() -> None:
    with pytest.raises(ValueError, match=r"env.several_share is 0.5 and env.max_objects 1, which leaves no room"):
        Env("train", several_share=0.5, max_objects=1)
