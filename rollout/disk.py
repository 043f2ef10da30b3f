"""What a run says where a disk refuses a write: what was not written, how much is free there, what to do."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_gib(path: Path) -> float:
    """Free space where `path` lies or would lie."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free / 2**30


def refused(what: str, path: Path, reason: str | None, number: int | None = None) -> OSError:
    """An error for the user; reason and number: of the error that the system gave, where it gave any."""
    text = (
        f"{what} was not written: {reason or 'the disk refuses'}, {free_gib(path):.3f} GiB are free there. What was "
        "whole before is whole still: make room, then go on by --resume"
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
    partial = path.with_name(f"{path.name}.partial")
    with writing(path.name, path):
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


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
