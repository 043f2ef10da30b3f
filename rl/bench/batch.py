"""A rollout batch scored as a worker scores it: truths made scorable, answers compared, the demo's rewards asked."""

import time
from pathlib import Path

import numpy as np

from envs.example import Truth
from envs.polygons import answer_from_rings
from envs.raster import fill
from rewards.kernels import warm
from rewards.score import Target, compare
from rewards.scorer import Scorer
from rl.bench.outlines import smooth
from rl.reward_settings import load_rewards

GROUPS, ANSWERS, SIDE, VERTICES = 32, 16, 64, 12
_ROUNDS = 15


def batch_milliseconds() -> float:
    """Median milliseconds for 32 groups of 16 answers of 12 vertices over 64 x 64 pixels, in one thread."""
    warm()
    rng, scorer = np.random.default_rng(0), Scorer(load_rewards(Path("demo")).recipes)
    masks = [fill(smooth(rng, 40, SIDE, SIDE), np.array([0, 40]), SIDE, SIDE)[None] for _ in range(GROUPS)]
    answers = [[answer_from_rings([smooth(rng, VERTICES, SIDE, SIDE)]) for _ in range(ANSWERS)] for _ in range(GROUPS)]
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for mask, group in zip(masks, answers, strict=True):
            scorer.score(compare(group, Target.from_truth(Truth(mask))))
        seconds.append(time.perf_counter() - started)
    scorer.close()
    return 1e3 * float(np.median(seconds))
