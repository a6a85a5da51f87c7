"""Values that the prose quotes, each with what a reader needs to believe it.

A page shows or glues a `Measure` where its prose has a number. It is kept in the page's outputs as
JSON, so a page from the cache still has it. The build collects them in ``results.json`` and on the
page of results.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

#: The types under which the JSON forms are stored in a cell's output.
RESULT_TYPE = "application/vnd.sft.result+json"
RUN_TYPE = "application/vnd.sft.run+json"
#: The runs that this page, whose process this is, has noted.
_NOTED: set[tuple[str, bool]] = set()


@dataclass(frozen=True)
class Measure:
    """A number with its unit, its sample and its noise. As text it is what the prose shows.

    ``value``, ``low`` and ``high`` share one scale. With the unit ``%`` they are shares from 0 to
    1, with ``points`` differences of shares; both are shown a hundredfold. ``low`` and ``high``
    are a 95 % interval, ``n`` the number of questions, tokens or runs, ``entities`` the number of
    clusters among them, ``seeds`` those of the training, and ``run`` the fingerprint of the run
    or of the weights that were measured. ``digits`` are the decimals shown.

    Raises ``ValueError`` for a number that is not finite and for one half of an interval.
    """

    value: float
    unit: str = ""
    digits: int | None = None
    n: int | None = None
    entities: int | None = None
    low: float | None = None
    high: float | None = None
    seeds: tuple[int, ...] = ()
    run: str | None = None

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = plain(getattr(self, name))
            object.__setattr__(self, name, number)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name}={number} of a measure: give a finite number.")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"An interval from {self.low} to {self.high}: give both ends or none.")

    def __repr__(self) -> str:
        return self._with_unit(self._number(self.value, signed=self.unit == "points"))

    @property
    def interval(self) -> str:
        """The interval as text, ``96.5 to 98.8 %``; empty without one."""
        if self.low is None or self.high is None:
            return ""
        signed = self.unit == "points"
        low, high = (self._number(end, signed) for end in (self.low, self.high))
        return f"{low} to {self._with_unit(high)}"

    def as_dict(self) -> dict[str, Any]:
        """What ``results.json`` holds, the shown text with it."""
        fields = {name: value for name, value in asdict(self).items() if name != "digits"}
        return {"text": repr(self), **fields, "seeds": list(self.seeds)}

    def _number(self, number: float, signed: bool = False) -> str:
        scaled = 100 * number if self.unit in ("%", "points") else number
        digits = self.digits
        if digits is None:
            digits = 1 if self.unit in ("%", "points") else 0 if isinstance(number, int) else 2
        shown = round(scaled, digits) + 0.0  # no "-0.0"
        return f"{shown:{'+' if signed else ''},.{digits}f}"

    def _with_unit(self, text: str) -> str:
        return f"{text} {self.unit}".rstrip()


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning that a page rests on: its fingerprint, and whether it is live or recorded."""

    run: str
    live: bool

    def as_dict(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        return asdict(self)


@dataclass(frozen=True)
class Stored:
    """A measure, a claim or a run as the notebook keeps it: a text, and the JSON of its kind."""

    value: Any
    kind: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # Quoted, as a string would be: the prose reads "12,345" as two numbers otherwise.
        return {"text/plain": repr(repr(self.value)), self.kind: json.dumps(self.value.as_dict())}


def note_run(run: str, *, live: bool) -> None:
    """Tell the build that a page rests on a fine-tuning, by its fingerprint; show nothing."""
    if (run, live) not in _NOTED:  # a name is glued once
        _NOTED.add((run, live))
        store(
            f"run {run[:16]} {'live' if live else 'recorded'}",
            Stored(FineTuning(run, live), RUN_TYPE),
        )


def glue(name: str, value: Any, *, display: bool = False) -> None:
    """Store ``value`` under ``name`` for the prose; show it in the cell's output with ``display``.

    ``value`` is a `Measure`, or anything that Jupyter can show: a string, a number, a figure. The
    interval of a measure is stored too, under ``name`` and ``_ci``. NumPy numbers become Python's.
    In a notebook without myst-nb, or in plain Python, nothing is stored, and ``display`` shows the
    value as usual. Rule 1 of the book: no number in the prose is typed.
    """
    if not name or name != name.strip():
        raise ValueError(f"glue name {name!r}: give a name that does not start or end in a space.")
    value = plain(value)
    shown = value if display else None
    if isinstance(value, Measure):
        if value.interval:
            store(f"{name}_ci", value.interval)
        store(name, Stored(value, RESULT_TYPE), shown)
        return
    store(name, value, shown)


def store(name: str, value: Any, shown: Any = None) -> None:
    """Keep a value in the cell's output, unseen; show the other one, if there is one."""
    try:
        from IPython import get_ipython
        from IPython.display import display

        in_notebook = get_ipython() is not None
    except ModuleNotFoundError:
        in_notebook = False
    if shown is not None:
        display(shown) if in_notebook else print(shown)
    if in_notebook:
        try:
            from myst_nb import glue as keep
        except ModuleNotFoundError:
            return
        keep(name, value, False)


def plain(value: Any) -> Any:
    """A NumPy number, or a tensor of one, as Python's own; anything else as it is."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value
