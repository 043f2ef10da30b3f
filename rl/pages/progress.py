"""A bar of progress over what is gone through, where somebody is there to see it."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def bar(items: Iterable[T], what: str, console: Console | None, total: int | None = None) -> Iterator[T]:
    """The items, with a bar while they are taken on a terminal; total: how many, where it is known."""
    seen = console is not None and console.is_terminal
    yield from track(items, what, total=total, console=console, transient=True, disable=not seen)
