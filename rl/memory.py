"""Peak memory of a run: this process and all that it started, watched from a thread."""

import threading

import psutil

_INTERVAL_SECONDS = 1.0


class PeakMemory:
    """A context that watches; `gib` is the highest sum so far of the resident memory of this process and its
    descendants.

    Memory that processes share is counted once in each of them, so the figure is an upper bound.
    """

    def __init__(self) -> None:
        self.gib = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL_SECONDS):
            self.gib = max(self.gib, _resident_gib())


def _resident_gib() -> float:
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended while we looked
    return total / 2**30
