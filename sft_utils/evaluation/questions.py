"""A profile's own questions: asked, and scored where they have an answer.

Each has one answer and no relation, so its scorers are others than those of the Atlas's questions,
which are in `sft_utils.evaluation.metrics`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .comparison import percent, with_interval
from .metrics import normalize

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..generation import Generation
    from ..profiles import Profile


# Written without spaces, or with what belongs to the sentence attached to the word: each character
# stands for itself. Thai to Khmer, Hangul, kana, and the ideographs of every plane.
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff"
    "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
_QUOTES = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"'),
    }
)
_SPELLED = ("<super>", "<sub>", "<fraction>")  # 10² is not 102


def plain(text: str) -> str:
    """The text in one form of Unicode, with straight quotes and single spaces; case is kept.

    Letters and their accents are one character (NFC) and full-width forms ordinary ones; what is
    not seen, such as a soft hyphen, is dropped (Unicode Standard Annex 15). A space that groups
    digits is a comma.
    """
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3})", ",", text)
    letters = (
        letter
        if unicodedata.decomposition(letter).startswith(_SPELLED)
        else unicodedata.normalize("NFKC", letter)
        for letter in text
        if unicodedata.category(letter) != "Cf"
    )
    return " ".join(unicodedata.normalize("NFC", "".join(letters)).translate(_QUOTES).split())


def contains(response: str, answer: str) -> bool:
    """Whether the answer stands somewhere in the response, as whole words. Case counts.

    A number is whole too: 5 does not stand in 5.7, in 1,500 or in -5. In a script without spaces
    between words, any place will do.
    """
    text, value = plain(response), plain(answer)
    matches = re.finditer(f"(?={re.escape(value)})", text) if value else ()
    return any(
        not _goes_on(value[0], text[max(start - 2, 0) : start][::-1])
        and not _goes_on(value[-1], text[start + len(value) :][:2], after=True)
        for start in (match.start() for match in matches)
    )


def _goes_on(edge: str, rest: str, after: bool = False) -> bool:
    """Whether a word or number goes on from ``edge`` into ``rest``, two letters read outwards."""
    near, far = rest[:1], rest[1:2]
    if not (near and _in_word(edge)) or _NO_SPACES.match(near):
        return False
    if _in_word(near):
        return True
    if near in "-\u2010\u2011\u2212":  # a range of numbers is two, and a minus belongs to one
        return far.isalpha() or (edge.isdigit() and not after and not _in_word(far))
    if near in ".,'\u066b\u066c":
        return edge.isdigit() and far.isdigit()
    return False


def _in_word(letter: str) -> bool:
    """Whether neighbors of this character belong to its word; an accent is a part of it."""
    is_mark = unicodedata.category(letter or " ")[0] == "M"
    return (letter.isalnum() or letter == "_" or is_mark) and not _NO_SPACES.match(letter)


def token_f1(response: str, answer: str) -> float:
    """The words that response and answer share, from 0 to 1: harmonic mean of precision and recall.

    Case, punctuation and the words *a*, *an* and *the* do not count, as in SQuAD (Rajpurkar and
    others 2016, arXiv 1606.05250, and its evaluation script). In a script without spaces each
    character is a word, as in MLQA (Lewis and others 2020, arXiv 1910.07475, and its script).
    """
    given, right = _words(response), _words(answer)
    shared = sum((given & right).values())
    if not (given and right):
        return float(given == right)
    return 2 * shared / (given.total() + right.total())


def _words(text: str) -> Counter[str]:
    letters = (
        letter
        for letter in plain(text).casefold()
        if letter not in string.punctuation and unicodedata.category(letter)[0] != "P"
    )
    words = re.sub(r"\b(a|an|the)\b", " ", "".join(letters))
    return Counter(_NO_SPACES.sub(r" \g<0> ", words).split())


#: By the names that ``[scoring] scorers`` of a profile uses: response, answer, stopped -> 0 to 1.
SCORERS: dict[str, Callable[[str, str, bool], float]] = {
    "exact": lambda response, answer, stopped: (
        normalize(plain(response)) == normalize(plain(answer))
    ),
    "contains": lambda response, answer, stopped: contains(response, answer),
    "token_f1": lambda response, answer, stopped: token_f1(response, answer),
    "stops": lambda response, answer, stopped: stopped,
}


def ask_questions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, profile: Profile
) -> list[Generation]:
    """A model's answers to the profile's questions, asked in chat as the profile says.

    A question's own system message goes before the profile's, as in
    `sft_utils.test_model_with_questions`, which prints what this returns. Chapters 04 and 08.
    """
    from ..generation import generate_responses

    return generate_responses(
        model,
        tokenizer,
        [question.conversation(profile.prompt.system) for question in profile.questions],
        max_new_tokens=profile.generation.max_new_tokens,
        template_kwargs=profile.prompt.template_kwargs,
        return_details=True,
    )


def question_scores(
    profile: Profile, answers: Mapping[str, Sequence[Generation]]
) -> pd.DataFrame | None:
    """The profile's scorers on its questions that have an answer, a row for each model.

    ``answers`` maps a model's name to what `ask_questions` gave. Each cell is a mean with its 95 %
    interval, in which each question counts by itself. Without ``[scoring] scorers`` all of
    `SCORERS` are used; without an answer to compare with, this says so and returns None.
    Chapters 04 and 08.
    """
    import pandas as pd

    from .statistics import mean_interval, proportion_interval

    asked = [(n, question.answer) for n, question in enumerate(profile.questions)]
    right = {number: answer for number, answer in asked if answer}
    if not right:
        print("No question of this profile has an answer to compare with: no scorer is used.")
        return None
    rows: dict[str, dict[str, Any]] = {}
    for name, given in answers.items():
        rows[name] = {"questions": len(right)}
        for scorer in profile.scoring.scorers or SCORERS:
            values = [
                float(SCORERS[scorer](given[n].response, answer, given[n].stopped))
                for n, answer in right.items()
            ]
            cell = percent(mean := sum(values) / len(values))
            shares = set(values) <= {0.0, 1.0}
            if shares or len(values) > 1:
                low, high = (proportion_interval if shares else mean_interval)(values)
                cell = with_interval({"mean": mean, "low": max(0, low), "high": min(1, high)})
            rows[name][scorer] = cell
    return pd.DataFrame.from_dict(rows, orient="index")
