"""Scoring: answers compared with a target once, and what each reward says of them.

`Target` makes a truth scorable, `compare` compares a group of answers with it in one kernel call, and `term` is what a
reward says of one of them.
"""

from rewards.comparison import Answers, Comparison, Comparisons, compare
from rewards.target import Overlap, Target
from rewards.terms.base import Reward, term

__all__ = ["Answers", "Comparison", "Comparisons", "Overlap", "Reward", "Target", "compare", "term"]
