"""Writing an archive beside the main loop: a step is handed over, and one thread brings it to the disk."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rollout.archive.archive import RolloutArchive
from rollout.records import Group


class ArchiveWriter:
    """Appends steps to an archive in the order in which they come, at most `most_waiting` of them not yet written.

    What goes wrong in writing is raised by the next `append`, `flush` or `close`; nothing is written after that.
    """

    def __init__(self, archive: RolloutArchive, most_waiting: int = 2) -> None:
        self._archive = archive
        self._most_waiting = most_waiting
        # Its own thread is joined when Python exits: steps handed over before an error elsewhere are still written.
        self._thread = ThreadPoolExecutor(1, "archive")
        self._waiting: deque[Future[None]] = deque()
        self._failed = False
        self._broken: Future[None] | None = None

    def append(self, step: int, groups: Sequence[Group]) -> None:
        """Hand over the answers of a step; waits only while `most_waiting` earlier ones are not yet written.

        Raises what RolloutArchive.append raised for an earlier step.
        """
        self._settle(self._most_waiting - 1)
        self._waiting.append(self._thread.submit(self._write, step, groups))

    def flush(self) -> None:
        """Wait until every step is on the disk, where any reader sees it. Raises as `append` does."""
        self._settle(0)

    def close(self) -> None:
        """Flush, end the thread, and let others write the archive."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()
            self._archive.close()

    def _write(self, step: int, groups: Sequence[Group]) -> None:
        if self._failed:  # a later step without this one would be a gap
            return
        self._failed = True
        self._archive.append(step, groups)
        self._failed = False

    def _settle(self, most: int) -> None:
        """Wait until at most `most` steps are not yet written; raises what went wrong, then and ever after."""
        while self._broken is None and self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            first = self._waiting.popleft()
            if first.exception() is not None:
                self._broken = first
        if self._broken is not None:
            self._broken.result()
