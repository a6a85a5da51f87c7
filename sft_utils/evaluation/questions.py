"""A profile's own questions: asked, and scored where they have an answer.

Each has one answer and no relation, so its scorers are others than those of the Atlas's questions,
which are in `sft_utils.evaluation.metrics`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .comparison import percent, with_interval
from .metrics import find_values, normalize

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..generation import Generation
    from ..profiles import Profile


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
