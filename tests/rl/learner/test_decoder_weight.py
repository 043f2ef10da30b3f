"""A mask decoder that learns along by its own loss in sampled answers' boxes: its steps against plain torch's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ranks import ALGORITHM, DRAWS, LEARNER, TEMPERATURE, Outcome, settings, steps, together

from envs.example import Example
from envs.geometry.masks import tight_box_px
from envs.geometry.rle import rle_from_mask
from policies.decoders.slots import MaskSlots
from policies.families.base import TaughtAnswer
from rl.config.learner import LearnerSettings, RankPlace
from rl.learner.batches.batch import Batch
from rl.learner.batches.micro_batches import MicroBatch, MiniBatch, decoder_loss

WEIGHT, RATE, GROUP = 0.3, 3e-3, 18
ALONG = replace(LEARNER, decoder_weight=WEIGHT, decoder_lr=RATE)
SHARED_OUT = {"zero_optimization": {"stage3_param_persistence_threshold": 256}}
"""Else ZeRO-3 leaves all of a tiny decoder on every rank. The matrix behind attention, which torch does not call as a
module, has 256 numbers."""
KIND = replace(DRAWS, own={**DRAWS.own, "freeze_decoder": False})
_WRONG = "0 0 2 2 M"
"""A box in a corner, about nothing."""


def box_text(example: Example, shift: int) -> str:
    """A box for each true mask, its far corner off by some 64ths of the image."""
    words = []
    for mask in example.truth.masks:
        box = tight_box_px(mask)
        assert box is not None
        x0, y0, x1, y1 = (round(2 * corner) for corner in box)
        words.append(f"{x0} {y0} {min(64, x1 + shift)} {min(64, y1 + shift)} M")
    return " ; ".join(words)


def texts_of(examples: Sequence[Example]) -> list[list[str]]:
    """Of four groups: all about true masks; none that draws; some about nothing; one that draws at all."""

    def right(k: int) -> list[str]:
        return [box_text(examples[k], shift % 5) for shift in range(GROUP)]

    few = [*right(2)[:4], *[_WRONG] * 4, *["none"] * 4, *["1 2 3"] * (GROUP - 12)]
    return [right(0), ["none", "5 6", *["none"] * (GROUP - 2)], few, [right(3)[0], *["none"] * (GROUP - 1)]]


def drawing_batch(checkpoint: Path, seed: int) -> Batch:
    policy, env = KIND.plugin(checkpoint).build(), KIND.env.build(split="train")
    examples, rng = [env[k] for k in range(4)], np.random.default_rng(seed)
    tokens = tuple(tuple(policy.processor.answer_tokens(text) for text in row) for row in texts_of(examples))
    rows = policy.rows([example.question(env.image(example.image)) for example in examples], tokens)
    logprobs = policy(rows, TEMPERATURE).detach().numpy()
    sampled = tuple(tuple(logprobs[b, g, : len(t)] for g, t in enumerate(row)) for b, row in enumerate(tokens))
    advantages, counts = ALGORITHM.advantages(rng.random((4, GROUP)))
    images, prompts = (tuple(part) for part in zip(*((e.image, e.prompt) for e in examples), strict=True))
    truths = tuple(tuple(map(rle_from_mask, example.truth.masks)) for example in examples)
    return Batch(images, prompts, tokens, sampled, advantages.astype(np.float32), counts, truths=truths)


def learn(
    place: RankPlace, checkpoint: Path, learners: list[LearnerSettings], batches: list[Batch], save: Path | None = None
) -> list[Outcome]:
    """The steps of each learner; saved as "learner k" after the first one."""
    from rl.learner.rank import LearnerRank

    outcomes = []
    for k, learner in enumerate(learners):
        rank = LearnerRank(settings(checkpoint, learner, kind=KIND), place)
        first = steps(rank, batches[:1])
        if save is not None:
            rank.save(save, f"learner {k}")
        rest = steps(rank, batches[1:])
        outcomes.append(Outcome(first.weights + rest.weights[1:], first.stats + rest.stats))
    return outcomes


def go_on(
    place: RankPlace, checkpoint: Path, learners: list[LearnerSettings], batches: list[Batch], folder: Path
) -> list[Outcome]:
    from rl.learner.rank import LearnerRank

    outcomes = []
    for k, learner in enumerate(learners):
        rank = LearnerRank(settings(checkpoint, learner, kind=KIND), place)
        rank.load(folder, f"learner {k}")
        outcomes.append(steps(rank, batches[1:]))
    return outcomes


def answer_losses(policy: Any, env: Any, whole: Batch, example: Example, b: int) -> torch.Tensor:
    """[G] the mean over an answer's masks of what supervision takes off for them; 0 where it says nothing true."""
    question, zero, found = whole.questions(env)[b], torch.zeros(()), []
    for tokens in whole.choices[b]:
        text = policy.processor.tokenizer.decode(tokens)
        if "M" not in text or text.startswith(_WRONG):
            found.append(zero)
            continue
        rows = policy.processor.supervised_rows([[TaughtAnswer(question, tokens, example.truth.masks)]])
        found.append((policy(replace(rows, slots=None)) - policy(rows)).sum() / len(example.truth.masks))
    return torch.stack(found)


def by_plain_torch(checkpoint: Path, batches: list[Batch]) -> tuple[Outcome, list[float], np.ndarray]:
    """Weights and statistics of two updates a step, the decoder's norms, and the smallest gradient that each of its
    weights had: rewards and masks in passes apart."""
    policy, env = KIND.plugin(checkpoint).build(), KIND.env.build(split="train")
    decoder = [p for name, p in policy.named_parameters() if "mask_decoder" in name]
    rest = [p for name, p in policy.named_parameters() if "mask_decoder" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": rest, "lr": LEARNER.lr}, {"params": decoder, "lr": RATE}], betas=(0.9, 0.95), weight_decay=0.0
    )
    weights, stats, shares, felt = [flat(policy)], [], [], []
    for whole in batches:
        norms, masks, losses = [], 0.0, 0.0
        parts = [[0, 1], [2, 3]]
        old = [policy(rows_of(policy, env, whole.part(part)), TEMPERATURE).detach() for part in parts]
        for part, before in zip(parts, old, strict=True):
            own, rows = whole.part(part), rows_of(policy, env, whole.part(part))
            terms = ALGORITHM.terms(
                policy(rows, TEMPERATURE), before, rows.response_mask, torch.from_numpy(own.advantages)
            )
            optimizer.zero_grad()
            (-terms.objective[torch.from_numpy(own.counts)].mean()).backward()
            assert all(p.grad is None for p in decoder)
            each = torch.cat([answer_losses(policy, env, own, env[k], b) for b, k in enumerate(part)])
            for p, gradient in zip(decoder, torch.autograd.grad(WEIGHT * each.mean(), decoder), strict=True):
                p.grad = gradient
            drawn = np.repeat([len(env[k].truth.masks) for k in part], GROUP) * (each.detach() > 0).numpy()
            masks, losses = masks + drawn.sum(), losses + float((each.detach().numpy() * drawn).sum())
            shares.append(float(torch.nn.utils.get_total_norm([p.grad for p in decoder if p.grad is not None])))
            felt.append(
                np.concatenate(
                    [np.zeros(p.numel()) if p.grad is None else p.grad.flatten().abs().numpy() for p in decoder]
                )
            )
            norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), LEARNER.grad_clip).item())
            optimizer.step()
        weights.append(flat(policy))
        stats.append({"grad_norm": sum(norms) / 2, "decoder_loss": losses / masks})
    return Outcome(weights, stats), shares, np.min(felt, axis=0)


def rows_of(policy: Any, env: Any, part: Batch) -> Any:
    return policy.rows(part.questions(env), part.choices)


def flat(policy: Any) -> np.ndarray:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()]).numpy().copy()


def decoder_places(checkpoint: Path) -> np.ndarray:
    """[all weights] bool: those of the decoder."""
    policy = KIND.plugin(checkpoint).build()
    return np.concatenate([np.full(p.numel(), "mask_decoder" in n) for n, p in policy.model.named_parameters()])


@pytest.fixture(scope="module")
def batches(tiny_untrained: Path) -> list[Batch]:
    return [drawing_batch(tiny_untrained, seed) for seed in (0, 1)]


def micro_batch(
    places: list[list[int]], partners: list[list[int]], groups: int, answers: int | None = None
) -> MicroBatch:
    slots = MaskSlots(torch.tensor([places]), torch.zeros(1, len(places), 2, 4), None, torch.tensor([partners]))
    part: Any = SimpleNamespace(advantages=np.zeros((1, answers or len(places)), np.float32))
    rows: Any = SimpleNamespace(slots=slots)
    return MicroBatch(part, rows, True, MiniBatch(responses=2, micro_batches=1, groups=groups))


def test_the_term_by_hand() -> None:
    # Three answers: two masks that are taught, one of two that is, and none.
    micro = micro_batch([[1, 3], [0, 2], [-1, -1]], [[1, 0], [-1, 0], [-1, -1]], groups=2)
    losses = torch.tensor([[[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 6.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    loss, stats = decoder_loss(micro, losses)
    assert float(loss) == (1.5 + 6.0 + 0.0) / 6  # of 2 groups x 3 answers
    assert stats == {"decoder_loss": (3.0, 3), "decoder_taught": (0.75, 4)}
    # An answer that is taught beside them (learner.sft_weight) has masks, too, which do not count.
    beside = micro_batch([[1, 3], [0, 2], [-1, -1], [1, -1]], [[1, 0], [-1, 0], [-1, -1], [0, -1]], 2, answers=3)
    assert decoder_loss(beside, torch.cat([losses, torch.full((1, 1, 4), 9.0)], 1)) == (loss, stats)
    repeat, nothing = decoder_loss(replace(micro, weighs=False), losses)
    assert float(repeat) == 0.0 and all(mean.over == 0 for mean in nothing.values())


@pytest.mark.slow
def test_a_step_is_that_of_plain_torch_at_every_stage_also_where_a_rank_has_nothing_to_draw(
    tiny_untrained: Path, batches: list[Batch]
) -> None:
    (expected, norms, felt), own = by_plain_torch(tiny_untrained, batches), decoder_places(tiny_untrained)
    # Where a gradient is nothing but rounding, AdamW makes a step of it, another one where sums are in another order.
    sure = felt > 1e-6
    assert sure.mean() > 0.9
    assert min(norms) > 0.02 and np.abs(expected.weights[1] - expected.weights[0])[own].max() > RATE
    whole = replace(ALONG, zero_stage=3, deepspeed=SHARED_OUT)
    counts = [len(masks) for masks in batches[0].truths or ()]
    taught = GROUP * counts[0] + 4 * counts[2] + counts[3]
    share = taught / (taught + 4)  # four boxes are about nothing
    alone = [replace(ALONG, micro_groups=2), replace(whole, micro_groups=2)]  # of two groups, each drawn twice
    found = [*together(learn, 1, tiny_untrained, alone, batches)[0]]
    for outcomes in together(
        learn, 2, tiny_untrained, [replace(ALONG, zero_stage=s) for s in (0, 1, 2)] + [whole], batches
    ):
        found += outcomes
    for outcome in found:
        for weights, right in zip(outcome.weights, expected.weights, strict=True):
            assert np.abs(weights - right)[~own].max() < 5e-5 and np.abs(weights - right)[own].mean() < 2e-6
            assert np.abs(weights - right)[own][sure].max() < 5e-3 * RATE
        for logged, right in zip(outcome.stats, expected.stats, strict=True):
            assert logged["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
            assert logged["decoder_loss"] == pytest.approx(right["decoder_loss"], rel=1e-4)
            assert logged["decoder_taught"] == pytest.approx(share)


@pytest.mark.slow
def test_a_loaded_rank_goes_on_bit_for_bit_and_two_ranks_go_on_as_one(
    tiny_untrained: Path, batches: list[Batch], tmp_path: Path
) -> None:
    learners = [ALONG, replace(ALONG, zero_stage=2), replace(ALONG, zero_stage=3)]
    two = together(learn, 2, tiny_untrained, learners, batches, tmp_path)[0]
    same = together(go_on, 2, tiny_untrained, learners, batches, tmp_path)[0]
    for whole, again in zip(two, same, strict=True):
        assert np.array_equal(again.weights[0], whole.weights[1]) and np.array_equal(again.weights[1], whole.weights[2])
        assert again.stats[0] == whole.stats[1]
    one = together(go_on, 1, tiny_untrained, learners, batches, tmp_path)[0]
    for whole, alone in zip(two, one, strict=True):
        assert np.abs(alone.weights[0] - whole.weights[1]).max() < 1e-7
        # A decoder whose rate or Adam's moments were lost would be off by about the whole of a step, and not only where
        # a gradient is nothing but rounding, of which AdamW makes a step too.
        assert np.abs(alone.weights[1] - whole.weights[2]).mean() < 1e-3 * RATE
        assert np.abs(alone.weights[1] - whole.weights[2]).max() < 0.5 * RATE


def frozen_beside_learning(place: RankPlace, checkpoint: Path, batches: list[Batch]) -> list[Outcome]:
    """One step by the rewards alone, and one with the decoder along, of gradients too short to be cut."""
    from rl.learner.rank import LearnerRank

    plain, along = (replace(each, grad_clip=1e6) for each in (LEARNER, ALONG))
    without = [replace(each, truths=None) for each in batches]
    first = steps(LearnerRank(settings(checkpoint, plain, kind=DRAWS), place), without)
    return [first, steps(LearnerRank(settings(checkpoint, along, kind=KIND), place), batches)]


@pytest.mark.slow
def test_the_rest_of_the_policy_learns_as_if_the_decoder_did_not(tiny_untrained: Path, batches: list[Batch]) -> None:
    [[frozen, along]], own = (
        together(frozen_beside_learning, 1, tiny_untrained, batches),
        decoder_places(tiny_untrained),
    )
    for one, other in zip(frozen.weights, along.weights, strict=True):
        assert np.abs(one - other)[~own].max() < 1e-6, "a thousandth of an update"
        assert np.array_equal(one[own], frozen.weights[0][own])
    assert np.abs(along.weights[1] - along.weights[0])[own].mean() > 0.1 * RATE
    for name in ("loss", "ratio_max", "gradient_cosine", "update_cosine"):
        assert frozen.stats[0].get(name) == pytest.approx(along.stats[0].get(name), rel=1e-4, abs=1e-6), name
