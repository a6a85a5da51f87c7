"""Values as error messages show them: quoted, shortened, listed."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from itertools import islice
from typing import Any


def short(value: Any, width: int = 60) -> str:
    """A value as Python writes it, cut before it is written: it may be huge, or very deep."""
    if isinstance(value, str):
        return cut(repr(value[:width]) + "..." * (len(value) > width), width)
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = width
    return cut(writer.repr(value), width)


def cut(text: str, width: int = 200) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= width else text[: width - 3] + "..."


def names_of(columns: Iterable[Any]) -> str:
    """The names of columns, of which there may be many, long and of any type."""
    names = [repr(str(name)[:60])[1:-1] for name in islice(columns, 30)]
    return cut(", ".join(names)) or "none"
