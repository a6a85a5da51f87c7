"""Held-out answers as a figure, a table and a clause of a sentence. Chapters 04 and 08."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..evaluation.held_out import (
    HeldOutAnswer,
    held_out_measure,
    in_unit,
)
from .figures import Figure, dot_panels
from .tables import AnswerTable, marked

if TYPE_CHECKING:
    import pandas as pd


def held_out_figure(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """What may be compared across tokenizers, and repetition: a dot for each model and measure."""
    import pandas as pd

    dots = []
    for name, title in (
        ("bits_per_byte", "bits per byte of answer"),
        ("stops", "stops by itself, %"),
        ("repetition", "repeated runs, %"),
    ):
        for label, frame in frames.items():
            found = held_out_measure(frame, name)
            scale = 100 if found.unit == "%" else 1
            low, high = (found.value if end is None else end for end in (found.low, found.high))
            dots.append(
                {"label": label, "measure": title, "value": scale * found.value,
                 "low": scale * low, "high": scale * high, "text": in_unit(found, found.value)}
            )  # fmt: skip
    return dot_panels(pd.DataFrame(dots), alt="Held-out answers")


def side_by_side(
    held_out: Sequence[HeldOutAnswer], frames: Mapping[str, pd.DataFrame], most: int = 4
) -> AnswerTable:
    """Held-out prompts with the data's answer and that of each model; long texts are cut."""
    rows = [
        (
            _cut(held.text),
            _cut(held.answer),
            *(_cut(marked(frame["generation"].iloc[number])) for frame in frames.values()),
        )
        for number, held in enumerate(held_out[:most])
    ]
    return AnswerTable(("asked", "the data's answer", *frames), tuple(rows))


def _cut(text: str, most: int = 1500) -> str:
    return text if len(text) <= most else f"{text[:most]} […]"
