"""Which scenes go through the policy together in supervised training, and what ranks must agree on for it.

Each rank plans its own share; then all make equally many passes, since under ZeRO-3 every pass is a collective.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from envs.datasets.base import Env
from policies.families.base import TaughtAnswer
from policies.processor import Processor
from rl.config.sft import SftConfig, SftLearner
from rl.learner.batches.micro_batches import GroupTokens, PassBudget, budgeted_micro_batches
from rl.supervised.answers import CHECKED, Taught, answer_text, questions_about


@dataclass(frozen=True)
class Pass:
    """One forward pass of this rank."""

    scenes: tuple[int, ...]
    """Places in the rank's share."""
    weighs: bool
    """False for one that only keeps this rank in step with those that have more to do."""


@dataclass(frozen=True)
class Passes:
    """What this rank does for a step or an evaluation."""

    passes: list[Pass]
    scored: int
    """Tokens that all ranks score together; those of passes that do not weigh left out."""


def scene_tokens(scenes: Sequence[Taught], processor: Processor) -> GroupTokens:
    """Tokens of the prompt that the questions of each scene share, and of all that follows it; where they share none,
    of all their rows together."""
    parts = [[processor.question_lengths(each.question) for each in scene] for scene in scenes]
    prompts = [scene[0][0] for scene in parts]
    rest = [
        sum(own + len(each.tokens) for (_, own), each in zip(lengths, scene, strict=True))
        for lengths, scene in zip(parts, scenes, strict=True)
    ]
    patches = [processor.image_patches(*scene[0].question.image.shape[:2]) for scene in scenes]
    if not processor.shares_images:
        prompts = [sum(shared for shared, _ in scene) for scene in parts]
        patches = [each * len(scene) for each, scene in zip(patches, scenes, strict=True)]
    return GroupTokens(np.array(prompts, np.int64), np.array(rest, np.int64), np.array(patches, np.int64))


def stretches(scenes: Sequence[Taught], processor: Processor, learner: SftLearner) -> list[tuple[int, ...]]:
    """The scenes of a rank by place, cut into passes within its settings.

    Raises ValueError for a scene that alone is above learner.token_budget.
    """
    places = tuple(range(len(scenes)))
    if not places:
        return []
    if learner.token_budget is None:
        size = learner.micro_scenes or len(places)
        return [places[first : first + size] for first in range(0, len(places), size)]
    tokens = scene_tokens(scenes, processor)
    budget = PassBudget(learner.token_budget, learner.patch_budget)
    _refuse_small_budget(budget, tokens, scenes)
    return [one.groups for (one,) in budgeted_micro_batches(places, tokens, budget, ranks=1)]


def refuse_small_budgets(env: Env, processor: Processor, config: SftConfig) -> None:
    """Raise ValueError where one of the first training scenes alone is above a pass's budgets; no image is read."""
    if config.learner.token_budget is None:
        return
    for index in range(min(CHECKED, len(env))):
        scene = []
        for example in questions_about(env, index, config.sft):
            blank = np.broadcast_to(np.zeros(3, np.uint8), (example.image.height, example.image.width, 3))
            text = answer_text(example, processor.codec, config.sft)
            scene.append(TaughtAnswer(example.question(blank), processor.answer_tokens(text)))
        stretches([scene], processor, config.learner)


def _refuse_small_budget(budget: PassBudget, tokens: GroupTokens, scenes: Sequence[Taught]) -> None:
    worst = int((tokens.prompts + tokens.answers).argmax())
    prompt, rest = int(tokens.prompts[worst]), int(tokens.answers[worst])
    if prompt + rest > budget.tokens:
        height, width = scenes[worst][0][0].image.shape[:2]
        raise ValueError(
            f"an image of {height} x {width} pixels takes {prompt} tokens and its {len(scenes[worst])} questions and "
            f"answers {rest}, more than learner.token_budget {budget.tokens}, and they are one row; set the budget to "
            f"{prompt + rest} or more, or lower policy.max_pixels or sft.max_vertices."
        )
    if budget.patches is not None and tokens.patches is not None and tokens.patches.max() > budget.patches:
        raise ValueError(
            f"an image has {int(tokens.patches.max())} patches, more than learner.patch_budget {budget.patches}; set "
            "it to that number or more, or lower policy.max_pixels."
        )


def agreed(own: list[tuple[int, ...]], scored: list[int], weighs: bool, device: torch.device) -> Passes:
    """The passes of this rank once all ranks have told theirs: a collective.

    own: scenes of each of its passes, one at least; scored: tokens that each scores; weighs: False for a rank that has
    nothing to do, whose pass stands in.
    """
    most = torch.tensor([len(own)], device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    total = torch.tensor([sum(scored) if weighs else 0], device=device)
    torch.distributed.all_reduce(total)
    passes = [Pass(own[min(k, len(own) - 1)], weighs and k < len(own)) for k in range(int(most))]
    return Passes(passes, int(total))
