"""What the loop does with the groups of a step: which examples are asked, their terms, totals and refills."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rewards.shaping import ShapedStep, Shaper, Terms
from rl.algorithms.base import Advantages, PolicyGradient
from rl.config.run import RunConfig
from rollout.archive.archive import RolloutArchive
from rollout.pool.pool import WorkerPool
from rollout.records import Group
from rollout.worker import Unit


def group_terms(groups: Sequence[Group]) -> Terms:
    """[B, G] float64 values of each term by name, NaN where it does not apply; every group has G answers."""
    names = groups[0].rollouts[0].terms
    return {
        name: np.array([[rollout.terms[name] for rollout in group.rollouts] for group in groups], np.float64)
        for name in names
    }


def with_totals(groups: Sequence[Group], totals: NDArray[np.float64]) -> list[Group]:
    """The B groups with their totals [B, G]."""
    return [replace(group, totals=tuple(row)) for group, row in zip(groups, totals.tolist(), strict=True)]


def archived_terms(archive: RolloutArchive, step: int, names: Sequence[str]) -> Terms:
    """What `group_terms` gave of these rewards at an archived step, to the last bit.

    Raises ValueError where the archive does not hold the step, or not these rewards.
    """
    columns = ["position", *(f"reward_{name}" for name in names)]
    batches = list(archive.rollouts(columns, {step}))
    if not batches:
        raise ValueError(
            f"Step {step} is missing from {archive.folder}, but later steps take quantiles among its terms; put its "
            "shard back, or start another run."
        )
    position, *values = (
        np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in batches]) for name in columns
    )
    num_groups = len(np.unique(position))
    return {name: term.reshape(num_groups, -1) for name, term in zip(names, values, strict=True)}


def past_terms(archive: RolloutArchive, names: Sequence[str]) -> Iterator[tuple[int, Terms]]:
    """(step, terms of these rewards) of all archived steps, newest first, each read when it is asked for."""
    last_step = archive.last_step
    for step in reversed(range(0 if last_step is None else last_step + 1)):
        yield step, archived_terms(archive, step, names)


def example_indices(seed: int, num_examples: int, step: int, num: int) -> list[int]:
    """The examples of a step: stretches of a fresh permutation per epoch, a function of its arguments alone."""
    places = range(step * num, (step + 1) * num)
    epochs = {place // num_examples for place in places}
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(num_examples) for epoch in epochs}
    return [int(orders[place // num_examples][place % num_examples]) for place in places]


def step_units(config: RunConfig, step: int, num_examples: int) -> Iterator[Unit]:
    """A step's groups, cut into the fixed units that are sampled together."""
    return units(config, step, 0, example_indices(config.seed, num_examples, step, config.groups_per_step))


def units(config: RunConfig, step: int, first: int, indices: Sequence[int]) -> Iterator[Unit]:
    """Examples of a step, at the positions from `first` on, cut into the fixed units that are sampled together."""
    for start in range(0, len(indices), config.unit_groups):
        part = tuple(indices[start : start + config.unit_groups])
        yield Unit(
            split="train",
            step=step,
            positions=tuple(range(first + start, first + start + len(part))),
            indices=part,
            group_size=config.group_size,
            sampling=config.sampling.at(step),
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
    """Places of the `num` groups of a step [B] that the learner gets, in its order.

    The first `num` groups keep their places; those without signal give them, first come first served, to later ones
    that have one.
    """
    spare = iter((np.flatnonzero(signal[num:]) + num).tolist())
    return [k if signal[k] else next(spare, k) for k in range(num)]


@dataclass(frozen=True)
class ScoredStep:
    """A step's groups with their totals, and what the learner gets of them."""

    step: int
    groups: list[Group]
    """[B] groups with totals, those that were asked by refills last."""
    terms: Terms
    """Reward terms [B, G] by name, as measured."""
    shaped: ShapedStep
    signal: NDArray[np.bool_]
    """[B] True for a group that teaches something, by the algorithm's own verdict."""
    chosen: list[int]
    """Places of the groups_per_step groups that are learned from."""
    advantages: Advantages
    """Advantages of the chosen groups, in their order."""

    @property
    def to_learn(self) -> list[Group]:
        """The chosen groups."""
        return [self.groups[k] for k in self.chosen]

    @property
    def num_asked_again(self) -> int:
        """Groups that refills have asked."""
        return len(self.groups) - len(self.chosen)


def scored_step(
    step: int, groups: Sequence[Group], terms: Terms, shaped: ShapedStep, algorithm: PolicyGradient, num: int
) -> ScoredStep:
    """A step of B groups whose terms are shaped; num: groups_per_step, so many are learned from."""
    totalled = with_totals(groups, shaped.totals)
    advantages = algorithm.of_groups(totalled)
    signal, chosen = advantages.counts, learned(advantages.counts, num)
    if len(totalled) > num:  # an algorithm may normalise by the batch: by the groups that are in it, and no others
        advantages = algorithm.of_groups([totalled[k] for k in chosen])
    return ScoredStep(step, totalled, terms, shaped, signal, chosen, advantages)


@dataclass(frozen=True)
class Refilling:
    """Completes the groups of a step, by the pool that answered them."""

    config: RunConfig
    pool: WorkerPool
    shaper: Shaper
    algorithm: PolicyGradient
    num_examples: int
    """Examples of the training split."""

    def refilled(self, step: int, groups: list[Group]) -> list[Group]:
        """A step's groups, followed by those that were asked because others had no signal."""
        num = self.config.groups_per_step
        for turn in range(1, self.config.refills + 1):
            missing = num_missing(with_signal(self.shaper, self.algorithm, step, groups), num)
            if not missing:
                break
            groups = groups + self.pool.answer(refill_units(self.config, step, turn, missing, self.num_examples))
        return groups
