"""Values for the prose: stored in a notebook, harmless elsewhere."""

import json
import sys

import IPython
import numpy as np
import pytest

from sft_utils.claims import CLAIM_TYPE, Claim, claim
from sft_utils.results import RESULT_TYPE, Measure, Stored, glue


@pytest.fixture
def in_notebook(monkeypatch):
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())


@pytest.fixture
def stored(monkeypatch, in_notebook):
    """What myst-nb was given."""
    calls = []
    myst_nb = pytest.importorskip("myst_nb")
    monkeypatch.setattr(myst_nb, "glue", lambda *arguments: calls.append(arguments))
    return calls


def test_values_are_stored(stored):
    glue("loss", 0.5)
    glue("shown", "text", display=True)
    glue("exact", np.float64(0.25))
    assert stored == [("loss", 0.5, False), ("shown", "text", False), ("exact", 0.25, False)]
    assert type(stored[-1][1]) is float


def test_plain_python_only_shows(capsys):
    glue("loss", 0.5)
    assert capsys.readouterr().out == ""
    glue("loss", 0.5, display=True)
    assert capsys.readouterr().out == "0.5\n"


def test_a_notebook_without_myst_nb(in_notebook, monkeypatch):
    shown = []
    monkeypatch.setitem(sys.modules, "myst_nb", None)
    monkeypatch.setattr("IPython.display.display", shown.append)
    glue("loss", 0.5)
    glue("loss", 0.25, display=True)
    assert shown == [0.25]


@pytest.mark.parametrize("name", ["", " loss", "loss "])
def test_names(name):
    with pytest.raises(ValueError, match="glue name"):
        glue(name, 1)


# --- Measures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "text"),
    [
        (Measure(0.978, "%"), "97.8 %"),
        (Measure(-0.0004, "points"), "+0.0 points"),
        (Measure(-0.126, "points", digits=0), "-13 points"),
        (Measure(12345), "12,345"),
        (Measure(1.2345, "nats"), "1.23 nats"),
        (Measure(np.float32(0.5), "s", digits=0), "0 s"),
        (Measure(0.02, digits=3), "0.020"),
    ],
)
def test_a_measure_reads_as_the_prose_shows_it(measure, text):
    assert repr(measure) == text


def test_the_interval_has_the_unit_once():
    assert Measure(0.9, "%", low=0.8, high=0.95).interval == "80.0 to 95.0 %"
    assert Measure(0.9, "points", low=-0.1, high=1).interval == "-10.0 to +100.0 points"
    assert Measure(1.0, "nats").interval == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_measure_is_finite(value):
    with pytest.raises(ValueError, match="finite"):
        Measure(value)
    with pytest.raises(ValueError, match="finite"):
        Measure(1.0, low=0.0, high=value)


def test_an_interval_has_both_ends():
    with pytest.raises(ValueError, match="both ends or none"):
        Measure(1.0, low=0.5)


def test_a_measure_is_stored_with_its_json_and_its_interval(stored):
    measure = Measure(0.75, "%", n=8, entities=4, low=0.5, high=0.9, seeds=(1,), run="abc")
    glue("right", measure)
    glue("none", "–")
    assert [call[:2] for call in stored] == [
        ("right_ci", "50.0 to 90.0 %"), ("right", Stored(measure, RESULT_TYPE)),
        ("none", "–"),
    ]  # fmt: skip
    bundle = Stored(measure, RESULT_TYPE)._repr_mimebundle_()
    assert bundle["text/plain"] == "'75.0 %'"  # as a string: the prose takes the quotes off
    assert json.loads(bundle[RESULT_TYPE]) == {
        "text": "75.0 %", "value": 0.75, "unit": "%", "n": 8, "entities": 4, "low": 0.5,
        "high": 0.9, "seeds": [1], "run": "abc",
    }  # fmt: skip


# --- Claims ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "holds", "margin"),
    [
        ({"at_least": 0.75}, True, 0.0),
        ({"at_least": 0.8}, False, -0.05),
        ({"at_most": 0.75}, True, 0.0),
        ({"at_most": 0.5}, False, -0.25),
    ],
)
def test_a_claim_is_evaluated_and_never_raises(stored, monkeypatch, limits, holds, margin):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    measure = Measure(0.75, "%", low=0.5, high=0.9)
    claim("it-learns", "It learns.", measure, **limits)
    ((name, kept, _),) = stored
    (made,) = shown
    assert name == "claim it-learns" and kept == Stored(made, CLAIM_TYPE)
    assert made.holds is holds and made.margin == pytest.approx(margin)
    document = json.loads(kept._repr_mimebundle_()[CLAIM_TYPE])
    assert (document["claim"], document["holds"]) == ("it-learns", holds)
    assert document["measure"] == measure.as_dict()
    assert ("✓ holds" in made._repr_html_()) is holds
    assert ("✗ FAILS" in made._repr_html_()) is not holds


def test_a_claim_shows_threshold_and_escapes_its_sentence():
    made = Claim("a", "It is < b.", Measure(0.75, "%"), at_least=0.5)
    assert repr(made) == "holds: It is < b. 75.0 %; required: at least 50.0 %."
    assert "It is &lt; b." in made._repr_html_()


@pytest.mark.parametrize(
    ("name", "sentence", "limits"),
    [
        ("", "It learns.", {"at_least": 1}),
        ("It Learns", "It learns.", {"at_least": 1}),
        ("it-learns", "It learns", {"at_least": 1}),
        ("it-learns", "It learns.", {}),
        ("it-learns", "It learns.", {"at_least": 1, "at_most": 2}),
    ],
)
def test_a_claim_without_name_sentence_or_threshold(name, sentence, limits):
    with pytest.raises(ValueError, match="claim '"):
        claim(name, sentence, Measure(1), **limits)
