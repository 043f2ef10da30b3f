"""Terms as shaping wants them, [B, G] an array, from the groups of a step or from the archive; totals back."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rewards.shaping import Terms
from rollout.archive import RolloutArchive
from rollout.records import Group


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
