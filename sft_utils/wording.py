"""Values as messages show them, quoted, shortened, listed; and any text as pages show it."""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections.abc import Iterable
from itertools import islice
from typing import Any

#: Control characters, formatting (zero width, direction), half characters, and the two ends of line
#: that are no \n.
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    """A text as pages show it: what cannot be seen, or turns the text around it, as ``\\u202e``.

    Line breaks and tabs stay. Nothing is escaped for HTML.
    """
    return re.sub(
        r"[^\n\t -~]",
        lambda found: (
            found[0].encode("unicode_escape").decode()
            if unicodedata.category(found[0]) in INVISIBLE
            else found[0]
        ),
        text,
    )


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
