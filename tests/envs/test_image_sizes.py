"""Images of every size and ratio go through the image processor and the vision tower, in their places."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask, ask_all
from numpy.typing import NDArray
from PIL import Image
from test_vision_language import write_qwen2_5_vl

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from policies.tiny_model import TinySizes, write_untrained

SIZES = [(1, 1), (2, 3), (3, 1), (1, 200), (1, 201), (201, 1), (2, 500), (500, 2), (27, 64), (480, 640)]


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def policy(request: pytest.FixtureRequest, tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    if request.param == "qwen3_vl":
        return Policy(tiny_untrained, Codec())
    folder = tmp_path_factory.mktemp("qwen2_5_vl")
    write_qwen2_5_vl(folder)
    return Policy(folder, Codec())


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def stepped(height: int, width: int) -> NDArray[np.uint8]:
    """Black, its last quarter along the longer side white."""
    image = np.zeros((height, width, 3), np.uint8)
    image[3 * height // 4 :] = 255 if height > width else 0
    image[:, 3 * width // 4 :] |= np.uint8(255 if width >= height else 0)
    return image


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_an_image_of_any_size_can_be_asked_about_and_seen(policy: Policy, size: tuple[int, int]) -> None:
    image = noise(*size)
    rows = policy.rows([ask(image, "dog")], [[policy.processor.answer_tokens("none")]])
    assert rows.prompt_tokens[0].tolist() == policy.processor.prompt_tokens(ask(image, "dog")).tolist()
    assert policy(rows).isfinite().all()
    features = policy.vision_features([image])
    assert features.final.isfinite().all() and features.final.shape[2:] == features.early.shape[2:]


def test_only_images_with_a_ratio_above_200_are_stretched_and_as_little_as_that_takes(policy: Policy) -> None:
    for size in ((1, 1), (2, 3), (1, 200), (200, 1), (64, 64), (3, 600)):
        image = noise(*size)
        assert policy.processor.shown_image(image) is image
    for size, stretched in {(1, 201): (2, 201), (401, 2): (401, 3), (2, 450): (3, 450), (450, 1): (450, 3)}.items():
        image = noise(*size)
        found = policy.processor.shown_image(image)
        assert found.shape == (*stretched, 3) and found.dtype == np.uint8
        expected = Image.fromarray(image).resize(stretched[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(found, np.asarray(expected))


def test_a_long_strip_takes_no_more_memory_than_the_image_processor_s_limit(policy: Policy) -> None:
    limit = policy.processor.image_processor.size["longest_edge"]
    for size in ((1, 300_000), (300_000, 1)):
        height, width = policy.processor.shown_image(np.zeros((*size, 3), np.uint8)).shape[:2]
        longer, shorter = max(height, width), min(height, width)
        assert longer <= 200 * shorter and longer * shorter <= limit + longer  # the shorter is rounded up
        assert (height > width) == (size[0] > size[1])
        policy.rows(ask_all([np.zeros((*size, 3), np.uint8)], ["dog"]), [[policy.processor.answer_tokens("none")]])


@pytest.mark.parametrize("size", [(16, 96), (96, 16), (2, 500), (500, 2), (80, 120), (240, 160), (31, 57)])
def test_what_is_white_of_an_image_is_white_in_the_patches_that_lie_there(
    policy: Policy, size: tuple[int, int]
) -> None:
    rows = policy.rows(ask_all([stepped(*size)], ["dog"]), [[policy.processor.answer_tokens("none")]])
    [[_, down, across]] = rows.image_grid.tolist()
    features = policy.vision_features([stepped(*size)])
    merge = policy.model.config.vision_config.spatial_merge_size
    assert features.early.shape[2:] == (down // merge, across // merge)
    # Patches come in blocks of merge x merge; [down, across] of the mean of each.
    blocks = rows.pixel_values.mean(1).view(down // merge, across // merge, merge, merge)
    brightness = blocks.permute(0, 2, 1, 3).reshape(down, across)
    along = brightness.mean(1) if size[0] > size[1] else brightness.mean(0)
    share = (along > 0).float().mean().item()
    assert (along[1:] >= along[:-1] - 0.1).all()
    assert share == pytest.approx(0.25, abs=1 / len(along))


def test_a_new_model_sees_about_as_many_pixels_of_any_image_as_its_image_size_says(tmp_path: Path) -> None:
    sizes = TinySizes(32, 8, 32, 1, 2, 16, 1, 2)
    write_untrained(tmp_path, Codec().words, sizes, seed=0)
    policy = Policy(tmp_path, Codec())
    answers = [[policy.processor.answer_tokens("none")]]
    seen = {
        s: policy.rows(ask_all([noise(*s)], ["dog"]), answers).image_grid.tolist()
        for s in ((32, 32), (64, 16), (480, 640))
    }
    assert seen == {(32, 32): [[1, 4, 4]], (64, 16): [[1, 8, 2]], (480, 640): [[1, 3, 4]]}


def test_an_image_processor_that_does_not_resize_is_refused_by_its_folder(tiny_untrained: Path, tmp_path: Path) -> None:
    Policy(tiny_untrained, Codec()).save(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_resize": False}))
    with pytest.raises(ValueError, match=r"image processor of .* has do_resize false.*preprocessor_config\.json"):
        Policy(tmp_path, Codec())
