"""Outlines that are taught beside rollouts: the term by hand, and its steps against plain torch's."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ranks import ALGORITHM, ENV, LEARNER, TEMPERATURE, Outcome, batch, settings, steps, together

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from rl.config.learner import RankPlace
from rl.learner.batches.batch import Batch
from rl.learner.batches.micro_batches import MicroBatch, MiniBatch, supervised_loss

WEIGHT = 0.3


def with_outlines(checkpoint: Path, seed: int) -> Batch:
    """Four groups, and an answer of other length to each that is taught."""
    plain, processor = batch(checkpoint, seed), Policy.make_processor(checkpoint, Codec())
    texts = ["1 2 30 40 5 6", "7", "8 9 10 11 12 13 14 15 16 17 18", "none"]
    return replace(plain, taught=tuple(processor.answer_tokens(text) for text in texts))


def by_plain_torch(checkpoint: Path, whole: Batch) -> tuple[np.ndarray, float]:
    """Weights after one step of one update, and the supervised term of it: rewards and outlines in passes apart."""
    policy, env = Policy(checkpoint, Codec()), ENV.build(split="train")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNER.lr, betas=(0.9, 0.95), weight_decay=0.0)
    assert whole.taught is not None
    rows = policy.rows(whole.questions(env), whole.choices)
    outlines = policy.rows(whole.questions(env), [[tokens] for tokens in whole.taught])
    new = policy(rows, TEMPERATURE)
    terms = ALGORITHM.terms(new, new.detach(), rows.response_mask, torch.from_numpy(whole.advantages))
    of_rewards = -terms.objective[torch.from_numpy(whole.counts)].mean()
    likely = policy(outlines, TEMPERATURE)[:, 0]
    lengths = [len(tokens) for tokens in whole.taught]
    of_outlines = torch.stack([-likely[b, :length].mean() for b, length in enumerate(lengths)]).mean()
    (of_rewards + WEIGHT * of_outlines).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), LEARNER.grad_clip)
    optimizer.step()
    weights = torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])
    return weights.numpy(), float(of_outlines.detach())


def learn(place: RankPlace, checkpoint: Path, micros: list[int], batches: list[Batch]) -> list[Outcome]:
    """The steps of one update each, in passes of so many groups."""
    from rl.learner.rank import LearnerRank

    plain = replace(LEARNER, minibatches=1, sft_weight=WEIGHT)
    return [
        steps(LearnerRank(settings(checkpoint, replace(plain, micro_groups=micro)), place), batches) for micro in micros
    ]


def micro_batch(part: Any, mask: list[list[list[int]]], groups: int, weighs: bool = True) -> MicroBatch:
    rows: Any = SimpleNamespace(scored_mask=torch.tensor(mask).bool())
    return MicroBatch(part, rows, weighs, MiniBatch(responses=2, micro_batches=1, groups=groups))


def test_the_term_of_two_passes_by_hand() -> None:
    part: Any = SimpleNamespace(advantages=np.zeros((1, 1), np.float32))
    first = micro_batch(part, [[[1, 0, 0], [1, 1, 0]]], groups=2)
    second = micro_batch(part, [[[1, 1, 1], [1, 0, 0]]], groups=2)
    one, stats = supervised_loss(first, torch.tensor([[[-1.0, -2.0, -9.0]]]))
    other, _ = supervised_loss(second, torch.tensor([[[-3.0, -9.0, -9.0]]]))
    assert (float(one), float(other)) == (0.75, 1.5)  # means 1.5 and 3 over the tokens, half of each
    assert stats["sft_loss"] == (1.5, 1)


def test_a_repeat_that_only_keeps_ranks_in_step_weighs_nothing() -> None:
    part: Any = SimpleNamespace(advantages=np.zeros((1, 1), np.float32))
    repeat = micro_batch(part, [[[1, 0], [1, 1]]], groups=1, weighs=False)
    loss, stats = supervised_loss(repeat, torch.tensor([[[-1.0, -2.0]]]))
    assert float(loss) == 0.0 and stats["sft_loss"].over == 0


def test_what_is_taught_comes_last_in_its_group_and_counts_in_budgets(tiny_untrained: Path) -> None:
    whole = with_outlines(tiny_untrained, 0)
    assert whole.taught is not None
    for row, answers, taught in zip(whole.responses, whole.choices, whole.taught, strict=True):
        assert len(row) == 4 and row[-1] is taught and row[:3] == answers
    lengths = [sum(map(len, row)) for row in whole.choices]
    added = [len(tokens) for tokens in whole.taught]
    assert whole.answer_tokens().tolist() == [a + b for a, b in zip(lengths, added, strict=True)]
    part = whole.part([2, 0])
    assert part.taught is not None and part.taught[0] is whole.taught[2] and part.taught[1] is whole.taught[0]


@pytest.mark.slow
def test_a_step_is_that_of_plain_torch_in_one_pass_in_four_and_on_two_ranks(tiny_untrained: Path) -> None:
    whole = with_outlines(tiny_untrained, 0)
    expected, term = by_plain_torch(tiny_untrained, whole)
    alone = together(learn, 1, tiny_untrained, [4, 1], [whole, whole, whole])[0]
    two = together(learn, 2, tiny_untrained, [1], [whole])[0]
    for found in (*alone, *two):
        assert np.abs(found.weights[1] - expected).max() < 5e-5
        assert found.stats[0]["sft_loss"] == pytest.approx(term, rel=1e-5)
    losses = [stats["sft_loss"] for stats in alone[0].stats]
    assert losses[0] > losses[1] > losses[2]
