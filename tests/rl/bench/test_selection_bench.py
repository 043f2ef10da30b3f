"""What choosing reaches, beside rules whose scores are known."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from envs.codecs.mask_group import Codec
from envs.datasets.cutout_scenes import Env
from envs.geometry.pools import iou
from policies.families.mask_selection import Policy
from rl.bench.learning.selection import as_json, measure, table
from rl.config.load import load_settings
from rl.config.plugins import env_plugin
from rl.config.run import RunConfig

POOLS = ["env.image_size=32", "env.candidates=8", "env.several_share=0.3", "env.max_scale=0.45", "env.absent_share=0.2"]


def config(checkpoint: Path, *more: str) -> RunConfig:
    return load_settings(RunConfig, Path("gspo_groups"), ["run=x", f"policy.checkpoint={checkpoint}", *POOLS, *more])


def test_rules_and_a_policy_that_takes_nothing_have_the_scores_that_a_loop_finds(tiny_untrained: Path) -> None:
    found = measure(config(tiny_untrained), [tiny_untrained, tiny_untrained], "test", 20, Console(quiet=True))
    env: Env = env_plugin(config(tiny_untrained).env).build(split="test")
    examples = [env[index] for index in range(20)]
    there = np.array([example.truth.union.any() for example in examples])
    assert 0 < there.sum() < 20
    assert (found.ious["oracle"] == 1).all() and (found.ious["meant"] == 1).all()
    assert np.array_equal(found.ious["none"], ~there)
    for example, score in zip(examples, found.ious["all"], strict=True):
        assert score == pytest.approx(iou(example.candidates.any(axis=0), example.truth.union))
    # A new classifier says 0.5 of everybody, and the likelier of two equals is out.
    assert np.array_equal(found.ious[str(tiny_untrained)], ~there)
    told = as_json(found)
    assert told["giou"]["none"]["value"] == pytest.approx(1 - there.mean()) and not told["gains"]
    assert told["milliseconds"][str(tiny_untrained)] > 0 and table(found).row_count == 6


def test_a_gain_is_paired_by_question(tiny_untrained: Path, tmp_path: Path) -> None:
    settings = config(tiny_untrained)
    policy = Policy(tiny_untrained, Codec())
    policy.model.selection.classifier.bias.data.fill_(1.0)  # takes everybody
    policy.save(tmp_path / "greedy")
    found = measure(settings, [tiny_untrained, tmp_path / "greedy"], "test", 20, Console(quiet=True))
    gain = found.gains[str(tmp_path / "greedy")]
    assert gain.value == pytest.approx(found.ious["all"].mean() - found.ious["none"].mean())
    assert np.array_equal(found.ious[str(tmp_path / "greedy")], found.ious["all"])
