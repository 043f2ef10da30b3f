"""A mixture asks its parts by their shares, the same in every process, and every example of a held-out split once."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.datasets import mixture
from envs.datasets.mixture import interleaved
from rl.config.plugins import env_plugin

SCENES = {"name": "cutout_scenes", "image_size": 64, "num_scenes": 20}


def mixed(split: str = "train", **second: object) -> mixture.Env:
    parts = [
        SCENES | {"share": 3, "called": "many"},
        SCENES | {"share": 1, "called": "few", "seed": 1, "num_scenes": 12} | second,
    ]
    return mixture.Env(split, parts)


def test_three_questions_of_four_come_from_the_part_with_three_quarters_wherever_one_looks() -> None:
    env = mixed()
    assert len(env) == 48  # twelve of the smaller share, gone through once, are a quarter
    for first in range(0, 48, 4):
        assert Counter(env.part_of(k) for k in range(first, first + 4)) == {"many": 3, "few": 1}
    few = [k for k in range(48) if env.part_of(k) == "few"]
    assert len({env[k].id for k in few}) == 12
    many = [env[k].id for k in range(48) if env.part_of(k) == "many"]
    assert many[:20] * 2 == [*many, *many[16:20]]  # twenty examples, asked again from the first


def test_a_held_out_split_asks_every_example_once() -> None:
    env = mixed("validation")
    ids = [env[k].id for k in range(len(env))]
    assert len(ids) == len(set(ids)) == 32


def test_examples_images_and_scenes_are_those_of_the_parts_under_their_names() -> None:
    env = mixed()
    alone = env_plugin(SCENES).build(split="train")
    k = next(k for k in range(len(env)) if env.part_of(k) == "many")
    example, own = env[k], alone[0]
    assert (example.id, example.prompt) == (f"many::{own.id}", own.prompt)
    np.testing.assert_array_equal(env.image(example.image), alone.image(own.image))
    assert [one.id for one in env.scene(k)] == [f"many::{one.id}" for one in alone.scene(0)]
    again = pickle.loads(pickle.dumps(env))
    assert (again.fingerprint, again[k].id) == (env.fingerprint, example.id)
    assert env.fingerprint != mixed(share=2).fingerprint
    assert env.phrase_words() >= alone.phrase_words()


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 5)), min_size=1, max_size=4),
)
def test_every_example_is_asked_and_no_part_is_ever_a_question_and_a_half_ahead(parts: list[tuple[int, float]]) -> None:
    lengths, shares = [length for length, _ in parts], [share for _, share in parts]
    part, place = interleaved(lengths, shares)
    for k, length in enumerate(lengths):
        assert set(place[part == k].tolist()) == set(range(length))
        begun = np.cumsum(part == k)
        due = np.arange(1, len(part) + 1) * shares[k] / sum(shares)
        assert np.abs(begun - due)[: int(0.9 * len(part))].max(initial=0) < len(parts) + 0.5


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([], "env.parts is empty"),
        ([SCENES], r"env\.parts\[0\]\.share is None"),
        ([SCENES | {"share": 0}], r"share is 0; give a number above 0"),
        ([{"share": 1}], r"env\.parts\[0\] has no name"),
        ([SCENES | {"share": 1}, SCENES | {"share": 1}], "give those that share a name another by `called`"),
        ([SCENES | {"share": 1, "imagesize": 3}], r"parts\[0\]\.imagesize is not a setting; did you mean .*image_size"),
        ([{"name": "cutout_scene", "share": 1}], r"env\.parts\[0\]: no Env .*did you mean 'cutout_scenes'"),
    ],
)
def test_parts_that_cannot_be_used_are_refused_by_their_place(parts: list[dict[str, object]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        env_plugin({"name": "mixture", "parts": parts}).build(split="train")


def test_what_is_wrong_with_a_part_is_told_with_its_place(tmp_path: Path) -> None:
    shards = {"name": "shards", "folder": str(tmp_path / "gone"), "share": 1}
    with pytest.raises(FileNotFoundError, match=r"^env\.parts\[1\]: .*gone"):
        mixture.Env("train", [SCENES | {"share": 1}, shards])
    nested = {"name": "mixture", "share": 1, "called": "both", "parts": [SCENES | {"share": 0}]}
    with pytest.raises(ValueError, match=r"^env\.parts\[1\]\.parts\[0\]\.share is 0"):
        mixture.Env("train", [SCENES | {"share": 1}, nested])
