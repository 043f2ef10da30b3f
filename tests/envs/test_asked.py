"""Questions by colour, size, kind, by a mask and all but a name: that they are true, and that nothing else changes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from test_cutout_scenes import folder_of_cards

from envs.datasets._asked import COLOURS, SORTS, Asked, colours_of, questions, words_of
from envs.datasets._cutouts import load_cutouts, opaque
from envs.datasets._scene import Scene
from envs.datasets.cutout_scenes import Env
from envs.example import MaskPart

SHARES = {f"{sort}_share": 0.16 for sort in SORTS}
BEFORE = "570ea6ed6c540e294a4d98f57c91619d5199bbb538d54f3416deaac55bfa8292"
"""Of examples and fingerprints as they were before there were other questions."""


def scene(*objects: tuple[str, int]) -> Scene:
    """Objects by name and area, a row each."""
    masks = np.zeros((len(objects), 20, 20), np.bool_)
    for k, (_, area) in enumerate(objects):
        masks[k, k, :area] = True
    return Scene(np.zeros((20, 20, 3), np.uint8), tuple(name for name, _ in objects), masks)


def plain(*shares: tuple[str, float]) -> dict[str, float]:
    return dict.fromkeys(COLOURS, 0.0) | dict(shares)


def test_a_pixel_has_one_colour_and_an_object_the_shares_of_its_pixels() -> None:
    told = {
        (20, 20, 20): "black",
        (128, 128, 128): "grey",
        (255, 255, 255): "white",
        (255, 0, 0): "red",
        (255, 160, 40): "orange",
        (110, 70, 45): "brown",
        (255, 235, 40): "yellow",
        (90, 200, 40): "green",
        (140, 210, 245): "blue",
        (160, 90, 200): "purple",
        (255, 166, 190): "pink",
    }
    assert set(told.values()) == set(COLOURS)
    for pixel, name in told.items():
        assert colours_of(np.array([pixel], np.uint8)) == plain((name, 1.0)), pixel
    mixed = colours_of(np.array([(255, 0, 0)] * 3 + [(20, 20, 20)], np.uint8))
    assert mixed == pytest.approx(plain(("red", 0.75), ("black", 0.25)))


def test_only_what_has_one_answer_is_asked_for() -> None:
    colours = {
        "red apple": plain(("red", 0.8)),
        "pear": plain(("green", 0.9), ("red", 0.2)),
        "bus": plain(("red", 0.3), ("blue", 0.6)),
        "dog": plain(("brown", 0.7)),
    }
    found = scene(("red apple", 12), ("pear", 8), ("pear", 11), ("dog", 9))
    assert questions("colour", found, colours) == [
        Asked("everything red", (0,)),
        Asked("everything brown", (3,)),
        Asked("everything green", (1, 2)),
    ]
    # The bus is red enough to be in doubt.
    doubtful = questions("colour", scene(("red apple", 12), ("bus", 8)), colours)
    assert doubtful == [Asked("everything blue", (1,))]
    # 12 is less than a third more than 11, and 9 than 8; of the pears 11 is enough above 8.
    assert questions("size", found, colours) == [Asked("the smallest pear", (1,)), Asked("the largest pear", (2,))]
    three = scene(("dog", 3), ("pear", 4), ("bus", 6))
    assert questions("size", three, colours) == [Asked("the smallest", (0,)), Asked("the largest", (2,))]
    assert questions("size", scene(("dog", 3)), colours) == []
    assert questions("kind", found, colours) == [Asked("every fruit", (0, 1, 2))]
    assert questions("kind", scene(("dog", 3)), colours) == []
    assert questions("same", found, colours) == [Asked("the same as", (1, 2), 1), Asked("the same as", (1, 2), 2)]
    assert questions("same", three, colours) == []
    assert questions("others", found, colours) == [
        Asked("all but red apple", (1, 2, 3)),
        Asked("all but pear", (0, 3)),
        Asked("all but dog", (0, 1, 2)),
    ]
    assert questions("others", scene(("dog", 3), ("dog", 4)), colours) == []


def test_truths_are_what_a_second_look_at_the_scene_says() -> None:
    env = Env("train", candidates=12, several_share=0.4, **SHARES)
    cutouts = {cutout.name: cutout for cutout in load_cutouts(None).cutouts}
    seen = set()
    for index in range(300):
        example, told = env[index], env[index].prompt.told
        names, masks = env._scene(index).names, env._scene(index).masks
        truth = [next(k for k, mask in enumerate(masks) if np.array_equal(mask, one)) for one in example.truth.masks]
        match told.split():
            case ["everything", colour]:
                wanted = []
                for k, name in enumerate(names):
                    rgba = cutouts[name].rgba
                    if colours_of(rgba[opaque(rgba)][:, :3])[colour] > 0.4:
                        wanted.append(k)
            case ["the", "largest" | "smallest" as word, *name]:
                among = [k for k, other in enumerate(names) if not name or other == " ".join(name)]
                chosen = max if word == "largest" else min
                wanted = [chosen(among, key=lambda k: masks[k].sum())]
            case ["the", "same", "as", "<mask>"]:
                part = example.prompt.parts[1]
                assert isinstance(part, MaskPart)
                shown = next(k for k, mask in enumerate(masks) if np.array_equal(mask, part.mask))
                wanted = [k for k, name in enumerate(names) if name == names[shown]]
                assert shown in wanted and len(wanted) > 1 and example.id.endswith(f"the-same-as-object-{shown}")
            case ["all", "but", *name]:
                wanted = [k for k, other in enumerate(names) if other != " ".join(name)]
            case ["every", "fruit"]:
                wanted = [k for k, name in enumerate(names) if {*name.split()} & {"apple", "pear", "lemon", "peach"}]
                wanted += [k for k in truth if k not in wanted and names[k] in FRUIT]
                wanted.sort()
            case _:
                continue
        assert truth == wanted, told
        seen.add(" ".join(told.split()[:2]))
    assert {"all but", "the same", "every fruit", "the largest", "the smallest", "everything red"} <= seen


FRUIT = {"banana", "cherries", "grapes", "melon", "pineapple", "strawberry", "tangerine", "watermelon"}


def test_shares_are_met_and_questions_by_name_stay_what_they_were() -> None:
    bare, env = (Env("train", several_share=0.5, absent_share=0.1, **shares) for shares in ({}, {"others_share": 0.4}))
    others = 0
    for index in range(400):
        one, other = env[index], bare[index]
        assert one.image == other.image
        if one.prompt.text.startswith("all but "):
            others += 1
        else:
            assert (one.id, one.prompt.told) == (other.id, other.prompt.told)
    # Of 40 % those whose scenes show two names or more.
    several = np.mean([len(set(bare._scene(index).names)) > 1 for index in range(400)])
    assert others / 400 == pytest.approx(0.4 * several, abs=0.06)
    added = [len(env.scene(index)) - len(bare.scene(index)) for index in range(200)]
    assert set(added) == {0, 1} and np.mean(added) == pytest.approx(0.4 * several, abs=0.08)
    assert bare.fingerprint != env.fingerprint
    assert env.phrase_words() - bare.phrase_words() == words_of("others")


def test_without_shares_nothing_has_changed_by_a_bit(tmp_path: Path) -> None:
    folder, whole = folder_of_cards(tmp_path / "cards"), hashlib.sha256()
    for split in ("train", "held_out_names"):
        env = Env(
            split,
            folder=folder,
            image_size=32,
            candidates=8,
            absent_share=0.2,
            held_out_share=0.4,
            several_share=0.3,
            twin_share=0.3,
        )
        for index in range(40):
            for one in [env[index], *env.scene(index)]:
                assert one.candidates is not None
                said = f"{one.id} {one.prompt.told} {one.image.sha256} {one.candidates.shape}"
                whole.update(said.encode() + one.truth.masks.tobytes() + one.candidates.tobytes())
        whole.update(env.fingerprint.encode() + " ".join(sorted(env.phrase_words())).encode())
    assert whole.hexdigest() == BEFORE


def test_shares_that_are_none_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^env\.same_share is 1\.5; a share is 0 to 1"):
        Env("train", same_share=1.5)
    with pytest.raises(ValueError, match=r"^env\.colour_share, .* env\.others_share add up to 1\.2; together they"):
        Env("train", colour_share=0.6, others_share=0.6)
