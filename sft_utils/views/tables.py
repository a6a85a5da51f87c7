"""Rows and answers as tables: escaped HTML in a page, plain text elsewhere. Chapters 04 and 05."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..wording import visible

if TYPE_CHECKING:
    from datasets import Dataset

    from ..generation import Generation


class DatasetTable:
    """The turns of some rows as a table: HTML in a page, plain text elsewhere."""

    def __init__(self, turns: list[tuple[int, int, str, str]], total: int) -> None:
        self.turns = turns
        self.caption = f"{len({turn[0] for turn in turns})} of {total} rows"

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col">{name}</th>' for name in ("row", "turn", "role", "content")
        )
        body = "\n".join(
            f"<tr><td>{row}</td><td>{turn}</td><td>{html.escape(visible(role))}</td>"
            '<td style="text-align: left; white-space: pre-wrap">'
            f"{html.escape(visible(content))}</td></tr>"
            for row, turn, role, content in self.turns
        )
        return (
            f'<table class="sft-dataset"><caption>{self.caption}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
        )

    def __repr__(self) -> str:
        lines = [f"{'row':>4} {'turn':>4} {'role':<9} content"]
        for row, turn, role, content in self.turns:
            text = visible(content).replace("\n", "\n" + " " * 20)  # under its own column
            lines.append(f"{row:>4} {turn:>4} {visible(role):<9} {text}")
        return "\n".join([*lines, self.caption])


def display_dataset(dataset: Dataset, rows: int = 3) -> DatasetTable:
    """Return a table of every turn of the first ``rows`` rows, whole and escaped.

    Characters that cannot be seen, or that would turn the direction of the text around them, are
    shown by their codes, such as ``\\u202e``. Explained in chapter 05.
    """
    turns = [
        (number, turn, str(message["role"]), str(message["content"]))
        for number in range(min(rows, len(dataset)))
        for turn, message in enumerate(dataset[number]["messages"])
    ]
    return DatasetTable(turns, len(dataset))


STOPPED, CUT = "■", "✂"


@dataclass(frozen=True)
class AnswerTable:
    """Texts in rows and columns: an escaped HTML table in a page, plain text elsewhere.

    What cannot be seen is shown by its code: see `wording.visible`.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(map(visible, self.columns)))
        object.__setattr__(self, "rows", tuple(tuple(map(visible, row)) for row in self.rows))

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.columns)
        body = "\n".join(
            "<tr>" + "".join(map(_cell, self.columns, row)) + "</tr>" for row in self.rows
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


def _cell(column: str, text: str) -> str:
    """A cell that knows its column: on a phone the cells of a row stand below one another."""
    style = "text-align: left; vertical-align: top; white-space: pre-wrap"
    return f'<td data-column="{html.escape(column)}" style="{style}">{html.escape(text)}</td>'


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
