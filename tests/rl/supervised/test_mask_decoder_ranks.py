"""Supervised steps of a mask decoder by DeepSpeed ranks: any stage and any dealing takes the steps of plain torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import together
from test_sft_rank import LEARNER, trained

from envs.codecs import box_masks
from envs.plugin import Plugin
from policies.decoders.box_guided import DecoderSizes
from policies.families.box_decoder import Policy
from rl.config.sft import SftLearner, SftSettings, SftStage
from rl.supervised.answers import taught
from rl.supervised.rank import SftRankSettings

CODEC = box_masks.Codec(box_bins=64, mask_token="M")
"""With a word for a mask that the untrained model's tokenizer has."""
SIZES = DecoderSizes(width=16, heads=2, mlp=32, blocks=1, frequencies=4, places=4)
ENV = Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 8, "absent_share": 0.5})
"""Half of the questions are about something that is not there: of two ranks one may have no mask to draw."""
SETTINGS = SftSettings(
    [SftStage("masks", 3, lr=1e-3, last_lr=1e-3, with_absent=True)],
    scenes_per_step=2,
    shuffle=False,
    questions="one",
    warmup_steps=1,
    evaluate_scenes=3,
)


def settings(checkpoint: Path, learner: SftLearner) -> SftRankSettings:
    own = {"checkpoint": checkpoint, "codec": CODEC, "decoder": SIZES, "mask_cells": 32, "dtype": learner.dtype}
    policy = Plugin("policies.families", "Policy", "box_decoder", own)
    return SftRankSettings(learner, SETTINGS, policy, ENV, max_tokens=12, seed=0)


def by_plain_torch(checkpoint: Path, steps: int) -> tuple[list[float], np.ndarray, list[list[int]]]:
    """Losses, weights, and how many masks each scene of each step asks for."""
    policy, env = Policy(checkpoint, CODEC, decoder=SIZES, mask_cells=32), ENV.build(split="train")
    optimizer = torch.optim.AdamW(policy.parameters(), betas=(0.9, 0.95), weight_decay=LEARNER.weight_decay)
    losses, masks = [], []
    for step in range(steps):
        scenes = [[env[2 * step + k]] for k in range(2)]
        lessons = [taught(scene, env, policy.processor, SETTINGS, SETTINGS.stages[0]) for scene in scenes]
        masks.append([int((lesson[0].tokens == policy.processor.mask_token).sum()) for lesson in lessons])
        rows = policy.processor.supervised_rows(lessons)
        loss = -policy(rows).sum() / rows.scored_mask.sum()
        policy.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.cat([p.detach().flatten() for p in policy.model.parameters()]).numpy(), masks


@pytest.mark.slow
def test_ranks_at_every_stage_take_the_steps_of_plain_adamw_also_where_one_has_nothing_to_draw(
    tiny_untrained: Path,
) -> None:
    losses, weights, masks = by_plain_torch(tiny_untrained, 3)
    assert any(0 in row and max(row) > 0 for row in masks), "one rank of two has no mask in some step"
    scores = []
    for ranks, stage in ((1, 0), (2, 0), (2, 2), (2, 3)):
        learner = replace(LEARNER, ranks=ranks, zero_stage=stage)
        for logs, found, evaluated in together(trained, ranks, settings(tiny_untrained, learner), 3):
            assert [log["loss"] for log in logs] == pytest.approx(losses, rel=5e-5), learner
            assert np.abs(found - weights).mean() < 2e-6 and np.abs(found - weights).max() < 3e-4, learner
            scores.append((evaluated.loss, evaluated.greedy_giou, evaluated.valid))
    assert np.ptp(np.array(scores), axis=0).max() < 1e-4
