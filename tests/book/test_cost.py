"""The figure of chapter 13: several measures of the same runs, each with an axis of its own."""

from __future__ import annotations

import pandas as pd
import pytest

from sft_utils.views.figures import dot_panels


@pytest.fixture
def table():
    rows = [
        ("base", "exact answers, %", 0.0, 0.0, 0.5, "0.0 %"),
        ("no <replay>", "exact answers, %", 90.0, 88.0, 92.0, "90.0 %"),
        ("base", "corpus loss", 0.95, 0.93, 0.97, "0.95"),
        ("no <replay>", "corpus loss", 3.6, 3.4, 3.8, "3.60"),
    ]
    return pd.DataFrame(rows, columns=["label", "measure", "value", "low", "high", "text"])


def test_every_run_measure_and_value_is_written_out_the_same_each_time(table):
    figure = dot_panels(table, alt="Gain and loss.")
    assert figure == dot_panels(table, alt="Gain and loss.")
    for text in ("base", "no &lt;replay&gt;", "exact answers, %", "corpus loss", "90.0 %", "3.60"):
        assert text in figure.svg, text


def test_a_table_that_cannot_be_drawn_is_an_error_that_says_why(table):
    with pytest.raises(ValueError, match=r"lacks the columns \['low'\]"):
        dot_panels(table.drop(columns="low"), alt="Gain and loss.")
    with pytest.raises(ValueError, match=r"'base', 'corpus loss'\) stands in the table more"):
        dot_panels(pd.concat([table, table.iloc[[2]].assign(value=1.0)]), alt="Gain and loss.")
