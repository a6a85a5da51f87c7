"""Intervals, tests and power for scores, on SciPy and statsmodels. Chapters 10 and 12.

What a claim is about decides what is counted. A claim about a *checkpoint* ("this model answers
so many questions") is made from questions, and those about one entity stand or fall together:
entities are the unit, and ``clusters`` names the entity of each question. A claim about a
*recipe* ("training like this raises the score") is made from training runs: seeds are the unit
(`seed_summary`), and no number of questions makes up for a single run.

``level`` is the share of intervals that hold the truth. Empty input, unequal lengths and a single
cluster raise ``ValueError``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

T = TypeVar("T")
METHODS = {"wilson": "wilson", "exact": "beta"}  # our names and those of statsmodels


def mean_interval(
    values: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95
) -> tuple[float, float]:
    """An interval of the mean of numbers that are not shares, such as losses: mean ± t · error.

    The standard error is robust to clusters: distances from the mean are summed within each of
    the ``G`` clusters before they are squared, as in Miller 2024 (arXiv 2411.00640), with the
    factor ``G / (G - 1)`` and ``G - 1`` degrees of freedom for few clusters (Cameron and Miller
    2015, Journal of Human Resources 50:317). Without clusters it is the usual t interval. Very
    skewed values from clusters of very unequal sizes are covered less often than they should be.
    """
    (array,), index = _checked(clusters, values=values)
    if len(array) == 1:
        raise ValueError(f"values is {array[0]:g} alone: give two or more.")
    low, high = _clustered_mean(array, index).conf_int(1 - level)[0]
    return float(low), float(high)


def standard_error(values: ArrayLike, clusters: ArrayLike) -> float:
    """The standard error of a mean, clustered as in `mean_interval`. Chapter 12.

    With entities as clusters it tells how far a score would move if other entities of the same
    kind were asked about.
    """
    (array,), index = _checked(clusters, values=values)
    return _standard_error(array, index)


def proportion_interval(
    hits: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95, method: str = "wilson"
) -> tuple[float, float]:
    """An interval of a share: Wilson's, or the ``exact`` one, on the effective sample size.

    Questions in clusters tell as much as fewer independent ones would. The sample size is divided
    by the `design_effect`, where that is above 1, and multiplied by ``(t(n - 1) / t(d))²`` for
    the ``d`` degrees of freedom that the design effect is known with: Korn and Graubard 1998
    (Survey Methodology 24:193), for the exact interval. Franco and others 2019 (PMC6690503)
    compare such intervals and advise Wilson's. ``d`` is ``G - 1`` for ``G`` clusters, and less
    where few of them differ from the rest, as happens near 0 and 1: Satterthwaite's, from the
    fourth powers of the clusters' residuals. Without it the interval misses too often there.

    Where all are right or all wrong, the sample size is ``G``: the interval is never of width 0.
    Without clusters this is ``proportion_confint`` of statsmodels and nothing else.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: give one of {', '.join(METHODS)}.")
    (array,), index = _checked(clusters, shares=True, hits=hits)
    size = len(array) if clusters is None else _effective_size(array, index, level)
    return _share_interval(array.mean(), size, level, method)


def design_effect(hits: ArrayLike, clusters: ArrayLike) -> float:
    """How many times the variance of a share is what it would be for independent questions.

    Where all are right or all wrong it cannot be estimated. Then it is the mean size of a
    cluster, as if each stood or fell as one: the cautious end.
    """
    (array,), index = _checked(clusters, shares=True, hits=hits)
    n, share = len(array), array.mean()
    if share in (0, 1):
        return n / int(index.max() + 1)
    return float(_standard_error(array, index) ** 2 * (n - 1) / (share * (1 - share)))


def paired_interval(
    before: ArrayLike, after: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95
) -> tuple[float, float]:
    """An interval of the share after minus the share before, on the same questions.

    Newcombe's method 10 (1998, Statistics in Medicine 17:2635): the `proportion_interval` of each
    share, put together by the correlation of the two, of clusters where they are given. The
    correlation is lowered as he lowers it, so that two equal columns still leave some doubt.
    Near 0 and 1 it is rather too wide than too narrow.
    """
    (old, new), index = _checked(clusters, shares=True, before=before, after=after)
    size1, size2 = (
        len(hits) if clusters is None else _effective_size(hits, index, level)
        for hits in (old, new)
    )
    p1, p2 = float(old.mean()), float(new.mean())
    low1, high1 = _share_interval(p1, size1, level)
    low2, high2 = _share_interval(p2, size2, level)
    sums1, sums2 = _residuals(old, index), _residuals(new, index)
    scale = ((sums1 @ sums1) * (sums2 @ sums2)) ** 0.5
    correlation = sums1 @ sums2 / scale if scale > 0 else 0.0
    if correlation > 0:
        lowered = correlation - 0.5 / (size1 * size2 * p1 * (1 - p1) * p2 * (1 - p2)) ** 0.5
        correlation = max(0.0, lowered)

    def reach(a: float, b: float) -> float:
        return float((a**2 - 2 * correlation * a * b + b**2) ** 0.5)

    return p2 - p1 - reach(p2 - low2, high1 - p1), p2 - p1 + reach(high2 - p2, p1 - low1)


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """McNemar's exact p: how often a fair coin would split the changed questions as unevenly.

    It takes questions as independent, which those about one entity are not: read
    `paired_interval` first.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    (old, new), _ = _checked(None, shares=True, before=before, after=after)
    table = [[((old == a) & (new == b)).sum() for b in (1, 0)] for a in (1, 0)]
    return float(test(table, exact=True).pvalue)


def holm(p_values: ArrayLike) -> list[float]:
    """P-values of several tests, each raised so that one false alarm among all stays as rare.

    Holm 1979 (Scandinavian Journal of Statistics 6:65), whatever the tests have in common.
    """
    from statsmodels.stats.multitest import multipletests

    (array,), _ = _checked(None, p_values=p_values)
    return [float(p) for p in multipletests(array, method="holm")[1]]


def detectable_difference(
    before: ArrayLike, after: ArrayLike, clusters: ArrayLike | None = None, *, power: float = 0.8
) -> float:
    """The smallest difference of shares that a 95 % interval tells from 0 with this ``power``.

    ``(t(0.975) + t(power)) · error``: the clustered standard error of the difference between two
    models that differ about as these do, and ``G - 1`` degrees of freedom. Miller 2024 (arXiv
    2411.00640), with the multiplier of Bloom 1995 (Evaluation Review 19:547).

    Raises ``ValueError`` where the difference has no variance, as where no answer changed.
    """
    from scipy.stats import t

    (old, new), index = _checked(clusters, shares=True, before=before, after=after)
    if len(set(new - old)) == 1:
        raise ValueError(
            f"all {len(old)} differences are {new[0] - old[0]:+g}, with no variance to plan with: "
            "take two models that differ."
        )
    multiplier = sum(t.ppf([0.975, power], index.max()))
    return float(multiplier * _standard_error(new - old, index))


class SeedSummary(NamedTuple):
    """Mean, standard deviation (divisor ``n - 1``) and interval of what ``n`` runs gave."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


def seed_summary(values: ArrayLike, level: float = 0.95) -> SeedSummary:
    """Sum up one number of each training run, the runs alike but for their seeds. Chapter 12.

    The t interval is of the recipe's mean over seeds, on these questions. It has no width where
    all runs gave the same number. Raises ``ValueError`` for fewer than two runs.
    """
    (array,), _ = _checked(None, values=values)
    low, high = mean_interval(array, level=level)
    return SeedSummary(float(array.mean()), float(array.std(ddof=1)), low, high, len(array))


# --- What they share ---------------------------------------------------------------------------


def _residuals(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """For each cluster, the sum of its values' distances from the mean of all."""
    import numpy as np

    return np.bincount(index, weights=values - values.mean())


def _clustered_mean(values: np.ndarray, index: np.ndarray) -> Any:
    """The mean as a regression on a constant, whose error statsmodels makes robust to clusters."""
    import numpy as np
    from statsmodels.regression.linear_model import OLS

    fit = OLS(values, np.ones_like(values))
    return fit.fit(cov_type="cluster", cov_kwds={"groups": index}, use_t=True)


def _standard_error(values: np.ndarray, index: np.ndarray) -> float:
    return float(_clustered_mean(values, index).bse[0])


def _effective_size(hits: np.ndarray, index: np.ndarray, level: float) -> float:
    from scipy.stats import t

    squares = _residuals(hits, index) ** 2
    freedom = len(squares) - 1.0
    spread = squares @ squares - squares.sum() ** 2 / len(squares)
    if spread > 0:
        freedom = min(freedom, max(1.0, 2 * squares.sum() ** 2 / spread))
    all_known, known = t.ppf((1 + level) / 2, [len(hits) - 1, freedom])
    return float(len(hits) / max(1.0, design_effect(hits, index)) * (all_known / known) ** 2)


def _share_interval(
    share: float, size: float, level: float, method: str = "wilson"
) -> tuple[float, float]:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(share * size, size, alpha=1 - level, method=METHODS[method])
    return float(min(low, share)), float(max(high, share))  # not a rounding error past 0 or 1


def _checked(
    clusters: ArrayLike | None, *, shares: bool = False, **columns: ArrayLike
) -> tuple[list[np.ndarray], np.ndarray]:
    """The columns as floats, and the number of each row's cluster; without clusters, its own.

    Raises ``ValueError``, with ``shares`` also for anything but right (1) and wrong (0).
    """
    import numpy as np

    arrays = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
    first, n = next((name, len(array)) for name, array in arrays.items())
    if n == 0:
        raise ValueError(f"{first} is empty: give at least one value.")
    names, index = np.arange(n), np.arange(n)
    if clusters is not None:
        names, index = np.unique(np.asarray(clusters), return_inverse=True)
    for name, rows in (*arrays.items(), ("clusters", index)):
        if len(rows) != n:
            raise ValueError(
                f"{first} has {n} values and {name} {len(rows)}: give one for each question, in "
                "the same order."
            )
    if clusters is not None and len(names) == 1:
        raise ValueError(
            f"all {n} values are in the cluster {str(names[0])!r}: two clusters or more are needed "
            "to see how they differ. Score more entities."
        )
    for name, array in arrays.items():
        odd = array[(array != 0) & (array != 1)] if shares else array[~np.isfinite(array)]
        if len(odd):
            wanted = "True or False" if shares else "a finite number"
            raise ValueError(f"{name} holds {odd[0]:g}: give {wanted} for each question.")
    return list(arrays.values()), index


def draw(items: Sequence[T], most: int, seed: int = 0) -> list[T]:
    """At most ``most`` of the items, drawn by seed, in their order.

    Not every third, say: a fact's questions stand in a row, in as many wordings.
    """
    places = random.Random(seed).sample(range(len(items)), min(most, len(items)))
    return [items[place] for place in sorted(places)]
