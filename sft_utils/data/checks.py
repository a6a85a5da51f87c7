"""Every row, checked before anything is trained: roles, order, markup, length. Chapter 05."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..chat import (
    ChatTemplateError,
    Messages,
    conversation_ids,
    half_character,
    ids_of,
    markup_tokens,
    text_problems,
)
from ..wording import INVISIBLE, names_of, short
from .readers import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")

# What a turn may hold besides its content, and what would be lost with it.
_MORE_CONTENT = (
    "tool_calls",
    "function_call",
    "tools",
    "functions",
    "reasoning_content",
    "thinking",
)


def check_rows(
    dataset: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Raise `DataError` unless every row can be trained on. Explained in chapter 05.

    A row is good if it has ``messages``, each turn has a role of `ROLES` and some text, and the
    turns come in the order of a conversation: at most one system turn, and that first; then a
    user's; never two of the user or two of the assistant in a row; and the assistant's last. With
    ``tokenizer``, no text may be read as markup (see `text_problems`). With ``max_length`` too (in
    tokens), a rendered row must fit: trainers cut what is too long, and what they cut is the
    answer. ``template_kwargs`` are variables of the chat template.

    The error lists the first five bad rows, counted from 0, with turn, value and remedy.
    """
    if max_length is not None and tokenizer is None:
        raise ValueError("max_length is counted in tokens: give the tokenizer as well.")
    markup = markup_tokens(tokenizer) if tokenizer is not None else {}
    problems = problems_of(
        (
            partial(row_problem, row, tokenizer, max_length, markup, template_kwargs)
            for row in dataset
        ),
        lambda row: f"row {row}",
    )
    if problems is None:
        raise DataError("The data set has no rows.")
    if problems:
        raise DataError(problems)


def problems_of(
    checks: Iterable[Callable[[], str | None]], place: Callable[[int], str]
) -> str | None:
    """The first five bad rows, a line each, and how many more; None if there is no row at all."""
    lines: list[str] = []
    bad, row = 0, -1
    for row, check in enumerate(checks):
        problem = check()
        if problem:
            bad += 1
            if bad <= 5:
                lines.append(place(row) + problem)
    if row < 0:
        return None
    if bad > 5:
        lines.append(f"... and {bad - 5} more bad rows")
    return "\n".join(lines)


def row_problem(
    row: Any,
    tokenizer: Any,
    max_length: int | None,
    markup: Mapping[str, int] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str | None:
    """The first problem of a row, or None."""
    if not isinstance(row, Mapping) or "messages" not in row:
        what = f"the columns {names_of(row)}" if isinstance(row, Mapping) else short(row)
        return (
            f" has no `messages`, but {what}. Build one for each row: "
            '[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}].'
        )
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        return f": `messages` is {short(messages)}. It must be a list of turns."
    for turn, message in enumerate(messages):
        problem = _turn_problem(message)
        if problem:
            return f", turn {turn}: {problem}"
    problem = _order_problem([message["role"] for message in messages])
    if problem or tokenizer is None:
        return problem
    texts = [message["content"] for message in messages]
    if max_length is not None:
        problem = _beginning_problem(tokenizer, max(texts, key=len), max_length)
        if problem:
            return problem
    for turn, problem in enumerate(text_problems(tokenizer, texts, markup)):
        if problem:
            return f", turn {turn}: the content of the {messages[turn]['role']} {problem}"
    if max_length is None:
        return None
    return _length_problem(tokenizer, messages, max_length, template_kwargs)


def _beginning_problem(tokenizer: Any, text: str, max_length: int) -> str | None:
    """Refuse a text of a million characters by its beginning, without reading all of it."""
    start = text[: 64 * max_length]
    if len(start) == len(text) or half_character(start):
        return None
    # The cut may lie within a token, and leave it in as many pieces as it has characters.
    pieces = max(map(len, tokenizer.get_vocab()))
    if len(ids_of(tokenizer, [start])[0]) <= max_length + pieces:
        return None
    return (
        f" has more than max_length={max_length} tokens: the first {len(start)} characters of "
        f"{short(start)} alone do. Shorten or drop the row."
    )


def _length_problem(
    tokenizer: Any, messages: Messages, max_length: int, kwargs: Mapping[str, Any] | None
) -> str | None:
    try:
        length = len(conversation_ids(tokenizer, messages, kwargs))
    except ChatTemplateError as error:
        return f": {error}"
    if length <= max_length:
        return None
    return (
        f" has {length} tokens, more than max_length={max_length}, so the end of "
        f"{short(messages[-1]['content'])} would be cut off. "
        f"Raise max_length to {length}, or shorten or drop the row."
    )


def _turn_problem(message: Any) -> str | None:
    if not isinstance(message, Mapping) or "role" not in message:
        return f"{short(message)} is not a turn. It needs `role` and `content`."
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        return f"unknown role {short(role)}. Use one of: {', '.join(ROLES)}."
    for key in _MORE_CONTENT:
        if message.get(key):
            return (
                f"the {role} has `{key}`: {short(message[key])}. Only the content is checked and "
                "learned. Write it into the content as the model shall write it, or drop the row."
            )
    if "content" not in message:
        return f"{short(message)} is not a turn. It needs `role` and `content`."
    for key in ("weight", "train"):
        if role == "assistant" and message.get(key, 1) not in (None, 1):
            return (
                f"the assistant has `{key}`: {short(message[key])}, but every answer is learned "
                "in full. Drop the row, or end it before this answer."
            )
    if not isinstance(content, str):
        return (
            f"the content of the {role} is {short(content)}, of type {type(content).__name__}. "
            "It must be text."
        )
    if all(unicodedata.category(letter) in ("Zs", *INVISIBLE) for letter in content):
        return f"the content of the {role} is empty ({short(content)}). Fill it or drop the row."
    half = half_character(content)
    return f"the content of the {role} {half}" if half else None


def _order_problem(roles: list[str]) -> str | None:
    """Why turns in this order cannot be right, or None."""
    if "assistant" not in roles:
        only = ", ".join(sorted(set(roles)))
        return f" has no assistant turn, only {only}: nothing to learn. Add the answer or drop it."
    if "system" in roles[1:]:
        turn = roles.index("system", 1)
        return (
            f", turn {turn}: a system turn after the first place. Some chat templates drop it, "
            "others refuse it. Join it to the first turn, or drop the row."
        )
    first = int(roles[0] == "system")
    if roles[first] != "user":
        return (
            f", turn {first}: the first to speak is the {roles[first]}. A model is always asked "
            "first, and many chat templates refuse anything else. Put the user's turn before it, "
            "or drop this turn."
        )
    for turn, (before, role) in enumerate(pairwise(roles), 1):
        if before == role and role in ("user", "assistant"):
            return (
                f", turn {turn}: two turns of the {role} in a row. The model would learn a turn "
                "that never comes so in use, and many chat templates refuse it. Join the two."
            )
    if roles[-1] != "assistant":
        return (
            f", turn {len(roles) - 1}: the last turn is the {roles[-1]}'s, and its answer is "
            "missing: nothing is learned from it. Add the answer, or drop this turn."
        )
    return None
