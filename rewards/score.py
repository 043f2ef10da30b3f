"""Scoring: answers compared with a target once, and what each reward says of them.

`Target` makes a truth scorable, `compare` compares a group of answers with it in one kernel call, and `term` is what a
reward says of one of them.
"""

from dataclasses import dataclass

from envs.polygons import AnswerStatus
from rewards.comparison import Answers, Comparison, Comparisons, compare
from rewards.target import Overlap, Target
from rewards.terms.base import Reward, term

__all__ = ["Answers", "Comparison", "Comparisons", "Overlap", "Reward", "RewardBreakdown", "Target", "compare", "term"]


@dataclass(frozen=True)
class RewardBreakdown:
    """Why an answer got its reward."""

    status: AnswerStatus
    """How the answer read; anything but `ok` and `empty` earns 0 on every term."""
    terms: dict[str, float | None]
    """Each reward before weighting, by its name; None where it does not apply."""
