"""Rewards at work: how a reward is built, where it runs, and what happens to an answer that breaks it."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from threading import Lock

from rewards.checked import CheckedReward, told_answer
from rewards.hosted import HostedReward
from rewards.score import Comparison, Comparisons
from rewards.settings import RewardRecipe
from rewards.terms.base import term

log = logging.getLogger(__name__)
Columns = dict[str, list[float | None]]
"""The term of each answer of a group, by reward name."""


class Scorer:
    """Rewards by name, built and ready. Several threads may score with one."""

    def __init__(self, recipes: Mapping[str, RewardRecipe]) -> None:
        self._recipes = dict(recipes)
        self._hosted = {
            name: HostedReward(recipe.plugin, recipe.processes, recipe.seconds, recipe.only)
            for name, recipe in recipes.items()
            if recipe.processes
        }
        self._own = {
            name: CheckedReward(recipe.plugin.build(), recipe.only)
            for name, recipe in recipes.items()
            if not recipe.processes
        }
        # A reward in this process need not be fit for threads; nor is Counter.
        self._one_at_a_time, self._counting = Lock(), Lock()
        self.skipped: Counter[str] = Counter()
        """Answers left out, by reward name."""

    def columns(self, comparisons: Comparisons) -> Columns:
        """By reward name, the term of each answer, in order; raises as `columns_of` does."""
        return self.columns_of([comparisons])[0]

    def columns_of(self, groups: Sequence[Comparisons]) -> list[Columns]:
        """By reward name, the term of each answer of each group; None where it does not apply, or failed under skip.

        Raises ValueError, naming reward and answer, where a reward fails that may not be skipped, ChildProcessError
        where one cannot be built in its process.
        """
        # The slow ones begin first, all of them, and work while this process does its share.
        asked = [
            {name: [hosted.submit(group.only(k)) for k in range(len(group))] for name, hosted in self._hosted.items()}
            for group in groups
        ]
        try:
            with self._one_at_a_time:
                own = [self._own_terms(group) for group in groups]
            return [self._joined(*parts) for parts in zip(groups, own, asked, strict=True)]
        finally:
            for future in (future for columns in asked for futures in columns.values() for future in futures):
                future.cancel()  # where something was raised; nobody waits for them

    def close(self) -> None:
        """End the processes of rewards."""
        for hosted in self._hosted.values():
            hosted.close()

    def _own_terms(self, group: Comparisons) -> Columns:
        return {
            name: [self._term(name, reward, comparison) for comparison in group] for name, reward in self._own.items()
        }

    def _joined(self, group: Comparisons, own: Columns, asked: Mapping[str, list[Future[float | None]]]) -> Columns:
        """The terms computed here, and those asked for elsewhere as they come, in the order of the recipes."""
        heard = {
            name: [self._heard(name, future, comparison) for future, comparison in zip(futures, group, strict=True)]
            for name, futures in asked.items()
        }
        return {name: own[name] if name in own else heard[name] for name in self._recipes}

    def _term(self, name: str, reward: CheckedReward, comparison: Comparison) -> float | None:
        try:
            return term(reward, comparison)
        except ValueError as error:
            self._failed(name, error, comparison)
            return None

    def _heard(self, name: str, future: Future[float | None], comparison: Comparison) -> float | None:
        try:
            return future.result()
        except ChildProcessError as error:
            raise ChildProcessError(f"Reward {name} {error}.") from error
        except ValueError as error:
            self._failed(name, error, comparison)
            return None

    def _failed(self, name: str, error: ValueError, comparison: Comparison) -> None:
        """Count and report an answer that may be left out; raises ValueError, with all there is to know, else."""
        told = f"Reward {name} {error} for {told_answer(comparison)}."
        if self._recipes[name].on_error == "stop":
            raise ValueError(
                f"{told} A reward returns a number in [0, 1], or None where it does not apply; correct it, or set "
                f"rewards.{name}.on_error to skip, which leaves such answers out of this term."
            ) from error
        with self._counting:
            self.skipped[name] += 1
            times = self.skipped[name]
        if times == 1:
            log.warning("%s The answer is left out of this term, as are further ones, which are counted.", told)
        elif times == 10 ** (len(str(times)) - 1):
            log.warning("Reward %s has left %d answers out by now. The last: %s", name, times, told)
