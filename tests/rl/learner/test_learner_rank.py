"""One rank in a process of its own, since DeepSpeed keeps global state; plain torch is the oracle."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_policies import chooser
from ranks import (
    ALGORITHM,
    CHOOSES,
    DRAWS,
    ENV,
    LEARNER,
    TEMPERATURE,
    WRITES,
    Kind,
    Outcome,
    Weights,
    all_weights,
    apart,
    batch,
    free_port,
    settings,
    steps,
    together,
)
from test_vision_language import write_qwen3_vl_moe

from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.families.base import Routes
from policies.families.vision_language import Policy
from rl.algorithms.base import PolicyGradient, token_divergence
from rl.config.learner import LearnerSettings, RankPlace
from rl.learner.batches.batch import Batch
from rollout.engines.shared import sample
from rollout.settings import Sampling

STAGES = (0, 1, 2, 3)
NEAR = 5e-5
"""A twentieth of one update: AdamW makes steps of the rounding errors in gradients that should be 0."""
Job = tuple[LearnerSettings, list[Batch]]


def learn(
    place: RankPlace, checkpoint: Path, jobs: list[Job], save_to: Path | None = None, kind: Kind = WRITES
) -> list[Outcome]:
    """The steps of each job, one job after the other; with a folder, job k is saved as "job k" after its first step."""
    from rl.learner.rank import LearnerRank

    outcomes = []
    for k, (learner, batches) in enumerate(jobs):
        rank = LearnerRank(settings(checkpoint, learner, kind=kind), place)
        first = steps(rank, batches[:1])
        if save_to is not None:
            rank.save(save_to, f"job {k}")
        rest = steps(rank, batches[1:])
        outcomes.append(Outcome(first.weights + rest.weights[1:], first.stats + rest.stats))
    return outcomes


def go_on(checkpoint: Path, jobs: list[Job], folder: Path, kind: Kind) -> list[Outcome]:
    """Load what `learn` saved, then take all but the first step of each job."""
    from rl.learner.rank import LearnerRank

    outcomes, place = [], RankPlace(port=free_port())
    for k, (learner, batches) in enumerate(jobs):
        rank = LearnerRank(settings(checkpoint, learner, kind=kind), place)
        rank.load(folder, f"job {k}")
        outcomes.append(steps(rank, batches[1:]))
    return outcomes


def by_plain_torch(
    checkpoint: Path, batches: list[Batch], algorithm: PolicyGradient = ALGORITHM, kind: Kind = WRITES
) -> Outcome:
    """The same steps without DeepSpeed: every mini-batch in one pass, torch's own clipping and AdamW."""
    policy, first = kind.plugin(checkpoint).build(), kind.plugin(checkpoint).build()
    env = kind.env.build(split="train")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNER.lr, betas=(0.9, 0.95), weight_decay=0.0)
    weights, stats = [flat(policy)], []
    for whole in batches:
        parts = [whole.part([0, 1]), whole.part([2, 3])]
        rows = [policy.rows(part.questions(env), part.choices) for part in parts]
        old = [policy(row, TEMPERATURE).detach() for row in rows]
        losses, norms = [], []
        for part, row, before in zip(parts, rows, old, strict=True):
            mask, counts = row.response_mask, torch.from_numpy(part.counts)
            new, advantages = policy(row, TEMPERATURE), torch.from_numpy(part.padded_advantages(mask.shape[-1]))
            optimizer.zero_grad()
            losses.append(-algorithm.terms(new, before, mask, advantages).objective[counts].mean())
            if algorithm.kl:
                divergence = algorithm.pool(token_divergence(new, first(row, TEMPERATURE).detach(), mask), mask)
                losses[-1] = losses[-1] + algorithm.kl * divergence[counts].mean()
            losses[-1].backward()
            norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), LEARNER.grad_clip).item())
            optimizer.step()
        weights.append(flat(policy))
        stats.append({"loss": sum(loss.item() for loss in losses) / 2, "grad_norm": sum(norms) / 2})
    return Outcome(weights, stats)


def flat(policy: Policy) -> Weights:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()]).numpy().copy()


def learn_under(checkpoint: Path, algorithms: list[Plugin], batches: list[Batch]) -> list[Outcome]:
    """The steps of one rank under each algorithm."""
    from rl.learner.rank import LearnerRank

    place = RankPlace(port=free_port())
    return [steps(LearnerRank(settings(checkpoint, LEARNER, each), place), batches) for each in algorithms]


def stage_jobs(batches: list[Batch]) -> list[Job]:
    """The same steps at each ZeRO stage."""
    return [(replace(LEARNER, zero_stage=stage), batches) for stage in STAGES]


@pytest.fixture(scope="module", params=[WRITES, CHOOSES, DRAWS], ids=["writes", "chooses", "draws"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(kind: Kind, tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a policy that chooses one with a classifier that is not 0, below which nothing would have a gradient."""
    if kind is not CHOOSES:
        return tiny_untrained
    return chooser(tiny_untrained, tmp_path_factory.mktemp("chooser"), kind)


@pytest.fixture(scope="module")
def batches(checkpoint: Path, kind: Kind) -> list[Batch]:
    return [batch(checkpoint, seed, kind=kind) for seed in (0, 1)]


@pytest.fixture(scope="module")
def written(tiny_untrained: Path) -> list[Batch]:
    """Of a policy that writes."""
    return [batch(tiny_untrained, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def folder(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(f"learner_rank_{kind.name}")


@pytest.fixture(scope="module")
def all_outcomes(checkpoint: Path, batches: list[Batch], folder: Path, kind: Kind) -> list[Outcome]:
    """Of one process: two steps at each stage, a step without signal at each, a step of 4, 2 and 1 passes."""
    jobs = stage_jobs(batches) + stage_jobs([batch(checkpoint, seed=0, signal=False, kind=kind)])
    jobs += [(replace(LEARNER, minibatches=1, micro_groups=micro), batches[:1]) for micro in (1, 2, 4)]
    return together(learn, 1, checkpoint, jobs, folder, kind)[0]


@pytest.fixture(scope="module")
def outcomes(all_outcomes: list[Outcome]) -> list[Outcome]:
    """Two steps at each ZeRO stage."""
    return all_outcomes[:4]


@pytest.mark.slow
def test_every_zero_stage_takes_the_steps_of_plain_torch(
    checkpoint: Path, batches: list[Batch], outcomes: list[Outcome], kind: Kind
) -> None:
    expected = by_plain_torch(checkpoint, batches, kind=kind)
    for before, after in pairwise(expected.weights):
        assert np.abs(after - before).max() > 0.5 * LEARNER.lr
    for outcome in outcomes:
        for found, right in zip(outcome.weights, expected.weights, strict=True):
            np.testing.assert_allclose(found, right, atol=NEAR)
        for logged, right in zip(outcome.stats, expected.stats, strict=True):
            # AdamW would hide a gradient of the wrong scale, its norm does not.
            assert logged["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
            assert logged["loss"] == pytest.approx(right["loss"], abs=1e-5)
    for outcome in outcomes[1:]:
        for found, right in zip(outcome.weights, outcomes[0].weights, strict=True):
            np.testing.assert_allclose(found, right, atol=2e-6)  # a 500th of one update


@pytest.mark.slow
def test_every_algorithm_takes_the_steps_of_plain_torch_with_a_divergence_and_with_advantages_of_tokens(
    tiny_untrained: Path, written: list[Batch]
) -> None:
    rng = np.random.default_rng(0)
    by_token = [
        replace(
            each,
            token_advantages=tuple(
                tuple(rng.normal(size=len(t)).astype(np.float32) for t in row) for row in each.choices
            ),
        )
        for each in written
    ]
    own = {"gspo_token": {"clip_high": 0.1}, "grpo": {"kl": 0.5}, "dr_grpo": {"length_divisor": 7}}
    plugins = [Plugin("rl.algorithms", "Algorithm", name, fields) for name, fields in own.items()]
    outcomes = apart(learn_under, tiny_untrained, plugins, by_token)
    for plugin, outcome in zip(plugins, outcomes, strict=True):
        expected = by_plain_torch(tiny_untrained, by_token, plugin.build())
        for found, right in zip(outcome.weights, expected.weights, strict=True):
            np.testing.assert_allclose(found, right, atol=NEAR)
        for logged, right in zip(outcome.stats, expected.stats, strict=True):
            assert logged["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
            assert logged["loss"] == pytest.approx(right["loss"], abs=1e-5)
    divergence = [stats["kl"] for stats in outcomes[1].stats]
    assert 0 < divergence[0] < divergence[1]


@pytest.mark.slow
def test_a_loaded_rank_takes_the_next_step_bit_for_bit_in_another_process(
    checkpoint: Path, batches: list[Batch], outcomes: list[Outcome], folder: Path, kind: Kind
) -> None:
    resumed = apart(go_on, checkpoint, stage_jobs(batches), folder, kind)
    for one, other in zip(outcomes, resumed, strict=True):
        assert np.array_equal(other.weights[0], one.weights[1])
        assert np.array_equal(other.weights[1], one.weights[2])
        assert other.stats[0] == one.stats[1]


@pytest.mark.slow
def test_what_is_logged_of_a_step(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        first = outcome.stats[0]
        # The sampler spoke of the same weights and temperature.
        assert first["sampler_logprob_difference_max"] < 1e-5
        assert outcome.stats[1]["sampler_logprob_difference"] > 1e-3
        assert first["sampler_effective_sample_size"] > 0.999999
        assert 0.1 < outcome.stats[1]["sampler_effective_sample_size"] < 0.9999
        assert first["lr"] == LEARNER.lr
        assert "kl" not in first
        # By its second mini-batch the policy has moved.
        assert first["ratio_max"] > 1.001 or first["ratio_change"] > 1e-3
        assert 0 < first["clip_fraction"] <= 0.5


@pytest.mark.slow
def test_the_first_mini_batch_has_ratios_of_exactly_one_and_a_loss_of_zero_in_any_number_of_passes(
    all_outcomes: list[Outcome],
) -> None:
    found = all_outcomes[8:]
    assert len(found) == 3
    for outcome in found:
        stats = outcome.stats[0]
        assert (stats["ratio_mean"], stats["ratio_max"], stats["clip_fraction"]) == (1.0, 1.0, 0.0)
        assert stats["loss"] == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_allclose(outcome.weights[1], found[0].weights[1], atol=NEAR)
        assert stats["grad_norm"] == pytest.approx(found[0].stats[0]["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_groups_without_signal_leave_the_weights_untouched(all_outcomes: list[Outcome]) -> None:
    for outcome in all_outcomes[4:8]:
        assert np.array_equal(outcome.weights[0], outcome.weights[1])
        assert (outcome.stats[0]["loss"], outcome.stats[0]["grad_norm"]) == (0.0, 0.0)


def spoilt(whole: Batch, groups: list[int]) -> Batch:
    """The batch with advantages of NaN in some groups."""
    advantages = whole.advantages.copy()
    advantages[groups] = np.nan
    return replace(whole, advantages=advantages)


@pytest.mark.slow
def test_updates_that_are_not_finite_are_dropped_at_every_stage_and_leave_no_trace(
    checkpoint: Path, batches: list[Batch], outcomes: list[Outcome], kind: Kind
) -> None:
    hopeless, half = spoilt(batches[0], [1, 3]), spoilt(batches[0], [0])
    jobs = [*stage_jobs([hopeless, *batches]), (LEARNER, [half])]
    ((*found, one_of_two),) = together(learn, 1, checkpoint, jobs, None, kind)
    for outcome, undisturbed in zip(found, outcomes, strict=True):
        assert np.array_equal(outcome.weights[0], outcome.weights[1])
        assert [stats["updates_dropped"] for stats in outcome.stats] == [2.0, 0.0, 0.0]
        for one, other in zip(outcome.weights[1:], undisturbed.weights, strict=True):
            assert np.array_equal(one, other)
    assert one_of_two.stats[0]["updates_dropped"] == 1.0
    assert np.isfinite(one_of_two.weights[1]).all()
    assert np.abs(one_of_two.weights[1] - one_of_two.weights[0]).max() > 0.5 * LEARNER.lr


@pytest.mark.slow
def test_two_ranks_drop_an_update_that_is_not_finite_on_one_of_them(tiny_untrained: Path, written: list[Batch]) -> None:
    jobs = [(replace(LEARNER, zero_stage=stage), [spoilt(written[0], [1, 3]), written[1]]) for stage in (0, 2)]
    first, second = together(learn, 2, tiny_untrained, jobs)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.weights[0], one.weights[1]) and np.array_equal(other.weights[0], other.weights[1])
        assert np.array_equal(one.weights[2], other.weights[2]) and not np.array_equal(one.weights[1], one.weights[2])
        for stats in (one.stats, other.stats):
            assert [step["updates_dropped"] for step in stats] == [2.0, 0.0]


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one(
    checkpoint: Path, batches: list[Batch], outcomes: list[Outcome], kind: Kind
) -> None:
    # Of a policy that chooses, one rank has masks that are referred to where the other has none (ranks.py).
    jobs, alone_at = stage_jobs(batches), {stage: outcomes[stage] for stage in ((0, 2) if kind is WRITES else (0, 3))}
    first, second = together(learn, 2, checkpoint, [jobs[stage] for stage in alone_at], None, kind)
    for one, other, alone in zip(first, second, alone_at.values(), strict=True):
        for by_one, by_other, by_itself in zip(one.weights, other.weights, alone.weights, strict=True):
            assert np.array_equal(by_one, by_other)
            np.testing.assert_allclose(by_one, by_itself, atol=NEAR)
        for stats, right in zip(one.stats, alone.stats, strict=True):
            assert stats["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


def average_and_frozen_tower(
    checkpoint: Path, batches: list[Batch], folder: Path
) -> tuple[list[Weights], Weights, bool]:
    """Weights before and after a step, their average; the policy saved after it; whether the tower kept its weights."""
    from rl.learner.rank import LearnerRank

    learner = replace(LEARNER, average=0.9, freeze_vision=True)
    rank = LearnerRank(settings(checkpoint, learner), RankPlace(port=free_port()))
    outcome = steps(rank, batches[:1])
    rank.save(folder, "averaged")
    rank.save_policy(folder / "policy")
    before, after = Policy(checkpoint, Codec()), Policy(folder / "policy", Codec())
    towers = zip(before.vision_tower.parameters(), after.vision_tower.parameters(), strict=True)
    loaded = LearnerRank(settings(checkpoint, learner), RankPlace())
    loaded.load(folder, "averaged")
    assert np.array_equal(all_weights(rank), outcome.weights[1])  # saving the average left the weights in place
    weights = [*outcome.weights, all_weights(rank, average=True), all_weights(loaded, average=True)]
    return weights, flat(after), all(torch.equal(a, b) for a, b in towers)


@pytest.mark.slow
def test_the_average_of_one_step_by_hand_is_what_is_saved_and_a_frozen_tower_keeps_its_weights(
    tiny_untrained: Path, written: list[Batch], tmp_path: Path
) -> None:
    weights, saved, tower_kept = apart(average_and_frozen_tower, tiny_untrained, written, tmp_path)
    before, after, average, loaded_average = weights
    # After one step the memory is still 1 / 11.
    np.testing.assert_allclose(average, before / 11 + after * 10 / 11, atol=1e-6)
    assert np.abs(after - before).max() > 0.5 * LEARNER.lr
    assert np.array_equal(saved, average)
    assert np.array_equal(loaded_average, average)
    assert tower_kept


def test_a_rate_warms_up_and_then_falls_along_a_cosine_to_a_tenth() -> None:
    learner = LearnerSettings(lr=1.0, warmup_steps=4, decay_steps=10)
    assert [learner.lr_at(0), learner.lr_at(5), learner.lr_at(10), learner.lr_at(99)] == pytest.approx(
        [0.25, 0.55, 0.1, 0.1]
    )
    steady = replace(learner, decay_steps=None)
    assert [steady.lr_at(step) for step in (0, 1, 3, 99)] == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"zero_stage": 4}, "zero_stage is 4"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"minibatches": 0}, "minibatches is 0"),
        ({"decay_steps": 0}, "decay_steps is 0"),
        ({"warn_sampler_difference": 0.0}, "warn_sampler_difference is 0.0"),
        ({"average": 0.9, "zero_stage": 3}, "average is 0.9 at learner.zero_stage 3"),
    ],
)
def test_impossible_settings_are_refused_with_their_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnerSettings(**wrong)


def sampled_under_the_grammar(checkpoint: Path, max_tokens: int) -> Batch:
    """Four groups of three answers that an untrained policy gives under the grammar."""
    policy, env = Policy(checkpoint, Codec()), ENV.build(split="train")
    examples = [env[index] for index in range(4)]
    rows = policy.rows(
        [each.question(env.image(each.image)) for each in examples], [[np.array([policy.processor.end_token])]] * 4
    )
    draws = np.random.default_rng(0).random((4, 3, max_tokens))
    flat = sample(policy, rows, Sampling(TEMPERATURE, max_tokens, grammar=True), draws)
    groups = [flat[first : first + 3] for first in range(0, 12, 3)]
    advantages, counts = ALGORITHM.advantages(np.random.default_rng(1).random((4, 3)))
    return Batch(
        tuple(each.image for each in examples),
        tuple(each.prompt for each in examples),
        tuple(tuple(response.tokens for response in group) for group in groups),
        tuple(tuple(response.logprobs for response in group) for group in groups),
        advantages.astype(np.float32),
        counts,
    )


def one_step(checkpoint: Path, batch: Batch, grammar_tokens: int | None, place: RankPlace) -> dict[str, float]:
    from rl.learner.rank import LearnerRank

    learner = replace(LEARNER, minibatches=1)
    return LearnerRank(replace(settings(checkpoint, learner), grammar_tokens=grammar_tokens), place).step(batch)


def test_under_the_grammar_the_first_ratio_is_exactly_one_and_learner_and_sampler_speak_of_one_distribution(
    tiny_untrained: Path,
) -> None:
    batch = sampled_under_the_grammar(tiny_untrained, 24)
    masked = apart(one_step, tiny_untrained, batch, 24, RankPlace(port=free_port()))
    assert masked["ratio_mean"] == masked["ratio_max"] == 1.0
    assert masked["sampler_logprob_difference_max"] < 1e-4
    assert np.isfinite(masked["grad_norm"]) and masked["grad_norm"] > 0
    free = apart(one_step, tiny_untrained, batch, None, RankPlace(port=free_port()))
    assert free["sampler_logprob_difference_max"] > 0.5  # what the masks are for


def learn_by_routes(checkpoint: Path, kl: float, batches: list[Batch]) -> list[dict[str, float]]:
    """What the first step on each batch logs, of a policy of experts."""
    from rl.learner.rank import LearnerRank

    algorithm = Plugin("rl.algorithms", "Algorithm", "gspo", vars(replace(ALGORITHM, kl=kl)))
    learner = replace(LEARNER, minibatches=1)
    return [LearnerRank(settings(checkpoint, learner, algorithm), RankPlace()).step(each) for each in batches]


def told_by_a_sampler(checkpoint: Path) -> Batch:
    """Answers of a policy of experts, with the routes that their tokens took."""
    write_qwen3_vl_moe(checkpoint)
    env, policy = ENV.build(split="train"), Policy(checkpoint, Codec()).eval()
    examples = [env[index] for index in range(4)]
    rows = policy.rows([each.question(env.image(each.image)) for each in examples], [[np.array([1])]] * 4)
    draws = np.random.default_rng(0).random((4, 3, 12))
    found = sample(policy, rows, Sampling(TEMPERATURE, 12), draws)
    answers = [found[3 * b : 3 * b + 3] for b in range(4)]
    advantages, counts = ALGORITHM.advantages(np.random.default_rng(1).random((4, 3)))
    return Batch(
        tuple(each.image for each in examples),
        tuple(each.prompt for each in examples),
        tuple(tuple(each.tokens for each in row) for row in answers),
        tuple(tuple(each.logprobs for each in row) for row in answers),
        advantages.astype(np.float32),
        counts,
        routes=tuple(tuple(each.routes for each in row) for row in answers),
    )


def test_experts_are_those_that_the_sampler_told_of_the_checkpoint_too(tmp_path: Path) -> None:
    told = told_by_a_sampler(tmp_path)
    # Two of four experts a token: what nobody chose.
    others = tuple(tuple(Routes((r.prompt + 1) % 4, (r.answer + 1) % 4) for r in row) for row in told.routes)
    batches = [replace(told, routes=None), told, replace(told, routes=others)]
    free, same, moved = apart(learn_by_routes, tmp_path, 0.1, batches)
    name = "sampler_logprob_difference_max"
    assert free[name] < 1e-4 and same[name] < 1e-4 and moved[name] > 1e-3
    # The policy is its own checkpoint before the first update, wherever its tokens are sent.
    assert free["kl"] < 1e-9 and same["kl"] < 1e-9 and moved["kl"] < 1e-9


@pytest.mark.slow
def test_experts_take_the_same_step_at_every_stage_on_one_rank_and_on_two(tmp_path: Path) -> None:
    """A layer's experts are one module, which ZeRO-3 fetches whole however tokens are dealt to them."""
    told = told_by_a_sampler(tmp_path)
    jobs = [(replace(LEARNER, zero_stage=stage), [told]) for stage in (0, 3)]
    [alone] = together(learn, 1, tmp_path, jobs)
    first, second = together(learn, 2, tmp_path, jobs)
    expected = alone[0]
    assert np.abs(expected.weights[1] - expected.weights[0]).max() > 0.5 * LEARNER.lr
    for outcome in (*alone[1:], *first, *second):
        assert np.abs(outcome.weights[1] - expected.weights[1]).max() < NEAR
        assert outcome.stats[0]["grad_norm"] == pytest.approx(expected.stats[0]["grad_norm"], rel=1e-3)
