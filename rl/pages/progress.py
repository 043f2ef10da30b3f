"""How far a long job is: a bar on a terminal; elsewhere, as in a log file, a plain line now and then."""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0
"""Least time between two lines where the output is no terminal."""


def columns() -> list[ProgressColumn]:
    """The columns of every bar: what is done, the bar, steps done of all, time gone, time left."""
    return [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]


class StepProgress:
    """A context that shows how many of a job's steps are done.

    Where the console is no terminal it prints a line at most every SECONDS_BETWEEN_LINES, and one at the end where
    there are numbers to tell or lines before it.
    """

    def __init__(
        self,
        console: Console,
        what: str,
        total: int | None,
        done: int = 0,
        transient: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """what: name of the job; total: steps of the job, None where unknown; done: steps done before now.

        transient: whether the bar goes away at the end; clock: seconds, from any beginning.
        """
        self._console, self._what, self._total, self._first = console, what, total, done
        self._bar = Progress(*columns(), console=console, transient=transient, disable=not console.is_terminal)
        self._task = self._bar.add_task(what, total=total, completed=done)
        self._clock = clock
        self._begun = self._last_line = clock()
        self._told = False

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, numbers: str = "") -> None:
        """Tell that `done` steps are done in all, and what there is to know of the last ones, such as a loss."""
        self._bar.update(self._task, completed=done, description=f"{self._what}  {numbers}" if numbers else self._what)
        if self._console.is_terminal:
            return
        now, ended = self._clock(), done == self._total
        if now - self._last_line >= SECONDS_BETWEEN_LINES or (ended and (self._told or numbers)):
            self._last_line, self._told = now, True
            self.print(self._line(done, numbers, now - self._begun))

    def print(self, text: str, markup: bool = False) -> None:
        """Print a line, above the bar where there is one; markup: whether square brackets in it style it."""
        self._console.print(text, markup=markup, highlight=False, soft_wrap=True)

    def _line(self, done: int, numbers: str, seconds: float) -> str:
        parts = [f"{self._what}: {done:,}" + ("" if self._total is None else f" of {self._total:,}")]
        parts += [numbers] if numbers else []
        if self._total is None or done == self._total:
            parts.append(f"{_duration(seconds)} gone")
        elif done > self._first:
            parts.append(f"{_duration(seconds / (done - self._first) * (self._total - done))} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def bar(items: Iterable[T], what: str, console: Console | None, total: int | None = None) -> Iterator[T]:
    """The items, with progress shown while they are taken; total: how many, where it is known; console: None for no
    progress."""
    if console is None:
        yield from items
        return
    with StepProgress(console, what, total, transient=True) as progress:
        for done, item in enumerate(items, 1):
            yield item
            progress.update(done)
