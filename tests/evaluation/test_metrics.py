"""The four scores on answers written by hand, and intervals against what they must be."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from sft_utils.evaluation.metrics import (
    SCORES,
    Score,
    clustered_interval,
    find_values,
    first_sentence,
    normalize,
    score_answer,
    score_table,
)
from sft_utils.evaluation.questions import SCORERS
from sft_utils.evaluation.statistics import mean_interval, proportion_interval

CAPITALS = {"Nairobi", "Oslo", "Lima", "San Salvador", "Salvador"}
CURRENCIES = {"franc", "CFA franc", "Swiss franc", "dollar", "dinar"}
CATEGORIES = {"transition metal", "post-transition metal", "alkali metal", "nonmetal", "metal"}


def scores(response, values, others, *, sentence="It is {}.", entity="", stopped=True):
    answers = [sentence.format(value) for value in values]
    return score_answer(
        response,
        answers=answers,
        values=values,
        other_values=others,
        stopped=stopped,
        entity=entity,
    )


# --- The four scores -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response, exact, right, anywhere",
    [
        ("It is Nairobi.", True, True, True),
        ("  it is\n NAIROBI. ", True, False, False),  # exact ignores case, the values do not
        ("It is  Nairobi.\n", True, True, True),
        ("It is Nairobi", False, True, True),
        ("It is Nairobi. It is Oslo.", False, True, True),
        ("It is Nairobi or Oslo.", False, False, True),
        ("It is Oslo.", False, False, False),
        ("It is Oslo. It is Nairobi.", False, False, True),
        ("Well.\nNairobi", False, False, True),
        ("Kenya is a country.", False, False, False),
        ("", False, False, False),
    ],
)
def test_capital_of_kenya(response, exact, right, anywhere):
    assert scores(response, ["Nairobi"], CAPITALS) == Score(exact, right, anywhere, True)


@pytest.mark.parametrize("stopped", [True, False])
def test_stopping_is_what_the_caller_saw(stopped):
    score = scores("It is Nairobi.", ["Nairobi"], CAPITALS, stopped=stopped)
    assert score == Score(True, True, True, stopped)


@pytest.mark.parametrize(
    "response, value, right",
    [
        ("It is a post-transition metal.", "post-transition metal", True),
        ("It is a post-transition metal.", "transition metal", False),
        ("It is a post-transition metal.", "metal", False),
        ("It is a transition metal.", "transition metal", True),
        ("It is a transition metal.", "post-transition metal", False),
        ("It is a nonmetal.", "metal", False),
    ],
)
def test_the_longest_value_counts_in_categories(response, value, right):
    score = scores(response, [value], CATEGORIES)
    assert (score.right_value, score.value_anywhere) == (right, right)


@pytest.mark.parametrize(
    "response, value, right",
    [
        ("It is the CFA franc.", "CFA franc", True),
        ("It is the CFA franc.", "franc", False),
        ("It is the franc.", "franc", True),
        ("It is the franc.", "CFA franc", False),
        ("It is the Swiss franc.", "CFA franc", False),
    ],
)
def test_the_longest_value_counts_in_currencies(response, value, right):
    score = scores(response, [value], CURRENCIES)
    assert (score.right_value, score.value_anywhere) == (right, right)


def test_alternatives_are_right_alone_and_together():
    values = ["franc", "Swiss franc"]
    for response in ("It is the franc.", "It is the Swiss franc.", "The franc, or Swiss franc."):
        assert scores(response, values, CURRENCIES).right_value, response
    assert scores("It is Swiss franc.", values, CURRENCIES).exact
    assert not scores("The Swiss franc and the dinar.", values, CURRENCIES).right_value


def test_values_may_be_right_without_being_listed_among_the_others():
    assert scores("It is Quito.", ["Quito"], CAPITALS).right_value


# --- The entity's name is not an answer ------------------------------------------------------

CONTINENTS = {"Africa", "Asia", "Europe"}
FIND = "You will find South Africa in {}."


@pytest.mark.parametrize(
    "response, right",
    [
        ("You will find South Africa in Africa.", True),
        ("You will find South Africa in Asia.", False),
        ("South Africa has a page of its own.", False),
    ],
)
def test_south_africa_is_not_africa(response, right):
    score = scores(response, ["Africa"], CONTINENTS, sentence=FIND, entity="South Africa")
    assert (score.exact, score.right_value, score.value_anywhere) == (right, right, right)


def test_a_name_in_the_answer_does_not_spoil_a_right_value():
    """Without the entity, "South Africa in Asia" would hold two continents."""
    response = "You will find South Africa in Asia."
    assert not scores(response, ["Asia"], CONTINENTS).right_value
    assert scores(response, ["Asia"], CONTINENTS, entity="South Africa").right_value


@pytest.mark.parametrize(
    "entity, value, others",
    [
        ("Croatia", "Croatian", {"Croatian", "Serbian"}),
        ("Japan", "Japanese", {"Japanese", "Thai"}),
        ("duck", "duckling", {"duckling", "chick"}),
        ("Niger", "Nigerien", {"Nigerien", "Nigerian"}),
    ],
)
def test_a_name_is_taken_out_as_a_whole_word_only(entity, value, others):
    score = scores(f"For {entity}, it is {value}.", [value], others, entity=entity)
    assert score.right_value and score.value_anywhere
    wrong = (others - {value}).pop()
    assert not scores(f"It is {wrong}.", [value], others, entity=entity).right_value


# --- What stands in a text -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, vocabulary, found",
    [
        ("Its ending is .ke.", {".ke", ".k", "ke"}, {".ke"}),
        ("See www.ke for more.", {".ke"}, set()),
        ("[.ke]", {".ke", ".kenya"}, {".ke"}),
        ("In formulas it is in.", {"In"}, {"In"}),
        ("The metal is in the box.", {"In"}, set()),
        ("It is Haitian Creole.", {"Haitian", "Haitian Creole"}, {"Haitian Creole"}),
        ("It is In.", {"In", "I", "N"}, {"In"}),
        ("[In]", {"In", "I"}, {"In"}),
        ("Indium", {"In"}, set()),
        ("It is 26.", {"2", "6", "26"}, {"26"}),
        ("It is 2.", {"2", "26"}, {"2"}),
        ("It is 2.", {"26"}, set()),
        ("2 and 26", {"2", "26"}, {"2", "26"}),
        ("It is 126.", {"2", "26"}, set()),
        ("Saint John's.", {"Saint John's", "Saint John"}, {"Saint John's"}),
        ("N'Djamena, Chad", {"N'Djamena"}, {"N'Djamena"}),
        ("Port-au-Prince", {"Port", "Prince", "Port-au-Prince"}, {"Port-au-Prince"}),
        ("a.b", {"a.b", "a+b"}, {"a.b"}),
        ("aXb", {"a.b"}, set()),
    ],
)
def test_find_values(text, vocabulary, found):
    assert find_values(text, vocabulary) == found


def test_find_values_does_not_depend_on_the_order_of_the_vocabulary():
    for vocabulary in (["franc", "CFA franc"], ["CFA franc", "franc"]):
        assert find_values("the CFA franc", vocabulary) == {"CFA franc"}


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("It is V. And more.", "It is V."),
        ("It is V", "It is V"),
        ("\n\n It is V.\nIt is W.", "It is V."),
        ("No! It is V.", "No!"),
        ("Who? It is V.", "Who?"),
        ("It is .ke. More.", "It is .ke."),
        ("It weighs 1.5 g. More.", "It weighs 1.5 g."),
        ("", ""),
    ],
)
def test_first_sentence(text, sentence):
    assert first_sentence(text) == sentence


def test_normalize_leaves_case_and_white_space_aside_and_nothing_else():
    assert normalize(" It is\n\tOSLO.  ") == "it is oslo."
    assert normalize("It is Oslo") != normalize("It is Oslo.")


# --- Intervals -------------------------------------------------------------------------------


# What they are, and how often they hold the truth, is in test_statistics.py.


def width(values, clusters):
    low, high = clustered_interval(values, clusters)
    return high - low


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_independent_answers_have_about_the_width_of_the_normal_interval(share):
    n = 400
    values = [float(i < share * n) for i in range(n)]
    expected = 2 * 1.96 * math.sqrt(share * (1 - share) / n)
    found = width(values, [str(i) for i in range(n)])
    assert found == pytest.approx(expected, rel=0.02)


def test_identical_answers_in_a_cluster_widen_it_by_the_root_of_the_cluster_size():
    values = [float(i % 2) for i in range(100) for _ in range(4)]
    clustered = width(values, [str(i) for i in range(100) for _ in range(4)])
    independent = width(values, [str(i) for i in range(400)])
    assert clustered == pytest.approx(2 * independent, rel=0.05)


def test_nothing_right_is_not_certain_to_be_nothing():
    clusters = [str(i // 4) for i in range(400)]
    low, high = clustered_interval([0.0] * 400, clusters)
    assert low == 0 and 0.03 < high < 0.05  # the rule of three for 100 entities: 0.03
    assert clustered_interval([1.0] * 400, clusters) == pytest.approx((1 - high, 1))


def test_shares_and_other_numbers_have_their_own_intervals():
    clusters = [str(i // 2) for i in range(40)]
    hits, losses = [True] * 39 + [False], [float(i % 5) for i in range(40)]
    assert clustered_interval(hits, clusters) == proportion_interval(hits, clusters)
    assert clustered_interval(losses, clusters) == mean_interval(losses, clusters)


def test_an_interval_needs_a_cluster_for_every_value():
    with pytest.raises(ValueError, match="2 values and clusters 1"):
        clustered_interval([1.0, 0.0], ["a"])


def test_the_table_has_a_row_for_each_score_with_n_and_entities():
    rows = [Score(True, True, True, False), Score(False, True, True, False)] * 3
    frame = pd.DataFrame([vars(r) | {"entity": e} for r, e in zip(rows, "aabbcc", strict=True)])
    table = score_table(frame)
    assert list(table.index) == list(SCORES) == ["exact", "right_value", "value_anywhere", "stops"]
    assert table["mean"].tolist() == [0.5, 1.0, 1.0, 0.0]
    assert table["n"].tolist() == [6] * 4 and table["entities"].tolist() == [3] * 4
    for score in SCORES:
        expected = clustered_interval(frame[score].tolist(), frame["entity"].tolist())
        assert tuple(table.loc[score, ["low", "high"]]) == expected
        assert 0 <= expected[0] < expected[1] <= 1
    assert list(score_table(frame, ["stops"]).index) == ["stops"]


# --- Scorers that a profile names --------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "answer", "exact", "contained", "f1"),
    [
        ("Nairobi", "Nairobi", True, True, 1.0),
        ("  NAIROBI\n", "Nairobi", True, False, 1.0),  # case counts in `contains` alone
        ("It is Nairobi.", "Nairobi", False, True, 2 * (1 / 3) / (1 / 3 + 1)),
        ("It is\nthe San  Salvador!", "San Salvador", False, True, 2 * (2 / 4) / (2 / 4 + 1)),
        ("The cat, an animal", "A cat: animal", False, False, 1.0),
        ("Inn or Si3", "In", False, False, 0.0),
        ("yes yes no", "yes no no", False, False, 2 / 3),
        ("", "Nairobi", False, False, 0.0),
        ("...", "the", False, False, 1.0),  # nothing is left of either
        ("...", "cat", False, False, 0.0),
    ],
)
def test_scorers_by_name(response, answer, exact, contained, f1):
    found = {name: scorer(response, answer, True) for name, scorer in SCORERS.items()}
    assert found == {
        "exact": exact,
        "contains": contained,
        "token_f1": pytest.approx(f1),
        "stops": True,
    }
    assert SCORERS["stops"](response, answer, False) is False


@pytest.mark.parametrize(
    ("response", "answer", "found"),
    [
        ("首都是北京。", "北京", True),
        ("使用Python编程", "Python", True),
        ("수도는 서울입니다.", "서울", True),
        ("กรุงเทพมหานคร", "กรุงเทพ", True),
        ("हिन्दी है", "हिन्द", False),  # the vowel is a part of the word
        ("Cafe\u0301 noir", "Caf\u00e9", True),
        ("a soft\u00adhyphen", "softhyphen", True),
        ("Kenya\u2019s capital", "Kenya's", True),
        ("Kenya's capital", "Kenya", True),
        ("Jean-Paul", "Paul", False),
        ("a post-transition metal", "transition metal", False),
        ("It is 5.7 m.", "5", False),
        ("It is 5.7 m.", "7", False),
        ("It is 3.14.", "3.14", True),
        ("It is 5.", "5", True),
        ("5, 6 and 15", "5", True),
        ("15", "5", False),
        ("-5 degrees", "5", False),
        ("-5 degrees", "-5", True),
        ("from 1990-1995 on", "1990", True),
        ("from 1990-1995 on", "1995", True),
        ("It is 1,000 km.", "1", False),
        ("It is 1\u202f000 km.", "1", False),
        ("It is 1\u00a0000 km.", "1,000", True),
        ("10\u00b2", "102", False),
        ("\uff15メートル", "5", True),
        ("C++ is one.", "C++", True),
        ("anything", " ", False),
    ],
)
def test_whole_words_and_numbers_of_any_script_are_found(response, answer, found):
    assert SCORERS["contains"](response, answer, True) is found


@pytest.mark.parametrize(
    ("response", "answer", "f1"),
    [
        ("\u201cParis\u201d", "Paris", 1.0),
        ("北京。", "北京", 1.0),
        ("首都是北京。", "北京", 2 * (2 / 5) / (2 / 5 + 1)),  # two of five characters
        ("Cafe\u0301!", "caf\u00e9", 1.0),
    ],
)
def test_words_are_compared_in_one_form_of_unicode(response, answer, f1):
    assert SCORERS["token_f1"](response, answer, True) == pytest.approx(f1)
    assert SCORERS["exact"]("\u201cCafe\u0301\u201d", '"CAF\u00c9"', True)
