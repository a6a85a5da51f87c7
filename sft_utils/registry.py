"""What is shipped with the package, found by name: models, rows, and questions about rows.

The modules of `SHIPPED_BY` list it, as ``MODELS``, ``ROWS`` and ``QUESTIONS``. They are imported
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


def questions() -> dict[str, str]:
    """By a data set's name, the module that asks about it what has a known answer.

    The module offers ``callback(tokenizer)``, which scores a sample of the questions at each
    evaluation of a training and adds ``eval_dev_exact`` to its metrics. It needs transformers, so
    it is named here and imported by `pkgutil.resolve_name` where it is used.
    """
    return _all("QUESTIONS")


def _all(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in SHIPPED_BY:
        found |= getattr(resolve_name(module), kind)
    return found
