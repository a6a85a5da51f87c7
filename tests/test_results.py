"""Values for the prose: stored in a notebook, harmless elsewhere."""

import sys

import IPython
import numpy as np
import pytest

from sft_utils.results import glue


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
    assert stored == [("loss", 0.5, False), ("shown", "text", True), ("exact", 0.25, False)]
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
