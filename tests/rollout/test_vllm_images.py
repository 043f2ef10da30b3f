"""Images as vLLM gets them: resized here, so that its image processor finds nothing to resize."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask
from test_vision_language import write_llava, write_qwen2_5_vl

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from rollout.engines._vllm_images import image_limits, resized

SIZES = [(56, 56), (57, 90), (200, 31), (3, 700), (40, 28), (480, 640)]


@pytest.mark.parametrize("write", [write_qwen2_5_vl, write_llava])
def test_vllm_gets_an_image_whose_patches_are_those_of_the_image_itself_to_the_bit(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path)
    processor = Policy(tmp_path, Codec(), weights=False).processor
    changed = 0
    for height, width in SIZES:
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        handed = resized(processor, image)
        assert handed.dtype == np.uint8 and handed.shape[:2] == processor.shown_size(*handed.shape[:2])
        pairs = zip(processor.patches([handed]), processor.patches([image]), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
        handed_tokens, tokens = (processor.prompt_tokens(ask(each, "dog")) for each in (handed, image))
        assert handed_tokens.tolist() == tokens.tolist()
        np.testing.assert_array_equal(resized(processor, handed), handed)
        changed += handed.shape != image.shape
    assert changed >= 4


def test_vllm_is_told_of_no_larger_image_than_max_model_len_tokens_show(tmp_path: Path) -> None:
    write_qwen2_5_vl(tmp_path)  # 64 pixels a token, images of 256 to 9,216 pixels; sqrt(200 x 64 x 9216) = 10,861
    processor = Policy(tmp_path, Codec(), weights=False).processor
    limits = [image_limits(processor, length) for length in (None, 1000, 100)]
    assert limits == [{"min_pixels": 64, "max_pixels": most} for most in (10_925, 10_925, 6400)]
    strips = [(1, 2000), (3, 600), (7, 1400), (2, 20), (450, 3), (30, 6000)]
    shown = [resized(processor, np.zeros((*strip, 3), np.uint8)).shape for strip in strips]
    assert all(height * width <= 10_925 for height, width, _ in shown)


def test_a_strip_that_resizing_would_make_too_thin_is_handed_over_as_it_is(tmp_path: Path) -> None:
    write_qwen2_5_vl(tmp_path)
    processor = Policy(tmp_path, Codec(), weights=False, max_pixels=100_000).processor
    assert processor.shown_size(11, 2200) == (8, 2200)  # 275 times as long as wide
    assert resized(processor, np.zeros((11, 2200, 3), np.uint8)).shape == (11, 2200, 3)
    assert resized(processor, np.zeros((12, 1400, 3), np.uint8)).shape == (16, 1400, 3)
