"""The Atlas: a small encyclopedia of true facts, and the models that learned it.

``tables/`` and ``relations/`` are the world, as people read and correct it; `corpus` writes it
out for pretraining, `sft_data` as chat rows, `questions` as scored questions. ``checkpoints/``
holds the models that `make models` re-creates. Chapters 01 and 05 introduce it.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINTS = ("atlas-base", "atlas-sft", "atlas-small", "atlas-base-1form")

_FOLDER = Path(__file__).parent


def checkpoint(name: str) -> Path:
    """The folder of a shipped checkpoint, an ordinary Hugging Face folder.

    Raises ``KeyError`` with the known names if there is no such checkpoint.
    """
    if name not in CHECKPOINTS:
        raise KeyError(f"the Atlas has {', '.join(CHECKPOINTS)}")
    return _FOLDER / "checkpoints" / name


def sft_data_path() -> Path:
    """The fine-tuning data set as a JSONL file of ``{"messages": [...]}`` rows."""
    return _FOLDER / "atlas-sft-data.jsonl"
