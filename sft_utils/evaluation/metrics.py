"""Scores of answers: always all four, with their number and an interval clustered by entity.

*exact*: the whole answer, case and white space aside. *right value*: a right value stands in the
first sentence and no other value of that relation does. *value anywhere*: a right value stands
somewhere. *stops*: the model ended its turn by itself. Chapter 09 introduces them and chapter 10
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
SCORE_NAMES = {
    "exact": "exact answer",
    "right_value": "right value",
    "value_anywhere": "value anywhere",
    "stops": "stops by itself",
}


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


def clustered_interval(values: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """A 95 % interval of a mean, from questions that come in clusters.

    Questions about one entity stand or fall together, so entities are counted, not questions:
    `statistics.proportion_interval` where all values are right (1) or wrong (0), and
    `statistics.mean_interval` for other numbers.
    """
    from .statistics import mean_interval, proportion_interval

    shares = all(value in (0, 1) for value in values)
    return (proportion_interval if shares else mean_interval)(values, clusters)


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
