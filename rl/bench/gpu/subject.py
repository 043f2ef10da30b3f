"""What is measured on: a 2B Qwen3-VL with random weights, written once for all parts, and the embedded checkpoint."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from envs.codecs.path_tokens import Codec
from envs.datasets.cutout_scenes import Env
from envs.example import Question
from envs.plugin import Plugin
from policies.families.base import PromptRows, Response
from policies.families.vision_language import Policy as VisionLanguage
from rl.bench.gpu.part import Site
from rl.bench.learner import random_answers
from rl.bench.random_qwen import ModelChoice, Policy
from rl.bench.side_by_side import Workload

TINY = Path(str(files("policies") / "tiny"))
"""Folder of the embedded checkpoint."""
_WORK = Workload(groups=2, answers=8, image_tokens=1024, tokens=128)
_SMALL = Workload(groups=2, answers=3, image_tokens=16, tokens=8)


def work_of(site: Site) -> Workload:
    """Images, groups and answers of a pass."""
    return _WORK if site.on_card else _SMALL


def choice_of(site: Site) -> ModelChoice:
    """The model: in the shape of the 2B on a card, tiny elsewhere."""
    return ModelChoice("2b", "bfloat16") if site.on_card else ModelChoice()


def random_plugin(site: Site) -> Plugin:
    """The plugin of the policy with random weights, whose folder the first part that asks for it writes."""
    folder, written, choice = site.folder / "model", site.folder / "model.written", choice_of(site)
    if not written.exists():
        choice.write(folder, work_of(site))
        written.touch()
    settings = {"checkpoint": folder, "codec": Codec(), "dtype": choice.dtype}
    return Plugin("rl.bench", "Policy", "random_qwen", settings)


def random_policy(site: Site) -> Policy:
    """That policy on the site's device."""
    policy: Policy = random_plugin(site).build()
    return policy.to(site.device)


def random_questions(site: Site, num: int) -> list[Question]:
    """Questions about images of the workload's size."""
    work = work_of(site)
    env = choice_of(site).env(Workload(num, work.answers, work.image_tokens, work.tokens)).build(split="train")
    return [env[index].question(env.image(env[index].image)) for index in range(num)]


def random_rows(site: Site, policy: Policy) -> PromptRows:
    """Rows of a learner's pass: the workload's questions, each with its answers."""
    work = work_of(site)
    return policy.rows(random_questions(site, work.groups), random_answers(policy, work))


def computed_tokens(rows: PromptRows) -> int:
    """Tokens that a pass over the rows computes on, prompts once."""
    return int(rows.prompt_mask.sum() + rows.response_mask.sum())


def embedded_plugin(dtype: str = "float32") -> Plugin:
    """The plugin of the embedded checkpoint."""
    settings = {"checkpoint": TINY, "codec": Codec(), "dtype": dtype}
    return Plugin("policies.families", "Policy", "vision_language", settings)


def embedded_questions(num: int, first: int = 0) -> list[Question]:
    """Questions about scenes as the embedded checkpoint knows them."""
    env = Env("train")
    return [env[first + k].question(env.image(env[first + k].image)) for k in range(num)]


def answer_seeds(groups: int, answers: int, key: int = 0) -> list[list[int]]:
    """[groups][answers] seeds of answers, each 0 .. 2**64 - 1."""
    return np.random.default_rng(key).integers(0, 2**64, (groups, answers), dtype=np.uint64).tolist()


def tokens_of(groups: Sequence[Sequence[Response]]) -> list[list[list[int]]]:
    """[groups][answers] token ids."""
    return [[response.tokens.tolist() for response in group] for group in groups]


def answer_rows(
    policy: VisionLanguage, questions: Sequence[Question], groups: Sequence[Sequence[Response]]
) -> PromptRows:
    """Rows of questions with the answers that were sampled for each."""
    return policy.rows(questions, [[response.tokens for response in group] for group in groups])


@torch.no_grad()
def logprobs(policy: VisionLanguage, rows: PromptRows, temperature: float = 1.0) -> NDArray[np.float64]:
    """[tokens] log-probabilities of the scored tokens by the policy's forward pass, in the order of the rows."""
    found = policy(rows, temperature)
    return found[rows.scored_mask].double().cpu().numpy()


def sampler_logprobs(groups: Sequence[Sequence[Response]]) -> NDArray[np.float64]:
    """[tokens] the sampler's own of the same tokens, in the same order."""
    return np.concatenate([response.logprobs for group in groups for response in group]).astype(np.float64)
