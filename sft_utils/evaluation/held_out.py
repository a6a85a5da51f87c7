"""What can be measured of any model on held-out rows, where no answer can be called exact.

How likely the given answers are: nats a token, perplexity, and bits for each byte of the answer,
which can be compared across tokenizers. How the model answers: whether it stops, how long it goes
on, how much it repeats. Chapters 04 and 08 use this module on every profile.

Each answer counts once in a mean, however long it is, and intervals count rows: the answers of one
conversation stand or fall together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..models import context_of
from ..results import Measure
from .comparison import origin_of, percent
from .likelihood import likelihood

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..generation import Generation
    from ..profiles import Profile

    Speaker = tuple[PreTrainedModel, PreTrainedTokenizerBase]

#: Answers that are scored at most, drawn by seed: a model of 0.6 B takes minutes on a processor.
MOST_ANSWERS = 32
NGRAM = 4


@dataclass(frozen=True)
class _Kind:
    """How a column is called, its unit, and whether it depends on how text is cut into tokens."""

    title: str
    unit: str
    of_tokens: bool = False


#: What is measured, by the column that holds it; ``perplexity`` is made from ``loss``.
MEASURES = {
    "bits_per_byte": _Kind("bits per byte of answer", "bits per byte"),
    "loss": _Kind("loss, nats a token", "nats a token", of_tokens=True),
    "perplexity": _Kind("perplexity a token", "", of_tokens=True),
    "end_loss": _Kind("loss of the end of turn, nats", "nats"),
    "stops": _Kind("stops by itself", "%"),
    "tokens": _Kind("tokens written", "tokens", of_tokens=True),
    "words": _Kind("words written", "words"),
    "repetition": _Kind(f"repeated runs of {NGRAM} tokens", "%", of_tokens=True),
}


# --- What is asked -----------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOutAnswer:
    """A conversation up to a user's turn, and the answer that the data gives to it.

    ``row`` names the row that it comes from.
    """

    row: str
    messages: tuple[dict[str, str], ...]
    answer: str

    @property
    def text(self) -> str:
        """What stands before the answer, for reading."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages)


def held_out_answers(
    profile: Profile, validation_rows: Iterable[Mapping[str, Any]], *speakers: Speaker
) -> list[HeldOutAnswer]:
    """The answers that no model was trained on here: at most `MOST_ANSWERS`, drawn by seed.

    Every assistant's turn of the validation rows after a user's, and the answers to the questions
    that the profile holds out. An answer is left out, and one printed line says how many are, if a
    speaker cannot be asked for it: its prompt is longer than ``max_length``, or than the speaker's
    context with the new tokens to come, or a text of it would be read as a special token.

    Raises `DataError` if none is left.
    """
    from ..data.readers import DataError
    from .statistics import draw

    found = []
    for number, row in enumerate(validation_rows):
        turns = [{name: turn[name] for name in ("role", "content")} for turn in row["messages"]]
        found += [
            HeldOutAnswer(f"validation row {number}", tuple(turns[:place]), turn["content"])
            for place, turn in enumerate(turns)
            if turn["role"] == "assistant" and place and turns[place - 1]["role"] == "user"
        ]
    for number, question in enumerate(profile.questions if profile.held_out else ()):
        asked = tuple(question.conversation(profile.prompt.system))
        found.append(HeldOutAnswer(f"question {number}", asked, question.answer or ""))
    fitting = [held for held in found if all(_fits(held, profile, *s) for s in speakers)]
    if not fitting:
        raise DataError(
            f"None of the {len(found)} held-out answers can be scored: each is empty, too long "
            f"for max_length = {profile.sft.max_length}, or holds a special token. Raise "
            "max_length in [sft], or add rows."
        )
    if len(fitting) < len(found):
        print(f"{len(found) - len(fitting)} of {len(found)} held-out answers are left out: their "
              "prompts are too long, or their texts hold a special token.")  # fmt: skip
    return draw(fitting, MOST_ANSWERS)


def _fits(held: HeldOutAnswer, profile: Profile, model: Any, tokenizer: Any) -> bool:
    from ..chat import text_problems
    from ..generation import ChatTemplateError, render_prompt

    if not held.answer or any(text_problems(tokenizer, [held.answer])):
        return False
    try:
        prompt = render_prompt(
            tokenizer, list(held.messages), template_kwargs=profile.prompt.template_kwargs
        )
    except ChatTemplateError:
        return False
    most = profile.sft.max_length or math.inf
    room = min(most, context_of(model) - profile.generation.max_new_tokens)
    return len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) < room


# --- How the model answers ---------------------------------------------------------------------


def repetition(token_ids: Sequence[int], n: int = NGRAM) -> float:
    """The share of an answer's runs of ``n`` tokens that stood in it before; 0 if it has none.

    ``seq-rep-n`` of Welleck et al. 2019 (arXiv 1908.04319, section 6): one minus the different
    n-grams over all n-grams.
    """
    runs = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0


def ask_held_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[HeldOutAnswer],
    profile: Profile,
) -> pd.DataFrame:
    """Ask a model what it is to answer, and how likely it finds the given answer: a row for each.

    Columns: ``row``, ``question``, ``answer``, the columns of `MEASURES` but ``perplexity``,
    ``cuts`` (see `Likelihood`) and ``generation``. Answers are greedy, with the profile's limit.
    Explained in chapters 04 and 08.
    """
    import pandas as pd

    from ..generation import generate_responses
    from ..training.runs import origin

    given = generate_responses(
        model,
        tokenizer,
        [list(held.messages) for held in held_out],
        max_new_tokens=profile.generation.max_new_tokens,
        template_kwargs=profile.prompt.template_kwargs,
        return_details=True,
    )
    most = min(profile.sft.max_length or math.inf, context_of(model) - 1)  # and the end of turn
    rows = []
    for held, said in zip(held_out, given, strict=True):
        found = likelihood(model, tokenizer, said.prompt, held.answer, max_length=most)
        text_ids = answer_ids(said)
        rows.append(
            {
                "row": held.row,
                "question": held.text,
                "answer": held.answer,
                "bits_per_byte": found.bits_per_byte,
                "loss": found.loss,
                "end_loss": found.end_loss,
                "stops": said.stopped,
                "tokens": len(text_ids),
                "words": len(said.response.split()),
                "repetition": repetition(text_ids),
                "cuts": found.cuts,
                "generation": said,
            }
        )
    frame = pd.DataFrame(rows)
    frame.attrs |= origin(model)
    return frame


# --- Tables ------------------------------------------------------------------------------------


def held_out_measure(frame: pd.DataFrame, name: str) -> Measure:
    """The mean of one of `MEASURES` for the prose, with its interval clustered by row.

    No interval goes on where no value can be: below 0, and of shares above 1. Perplexity is the
    exponential of the mean loss a token, and so are the ends of its interval. There is no interval
    where all answers are of one row.
    """
    kept = frame.dropna(subset=["end_loss"]) if name == "end_loss" else frame
    values = kept["loss" if name == "perplexity" else name].astype(float)
    low, high = _interval(values.tolist(), kept["row"].tolist(), name, least=0.0, most=_most(name))
    return _measure(
        name, float(values.mean()), low, high, unit=MEASURES[name].unit, rows=kept["row"], of=frame
    )


def held_out_change(before: pd.DataFrame, after: pd.DataFrame, name: str) -> Measure:
    """How much one of `MEASURES` changed, answer by answer, with its interval clustered by row.

    Shares change by points. For perplexity it is the factor by which it changed.

    Raises ``ValueError`` if the two tables are not about the same answers, or if the measure
    depends on the tokenizer and the two models cut the answers into other tokens.
    """
    if before["answer"].tolist() != after["answer"].tolist():
        raise ValueError("The two tables are about other answers. Ask both models the same list.")
    if MEASURES[name].of_tokens and not same_tokens(before, after):
        raise ValueError(
            f"{name} cannot be compared: the two models cut the answers into other tokens. Take "
            "bits_per_byte, stops or words."
        )
    column = "loss" if name == "perplexity" else name
    old, new = before[column].astype(float), after[column].astype(float)
    known = (old.notna() & new.notna()).to_numpy()
    old, new, rows = old[known], new[known], before["row"][known].tolist()
    if name == "stops":
        low, high = _paired_shares(old.tolist(), new.tolist(), rows)
    else:
        low, high = _interval((new - old).tolist(), rows, least=-_most(name), most=_most(name))
    unit = {"%": "points", "": "times"}.get(MEASURES[name].unit, MEASURES[name].unit)
    return _measure(
        name, float((new - old).mean()), low, high, unit=unit, rows=before["row"][known], of=after
    )


def same_tokens(before: pd.DataFrame, after: pd.DataFrame) -> bool:
    """Whether two models cut the given answers into the same tokens."""
    return before["cuts"].tolist() == after["cuts"].tolist()


def held_out_sheet(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each of `MEASURES` and a column for each model: mean (interval)."""
    import pandas as pd

    columns = {
        label: {
            **{kind.title: _shown(held_out_measure(frame, name))
               for name, kind in MEASURES.items() if _has(frame, name)},
            "answers": str(len(frame)),
            "rows": str(frame["row"].nunique()),
        }
        for label, frame in frames.items()
    }  # fmt: skip
    return pd.DataFrame(columns).fillna("–")


def held_out_changes(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """`held_out_change` for all measures that the two models have in common, for reading."""
    import pandas as pd

    same = same_tokens(before, after)
    changes = {
        kind.title: held_out_change(before, after, name)
        for name, kind in MEASURES.items()
        if (same or not kind.of_tokens) and _has(before, name) and _has(after, name)
    }
    return pd.DataFrame.from_dict(
        {
            title: {"change": _signed(change), "95 % interval": change.interval or "–"}
            for title, change in changes.items()
        },
        orient="index",
    )


# --- What they share ---------------------------------------------------------------------------


def answer_ids(answer: Generation) -> list[int]:
    """The tokens of an answer without the one that ended it."""
    return answer.token_ids[:-1] if answer.stopped else answer.token_ids


def _has(frame: pd.DataFrame, name: str) -> bool:
    """Whether something was measured: a template need not have an end of turn."""
    return bool(frame["loss" if name == "perplexity" else name].notna().any())


def _most(name: str) -> float:
    """The most that a measure can be."""
    return 1.0 if MEASURES[name].unit == "%" else math.inf


def _interval(
    values: list[float], rows: list[str], name: str = "", *, least: float, most: float
) -> tuple[float | None, float | None]:
    """An interval of a mean of what lies between ``least`` and ``most``.

    What a t interval has beyond them it could never hold the mean with, so it is left out.
    """
    from .statistics import mean_interval, proportion_interval

    if len(set(rows)) < 2:
        return None, None
    low, high = (proportion_interval if name == "stops" else mean_interval)(values, rows)
    return max(low, least), min(high, most)


def _measure(
    name: str, value: float, low: float | None, high: float | None, *, unit: str, rows: Any, of: Any
) -> Measure:
    """What a mean says for the prose; that of losses becomes a perplexity, if one is asked for."""
    scale = math.exp if name == "perplexity" else float
    return Measure(
        scale(value), unit, n=len(rows), entities=rows.nunique(),
        low=None if low is None else scale(low), high=None if high is None else scale(high),
        digits=4 if unit == "times" else None,
        **origin_of(of),
    )  # fmt: skip


def _paired_shares(
    old: list[float], new: list[float], rows: list[str]
) -> tuple[float | None, float | None]:
    from .statistics import paired_interval

    return paired_interval(old, new, rows) if len(set(rows)) > 1 else (None, None)


def _shown(measure: Measure) -> str:
    if measure.low is None or measure.high is None:
        return in_unit(measure, measure.value)
    ends = " to ".join(
        in_unit(measure, end).removesuffix(" %") for end in (measure.low, measure.high)
    )
    return f"{in_unit(measure, measure.value)} ({ends})"


def in_unit(measure: Measure, number: float) -> str:
    """A number as the measure's own value is written."""
    return percent(number) if measure.unit == "%" else f"{number:,.2f}"


def _signed(change: Measure) -> str:
    sign = "+" if change.unit not in ("points", "times") and change.value > 0 else ""
    return f"{sign}{change!r}"
