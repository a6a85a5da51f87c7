"""What is shipped with the package, found by name: models and rows.

The modules of `SHIPPED_BY` list it, as ``MODELS`` and ``ROWS``. They are imported
when something is asked for, by their names, so that nothing else needs to know the Atlas.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

SHIPPED_BY = ("sft_utils.atlas.shipped",)


def models() -> dict[str, Path]:
    """The folder of each shipped model, an ordinary Hugging Face folder."""
    return _all("MODELS")


def rows() -> dict[str, Path]:
    """The file of each shipped data set: JSONL, with rows of ``{"messages": [...]}``."""
    return _all("ROWS")


def _all(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in SHIPPED_BY:
        found |= getattr(resolve_name(module), kind)
    return found
