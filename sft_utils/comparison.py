"""Several models on the same questions: side by side, scored, paired, and blind.

A difference on the same questions is told with an interval clustered by entity and with the
number of questions that changed, each way. Chapters 03, 04 and 08 use this module.
"""

from __future__ import annotations

import html
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .plots import SCORE_NAMES
from .results import MISSING, Measure
from .scoring import SCORES, clustered_interval, score_table

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .generation import Generation
    from .profiles import Profile

STOPPED, CUT = "■", "✂"


def has_reference(profile: Profile, otherwise: str) -> bool:
    """True if the profile names a reference; otherwise print what the page does without one."""
    if profile.models.reference is not None:
        return True
    print(f"This profile names no reference, {otherwise}.")
    return False


def few_shot_from_rows(rows: Iterable[Mapping[str, Any]], question: str, shots: int = 4) -> str:
    """A plain-text prompt: the shortest single-turn rows as ``Q:`` and ``A:``, then the question.

    For data sets other than the Atlas's, whose prompts `sft_utils.atlas.evaluate` writes.
    """
    pairs = []
    for row in rows:
        texts = [turn["content"].strip() for turn in row["messages"]]
        roles = [turn["role"] for turn in row["messages"]]
        if roles == ["user", "assistant"] and "\n" not in "".join(texts) and texts[0] != question:
            pairs.append(texts)
    pairs.sort(key=lambda texts: len(texts[0]) + len(texts[1]))
    lines = [f"Q: {asked}\nA: {answer}" for asked, answer in pairs[:shots]]
    return "\n".join([*lines, f"Q: {question}\nA:"])


# --- Scores of several models ------------------------------------------------------------------


def percent(share: float, digits: int = 1) -> str:
    """``0.931`` as ``93.1 %``."""
    return f"{100 * share:.{digits}f} %"


def share(frame: pd.DataFrame | None, score: str) -> Measure | str:
    """The mean of a score for the prose, with its interval and n; ``–`` where there is no table.

    The seeds and the run come from the table's ``attrs``, which `score_split` fills.
    """
    if frame is None:
        return MISSING
    hits, entities = frame[score].astype(float).tolist(), frame["entity"].tolist()
    low, high = clustered_interval(hits, entities)
    return Measure(
        float(frame[score].mean()), "%", n=len(frame), entities=len(set(entities)),
        low=low, high=high, **made_by(frame),
    )  # fmt: skip


def change(before: pd.DataFrame | None, after: pd.DataFrame | None, score: str) -> Measure | str:
    """What `paired_difference` gives, in points, for the prose; ``–`` where a table is missing."""
    if before is None or after is None:
        return MISSING
    pair = paired_difference(before, after, score)
    return Measure(
        pair.difference, "points", n=len(after), entities=after["entity"].nunique(),
        low=pair.low, high=pair.high, **made_by(after),
    )  # fmt: skip


def made_by(frame: pd.DataFrame) -> dict[str, Any]:
    """The seeds and the run of the model that gave a table's answers."""
    return {name: frame.attrs[name] for name in ("seeds", "run") if name in frame.attrs}


def verdict(measured: Any, agrees: Callable[[], bool]) -> str:
    """``agrees`` or ``differs`` for a table's cell; ``–`` where nothing was measured."""
    if not measured:
        return MISSING
    return "agrees" if agrees() else "differs"


def score_rows(frames: Mapping[str, pd.DataFrame], scores: Iterable[str] = SCORES) -> pd.DataFrame:
    """The scores of several tables in one, a row for each label and score, as figures want it.

    ``frames`` maps a label (a model, a way of asking, a split) to a table with one row a
    question. Columns: ``label``, ``score``, ``mean``, ``low``, ``high``, ``n``, ``entities``.
    """
    import pandas as pd

    scores = tuple(scores)
    parts = [
        score_table(frame, scores).reset_index().assign(label=label)
        for label, frame in frames.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    order = {score: place for place, score in enumerate(scores)}
    return table.sort_values("score", key=lambda s: s.map(order), kind="stable", ignore_index=True)


def score_sheet(frames: Mapping[str, pd.DataFrame], scores: Iterable[str] = SCORES) -> pd.DataFrame:
    """The same for reading: a row for each label, each score as ``mean % (low to high)``."""
    import pandas as pd

    scores = tuple(scores)
    rows = {
        label: {
            **{SCORE_NAMES.get(score, score): with_interval(table.loc[score]) for score in scores},
            "questions": len(frame),
            "entities": frame["entity"].nunique(),
        }
        for label, frame in frames.items()
        for table in [score_table(frame, scores)]
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def with_interval(row: Any) -> str:
    return f"{percent(row['mean'])} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def by_relation(
    frame: pd.DataFrame, score: str, most_common: pd.DataFrame | None = None
) -> pd.DataFrame:
    """A score for each relation beside that of the most common answer. Chapters 03 and 08.

    ``most_common`` is the same questions answered with the most common value; without it, the
    commonest of the right answers in ``frame`` itself is used, which is the best that one answer
    for all can do. Columns: ``relation``, ``mean``, ``low``, ``high``, ``most_common``, ``n``.
    """
    import pandas as pd

    rows = []
    for relation, part in frame.groupby("relation", sort=False):
        low, high = clustered_interval(part[score].astype(float).tolist(), part["entity"].tolist())
        if most_common is None:
            common = part["right"].value_counts(normalize=True).iloc[0]
        else:
            common = most_common.loc[most_common["relation"] == relation, score].mean()
        rows.append({"relation": relation, "mean": part[score].mean(), "low": low, "high": high,
                     "most_common": float(common), "n": len(part)})  # fmt: skip
    return pd.DataFrame(rows)


def in_words(table: pd.DataFrame) -> str:
    """The numbers of a figure as text, for its ``alt``: of `score_rows` or of `by_relation`."""
    if "most_common" in table.columns:
        return "; ".join(
            f"{name}: {percent(mean, 0)}, most common answer {percent(common, 0)}"
            for name, mean, common in zip(
                table["relation"], table["mean"], table["most_common"], strict=True
            )
        )
    return "; ".join(
        f"{label}, {SCORE_NAMES.get(score, score)}: {percent(mean, 0)}"
        for label, score, mean in zip(table["label"], table["score"], table["mean"], strict=True)
    )


# --- Pairs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """What changed on the same questions. Counts are of questions, ``difference`` is a share.

    ``p_value`` is McNemar's exact one: how often a fair coin would split the questions that
    changed as unevenly as they are. It takes questions as independent, which those about one
    entity are not; the interval from ``low`` to ``high`` does not.
    """

    difference: float
    low: float
    high: float
    both: int
    gained: int
    lost: int
    neither: int
    p_value: float


def paired_difference(before: pd.DataFrame, after: pd.DataFrame, score: str) -> Paired:
    """Compare a score, question by question. Explained in chapter 08.

    Both tables have the columns ``question``, ``entity`` and ``score``, the same questions in
    the same order. The interval is `sft_utils.statistics.paired_interval`, clustered by entity.

    Raises ``ValueError`` if the questions are not the same.
    """
    from .statistics import mcnemar, paired_interval

    for column in ("question", "entity"):
        if before[column].tolist() != after[column].tolist():
            raise ValueError(
                f"The two tables differ in the column {column!r}: a paired difference needs the "
                "same questions in the same order. Score both models on the same list."
            )
    old, new = before[score].to_numpy(dtype=bool), after[score].to_numpy(dtype=bool)
    low, high = paired_interval(old, new, before["entity"])
    return Paired(
        difference=float(new.mean() - old.mean()),
        low=low,
        high=high,
        both=int((old & new).sum()),
        gained=int((new & ~old).sum()),
        lost=int((old & ~new).sum()),
        neither=int((~old & ~new).sum()),
        p_value=mcnemar(old, new),
    )


def paired_sheet(
    before: pd.DataFrame, after: pd.DataFrame, scores: Iterable[str] = SCORES
) -> pd.DataFrame:
    """`paired_difference` for several scores, written out for reading, in percentage points.

    The p-values are adjusted for how many scores there are: `sft_utils.statistics.holm`.
    """
    import pandas as pd

    from .statistics import holm

    pairs = {score: paired_difference(before, after, score) for score in scores}
    adjusted = holm([pair.p_value for pair in pairs.values()])
    rows = {}
    for (score, pair), p_value in zip(pairs.items(), adjusted, strict=True):
        rows[SCORE_NAMES.get(score, score)] = {
            "difference, points": f"{100 * pair.difference:+.1f}",
            "95 % interval": f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f}",
            "right in both": pair.both,
            "gained": pair.gained,
            "lost": pair.lost,
            "in neither": pair.neither,
            "McNemar's p, Holm": "< 0.001" if p_value < 0.001 else f"{p_value:.3f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


# --- Answers side by side ----------------------------------------------------------------------


def ask_questions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, profile: Profile
) -> list[Generation]:
    """A model's answers to the profile's questions, asked in chat as the profile says.

    A question's own system message goes before the profile's, as in
    `sft_utils.test_model_with_questions`, which prints what this returns. Chapters 04 and 08.
    """
    from .generation import generate_responses

    conversations = []
    for question in profile.questions:
        system = question.system or profile.prompt.system
        turns = [{"role": "system", "content": system}] if system else []
        conversations.append([*turns, {"role": "user", "content": question.text}])
    return generate_responses(
        model,
        tokenizer,
        conversations,
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
    `sft_utils.scorers.SCORERS` are used; without an answer to compare with, this says so and
    returns None. Chapters 04 and 08.
    """
    import pandas as pd

    from .scorers import SCORERS
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


@dataclass(frozen=True)
class AnswerTable:
    """Texts in rows and columns: an escaped HTML table in a page, plain text elsewhere."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.columns)
        body = "\n".join(
            "<tr>" + "".join(_cell(text) for text in row) + "</tr>" for row in self.rows
        )
        return (
            '<table class="sft-answers">\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
        )

    def __repr__(self) -> str:
        lines = []
        for row in self.rows:
            lines += [f"{name}: {text}" for name, text in zip(self.columns, row, strict=True)]
            lines.append("")
        return "\n".join(lines)


def _cell(text: str) -> str:
    style = "text-align: left; vertical-align: top; white-space: pre-wrap"
    return f'<td style="{style}">{html.escape(text)}</td>'


def marked(answer: Generation) -> str:
    """A response and, on a line of its own, how it ended: ``■`` by itself, ``✂`` cut."""
    count = f"{answer.num_tokens} token{'s' * (answer.num_tokens != 1)}"
    ending = f"{STOPPED} stopped, {count}" if answer.stopped else f"{CUT} cut at {count}"
    return f"{answer.response}\n{ending}"


def answer_table(
    questions: Sequence[Any], answers: Mapping[str, Sequence[Generation]]
) -> AnswerTable:
    """Every question with the answers of several models, each with its stop mark. Chapter 04.

    ``questions`` are those of a profile: with ``text``, and the right value as ``answer`` or
    None. ``answers`` maps a column's name to one `sft_utils.Generation` a question.

    Raises ``ValueError`` if a model has more or fewer answers than there are questions.
    """
    for name, given in answers.items():
        if len(given) != len(questions):
            raise ValueError(f"{name!r} has {len(given)} answers to {len(questions)} questions.")
    valued = any(question.answer for question in questions)
    rows = [
        (
            question.text,
            *([question.answer or "–"] if valued else []),
            *(marked(given[number]) for given in answers.values()),
        )
        for number, question in enumerate(questions)
    ]
    return AnswerTable(("question", *(["right value"] if valued else []), *answers), tuple(rows))


# --- A blind sheet -----------------------------------------------------------------------------


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
        names = sorted(set(self.key[0]))
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


# --- Where the probability went ----------------------------------------------------------------


def follow_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> pd.DataFrame:
    """Follow a given answer token by token. Explained in chapter 04.

    One row for each token of ``answer`` and a last one for its end. The columns say what the
    model expected there, having read ``prompt`` and the answer so far: the probability of that
    token (``next``), that of ending the turn instead (``end``: all of `sft_utils.end_token_ids`
    together), and the likeliest token (``likeliest``, any end token as ``(end)``). In the last
    row ``next`` is the same as ``end``. ``prompt`` is written out in full, markup included.
    """
    import pandas as pd
    import torch

    from .models import end_token_ids

    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rest = tokenizer(answer, add_special_tokens=False)["input_ids"]
    ends = end_token_ids(model, tokenizer)
    ids = torch.tensor([start + rest], device=model.device)
    model.eval()
    with torch.no_grad():
        given = model(input_ids=ids).logits[0, len(start) - 1 :].float().softmax(-1).cpu()
    end = given[:, ends].sum(-1)
    best = given.argmax(-1).tolist()
    following = [float(given[place, token]) for place, token in enumerate(rest)] + [float(end[-1])]
    return pd.DataFrame(
        {
            "token": [str(tokenizer.decode([token])) for token in rest] + ["(end)"],
            "next": following,
            "end": end.tolist(),
            "likeliest": ["(end)" if b in ends else str(tokenizer.decode([b])) for b in best],
        }
    )
