"""The lock of the process that writes an archive: one at a time, seen by others, freed also when it was killed."""

import fcntl
import os
import time
from pathlib import Path

_TRIES, _PAUSE_S = 20, 0.05


class WriterLock:
    """A lock on the archive in a folder, given up by `release`, with this object, or with the process."""

    def __init__(self, archive: Path) -> None:
        self._path = archive / ".lock"
        self._handle: int | None = None

    def take(self) -> None:
        """Become the writer, or stay it. Raises ValueError where another process, or another archive object, is."""
        if self._handle is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        for _ in range(_TRIES):  # whoever only looks whether it is taken holds it for a moment
            if _try(handle):
                self._handle = handle
                return
            time.sleep(_PAUSE_S)
        os.close(handle)
        raise ValueError(
            f"{self._path.parent} is being written by another process; wait until that run has ended, or stop it."
        )

    @property
    def taken_by_another(self) -> bool:
        """Whether some other process, or another archive object, writes."""
        if self._handle is not None or not self._path.exists():
            return False
        handle = os.open(self._path, os.O_RDONLY)
        free = _try(handle)
        os.close(handle)
        return not free

    def release(self) -> None:
        """Let others write."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()


def _try(handle: int) -> bool:
    """Whether the lock is ours now, or there are none on this file system."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems know no locks: a run must not fail for that.
        return True
    return True
