"""`polytrace bench learner`: forward and backward over groups, one row per group against one row per answer.

Both sides are the same policy on the same images, phrases and answers. A row an answer is what a trainer does that
does not share prompts: prompt and image are computed on once for each answer.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.families.base import PromptRows
from rl.bench.random_qwen import ModelChoice, Policy
from rl.bench.side_by_side import ROUNDS, THREADS, SideBySide, Work, Workload, alternate, as_json, count, scaled

BAR = 3.0
"""How many times as fast as a row an answer we mean to be at the workload below, on two cores."""
WORKLOAD = Workload(groups=2, answers=16, image_tokens=256, tokens=64)
OTHER = "row_per_answer"


@dataclass(frozen=True)
class LearnerTimed:
    """One workload."""

    timed: SideBySide
    max_logprob_difference: float
    """Largest difference between the two sides' log-probabilities of a token; NaN where the other does not fit."""

    def model_flops_utilisation(self, peak_tflops: float) -> float:
        """Operations a second of ours over what the device could at most; nothing is computed twice in a pass."""
        return self.timed.ours.flops / float(np.median(self.timed.seconds)) / (peak_tflops * 1e12)

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens learned from."""
        work = self.timed.workload
        return work.groups * work.answers * work.tokens / float(np.median(self.timed.seconds))


def measure(workload: Workload, choice: ModelChoice, rounds: int = ROUNDS) -> LearnerTimed:
    """Time both sides of one workload."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as folder:
        policy = choice.policy(Path(folder), workload).train()
    shared, alone = both_rows(policy, choice, workload)
    prompt = shared.prompt_tokens.shape[1]
    own_work = Work(count(_pass(policy, shared)), _computed_tokens(shared))
    ours, other = _pass(policy, shared), _pass(policy, alone)
    try:
        other_work = Work(count(other), _computed_tokens(alone))
        difference = _largest_difference(policy, shared, alone)
    except torch.OutOfMemoryError:
        # A large model's rows, one an answer, need not fit a GPU on which shared rows do.
        seconds = [alternate(ours, ours, 1)[0][0] for _ in range(rounds)]
        return LearnerTimed(SideBySide(workload, prompt, own_work, None, tuple(seconds), ()), float("nan"))
    seconds, other_seconds = alternate(ours, other, rounds)
    timed = SideBySide(workload, prompt, own_work, other_work, tuple(seconds), tuple(other_seconds))
    return LearnerTimed(timed, difference)


def both_rows(policy: Policy, choice: ModelChoice, workload: Workload) -> tuple[PromptRows, PromptRows]:
    """The workload as B rows of G answers, and as B * G rows of one."""
    env = choice.env(workload).build(split="train")
    examples = [env[index] for index in range(workload.groups)]
    questions = [one.question(env.image(one.image)) for one in examples]
    answers = random_answers(policy, workload)
    each = range(workload.answers)
    alone = policy.rows(
        [question for question in questions for _ in each],
        [[tokens] for row in answers for tokens in row],
    )
    return policy.rows(questions, answers), alone


def random_answers(policy: Policy, workload: Workload) -> list[list[NDArray[np.int64]]]:
    """[B][G] answers of T tokens that can be sampled."""
    words = sorted(set(policy.processor.tokenizer.get_vocab().values()) - set(policy.processor.unsampled_tokens))
    rng = np.random.default_rng(0)
    shape = (workload.groups, workload.answers, workload.tokens)
    return [list(row) for row in rng.choice(np.array(words, np.int64), shape)]


def _pass(policy: Policy, rows: PromptRows) -> Callable[[], float]:
    """A forward and a backward pass; it reads a number back, so that a GPU, too, is done when it returns."""
    first = next(policy.parameters())

    def run() -> float:
        policy.zero_grad(set_to_none=True)
        policy(rows).mean().backward()
        assert first.grad is not None
        return float(first.grad.flatten()[0])

    return run


@torch.no_grad()
def _largest_difference(policy: Policy, shared: PromptRows, alone: PromptRows) -> float:
    one: Tensor = policy(shared)
    return float((one - policy(alone).view(one.shape)).abs().max())


def _computed_tokens(rows: PromptRows) -> int:
    return int(rows.prompt_mask.sum() + rows.response_mask.sum())


def bench(workload: Workload, choice: ModelChoice, quick: bool) -> Iterator[LearnerTimed]:
    """The workload, then, unless `quick`, those around it, as they are measured."""
    yield measure(workload, choice)
    for one in [] if quick else scaled(workload):
        yield measure(one, choice, rounds=3)


def report(found: list[LearnerTimed], peak_tflops: float | None) -> dict[str, Any]:
    """What --json prints: that of `side_by_side.as_json`, max_logprob_difference of all workloads, and speeds."""
    used = None if peak_tflops is None else found[0].model_flops_utilisation(peak_tflops)
    return as_json(OTHER, [one.timed for one in found]) | {
        "max_logprob_difference": max(one.max_logprob_difference for one in found),
        "tokens_per_second": found[0].tokens_per_second,
        "model_flops_utilisation": used,
        "bar": BAR,
    }
