"""Refilling: other examples in the place of groups without signal, so that an update learns from full batches.

A group whose answers all earn the same teaches nothing. After a step's own groups, round 1, 2, ... asks as many other
examples as still lack a signal, until none does or the rounds are used up. All are archived, those of round r at the
positions from r * groups_per_step on; the learner gets groups_per_step of them whatever happens, so that no rank waits
for another. (arXiv 2503.14476 samples until a batch is full, without a bound.)
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.shaping import Shaper
from rl.config import RunConfig
from rl.policy_gradient import PolicyGradient
from rl.totals import group_terms
from rollout.pool import WorkerPool
from rollout.records import Group
from rollout.worker import Unit


def units(config: RunConfig, step: int, first: int, indices: Sequence[int]) -> Iterator[Unit]:
    """Examples of a step, at the positions from `first` on, cut into the fixed units that are sampled together."""
    for start in range(0, len(indices), config.groups_per_unit):
        part = tuple(indices[start : start + config.groups_per_unit])
        yield Unit(
            split="train",
            step=step,
            positions=tuple(range(first + start, first + start + len(part))),
            indices=part,
            group_size=config.group_size,
            sampling=config.sampling,
        )


def refill_indices(seed: int, num_examples: int, step: int, turn: int, num: int) -> list[int]:
    """The examples of a step's round `turn` (1 or more): the first of a permutation that is theirs alone."""
    order = np.random.default_rng([seed, step, turn]).permutation(num_examples)
    return np.resize(order, num).tolist()


def refill_units(config: RunConfig, step: int, turn: int, num: int, num_examples: int) -> Iterator[Unit]:
    """What round `turn` of a step asks for `num` groups without signal."""
    indices = refill_indices(config.seed, num_examples, step, turn, num)
    return units(config, step, turn * config.groups_per_step, indices)


def with_signal(shaper: Shaper, algorithm: PolicyGradient, step: int, groups: Sequence[Group]) -> NDArray[np.bool_]:
    """[B] which groups of a step carry a signal, as things stand; the shaper's history stays what it is.

    Quantiles are taken anew once all rounds are in. They keep different values different, so that this stands.
    """
    return algorithm.advantages(copy.deepcopy(shaper).totals(step, group_terms(groups)))[1]


def num_missing(signal: NDArray[np.bool_], num: int) -> int:
    """How many of the `num` groups that the learner gets would be without signal."""
    return max(0, num - int(signal.sum()))


def learned(signal: NDArray[np.bool_], num: int) -> list[int]:
    """Which `num` of the groups [B] of a step the learner gets, in its order.

    The first `num` groups keep their places; those without signal give them, first come first served, to later ones
    that have one.
    """
    spare = iter((np.flatnonzero(signal[num:]) + num).tolist())
    return [k if signal[k] else next(spare, k) for k in range(num)]


@dataclass(frozen=True)
class Refilling:
    """Completes the groups of a step, by the pool that answered them."""

    config: RunConfig
    pool: WorkerPool
    shaper: Shaper
    algorithm: PolicyGradient
    num_examples: int
    """Of the training split."""

    def refilled(self, step: int, groups: list[Group]) -> list[Group]:
        """A step's groups, followed by those that were asked because others had no signal."""
        num = self.config.groups_per_step
        for turn in range(1, self.config.refills + 1):
            missing = num_missing(with_signal(self.shaper, self.algorithm, step, groups), num)
            if not missing:
                break
            groups = groups + self.pool.answer(refill_units(self.config, step, turn, missing, self.num_examples))
        return groups


def refill_metrics(chosen: Sequence[int], asked: int, num: int) -> dict[str, float]:
    """refill/groups (that came into the batch), refill/asked (groups of all rounds): the rest was without signal too.

    chosen: as by `learned`; asked: groups of a step, its own included; num: groups_per_step.
    """
    return {"refill/groups": float(sum(k >= num for k in chosen)), "refill/asked": float(asked - num)}
