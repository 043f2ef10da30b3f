"""Whether the card says what the CPU says: log-probabilities, sums of weights, likeliest answers; and what bfloat16
costs between sampler and learner."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from envs.plugin import Plugin
from policies.checksums import word_sums
from policies.families.vision_language import Policy
from rl.bench.gpu import subject
from rl.bench.gpu.part import Measured, Site
from rollout.engines import shared
from rollout.settings import Sampling

BAR = 1e-4
"""Largest difference of a token's log-probability in float32 that rounding explains."""
_SCENES, _ANSWERS, _LONGEST = 8, 8, 48


@dataclass(frozen=True)
class Agreement:
    """What was compared."""

    differences: dict[str, NDArray[np.float64]]
    """Absolute differences of a token's log-probability, by what was compared."""
    equal_sums: dict[str, tuple[int, int]]
    """Parameters whose word sums are equal on card and host, and all of them, by dtype."""
    equal_answers: tuple[int, int]
    """Greedy answers that are equal on card and host, and all of them."""


def measure(site: Site) -> Measured:
    """The embedded checkpoint on the site's device against the CPU."""
    found = compare(site)
    cells = [
        (what, f"max {off.max():.2e}, mean {off.mean():.2e} of {off.size} tokens")
        for what, off in found.differences.items()
    ]
    cells += [
        (f"word sums of parameters, {dtype}", f"{equal} of {num} equal")
        for dtype, (equal, num) in found.equal_sums.items()
    ]
    equal, num = found.equal_answers
    cells.append(("greedy answers, float32", f"{equal} of {num} equal"))
    numbers = {
        "logprob_difference": {
            what: {"max": float(off.max()), "mean": float(off.mean()), "tokens": off.size}
            for what, off in found.differences.items()
        },
        "equal_word_sums": found.equal_sums,
        "equal_greedy_answers": found.equal_answers,
        "bar": BAR,
    }
    notes = (
        "TF32 are convolutions of float32 numbers with 10 bits of mantissa, which cuDNN takes where torch lets it; the "
        "patch embedding is one.",
    )
    return Measured(("what", "agreement"), tuple(cells), numbers, tuple(findings(found)), notes)


def findings(found: Agreement) -> list[str]:
    """What is beyond the bars."""
    told = [
        f"{what}: log-probabilities of a token differ by up to {off.max():.2e}; rounding explains {BAR:g}"
        for what, off in found.differences.items()
        if what.startswith("float32") and not off.max() <= BAR
    ]
    told += [
        f"{num - equal} of {num} parameters in {dtype} have other word sums on the card than on the host"
        for dtype, (equal, num) in found.equal_sums.items()
        if equal < num
    ]
    equal, num = found.equal_answers
    if equal < num:
        told.append(f"{num - equal} of {num} greedy answers differ between card and CPU")
    return told


def compare(site: Site) -> Agreement:
    """Everything, on the site's device and on the CPU."""
    questions, plugin = subject.embedded_questions(_SCENES), subject.embedded_plugin()
    host = shared.Engine().open(plugin, "cpu")
    drawn = host.sample(questions, Sampling(1.0, _LONGEST), subject.answer_seeds(_SCENES, _ANSWERS))
    there = shared.Engine().open(plugin, site.device)
    held, moved = _policy(host), _policy(there)
    rows = subject.answer_rows(held, questions, drawn)
    expected, on_device = subject.logprobs(held, rows), rows.to(moved.device)
    differences = {"float32, card and CPU": np.abs(subject.logprobs(moved, on_device) - expected)}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        differences["float32, card without TF32 and CPU"] = np.abs(subject.logprobs(moved, on_device) - expected)
    greedy, one_each = Sampling(0.0, _LONGEST), subject.answer_seeds(_SCENES, 1)
    answers = [subject.tokens_of(each.sample(questions, greedy, one_each)) for each in (host, there)]
    same = sum(mine == theirs for mine, theirs in zip(*answers, strict=True))
    differences["bfloat16, sampler and learner"] = sampler_difference(subject.embedded_plugin("bfloat16"), site)
    sums = {dtype: _equal_sums(subject.embedded_plugin(dtype), site) for dtype in ("float32", "bfloat16")}
    return Agreement(differences, sums, (same, len(questions)))


def _policy(sampler: shared.SharedSampler) -> Policy:
    policy = sampler.policy
    assert isinstance(policy, Policy)
    return policy


def sampler_difference(plugin: Plugin, site: Site) -> NDArray[np.float64]:
    """[tokens] |sampler's log-probability - the learner's| of sampled tokens, both on the site's device."""
    sampler = shared.Engine().open(plugin, site.device)
    questions = subject.embedded_questions(_SCENES)
    drawn = sampler.sample(questions, Sampling(1.0, _LONGEST), subject.answer_seeds(_SCENES, _ANSWERS))
    policy = _policy(sampler)
    learned = subject.logprobs(policy, subject.answer_rows(policy, questions, drawn))
    return np.abs(learned - subject.sampler_logprobs(drawn))


def _equal_sums(plugin: Plugin, site: Site) -> tuple[int, int]:
    model = plugin.build().model
    on_host = word_sums(list(model.parameters()))
    there = word_sums(list(model.to(site.device).parameters()))
    return sum(one == other for one, other in zip(on_host, there, strict=True)), len(on_host)
