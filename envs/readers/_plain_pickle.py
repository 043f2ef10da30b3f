"""Pickles of plain data read without running anything: the one place that does so, for files of the RefCOCO family.

A pickle is a program. It can build lists, mappings, text and numbers by itself; for anything else it asks for a class
or a function by name, and all such requests are refused here.
"""

import pickle
from pathlib import Path
from typing import Any

_REFUSED = (pickle.UnpicklingError, ValueError, EOFError, LookupError, AttributeError, TypeError, OverflowError)
"""What reading raises for a pickle that asks for a class, is cut off, or is none."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it asks for {module}.{name}, and only lists, mappings, text and numbers are read")


def plain_pickle(path: Path) -> Any:
    """What a pickle of lists, mappings, text and numbers holds; one of Python 2 too.

    Raises FileNotFoundError where there is no file, ValueError, naming path and reason, for any other pickle.
    """
    try:
        with path.open("rb") as file:
            # Bytes of Python 2 that are no UTF-8 are kept as half characters, which are shown as "?".
            return _PlainUnpickler(file, encoding="utf-8", errors="surrogateescape").load()
    except _REFUSED as error:
        raise ValueError(
            f"{path} is refused ({error}): a pickle can run anything, so this one is not trusted. Convert it to JSON "
            "where you trust it."
        ) from error
