"""A budget of tokens changes how a mini-batch is cut into micro-batches, on one rank or two, not what it teaches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import ALGORITHM, ENV, LEARNER, TEMPERATURE, Outcome, settings, steps, together

from envs.codecs.path_tokens import Codec
from envs.datasets._scene import SPATIAL_WORDS
from envs.plugin import Plugin
from policies.families.vision_language import Policy
from policies.tiny_model import TinySizes, write_untrained
from rl.config.learner import LearnerSettings, RankPlace
from rl.learner.batches.batch import Batch
from rl.learner.batches.micro_batches import GroupTokens, PassBudget, Round, budgeted_micro_batches

ONE_UPDATE = 1e-4
"""The rate: AdamW's first steps move most weights by this much."""
NEAR = 1e-6


@dataclass(frozen=True)
class Job:
    """Steps of a rank, and what of its policy is not the usual."""

    learner: LearnerSettings
    batches: list[Batch]
    algorithm: dict[str, Any]
    logit_bytes: int = 2**28


def batch(checkpoint: Path, seed: int) -> Batch:
    """Six groups of three random answers, of 6 to 66 tokens a group; three of them without signal, unevenly spread."""
    policy, env = Policy(checkpoint, Codec()), ENV.build(split="train")
    rng = np.random.default_rng(seed)
    examples = [env[index] for index in range(6)]
    most = (2, 21, 9, 4, 20, 3)
    texts = [[" ".join(map(str, rng.integers(0, 64, rng.integers(1, n)))) for _ in range(3)] for n in most]
    tokens = tuple(tuple(policy.processor.answer_tokens(text) for text in row) for row in texts)
    rows = policy.rows([example.question(env.image(example.image)) for example in examples], tokens)
    logprobs = policy(rows, TEMPERATURE).detach().numpy() + rng.normal(0, 0.1, rows.scored_mask.shape)
    sampled = tuple(
        tuple(logprobs[b, g, : len(t)].astype(np.float32) for g, t in enumerate(row)) for b, row in enumerate(tokens)
    )
    totals = rng.random((6, 3))
    totals[[1, 3, 5]] = 0.5
    advantages, counts = ALGORITHM.advantages(totals)
    return Batch(
        images=tuple(example.image for example in examples),
        prompts=tuple(example.prompt for example in examples),
        choices=tokens,
        sampler_logprobs=sampled,
        advantages=advantages.astype(np.float32),
        counts=counts,
        prompt_lengths=tuple(rows.prompt_mask.sum(1).tolist()),
    )


def learn(place: RankPlace, checkpoint: Path, jobs: list[Job]) -> list[Outcome]:
    """The steps of each job, one job after the other."""
    from rl.learner.rank import LearnerRank

    outcomes = []
    for job in jobs:
        whole = settings(checkpoint, job.learner, Plugin("rl.algorithms", "Algorithm", "gspo", job.algorithm))
        policy = replace(whole.policy, settings=whole.policy.settings | {"logit_bytes": job.logit_bytes})
        outcomes.append(steps(LearnerRank(replace(whole, policy=policy), place), job.batches))
    return outcomes


def rounds_of(whole: Batch, budget: int, ranks: int) -> Iterator[list[Round]]:
    """The rounds of each of two mini-batches."""
    assert whole.prompt_lengths is not None
    tokens = GroupTokens(np.array(whole.prompt_lengths), whole.answer_tokens())
    for minibatch in ([0, 1, 2], [3, 4, 5]):
        yield budgeted_micro_batches(minibatch, tokens, PassBudget(budget), ranks)


def longest_group(whole: Batch) -> int:
    assert whole.prompt_lengths is not None
    return int((np.array(whole.prompt_lengths) + whole.answer_tokens()).max())


@pytest.fixture(scope="module")
def batches(tiny_untrained: Path) -> list[Batch]:
    return [batch(tiny_untrained, seed) for seed in (0, 1)]


def jobs_of(batches: list[Batch], budget: int | None, stages: tuple[int, ...]) -> list[Job]:
    algorithm = dict(vars(ALGORITHM)) | {"importance_cap": 1.1}
    learner = replace(LEARNER, lr=ONE_UPDATE, micro_groups=3, token_budget=budget)
    return [Job(replace(learner, zero_stage=stage), batches, algorithm) for stage in stages]


@pytest.fixture(scope="module")
def whole(tiny_untrained: Path, batches: list[Batch]) -> list[Outcome]:
    """Of one rank that takes each mini-batch in one pass, stages 0 and 2; then the same by the tightest budget."""
    tight = max(map(longest_group, batches))
    jobs = jobs_of(batches, None, (0, 2)) + jobs_of(batches, tight, (0, 2))
    return together(learn, 1, tiny_untrained, jobs)[0]


def assert_same_steps(found: Outcome, expected: Outcome, outliers: float = 0.0) -> None:
    """outliers: share of the weights that may differ by more than NEAR, though by no more than a tenth of one update:
    where a gradient is all rounding, AdamW makes as large a step of it as of any."""
    for before, after in zip(expected.weights, expected.weights[1:], strict=False):
        assert np.median(np.abs(after - before)) > 0.5 * ONE_UPDATE
    for one, other in zip(found.weights, expected.weights, strict=True):
        assert np.mean(np.abs(one - other) > NEAR) <= outliers
        assert np.abs(one - other).max() <= (0.1 * ONE_UPDATE if outliers else NEAR)
    for logged, right in zip(found.stats, expected.stats, strict=True):
        assert logged.keys() == right.keys()
        for name, value in right.items():
            assert logged[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.long
def test_one_rank_takes_the_steps_of_undivided_mini_batches_under_any_budget_and_logs_the_same(
    batches: list[Batch], whole: list[Outcome]
) -> None:
    tight = max(map(longest_group, batches))
    sizes = [len(one.groups) for one in chain(*chain(*chain(*(rounds_of(each, tight, 1) for each in batches))))]
    assert len(set(sizes)) > 1  # uneven micro-batches
    for found, expected in zip(whole[2:], whole[:2], strict=True):
        assert_same_steps(found, expected)
        assert 0 < expected.stats[0]["importance_capped"] < 1


@pytest.mark.long
def test_two_ranks_take_the_steps_of_one_under_a_budget_with_uneven_answers_filtered_groups_and_a_repeated_pass(
    tiny_untrained: Path, batches: list[Batch], whole: list[Outcome]
) -> None:
    tight = max(map(longest_group, batches))
    rounds = list(chain(*(rounds_of(each, tight, 2) for each in batches)))
    assert any(not one.weighs for one in chain(*chain(*rounds)))
    first, second = together(learn, 2, tiny_untrained, jobs_of(batches, tight, (0, 2)))
    for one, other, alone in zip(first, second, whole[:2], strict=True):
        assert one.stats == other.stats
        assert all(map(np.array_equal, one.weights, other.weights))
        assert_same_steps(one, alone)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose head and layers are large enough to be shared out under ZeRO-3 (100,000 weights)."""
    folder, names = tmp_path_factory.mktemp("wide"), ENV.build(split="train").names
    words = {word for name in names for word in name.split()} | SPATIAL_WORDS
    sizes = TinySizes(
        image_size=32, text_width=768, text_layers=1, text_heads=4, vision_width=16, vision_layers=1, vision_heads=2
    )
    write_untrained(folder, Codec().words + sorted(words), sizes, seed=0)
    head = Policy(folder, Codec()).model.lm_head.weight
    assert head.numel() > 100_000
    return folder


@pytest.mark.long
def test_under_zero_3_two_ranks_with_uneven_chunks_of_logits_and_checkpointed_layers_take_the_steps_of_one(
    wide: Path,
) -> None:
    batches = [batch(wide, 0)]
    tight = max(map(longest_group, batches))
    (plain,) = jobs_of(batches, None, (0,))
    ((alone,),) = together(learn, 1, wide, [plain])
    learner = replace(plain.learner, zero_stage=3, token_budget=tight, gradient_checkpointing=True)
    # A few tokens a chunk: ranks with 6 and with 60 to score would not call the head equally often by themselves.
    first, second = together(learn, 2, wide, [replace(plain, learner=learner, logit_bytes=8 * 4 * 300)])
    for found in (first[0], second[0]):
        assert_same_steps(found, alone, outliers=1e-5)  # of 7.8 million
