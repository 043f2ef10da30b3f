"""A refiner's features come from the tower alone, without the language model in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_vision_language import WRITTEN

from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.checkpoint import Checkpoint
from policies.families.vision_language import Policy
from policies.vision.features import policy_with_tower_alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3_vl", *WRITTEN])
def test_features_and_checksum_are_those_of_the_whole_policy(
    tiny_untrained: Path, tmp_path: Path, family: str, dtype: str
) -> None:
    if family == "qwen3_vl":
        Policy(tiny_untrained, Codec(), dtype="bfloat16").save(tmp_path)
    else:
        WRITTEN[family](tmp_path)
    assert Checkpoint(tmp_path).stored_dtype() == ("bfloat16" if family == "qwen3_vl" else "float32")
    settings = {"checkpoint": tmp_path, "codec": Codec(), "dtype": dtype}
    recipe = Plugin("policies.families", "Policy", "vision_language", settings)
    whole, alone = recipe.build().eval(), policy_with_tower_alone(recipe, torch.device("cpu"))
    tower = {id(parameter) for parameter in alone.vision_tower.parameters()}
    assert all(parameter.is_meta != (id(parameter) in tower) for parameter in alone.model.parameters())
    assert alone.vision_checksum() == whole.vision_checksum()
    images = [np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)] * 2
    for early in (0, 1):
        expected, found = whole.vision_features(images, early), alone.vision_features(images, early)
        assert torch.equal(found.final, expected.final) and torch.equal(found.early, expected.early)
