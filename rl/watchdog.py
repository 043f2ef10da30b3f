"""What blocks says where: a phase that takes longer than a minute prints its name, the rank and its Python stack.

Nothing is ended by it. Ranks that wait for a rank that never comes, a build that waits for a lock, a file system that
does not answer: all of them look like a run that is merely slow, until someone says which line they stand on.
"""

import functools
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TextIO, TypeVar

BLOCKED_SECONDS = 60.0
P = ParamSpec("P")
R = TypeVar("R")


class Watchdog:
    """Watches the phases of one process, one of them at a time or one inside another."""

    def __init__(self, name: str, seconds: float = BLOCKED_SECONDS, out: TextIO | None = None) -> None:
        """name: whose phases these are, such as "rank 1 of 2". seconds: how long a phase may take before it is
        reported, and how long until it is reported again. out: where to; stderr by default."""
        self._name, self._seconds, self._out = name, seconds, out
        self._phases: list[tuple[str, float, int]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch what happens inside."""
        ended = threading.Event()
        self._phases.append((name, time.monotonic(), threading.get_ident()))
        depth = len(self._phases)
        watcher = threading.Thread(target=self._watch, args=(depth, ended), daemon=True, name=f"watchdog of {name}")
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            self._phases.pop()
            watcher.join()

    def where(self) -> str:
        """What this process is doing now: the innermost phase, for how long, and the stack; may be asked from any
        thread."""
        phases = self._phases[-1:]
        if not phases:
            return f"{self._name} is in no phase that is watched"
        name, began, thread = phases[0]
        frame = sys._current_frames().get(thread)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "  (its thread has ended)\n"
        return f"{self._name} has been in `{name}` for {time.monotonic() - began:.0f} s, and stands at\n{stack}"

    def _watch(self, depth: int, ended: threading.Event) -> None:
        while not ended.wait(self._seconds):
            if len(self._phases) == depth:  # else the phase inside says more
                print(f"polytrace: {self.where()}", file=self._out or sys.stderr, flush=True)


class Watched(Protocol):
    """Something with a watchdog."""

    watchdog: Watchdog


W = TypeVar("W", bound=Watched)


def watched(method: Callable[Concatenate[W, P], R]) -> Callable[Concatenate[W, P], R]:
    """Watch a method as a phase of its own name."""
    name: Any = method.__name__

    @functools.wraps(method)
    def within(self: W, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.watchdog.phase(name):
            return method(self, *args, **kwargs)

    return within
