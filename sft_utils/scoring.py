"""Scores of answers: always all four, with their number and an interval clustered by entity.

*exact*: the whole answer, case and white space aside. *right value*: a right value stands in the
first sentence and no other value of that relation does. *value anywhere*: a right value stands
somewhere. *stops*: the model ended its turn by itself. Chapter 04 introduces them and chapter 08
uses them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("exact", "right_value", "value_anywhere", "stops")


@dataclass(frozen=True)
class Score:
    """The four scores of one answer."""

    exact: bool
    right_value: bool
    value_anywhere: bool
    stops: bool


def normalize(text: str) -> str:
    """Lower case, runs of white space as one space, none at the ends."""
    return " ".join(text.split()).casefold()


def first_sentence(text: str) -> str:
    """The text up to its first line break or sentence end."""
    line = text.strip().split("\n", 1)[0]
    return re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0]


def find_values(text: str, vocabulary: Collection[str]) -> set[str]:
    """The values that stand in a text as whole words, the longest where one holds another.

    Case counts, so that the symbol ``In`` is not the word *in*.
    """
    longest_first = sorted(vocabulary, key=len, reverse=True)
    pattern = "|".join(re.escape(value) for value in longest_first)
    return set(re.findall(rf"(?<![\w.-])(?:{pattern})(?![\w-])", text))


def score_answer(
    response: str,
    *,
    answers: Sequence[str],
    values: Sequence[str],
    other_values: Collection[str],
    stopped: bool,
    entity: str = "",
) -> Score:
    """Score one response.

    ``answers`` are the exact right answers, ``values`` the right values, ``other_values`` every
    value that the relation can have. The entity's name is found before a value within it, so that
    "South Africa" does not count as "Africa", and does not count itself.
    """
    vocabulary = {*values, *other_values, *([entity] if entity else [])}
    in_first = find_values(first_sentence(response), vocabulary) - {entity}
    return Score(
        exact=normalize(response) in {normalize(answer) for answer in answers},
        right_value=bool(in_first) and in_first <= set(values),
        value_anywhere=bool(find_values(response, vocabulary) & set(values)),
        stops=stopped,
    )


def clustered_interval(
    values: Sequence[float], clusters: Sequence[str], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """A 95 % percentile bootstrap interval of the mean, resampling whole clusters.

    Questions about one entity stand or fall together, so entities are drawn, not questions.
    """
    import numpy as np

    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(values, dtype=float), minlength=len(names))
    counts = np.bincount(index, minlength=len(names))
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(names), size=(draws, len(names)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def score_table(frame: pd.DataFrame, scores: Iterable[str] = SCORES) -> pd.DataFrame:
    """One row a score: mean, interval clustered by the column ``entity``, and n."""
    import pandas as pd

    rows = []
    for score in scores:
        low, high = clustered_interval(
            frame[score].astype(float).tolist(), frame["entity"].tolist()
        )
        rows.append({"score": score, "mean": frame[score].mean(), "low": low, "high": high,
                     "n": len(frame), "entities": frame["entity"].nunique()})  # fmt: skip
    return pd.DataFrame(rows).set_index("score")
