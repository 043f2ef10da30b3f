"""Ranks other than the first get their weights from it; with adapters, no rank has a second model."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ranks import LEARNER, batch, of_dtype, together
from torch import nn

from envs.codecs.path_tokens import Codec
from policies.settings import LoraSettings
from policies.tiny_model import TinySizes, write_untrained
from rl.config.learner import LearnerSettings, RankPlace
from rl.learner.one_copy import fill_empty, share_weights

Samples = list[tuple[float, float]]
"""Times, and MiB that a process holds alone."""


def test_what_was_shared_on_the_meta_device_stays_shared() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        model["head"].weight = model["embedding"].weight
        model["other"] = nn.Linear(3, 2)
    model["other"].weight.requires_grad_(False)
    fill_empty(model, torch.device("cpu"), {id(model["embedding"].weight)})
    assert model["other"].weight.is_meta
    assert model["head"].weight is model["embedding"].weight and not model["head"].weight.is_meta
    fill_empty(model, torch.device("cpu"))
    assert [p.requires_grad for p in model["other"].parameters()] == [False, True]
    assert not any(p.is_meta for p in model.parameters())


def joined(place: RankPlace, checkpoint: Path, learner: LearnerSettings) -> tuple[Samples, bool]:
    """Memory from before the policy is built to when each rank has its share, and whether anything was left empty."""
    from rl.learner.engine import join

    recipe, me = of_dtype(checkpoint, learner).policy, psutil.Process()
    samples: Samples = []
    done = threading.Event()

    def held() -> float:
        memory = me.memory_info()  # pages of the checkpoint's own file are shared, and the system may drop them
        return float(memory.rss - memory.shared) / 2**20

    def watch() -> None:
        while not done.wait(0.005):
            samples.append((time.monotonic(), held() - before))

    before = held()
    watcher = threading.Thread(target=watch)
    watcher.start()
    policy = (recipe if place.rank == 0 else recipe.with_settings(weights=False)).build()
    join(place)
    share_weights(policy, learner)
    done.set()
    watcher.join()
    return samples, any(part.is_meta for part in (*policy.parameters(), *policy.buffers()))


@pytest.mark.slow
def test_two_ranks_under_zero_3_never_hold_one_and_a_half_copies_while_they_load(tmp_path: Path) -> None:
    sizes = TinySizes(32, 8, text_width=1024, text_layers=8, text_heads=8, vision_width=16, vision_layers=1)
    write_untrained(tmp_path, Codec().words, replace(sizes, vision_heads=2), seed=0)
    copy = (tmp_path / "model.safetensors").stat().st_size / 2**20
    assert copy > 400
    found = together(joined, 2, tmp_path, replace(LEARNER, ranks=2, zero_stage=3))
    assert [left_empty for _, left_empty in found] == [False, False]
    now, most = [0.0, 0.0], 0.0
    for _, rank, held in sorted((at, k, held) for k, (samples, _) in enumerate(found) for at, held in samples):
        now[rank] = held
        most = max(most, sum(now))
    assert copy < sum(now) * 1.1  # both hold their half at the end
    assert most < 1.5 * copy


def divergences(place: RankPlace, checkpoint: Path, learner: LearnerSettings, seeds: list[int]) -> list[float]:
    """What is logged as the divergence from the start in each step."""
    from rl.learner.rank import LearnerRank

    plain = of_dtype(checkpoint, learner)
    algorithm = plain.algorithm.with_settings(kl=0.1)
    rank = LearnerRank(replace(plain, algorithm=algorithm), place)
    assert (rank._reference is None) == (learner.lora is not None)
    found = []
    for seed in seeds:
        found.append(rank.step(batch(checkpoint, seed))["kl"])
        trained = [parameter.requires_grad for parameter in rank._policy.network.parameters()]
        assert any(trained) and (all(trained) or learner.lora is not None)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_adapters_switched_off_are_the_policy_that_the_run_began_with(tiny_untrained: Path, stage: int) -> None:
    """Beside it the same steps with a second model, as of a policy whose weights themselves learn."""
    learner = replace(LEARNER, zero_stage=stage, lora=LoraSettings(rank=2), ranks=2)
    found = together(divergences, 2, tiny_untrained, learner, [0, 1, 2])
    expected = together(by_second_model, 2, tiny_untrained, learner, [0, 1, 2])
    assert found[0] == found[1]
    assert found[0][2] > 1e-6
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-9)


def by_second_model(place: RankPlace, checkpoint: Path, learner: LearnerSettings, seeds: list[int]) -> list[float]:
    from rl.learner.rank import LearnerRank

    plain = of_dtype(checkpoint, learner)
    rank = LearnerRank(replace(plain, algorithm=plain.algorithm.with_settings(kl=0.1)), place)
    rank._reference = plain.policy.build().requires_grad_(False).eval()
    return [rank.step(batch(checkpoint, seed))["kl"] for seed in seeds]
