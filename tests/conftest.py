"""What several test files need: an untrained tiny checkpoint, written once per session; the order of the files."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from envs.codecs.path_tokens import Codec
from envs.datasets._scene import SPATIAL_WORDS
from envs.datasets.cutout_scenes import Env
from policies.tiny_model import TinySizes, write_untrained

# On a busy machine a first call can take any time.
settings.register_profile("polytrace", deadline=None)
settings.load_profile("polytrace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the files, those with slow tests come first, so that none is left with a slow one
    at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and none is here"))


@pytest.fixture(scope="session")
def tiny_untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of random weights: images of 32 px in patches of 8, words of the codec and of all
    phrases."""
    folder = tmp_path_factory.mktemp("tiny_untrained")
    names = Env("train").names + Env("held_out_names").names
    phrase_words = {word for name in names for word in name.split()} | SPATIAL_WORDS
    sizes = TinySizes(
        image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
    )
    write_untrained(folder, Codec().words + sorted(phrase_words), sizes, seed=0)
    return folder
