"""Stages that would train nothing are refused before the first step, by the setting that keeps them from it."""

from pathlib import Path

import pytest
from rich.console import Console

from envs.plugin import Plugin
from policies.settings import LoraSettings
from rl.config.plugins import policy_plugin
from rl.config.sft import SftConfig, SftLearner, SftSettings, SftStage
from rl.sft import run_sft
from rl.supervised.idle import refuse_idle_stages

CODEC = Plugin("envs.codecs", "Codec", "path_tokens", {})

OWN = """
from pathlib import Path
from typing import Any
from policies.families import vision_language


class Policy:
    def __init__(self, checkpoint: Path, codec: Any):
        self.held = vision_language.Policy(checkpoint, codec)

    def __getattr__(self, name):
        return getattr(self.held, name)
"""


def config(checkpoint: Path, learner: SftLearner, *trains: str, **policy: object) -> SftConfig:
    named = {"name": "vision_language", "checkpoint": str(checkpoint), **policy}
    stages = [SftStage(f"stage {k}", 1, lr=1e-3, trains=one) for k, one in enumerate(trains)]
    return SftConfig(run="unused", policy=named, sft=SftSettings(stages), learner=learner)


def look(made: SftConfig, codec: Plugin = CODEC) -> None:
    refuse_idle_stages(made, policy_plugin(made.policy, codec))


def test_a_stage_that_would_train_nothing_is_refused_by_the_setting_that_keeps_it_from_learning(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    adapters = SftLearner(lora=LoraSettings(rank=2))
    look(config(tiny_untrained, adapters, "all", "all_but_encoders"))
    look(config(tiny_untrained, SftLearner(freeze_vision=True, freeze_projector=False), "projector"))
    with pytest.raises(
        ValueError,
        match=r"^stage stage 1 trains 'projector', of which no parameter would learn under learner\.lora; change that,",
    ):
        look(config(tiny_untrained, adapters, "all", "projector"))
    with pytest.raises(ValueError, match=r"stage 0 trains 'projector', .* under learner\.freeze_vision true; change"):
        look(config(tiny_untrained, SftLearner(freeze_vision=True), "projector"))
    with pytest.raises(ValueError, match=r"would learn under learner\.freeze_projector true; change that"):
        look(config(tiny_untrained, SftLearner(freeze_projector=True), "projector"))
    with_masks = Plugin("envs.codecs", "Codec", "box_masks", {"mask_token": "M"})
    boxes = {"name": "box_decoder", "freeze_decoder": True, "mask_cells": 16}
    with pytest.raises(ValueError, match=r"trains 'decoder', .* would learn under policy\.freeze_decoder true; change"):
        look(config(tiny_untrained, SftLearner(), "decoder", **boxes), with_masks)
    # A training says so before it has written anything, and of a stage that comes late.
    whole = config(tiny_untrained, adapters, "all", "projector")
    whole.run, whole.env = str(tmp_path / "run"), {"name": "cutout_scenes", "image_size": 32, "num_scenes": 4}
    whole.codec, whole.max_tokens = {"name": "path_tokens"}, 24
    with pytest.raises(ValueError, match=r"^stage stage 1 trains 'projector'"):
        run_sft(whole, Console(quiet=True))
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_class_of_the_user_s_own_that_names_no_parts_is_trained_whole_and_else_refused_in_a_line(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    policy = {"module": str(tmp_path / "own.py"), "checkpoint": str(tiny_untrained)}
    plugin = policy_plugin(policy, CODEC)
    for trains in ("all", "all_but_encoders"):
        refuse_idle_stages(config(tiny_untrained, SftLearner(), trains), plugin)
    with pytest.raises(
        ValueError,
        match=r"no such part \(its class names none: .* no `parts`\); set trains to one of all, all_but_encoders\.$",
    ):
        refuse_idle_stages(config(tiny_untrained, SftLearner(), "projector"), plugin)
