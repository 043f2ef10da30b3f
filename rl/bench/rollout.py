"""`polytrace bench rollout`: G answers to each prompt, by our sampler and by transformers' generate, the same model."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from policies.families.base import PromptRows
from rl.bench.random_qwen import ModelChoice, Policy
from rl.bench.side_by_side import ROUNDS, THREADS, SideBySide, Work, Workload, alternate, count, scaled
from rollout.engines.shared import Sampling, sample

BAR = 3.0
"""How many times as fast as generate we mean to be at the workload below, on two cores."""
WORKLOAD = Workload(groups=4, answers=8, image_tokens=256, tokens=64)
OTHER = "generate"


def measure(workload: Workload, choice: ModelChoice, rounds: int = ROUNDS) -> SideBySide:
    """Time both sides of one workload."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as folder:
        policy = choice.policy(Path(folder), workload).eval()
    policy.prepare_sampling()
    rows = questions(policy, choice, workload)

    def ours() -> object:
        return sampled(policy, rows, workload, temperature=1.0)

    def other() -> object:
        return generated(policy, rows, workload, temperature=1.0)

    flops, other_flops = count(ours), count(other)
    seconds, other_seconds = alternate(ours, other, rounds)
    prompts, decoded = int(rows.prompt_mask.sum()), workload.groups * workload.answers * (workload.tokens - 1)
    return SideBySide(
        workload,
        rows.prompt_tokens.shape[1],
        Work(flops, prompts + decoded),
        Work(other_flops, prompts * workload.answers + decoded),
        tuple(seconds),
        tuple(other_seconds),
    )


def questions(policy: Policy, choice: ModelChoice, workload: Workload) -> PromptRows:
    """The workload's prompts, without answers."""
    env = choice.env(workload).build(split="train")
    examples = [env[index] for index in range(workload.groups)]
    none = [[np.array([policy.processor.end_token])]] * workload.groups
    return policy.rows([one.question(env.image(one.image)) for one in examples], none)


def sampled(policy: Policy, rows: PromptRows, workload: Workload, temperature: float) -> NDArray[np.int64]:
    """[B * G, T] tokens by our sampler, log-probabilities left aside; temperature 0 takes the likeliest."""
    draws = np.random.default_rng(0).random((workload.groups, workload.answers, workload.tokens))
    responses = sample(policy, rows, Sampling(temperature=temperature, max_tokens=workload.tokens), draws)
    return np.stack([response.tokens for response in responses])


@torch.no_grad()
def generated(policy: Policy, rows: PromptRows, workload: Workload, temperature: float) -> NDArray[np.int64]:
    """Answers by transformers: its own cache, as many answers to each prompt, the same tokens left out."""
    # Without this it would keep the 50 likeliest tokens, and take the time to find them.
    drawing = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    tokens = policy.model.generate(
        input_ids=rows.prompt_tokens,
        attention_mask=rows.prompt_mask.long(),
        mm_token_type_ids=(rows.prompt_tokens == policy.model.config.image_token_id).int(),
        pixel_values=rows.pixel_values,
        image_grid_thw=rows.image_grid,
        num_return_sequences=workload.answers if temperature else 1,
        max_new_tokens=workload.tokens,
        suppress_tokens=policy.processor.unsampled_tokens,
        **drawing,
    )
    found = tokens[:, rows.prompt_tokens.shape[1] :].cpu().numpy()
    return found if temperature else np.repeat(found, workload.answers, axis=0)


def bench(workload: Workload, choice: ModelChoice, quick: bool) -> Iterator[SideBySide]:
    """The workload, then, unless `quick`, those around it, as they are measured."""
    yield measure(workload, choice)
    for one in [] if quick else scaled(workload):
        yield measure(one, choice, rounds=3)
