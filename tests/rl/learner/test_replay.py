"""What a replayed batch shows of a policy, and of its own numbers, that are not finite."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from envs.codecs.path_tokens import Codec
from envs.datasets.cutout_scenes import Env
from policies.families.vision_language import Policy
from rl.algorithms.gspo import Algorithm
from rl.config.load import load_settings, save_settings
from rl.config.run import RunConfig
from rl.learner.batches.batch import Batch
from rl.learner.dropped import group_losses, replay, write_batch
from rollout.settings import Sampling


def batch(policy: Policy, env: Env) -> Batch:
    """Two groups of two answers."""
    examples = [env[0], env[1]]
    tokens = tuple((policy.processor.answer_tokens("3 4 20"), policy.processor.answer_tokens("7")) for _ in examples)
    logprobs = tuple(tuple(np.full(len(values), -1, np.float32) for values in row) for row in tokens)
    advantages = np.array([[1.0, -1.0], [0.5, -0.5]], np.float32)
    prompts = tuple(example.prompt for example in examples)
    return Batch(tuple(e.image for e in examples), prompts, tokens, logprobs, advantages, np.array([True, False]))


def test_each_group_has_its_loss_and_gradient_and_names_what_is_not_finite(tiny_untrained: Path) -> None:
    policy, env = Policy(tiny_untrained, Codec()), Env("train", image_size=32, num_scenes=8)
    whole = batch(policy, env)
    first, second = group_losses(policy, env, Algorithm(), whole, Sampling())
    # Ratios are 1: the loss is minus the mean advantage, the gradient that of half the difference of two answers.
    assert (first.loss, second.loss) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert first.gradient_norm > 1e-3 and second.gradient_norm > 1e-3
    assert (first.counts, second.counts) == (True, False)
    assert first.not_finite == second.not_finite == ()
    whole.advantages[1, 0] = np.nan
    first, second = group_losses(policy, env, Algorithm(), whole, Sampling())
    assert first.not_finite == ()
    assert second.not_finite[:2] == ("1 of 2 advantages", "1 of 2 objectives")
    assert np.isnan(second.loss)


def test_a_weight_of_nan_is_found_before_all_that_follows_from_it(tiny_untrained: Path) -> None:
    policy, env = Policy(tiny_untrained, Codec()), Env("train", image_size=32, num_scenes=8)
    with torch.no_grad():
        next(iter(policy.model.parameters())).flatten()[0] = torch.nan
    (one,) = group_losses(policy, env, Algorithm(), batch(policy, env).part([0]), Sampling())
    assert one.not_finite[0].startswith("1 of ") and one.not_finite[0].endswith(" weights")


def test_a_replay_without_a_checkpoint_is_refused_before_anything_starts(tiny_untrained: Path, tmp_path: Path) -> None:
    policy, env = Policy(tiny_untrained, Codec()), Env("train", image_size=32, num_scenes=8)
    save_settings(load_settings(RunConfig, Path("tiny"), [f"run={tmp_path}"]), tmp_path / "config.yaml")
    (tmp_path / "dropped").mkdir()
    file = tmp_path / "dropped/step-000001.npz"
    write_batch(batch(policy, env), file)
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint to replay step-000001\.npz on"):
        replay(file, Console())
