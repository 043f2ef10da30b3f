"""Files, written whole or not at all, and refused before the work where they cannot be; what is said of a full disk."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_gib(path: Path) -> float:
    """Free space where `path` lies or would lie."""
    return shutil.disk_usage(_nearest(path)).free / 2**30


def _nearest(path: Path) -> Path:
    """`path` itself, or the nearest of the folders above it that exists."""
    return next(there for there in (path, *path.absolute().parents) if there.exists())


def refuse_unwritable(out: Path) -> None:
    """Raise ValueError where `whole_file(out)` would fail, or replace what is no ordinary file; leaves no trace.

    Tried by a nameless file in the nearest folder above `out` that is there.
    """
    other = "give the name of a new file, or of one to replace"
    try:
        if out.exists() and not out.is_file():
            raise ValueError(f"{out} is {'a folder' if out.is_dir() else 'no ordinary file'}; {other}.")
        partial_of(out).exists()  # raises where its name is longer than the file system takes
        folder = _nearest(out.absolute().parent)
        if not folder.is_dir():
            raise ValueError(f"{out} cannot be written: {folder} is a file, and no folder; {other}.")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror}; {other} in a folder of yours.") from error


@contextmanager
def whole_file(out: Path, lasting: bool = False) -> Iterator[Path]:
    """Where to write what becomes the file `out` at the end; missing folders are made, and no half of it ever stays.

    lasting: once it has its name, the file survives a power cut too.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(out)
    try:
        yield partial
        if lasting:
            publish(partial, out)
        else:
            partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def partial_of(out: Path) -> Path:
    """The name under which `whole_file` has `out` written."""
    return out.with_name(f".{out.name}.partial")


def refused(what: str, path: Path, reason: str | None, number: int | None = None) -> OSError:
    """An error for the user; reason and number: of the error that the system gave, where it gave any."""
    text = (
        f"{what} was not written: {reason or 'the disk refuses'}, {free_gib(path):.3f} GiB are free there. What was "
        "whole before is whole still: make room, then give the command again (to `train` with --resume)"
    )
    return OSError(number or errno.EIO, text, str(path))


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Around a write to `path`: an OSError from in there says what was lost and what to do."""
    try:
        yield
    except OSError as error:
        raise refused(what, path, error.strerror, error.errno) from error


def replace_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with writing(path.name, path), whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(partial: Path, path: Path) -> None:
    """Give a finished file its name, for good."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)
