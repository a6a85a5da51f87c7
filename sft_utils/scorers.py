"""Scorers that a profile names, for questions of its own: each has one answer and no relation.

The scores of the Atlas's questions are those of `sft_utils.scoring`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable

from .scoring import find_values, normalize


def contains(response: str, answer: str) -> bool:
    """Whether the answer stands somewhere in the response, as whole words. Case counts."""
    text, value = (" ".join(words.split()) for words in (response, answer))
    return bool(find_values(text, {value}))


def token_f1(response: str, answer: str) -> float:
    """The words that response and answer share, from 0 to 1: harmonic mean of precision and recall.

    Case, punctuation and the words *a*, *an* and *the* do not count, as in SQuAD (Rajpurkar and
    others 2016, arXiv 1606.05250, and its evaluation script).
    """
    given, right = _words(response), _words(answer)
    shared = sum((given & right).values())
    if not (given and right):
        return float(given == right)
    return 2 * shared / (given.total() + right.total())


def _words(text: str) -> Counter[str]:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return Counter(re.sub(r"\b(a|an|the)\b", " ", plain).split())


#: By the names that ``[scoring] scorers`` of a profile uses: response, answer, stopped -> 0 to 1.
SCORERS: dict[str, Callable[[str, str, bool], float]] = {
    "exact": lambda response, answer, stopped: normalize(response) == normalize(answer),
    "contains": lambda response, answer, stopped: contains(response, answer),
    "token_f1": lambda response, answer, stopped: token_f1(response, answer),
    "stops": lambda response, answer, stopped: stopped,
}
