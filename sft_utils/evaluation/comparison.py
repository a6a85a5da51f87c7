"""Several models on the same questions: their scores, and the differences in pairs.

A difference on the same questions is told with an interval clustered by entity and with the
number of questions that changed, each way. Chapters 09 to 14 use this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..results import Measure
from .metrics import SCORE_NAMES, SCORES, clustered_interval, score_table

if TYPE_CHECKING:
    import pandas as pd


# --- Scores of several models ------------------------------------------------------------------


def percent(share: float, digits: int = 1) -> str:
    """``0.931`` as ``93.1 %``."""
    return f"{100 * share:.{digits}f} %"


def share(frame: pd.DataFrame, score: str) -> Measure:
    """The mean of a score for the prose, with its interval and n.

    The seeds and the run come from the table's ``attrs``, which `score_split` fills.
    """
    hits, entities = frame[score].astype(float).tolist(), frame["entity"].tolist()
    low, high = clustered_interval(hits, entities)
    return Measure(
        float(frame[score].mean()), "%", n=len(frame), entities=len(set(entities)),
        low=low, high=high, **origin_of(frame),
    )  # fmt: skip


def change(before: pd.DataFrame, after: pd.DataFrame, score: str) -> Measure:
    """What `paired_difference` gives, in points, for the prose."""
    pair = paired_difference(before, after, score)
    return Measure(
        pair.difference, "points", n=len(after), entities=after["entity"].nunique(),
        low=pair.low, high=pair.high, **origin_of(after),
    )  # fmt: skip


def mean_of_seeds(values: Mapping[int, float], unit: str = "%") -> Measure:
    """The mean of one number of each run, by its seed, with the t-interval that takes a run as one.

    ``n`` is the number of runs. Chapter 14.
    """
    from .statistics import seed_summary

    summary = seed_summary(list(values.values()))
    return Measure(
        summary.mean, unit, n=summary.n, low=summary.low, high=summary.high, seeds=tuple(values)
    )


def measures(frame: pd.DataFrame) -> SimpleNamespace:
    """`share` of each score that a table has, by its name: ``measures(frame).exact``."""
    named = [name for name in (*SCORES, "correct") if name in frame.columns]
    return SimpleNamespace(**{name: share(frame, name) for name in named})


def changes(before: pd.DataFrame, after: pd.DataFrame) -> SimpleNamespace:
    """`change` of each score that two tables have, by its name: ``changes(a, b).exact``."""
    named = [
        name for name in (*SCORES, "correct") if name in before.columns.intersection(after.columns)
    ]
    return SimpleNamespace(**{name: change(before, after, name) for name in named})


def origin_of(frame: pd.DataFrame) -> dict[str, Any]:
    """The seeds and the run of the model that gave a table's answers."""
    return {name: frame.attrs[name] for name in ("seeds", "run") if name in frame.attrs}


def score_rows(frames: Mapping[str, pd.DataFrame], scores: Iterable[str] = SCORES) -> pd.DataFrame:
    """The scores of several tables in one, a row for each label and score, as figures want it.

    ``frames`` maps a label (a model, a way of asking, a split) to a table with one row a
    question. Columns: ``label``, ``score``, ``mean``, ``low``, ``high``, ``n``, ``entities``.
    """
    import pandas as pd

    scores = tuple(scores)
    parts = [
        score_table(frame, scores).reset_index().assign(label=label)
        for label, frame in frames.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    order = {score: place for place, score in enumerate(scores)}
    return table.sort_values("score", key=lambda s: s.map(order), kind="stable", ignore_index=True)


def score_sheet(frames: Mapping[str, pd.DataFrame], scores: Iterable[str] = SCORES) -> pd.DataFrame:
    """The same for reading: a row for each label, each score as ``mean % (low to high)``."""
    import pandas as pd

    scores = tuple(scores)
    rows = {
        label: {
            **{SCORE_NAMES.get(score, score): with_interval(table.loc[score]) for score in scores},
            "questions": len(frame),
            "entities": frame["entity"].nunique(),
        }
        for label, frame in frames.items()
        for table in [score_table(frame, scores)]
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def with_interval(row: Any) -> str:
    """A row's mean with its interval, in percent."""
    return f"{percent(row['mean'])} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def by_relation(
    frame: pd.DataFrame, score: str, most_common: pd.DataFrame | None = None
) -> pd.DataFrame:
    """A score for each relation beside that of the most common answer. Chapters 09 and 10.

    ``most_common`` is the same questions answered with the most common value; without it, the
    commonest of the right answers in ``frame`` itself is used, which is the best that one answer
    for all can do. Columns: ``relation``, ``mean``, ``low``, ``high``, ``most_common``, ``n``.
    """
    import pandas as pd

    rows = []
    for relation, part in frame.groupby("relation", sort=False):
        low, high = clustered_interval(part[score].astype(float).tolist(), part["entity"].tolist())
        if most_common is None:
            common = part["right"].value_counts(normalize=True).iloc[0]
        else:
            common = most_common.loc[most_common["relation"] == relation, score].mean()
        rows.append({"relation": relation, "mean": part[score].mean(), "low": low, "high": high,
                     "most_common": float(common), "n": len(part)})  # fmt: skip
    return pd.DataFrame(rows)


def in_words(table: pd.DataFrame) -> str:
    """The numbers of a figure as text, for its ``alt``: of `score_rows` or of `by_relation`."""
    if "most_common" in table.columns:
        return "; ".join(
            f"{name}: {percent(mean, 0)}, most common answer {percent(common, 0)}"
            for name, mean, common in zip(
                table["relation"], table["mean"], table["most_common"], strict=True
            )
        )
    return "; ".join(
        f"{label}, {SCORE_NAMES.get(score, score)}: {percent(mean, 0)}"
        for label, score, mean in zip(table["label"], table["score"], table["mean"], strict=True)
    )


# --- Pairs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """What changed on the same questions. Counts are of questions, ``difference`` is a share.

    ``p_value`` is McNemar's exact one: how often a fair coin would split the questions that
    changed as unevenly as they are. It takes questions as independent, which those about one
    entity are not; the interval from ``low`` to ``high`` does not.
    """

    difference: float
    low: float
    high: float
    both: int
    gained: int
    lost: int
    neither: int
    p_value: float


def paired_difference(before: pd.DataFrame, after: pd.DataFrame, score: str) -> Paired:
    """Compare a score, question by question. Its table is `paired_sheet`.

    Both tables have the columns ``question``, ``entity`` and ``score``, the same questions in
    the same order. The interval is `statistics.paired_interval`, clustered by entity.

    Raises ``ValueError`` if the questions are not the same.
    """
    from .statistics import mcnemar, paired_interval

    for column in ("question", "entity"):
        if before[column].tolist() != after[column].tolist():
            raise ValueError(
                f"The two tables differ in the column {column!r}: a paired difference needs the "
                "same questions in the same order. Score both models on the same list."
            )
    old, new = before[score].to_numpy(dtype=bool), after[score].to_numpy(dtype=bool)
    low, high = paired_interval(old, new, before["entity"])
    return Paired(
        difference=float(new.mean() - old.mean()),
        low=low,
        high=high,
        both=int((old & new).sum()),
        gained=int((new & ~old).sum()),
        lost=int((old & ~new).sum()),
        neither=int((~old & ~new).sum()),
        p_value=mcnemar(old, new),
    )


def paired_sheet(
    before: pd.DataFrame, after: pd.DataFrame, scores: Iterable[str] = SCORES
) -> pd.DataFrame:
    """`paired_difference` for several scores, written out for reading, in percentage points.

    The p-values are adjusted for how many scores there are: `statistics.holm`.
    """
    import pandas as pd

    from .statistics import holm

    pairs = {score: paired_difference(before, after, score) for score in scores}
    adjusted = holm([pair.p_value for pair in pairs.values()])
    rows = {}
    for (score, pair), p_value in zip(pairs.items(), adjusted, strict=True):
        rows[SCORE_NAMES.get(score, score)] = {
            "difference, points": f"{100 * pair.difference:+.1f}",
            "95 % interval": f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f}",
            "right in both": pair.both,
            "gained": pair.gained,
            "lost": pair.lost,
            "in neither": pair.neither,
            "McNemar's p, Holm": "< 0.001" if p_value < 0.001 else f"{p_value:.3f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")
