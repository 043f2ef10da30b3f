"""vLLM on the embedded checkpoint beside the policy and our own engine; where vLLM is installed."""

import time

import numpy as np

from policies.families.vision_language import Policy
from policies.weights import bucket_names, held_checksum, make_bucket
from rl.bench.gpu import subject
from rl.bench.gpu.part import Measured, Site, Skipped
from rollout.engines import shared
from rollout.engines import vllm as engine
from rollout.settings import Sampling

BAR = 1e-3
"""Largest difference of a token's log-probability in float32 between vLLM's kernels and the policy's."""
_SCENES, _ANSWERS, _LONGEST = 6, 8, 48


def measure(site: Site) -> Measured | Skipped:
    """Open vLLM, answer, push weights to it."""
    release = engine.installed_release()
    if release is None:
        return Skipped("vLLM is not installed here; it is the extra `vllm` of the package")
    if not site.on_card:
        return Skipped("vLLM is measured on a card alone")
    settings = engine.Engine(gpu_memory_utilization=0.3, max_model_len=256, enforce_eager=True)
    began = time.perf_counter()
    sampler = settings.open(subject.embedded_plugin(), site.device)
    return compared(sampler, site, {"release": release, "start_seconds": time.perf_counter() - began})


def compared(sampler: engine.VllmSampler, site: Site, facts: dict[str, object]) -> Measured:
    """An open vLLM against the policy on the site's device, before and after other weights came."""
    policy: Policy = subject.embedded_plugin().build().to(site.device).eval()
    questions = subject.embedded_questions(_SCENES)
    before = _difference(sampler, policy)
    held = sampler.held_checksum() == held_checksum(policy.model)
    own = shared.Engine().open(subject.embedded_plugin(), site.device)
    greedy = [
        subject.tokens_of(each.sample(questions, Sampling(0.0, _LONGEST), subject.answer_seeds(_SCENES, 1)))
        for each in (sampler, own)
    ]
    same = sum(mine == theirs for mine, theirs in zip(*greedy, strict=True))
    _move(policy)
    for part in bucket_names(policy.model):
        sampler.load_bucket(make_bucket(part))
    proved = sampler.held_checksum() == held_checksum(policy.model)
    after = _difference(sampler, policy)
    numbers = facts | {
        "logprob_difference": {"max": float(before.max()), "mean": float(before.mean()), "tokens": before.size},
        "logprob_difference_after_push": {"max": float(after.max()), "mean": float(after.mean())},
        "checksum_read_back": held,
        "checksum_read_back_after_push": proved,
        "equal_greedy_answers": [same, _SCENES],
        "bar": BAR,
    }
    rows = (
        ("release", f"{facts.get('release')}"),
        ("log-probabilities against the policy", f"max {before.max():.2e}, mean {before.mean():.2e}"),
        ("the same after a push", f"max {after.max():.2e}, mean {after.mean():.2e}"),
        ("checksum read back, before and after", f"{_yes(held)}, {_yes(proved)}"),
        ("greedy answers equal to our own engine's", f"{same} of {_SCENES}"),
    )
    return Measured(("what", "found"), rows, numbers, tuple(_findings(before, after, held and proved, same)))


def _findings(before: np.ndarray, after: np.ndarray, proved: bool, same: int) -> list[str]:
    worst = max(float(before.max()), float(after.max()))
    told = (
        [] if worst <= BAR else [f"log-probabilities of vLLM and the policy differ by {worst:.2e}; the bar is {BAR:g}"]
    )
    if not proved:
        told.append("vLLM's own parameters have another checksum than the weights that were sent")
    if same < _SCENES:
        told.append(f"{_SCENES - same} of {_SCENES} greedy answers of vLLM differ from our own engine's")
    return told


def _move(policy: Policy) -> None:
    """Make all weights 1 % larger."""
    for parameter in policy.model.parameters():
        parameter.data.mul_(1.01)


def _difference(sampler: engine.VllmSampler, policy: Policy) -> np.ndarray:
    """[tokens] |vLLM's log-probability - the policy's| of tokens that vLLM sampled at temperature 1."""
    questions = subject.embedded_questions(_SCENES)
    drawn = sampler.sample(questions, Sampling(1.0, _LONGEST), subject.answer_seeds(_SCENES, _ANSWERS))
    learned = subject.logprobs(policy, subject.answer_rows(policy, questions, drawn))
    return np.abs(learned - subject.sampler_logprobs(drawn))


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
