"""An annotated mask serves every task: its box, a point inside, itself; which one, is the same in any process."""

import pickle
from collections import Counter

import numpy as np
import pytest

from envs.datasets import tasks
from envs.datasets.tasks import TASKS, as_task, box_px, draws_of, inner_point_px
from envs.example import BoxPart, Example, ImageRef, MaskPart, PointPart, Prompt, TextPart, Truth
from rl.config.plugins import env_plugin

SCENES = {"name": "cutout_scenes", "image_size": 64, "num_scenes": 2000, "absent_share": 0.1}


def square(x0: int, y0: int, side: int) -> np.ndarray:
    mask = np.zeros((20, 30), np.bool_)
    mask[y0 : y0 + side, x0 : x0 + side] = True
    return mask


def example(*masks: np.ndarray, ignore: np.ndarray | None = None) -> Example:
    truth = Truth(np.array(masks, np.bool_).reshape(-1, 20, 30), ignore)
    return Example("data/1", ImageRef("photo", "ab" * 32, 20, 30), Prompt.of_text("cup"), truth, "train", "", "")


def test_the_box_of_a_mask_and_the_pixel_deepest_inside_it() -> None:
    mask = square(4, 6, 5)
    assert box_px(mask) == (4.0, 6.0, 9.0, 11.0)
    assert inner_point_px(mask) == (6.5, 8.5)
    edge = square(25, 0, 5)  # the border of the image is outside too
    assert inner_point_px(edge) == (27.5, 2.5)


def test_every_task_of_one_object_shows_and_asks_what_its_name_says() -> None:
    mask, crowd = square(4, 6, 5), square(3, 6, 5)
    for name, (shown, asked) in TASKS.items():
        one = as_task(example(mask, ignore=crowd), name, draws_of("key"))
        assert (one.id, one.prompt.asked) == (f"{name}::data/1", asked)
        kinds = [type(part) for part in one.prompt.parts]
        by_shown = {"text": [TextPart], "point": [PointPart], "box": [BoxPart], "text_mask": [TextPart, MaskPart]}
        assert kinds == by_shown[shown]
        np.testing.assert_array_equal(one.truth.masks, mask[None])
    pointed = as_task(example(mask, ignore=crowd), "point_to_mask", draws_of("key"))
    (x, y) = pointed.prompt.parts[0].point_px
    assert mask[int(y), int(x)] and not (pointed.truth.ignore & mask).any()


def test_of_two_objects_a_place_means_one_and_a_phrase_both() -> None:
    both = example(square(0, 0, 6), square(15, 8, 8))
    boxes = {as_task(both, "box_to_mask", draws_of(f"{k}")).prompt.parts[0].box_px for k in range(20)}
    assert boxes == {(0.0, 0.0, 6.0, 6.0), (15.0, 8.0, 23.0, 16.0)}
    assert len(as_task(both, "box_to_mask", draws_of("0")).truth.masks) == 1
    assert len(as_task(both, "text_to_box", draws_of("0")).truth.masks) == 2


def test_what_nothing_fits_is_asked_by_text() -> None:
    nothing = as_task(example(), "point_to_box", draws_of("key"))
    assert (nothing.prompt.text, nothing.prompt.asked, len(nothing.truth.masks)) == ("cup", "box", 0)


def test_tasks_come_in_their_shares_and_an_example_keeps_its_task() -> None:
    shares = {"text_to_mask": 2.0, "point_to_mask": 1.0, "text_to_box": 1.0}
    env = tasks.Env("train", SCENES, shares)
    ids = [env[k].id for k in range(2000)]
    found = Counter(name.partition("::")[0] for name in ids)
    assert (found["text_to_mask"], found["point_to_mask"]) == (pytest.approx(1000, abs=70), pytest.approx(500, abs=60))
    again = pickle.loads(pickle.dumps(env))
    assert [again[k].id for k in range(50)] == ids[:50]
    assert {one.id for one in env.scene(0)} >= {ids[0]}
    assert env.asked == ("mask", "box")
    other = tasks.Env("train", SCENES, shares, seed=1)
    assert (other.fingerprint, [other[k].id for k in range(50)]) != (env.fingerprint, ids[:50])


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"tasks": {"text_to_maks": 1.0}}, r"'text_to_maks'; did you mean 'text_to_mask'\?"),
        ({"tasks": {"text_to_mask": 0.0}}, r"env\.tasks\.text_to_mask is 0\.0; give a share above 0"),
        ({"of": {}}, r"env\.of has no name"),
        ({"of": SCENES | {"imagesize": 3}}, r"env\.of\.imagesize is not a setting"),
    ],
)
def test_tasks_that_are_not_there_are_refused(entry: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        env_plugin({"name": "tasks", "of": SCENES} | entry).build(split="train")
