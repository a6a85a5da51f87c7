"""Claims: what a page says of a number, with the threshold that the number has to keep.

The build evaluates every claim each time, lists them on a page of their own, and ends with an error
if one fails. They are kept in the cell's output as JSON, as results are.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from .profiles import is_books_own
from .results import Measure, Stored, store

#: The type under which the JSON form is stored in a cell's output.
CLAIM_TYPE = "application/vnd.sft.claim+json"


@dataclass(frozen=True)
class Claim:
    """A sentence, the number that it rests on, and the threshold that it must keep."""

    name: str
    sentence: str
    measure: Measure
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the measured value is on the right side of the threshold."""
        if self.at_least is not None:
            return self.measure.value >= self.at_least
        assert self.at_most is not None
        return self.measure.value <= self.at_most

    @property
    def margin(self) -> float:
        """How far the value is from the threshold, below zero where the claim fails."""
        if self.at_least is not None:
            return self.measure.value - self.at_least
        assert self.at_most is not None
        return self.at_most - self.measure.value

    def as_dict(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        return {
            "claim": self.name,
            "sentence": self.sentence,
            "holds": self.holds,
            "at_least": self.at_least,
            "at_most": self.at_most,
            "margin": self.margin,
            "measure": self.measure.as_dict(),
        }

    def __repr__(self) -> str:
        return f"{'holds' if self.holds else 'FAILS'}: {self.sentence} {self.figures}"

    @property
    def figures(self) -> str:
        """The measured value, its interval and the threshold, as text."""
        least = self.at_least is not None
        limit = Measure(self.at_least if least else self.at_most, self.measure.unit,  # type: ignore[arg-type]
                        digits=self.measure.digits)  # fmt: skip
        between = f" ({self.measure.interval})" if self.measure.interval else ""
        return f"{self.measure!r}{between}; required: at {'least' if least else 'most'} {limit!r}."

    def _repr_html_(self) -> str:
        verdict = "✓ holds" if self.holds else "✗ FAILS"
        return (
            f'<p class="sft-claim" id="claim-{html.escape(self.name)}"><small><b>{verdict}</b> '
            f"<i>{html.escape(self.sentence)}</i> {html.escape(self.figures)}</small></p>"
        )


def claim(
    name: str,
    sentence: str,
    measure: Measure,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    """State what a page says of a number, with the threshold that the number must keep.

    Does nothing with another profile than the book's own: with its models the claims were found.
    Shows one line and never raises for a claim that fails: the build goes on, lists every failed
    claim at its end and exits with an error. ``name`` is in kebab-case and unique in the book.
    The threshold stands at least four standard deviations between seeds away from the value, so
    that another processor does not break the claim (chapter 12).

    Raises ``ValueError`` unless there is exactly one threshold, a sentence and a fitting name.
    """
    if not name or name != "-".join(name.lower().split()) or not sentence.endswith("."):
        raise ValueError(f"claim {name!r}: give a kebab-case name and a sentence with a full stop.")
    if (at_least is None) == (at_most is None):
        raise ValueError(f"claim {name!r}: give either at_least or at_most.")
    if not is_books_own():
        return
    made = Claim(name, sentence, measure, at_least, at_most)
    store(f"claim {name}", Stored(made, CLAIM_TYPE), made)
