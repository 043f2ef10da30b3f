"""Greedy answers of a policy in this process, scored as `evaluate` scores them."""

from collections.abc import Sequence

import numpy as np

from envs.datasets.base import Env
from envs.example import Example, Question
from policies.families.base import DirectPolicy, PolicyContract, Response
from rl.config.sft import SftLearner
from rl.evaluation.scores import SceneScore, score_answer
from rollout.engines import direct
from rollout.engines.shared import sample, with_masks
from rollout.settings import Sampling

_AT_ONCE = 64
"""Examples that are answered together where neither learner.token_budget nor learner.micro_scenes says less."""


def greedy_sums(
    policy: PolicyContract, env: Env, examples: Sequence[Example], max_tokens: int, learner: SftLearner
) -> tuple[float, float]:
    """(sum of IoU, number of valid answers) of greedy answers to examples of `env`."""
    scores = list[SceneScore]()
    for part in _parts(policy, examples, max_tokens, learner):
        questions = [example.question(env.image(example.image)) for example in part]
        for example, response in zip(part, _greedy(policy, questions, max_tokens), strict=True):
            answer = policy.processor.read_answer(response, example)
            scores.append(score_answer(answer, example.truth, example.id, example.prompt.asked))
    return float(sum(score.iou for score in scores)), float(sum(score.valid for score in scores))


def _greedy(policy: PolicyContract, questions: Sequence[Question], max_tokens: int) -> list[Response]:
    if isinstance(policy, DirectPolicy):
        return direct.greedy(policy, questions)
    rows = policy.processor.rows(questions, [[np.array([policy.processor.end_token])]] * len(questions))
    draws = np.zeros((len(questions), 1, max_tokens, 1 + len(policy.processor.heads)))
    found = sample(policy, rows.to(policy.device), Sampling(0.0, max_tokens), draws)
    return [row[0] for row in with_masks(policy, rows, [[response] for response in found])]


def _parts(
    policy: PolicyContract, examples: Sequence[Example], max_tokens: int, learner: SftLearner
) -> list[Sequence[Example]]:
    """The examples in their order, cut into what one batch may hold."""
    size = learner.micro_scenes or _AT_ONCE
    if learner.token_budget is not None:
        image = policy.processor.image_tokens
        longest = max((image(e.image.height, e.image.width) for e in examples), default=0) + max_tokens
        size = max(1, learner.token_budget // longest)
    return [examples[first : first + size] for first in range(0, len(examples), size)]
