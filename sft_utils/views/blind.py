"""Answers of two models side by side, without saying whose is which. Chapter 08."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .tables import AnswerTable, marked

if TYPE_CHECKING:
    from ..generation import Generation


@dataclass(frozen=True)
class BlindSheet:
    """Pairs of answers under the letters A and B, and the key: who wrote which.

    ``key`` holds, for each question, the names behind A and B.
    """

    sheet: AnswerTable
    key: tuple[tuple[str, str], ...]

    def count(self, votes: str) -> dict[str, Any]:
        """Count votes, one letter a question: ``A``, ``B`` or ``=``; spaces are ignored.

        Returns the votes for each name, the ties, and the exact two-sided ``p_value`` of a sign
        test, ties left out. Raises ``ValueError`` if the votes are not one valid letter for each
        question.
        """
        from scipy.stats import binomtest

        letters = [letter for letter in votes.upper() if not letter.isspace()]
        if len(letters) != len(self.key) or set(letters) - set("AB="):
            raise ValueError(
                f"{votes!r}: give {len(self.key)} letters, one a question, each A, B or =."
            )
        names = sorted(self.key[0]) if self.key else []
        winners = [
            pair["AB".index(letter)]
            for pair, letter in zip(self.key, letters, strict=True)
            if letter != "="
        ]
        counts: dict[str, Any] = {name: winners.count(name) for name in names}
        test = binomtest(counts[names[0]], len(winners)) if winners else None
        return {
            **counts,
            "ties": len(letters) - len(winners),
            "p_value": float(test.pvalue) if test else 1.0,
        }


def blind_sheet(
    questions: Sequence[Any], answers: Mapping[str, Sequence[Generation]], *, seed: int
) -> BlindSheet:
    """Put two models' answers side by side in a random order for every question. Chapter 08.

    The right values are left out, so that the sheet can be judged without them.

    Raises ``ValueError`` unless there are exactly two models.
    """
    if len(answers) != 2:
        raise ValueError(f"A blind sheet compares two models, not {len(answers)}.")
    rng = random.Random(seed)
    key = tuple(tuple(rng.sample(sorted(answers), 2)) for _ in questions)
    rows = tuple(
        (str(number + 1), question.text, *(marked(answers[name][number]) for name in pair))
        for number, (question, pair) in enumerate(zip(questions, key, strict=True))
    )
    return BlindSheet(AnswerTable(("", "question", "A", "B"), rows), key)  # type: ignore[arg-type]
