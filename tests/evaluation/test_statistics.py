"""Intervals and tests against SciPy, statsmodels, a published table and simulated questions.

An interval of our own is right if it holds the truth as often as it says. So questions are
simulated whose truth is known: entities of several sizes, from independent answers to entities
that nearly stand or fall as one. Each share of 1000 has a standard error of 0.007.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from conftest import thinned
from scipy import stats
from statsmodels.api import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from sft_utils.evaluation.statistics import (
    design_effect,
    detectable_difference,
    holm,
    mcnemar,
    mean_interval,
    paired_interval,
    proportion_interval,
    seed_summary,
    standard_error,
)

ROUNDS = 1000
#: Questions an entity: as in the Atlas's scored split, of very different sizes, and four each.
SIZES = {
    "atlas": np.resize([9, 9, 11], 88),
    "uneven": np.resize([1, 2, 4, 9, 1, 3], 60),
    "fours": np.full(30, 4),
}
#: McNemar's table of Cavo and others 2012, as Fagerland and others 2017 (Statistical Analysis of
#: Contingency Tables, chapter 8) print it: both, first only, second only, neither.
CAVO = (59, 6, 16, 80)
exactly = {"rel": 0, "abs": 1e-9}


def clusters_of(sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


def columns(both, first, second, neither):
    """Two columns of hits that have these counts."""
    return (
        [1] * (both + first) + [0] * (second + neither),
        [1] * both + [0] * first + [1] * second + [0] * neither,
    )


def questions(rng, shares, sizes, *, entity, question=0.0, change=0.0):
    """Hits of one model a share, round by round: correct with the share's probability.

    What makes a question hard: its ``entity``, the ``question`` itself, both alike for all
    models, and what the ``change`` to a model did to an entity. These are parts of 1, the
    variance of a latent number; luck is the rest.
    """
    clusters = clusters_of(sizes)

    def of_questions(part):
        return math.sqrt(part) * rng.standard_normal((ROUNDS, len(clusters)))

    def of_entities(part):
        return math.sqrt(part) * rng.standard_normal((ROUNDS, len(sizes)))[:, clusters]

    shared, luck = of_entities(entity) + of_questions(question), 1 - entity - question - change
    return [
        shared + of_entities(change) + of_questions(luck) < stats.norm.ppf(share)
        for share in shares
    ]


def covered(truth, intervals):
    return np.mean([low <= truth <= high for low, high in intervals])


# --- Agreement with SciPy, statsmodels and a published table ----------------------------------


@pytest.mark.parametrize("right, n", [(0, 1), (0, 20), (3, 20), (10, 20), (97, 100), (100, 100)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_a_share_without_clusters_is_that_of_scipy_and_statsmodels(right, n, level):
    hits = [1] * right + [0] * (n - right)
    for ours, theirs, scipys in (("wilson", "wilson", "wilson"), ("exact", "beta", "exact")):
        found = proportion_interval(hits, level=level, method=ours)
        assert found == pytest.approx(
            proportion_confint(right, n, alpha=1 - level, method=theirs), **exactly
        )
        test = stats.binomtest(right, n).proportion_ci(level, method=scipys)
        assert found == pytest.approx((test.low, test.high), **exactly)


def test_a_mean_without_clusters_is_that_of_scipy():
    values = np.random.default_rng(0).exponential(size=15)
    expected = stats.t.interval(0.9, 14, loc=values.mean(), scale=stats.sem(values))
    assert mean_interval(values, level=0.9) == pytest.approx(expected, **exactly)


@pytest.mark.parametrize("kind", SIZES)
def test_clustered_errors_are_those_of_a_regression_on_nothing(kind):
    clusters = clusters_of(SIZES[kind])
    rng = np.random.default_rng(1)
    values = rng.standard_normal(len(clusters)) + rng.standard_normal(len(clusters))[clusters]

    def regression(y):
        return OLS(y, np.ones(len(y))).fit(
            cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True
        )

    expected = regression(values).conf_int()[0]
    assert mean_interval(values, clusters) == pytest.approx(tuple(expected), **exactly)
    hits = (values > 0.5).astype(float)
    independent = hits.mean() * (1 - hits.mean()) / (len(hits) - 1)
    assert design_effect(hits, clusters) == pytest.approx(
        regression(hits).bse[0] ** 2 / independent, **exactly
    )


def test_names_of_clusters_and_their_order_do_not_matter():
    clusters = clusters_of(SIZES["fours"])
    hits = np.random.default_rng(2).random(len(clusters)) < 0.7
    found = proportion_interval(hits, clusters)
    order = np.random.default_rng(3).permutation(len(hits))
    names = pd.Series([f"entity {number}" for number in clusters])
    assert proportion_interval(hits[order], names[order]) == pytest.approx(found)


def test_newcombe_as_published():
    first, second = columns(*CAVO)
    assert paired_interval(second, first) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert mcnemar(second, first) == pytest.approx(0.052479, abs=5e-7)


@pytest.mark.parametrize(
    "table", [CAVO, (20, 0, 0, 20), (0, 0, 0, 9), (0, 15, 0, 5), (0, 9, 9, 0), (9, 1, 2, 0)]
)
def test_newcombe_from_the_counts(table):
    """The formula as he writes it, on the counts a, b, c and d."""
    a, b, c, d = table
    n = a + b + c + d
    p1, p2 = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = (proportion_confint(p * n, n, method="wilson") for p in (p1, p2))
    product, cross = (a + b) * (c + d) * (a + c) * (b + d), a * d - b * c
    cross = max(0, cross - n / 2) if cross > 0 else cross
    phi = cross / math.sqrt(product) if product else 0
    low = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    high = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    expected = p1 - p2 - math.sqrt(low), p1 - p2 + math.sqrt(high)
    first, second = columns(*table)
    assert paired_interval(second, first) == pytest.approx(expected, **exactly)
    assert mcnemar(first, second) == pytest.approx(
        stats.binomtest(b, b + c).pvalue if b + c else 1, **exactly
    )


def test_holm_is_that_of_statsmodels_and_of_the_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06], **exactly)
    given = np.random.default_rng(4).random(9) ** 3
    assert holm(given) == pytest.approx(multipletests(given, method="holm")[1], **exactly)
    assert holm([0.2]) == [0.2]


# --- At the ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIZES)
def test_all_right_or_all_wrong_tell_as_much_as_there_are_entities(kind):
    clusters = clusters_of(SIZES[kind])
    groups, n = len(SIZES[kind]), len(clusters)
    size = groups * (stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, groups - 1)) ** 2
    wrong, right = np.zeros(n), np.ones(n)
    assert design_effect(wrong, clusters) == design_effect(right, clusters) == n / groups
    low, high = proportion_interval(wrong, clusters)
    assert low == 0 and high == pytest.approx(proportion_confint(0, size, method="wilson")[1])
    assert proportion_interval(right, clusters) == pytest.approx((1 - high, 1))
    assert paired_interval(wrong, right, clusters)[0] > 0.8
    for hits in (wrong, right):
        low, high = paired_interval(hits, hits, clusters)
        assert low < -0.02 and high > 0.02


def test_answers_that_differ_within_entities_do_not_beat_independent_ones():
    hits, clusters = [0, 1] * 50, clusters_of([2] * 50)
    assert design_effect(hits, clusters) == pytest.approx(0, abs=1e-12)
    low, high = proportion_interval(hits, clusters)
    expected = proportion_interval(hits)
    assert low < expected[0] and high > expected[1] and high - low < 0.2


def test_alike_within_entities_is_as_wide_as_for_the_entities_alone():
    hits = np.resize([1, 1, 0], 60)
    expected = proportion_interval(hits)
    clustered = proportion_interval(np.repeat(hits, 8), clusters_of([8] * 60))
    assert np.diff(clustered) == pytest.approx(np.diff(expected), rel=0.05)


# --- Coverage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", thinned(SIZES, every=3))
@pytest.mark.parametrize("correlation", [0.3, pytest.param(0, marks=pytest.mark.weekly)])
def test_a_share_is_covered(kind, correlation):
    """Beta-binomial entities with this correlation between two answers of one entity."""
    sizes, rng = SIZES[kind], np.random.default_rng(5)
    clusters = clusters_of(sizes)
    for share, most in ((0.3, 0.98), (0.98, 1), (0.995, 1)):
        chance = np.full((ROUNDS, len(sizes)), share)
        if correlation:
            scale = (1 - correlation) / correlation
            chance = rng.beta(share * scale, (1 - share) * scale, size=chance.shape)
        hits = rng.random((ROUNDS, len(clusters))) < chance[:, clusters]
        found = covered(share, (proportion_interval(row, clusters) for row in hits))
        assert 0.93 <= found <= most, f"{found} at a share of {share}"


@pytest.mark.parametrize(
    ("kind", "parts"),
    thinned(
        [(kind, parts) for parts in ((0.3, 0.3, 0.2), (0, 0, 0)) for kind in ("atlas", "uneven")],
        every=4,
    ),
)
def test_a_change_is_covered(kind, parts):
    sizes, rng = SIZES[kind], np.random.default_rng(6)
    clusters, (entity, question, change) = clusters_of(sizes), parts
    for p1, p2, most in ((0.5, 0.6, 0.98), (0.01, 0.97, 1), (0.98, 0.99, 1)):
        before, after = questions(
            rng, (p1, p2), sizes, entity=entity, question=question, change=change
        )
        pairs = zip(before, after, strict=True)
        found = covered(p2 - p1, (paired_interval(b, a, clusters) for b, a in pairs))
        assert 0.93 <= found <= most, f"{found} from {p1} to {p2}"


@pytest.mark.parametrize("kind, skewed", [*((kind, False) for kind in SIZES), ("atlas", True)])
def test_a_mean_is_covered(kind, skewed):
    sizes, rng = SIZES[kind], np.random.default_rng(7)
    clusters = clusters_of(sizes)
    draw = rng.standard_exponential if skewed else rng.standard_normal
    losses = draw((ROUNDS, len(clusters))) + rng.standard_normal((ROUNDS, len(sizes)))[:, clusters]
    found = covered(float(skewed), (mean_interval(row, clusters) for row in losses))
    assert 0.93 <= found <= 0.98


def test_intervals_that_count_questions_do_not_cover():
    """What clusters are for: the same simulation fails without them."""
    sizes, rng = SIZES["atlas"], np.random.default_rng(8)
    (hits,) = questions(rng, [0.5], sizes, entity=0.5)
    assert covered(0.5, map(proportion_interval, hits)) < 0.8


def test_the_interval_of_a_change_is_about_that_of_a_bootstrap_over_entities():
    sizes, rng = SIZES["atlas"], np.random.default_rng(9)
    clusters = clusters_of(sizes)
    before, after = (
        hits[0] for hits in questions(rng, (0.4, 0.6), sizes, entity=0.3, question=0.2)
    )
    gains = np.bincount(clusters, weights=after.astype(float) - before)
    bootstrap = stats.bootstrap(
        (gains, sizes), lambda g, n, axis: g.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        n_resamples=2000, method="percentile", rng=np.random.default_rng(10),
    )  # fmt: skip
    expected = tuple(bootstrap.confidence_interval)
    assert paired_interval(before, after, clusters) == pytest.approx(expected, abs=0.01)


# --- Power ------------------------------------------------------------------------------------


def seen(before, after, clusters):
    pairs = zip(before, after, strict=True)
    return np.mean([paired_interval(b, a, clusters)[0] > 0 for b, a in pairs])


def test_the_detectable_difference_is_seen_four_times_out_of_five():
    sizes, rng = SIZES["atlas"], np.random.default_rng(11)
    clusters, parts = clusters_of(sizes), {"entity": 0.3, "question": 0.2, "change": 0.1}
    pilots = zip(*questions(rng, (0.6, 0.66), sizes, **parts), strict=True)
    needed = np.mean([detectable_difference(b, a, clusters) for b, a in list(pilots)[:100]])
    assert 0.02 < needed < 0.15
    before, after = questions(rng, (0.6, 0.6 + needed), sizes, **parts)
    assert 0.75 <= seen(before, after, clusters) <= 0.85


def test_what_makes_a_difference_easier_to_detect():
    first, second = columns(*CAVO)
    assert detectable_difference(first, second) < detectable_difference(first, second, power=0.9)


def test_the_standard_error_takes_an_entity_as_one():
    right = [True, False, True, False]
    assert standard_error(right, list("abcd")) == pytest.approx((0.25 * 4 * 4 / 3) ** 0.5 / 4)
    twice, alone = (
        standard_error([True, False] * 2, list("abab")),
        standard_error(right, list("abcd")),
    )
    assert twice > 1.5 * alone / 2**0.5


# --- Seeds ------------------------------------------------------------------------------------


def test_seeds_are_summed_up_by_their_t_interval():
    values = [0.95, 0.97, 0.96, 0.99, 0.93]
    summary = seed_summary(values)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (summary.low, summary.high) == pytest.approx(expected, **exactly)
    assert (summary.mean, summary.sd, summary.n) == pytest.approx((0.96, np.std(values, ddof=1), 5))
    assert seed_summary([1.0, 1.0, 1.0]) == (1.0, 0.0, 1.0, 1.0, 3)


# --- Errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: proportion_interval([]), "hits is empty: give at least one"),
        (lambda: mean_interval([]), "values is empty"),
        (lambda: paired_interval([], []), "before is empty"),
        (lambda: holm([]), "p_values is empty"),
        (lambda: proportion_interval([1, 0], ["a"]), "hits has 2 values and clusters 1: give one"),
        (lambda: mean_interval([1.0, 2.0], ["a"]), "values has 2 values and clusters 1"),
        (lambda: paired_interval([1, 0], [1]), "before has 2 values and after 1"),
        (lambda: mcnemar([1, 0], [1, 0, 0]), "before has 2 values and after 3"),
        (lambda: proportion_interval([1, 0], ["a", "a"]), "2 values are in the cluster 'a'.*more"),
        (lambda: proportion_interval([1, 0.5]), "hits holds 0.5: give True or False"),
        (lambda: paired_interval([1, 0], [1, 2]), "after holds 2: give True or False"),
        (lambda: mean_interval([1.0, math.nan]), "values holds nan: give a finite number"),
        (lambda: proportion_interval([1, 0], method="wald"), "'wald' is unknown: give one of wils"),
        (lambda: mean_interval([3.5]), "3.5 alone: give two or more"),
        (lambda: seed_summary([0.9]), "0.9 alone: give two or more"),
        (
            lambda: detectable_difference([1, 0], [1, 0]),
            r"all 2 differences are \+0.*models that differ",
        ),
    ],
)
def test_an_error_names_the_value_and_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
