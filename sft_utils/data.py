"""Chat data: load it, check every row, show it, and see which tokens carry loss.

Explained in chapter 05.
"""

from __future__ import annotations

import difflib
import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_utils.models import PROBE, special_tokens
from sft_utils.sources import DataError, Rows, cut, find_rows, names_of, short

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")

# The columns of each shape that a row may have. Any of them may have `system` beside it.
_SHAPES = (("messages",), ("conversations",), ("prompt", "completion"), ("user", "assistant"))

COLUMNS = ("messages", "prompt", "completion", "system", "conversations")

# Who speaks, in the words of ShareGPT. Other names are left as they are, and refused by the check.
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}

# What a turn may hold besides its content, and what would be lost with it.
_MORE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "thinking")

Messages = list[dict[str, Any]]


class LossToken(NamedTuple):
    """One token of a rendered conversation."""

    text: str
    id: int
    carries_loss: bool


# --- Loading ---------------------------------------------------------------------------------


def load_sft_dataset(
    source: str | Path,
    *,
    split: str = "train",
    rows: int | None = None,
    seed: int | None = None,
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Dataset:
    """Load chat rows of any common shape and check them. Explained in chapter 05.

    ``source`` is ``"atlas-sft-data"``, a local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``
    file, or the name of a data set on the Hub. ``split`` and ``revision`` are the Hub's. A row has

    - ``messages``: a list of ``{"role": ..., "content": ...}``; or
    - ``conversations``: the same, or the ``{"from": "human", "value": ...}`` of ShareGPT; or
    - ``prompt`` and ``completion``, or ``user`` and ``assistant``: two texts, or two lists of
      turns; every assistant's turn is learned then, those in the prompt too;

    and, if you like, ``system``: a text that goes before the turns. ``columns`` says how the data
    calls these, as in ``{"prompt": "question", "completion": "answer"}``, and which of two shapes
    counts. The result has one column, ``messages``, whose turns have a role and a content.

    ``rows`` keeps the first so many, or with ``seed`` a random sample of that size.
    `resolved_version` tells which version of the data the result was made from.

    Raises `DataError` if the data cannot be found or read, if it lacks a column of ``columns``, or
    for a bad row (see `check_rows`), by file, row, and line where a file has lines.
    """
    from datasets import Dataset, Features, Value

    if rows is not None and rows < 1:
        raise DataError(f"rows={rows}: ask for at least one row, or for all with rows=None.")
    found = find_rows(source, split, revision)
    columns = columns or {}
    _check_columns(found, columns)
    problems = problems_of(
        (partial(_loaded_row_problem, row, columns) for row in found.rows), found.place
    )
    if problems is None:
        raise DataError(f"{found.name} has no rows. Is this the file or the split that you mean?")
    if problems:
        raise DataError(problems)

    features = Features({"messages": [{"role": Value("string"), "content": Value("string")}]})
    convert = partial(_plain_row, columns=columns)
    is_list = isinstance(found.rows, list)
    dataset = (
        Dataset.from_list([convert(row) for row in found.rows], features=features)
        if is_list
        else found.rows
    )
    dataset.info.description = found.version  # goes along with every part of it
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    if rows is not None:
        dataset = dataset.select(range(min(rows, len(dataset))))
    if is_list:
        return dataset
    return dataset.map(
        convert,
        features=features,
        remove_columns=dataset.column_names,
        keep_in_memory=True,
        load_from_cache_file=False,  # the cache would not see a change of this module
    )


def resolved_version(dataset: Dataset) -> str:
    """Return which version of its source a data set of `load_sft_dataset` was made from.

    ``commit`` and the commit on the Hub, for a file ``sha256`` and the beginning of its sum, and
    an empty string if neither is known. Explained in chapters 01 and 05.
    """
    return dataset.info.description


# --- Shapes of rows --------------------------------------------------------------------------


def _check_columns(found: Rows, columns: Mapping[str, str]) -> None:
    """Raise unless ``columns`` maps names of ours to columns that the data has."""
    if not columns:
        return
    there = (
        {str(name) for row in found.rows if isinstance(row, Mapping) for name in row}
        if isinstance(found.rows, list)
        else set(found.rows.column_names)
    )
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise DataError(
                f"columns: {short(ours)} is no name that is known here{_nearest(ours, COLUMNS)}. "
                f"Known: {', '.join(COLUMNS)}."
            )
        if theirs not in there:
            raise DataError(
                f"{found.name} has no column {short(theirs)}, which `columns` gives for {ours!r}"
                f"{_nearest(theirs, there)}. It has: {names_of(sorted(there))}."
            )
    if len(set(columns.values())) < len(columns) or len(_named_shapes(columns)) > 1:
        raise DataError(
            f"columns={short(dict(columns))} describes no row: give `messages`, or "
            "`conversations`, or `prompt` and `completion`, and to each a column of its own."
        )


def _nearest(name: str, names: Iterable[str]) -> str:
    short = [other for other in names if len(other) <= 100]
    found = difflib.get_close_matches(name[:100], sorted(short), n=1, cutoff=0)
    return f"; the nearest is {found[0]!r}" if found else ""


def _named_shapes(columns: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [shape for shape in _SHAPES if not columns.keys().isdisjoint(shape)]


def _turns(row: Any, columns: Mapping[str, str]) -> Any:
    """The turns of a row of any shape, not checked. Raises `DataError` if the shape is not clear.

    The message goes behind the place of the row.
    """
    if not isinstance(row, Mapping):
        raise DataError(f" is {short(row)}. It must be an object with columns.")
    shapes = [
        shape
        for shape in _named_shapes(columns) or _SHAPES
        if all(columns.get(name, name) in row for name in shape)
    ]
    if len(shapes) > 1:  # where rows differ, a table has an empty cell for what a row lacks
        shapes = [s for s in shapes if all(row[columns.get(n, n)] is not None for n in s)] or shapes
    if not shapes:
        raise DataError(
            f" is of no known shape; its columns: {names_of(row)}. It needs `messages`, or "
            "`conversations`, or `prompt` and `completion`. Rename them, or say what they are "
            'called: columns={"prompt": ..., "completion": ...}.'
        )
    if len(shapes) > 1:
        raise DataError(
            f" is of two shapes at once: {' and '.join(' + '.join(shape) for shape in shapes)}; "
            f"its columns: {names_of(row)}. Say which counts, as in "
            f'columns={{"{shapes[0][0]}": "{shapes[0][0]}"}}, or drop the others.'
        )
    parts = [row[columns.get(name, name)] for name in shapes[0]]
    if len(parts) == 1:
        turns = parts[0]
        if not isinstance(turns, list) or not turns:
            column = columns.get(shapes[0][0], shapes[0][0])
            raise DataError(f": `{column}` is {short(turns)}. It must be a list of turns.")
    else:
        turns = [
            turn
            for role, part in zip(("user", "assistant"), parts, strict=True)
            for turn in (part if isinstance(part, list) else [{"role": role, "content": part}])
        ]
    turns = [_turn(turn) for turn in turns]
    system = row.get(columns.get("system", "system"))
    if system is None or system == "":
        return turns
    first = turns[0] if isinstance(turns[0], Mapping) else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": system}, *turns]
    if first.get("content") != system:
        raise DataError(
            f" has two system messages: {short(system)} in a column, and as its first turn "
            f"{short(first.get('content'))}. Drop one of them."
        )
    return turns


def _turn(turn: Any) -> Any:
    """A turn with ``role`` and ``content``, if it had ``from`` and ``value``."""
    if not isinstance(turn, Mapping) or turn.get("role") is not None or "from" not in turn:
        return turn
    speaker = turn["from"]
    role = _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {**turn, "role": role, "content": turn.get("value")}


def _loaded_row_problem(row: Any, columns: Mapping[str, str]) -> str | None:
    try:
        turns = _turns(row, columns)
    except DataError as error:
        return str(error)
    return row_problem({"messages": turns}, None, None)


def _plain_row(row: Any, columns: Mapping[str, str]) -> dict[str, Messages]:
    """A checked row as it is kept: role and content of each turn, nothing else."""
    turns = _turns(row, columns)
    return {"messages": [{"role": turn["role"], "content": turn["content"]} for turn in turns]}


# --- Checking --------------------------------------------------------------------------------


def check_rows(
    dataset: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
) -> None:
    """Raise `DataError` unless every row can be trained on. Explained in chapter 05.

    A row is good if it has ``messages``, each turn has a role of `ROLES` and some text, and the
    turns come in the order of a conversation: at most one system turn, and that first; then a
    user's; never two of the user or two of the assistant in a row; and the assistant's last. With
    ``tokenizer``, no text may be read as markup (see `text_problems`). With ``max_length`` too (in
    tokens), a rendered row must fit: trainers cut what is too long, and what they cut is the
    answer.

    The error lists the first five bad rows, counted from 0, with turn, value and remedy.
    """
    if max_length is not None and tokenizer is None:
        raise ValueError("max_length is counted in tokens: give the tokenizer as well.")
    markup = markup_tokens(tokenizer) if tokenizer is not None else {}
    problems = problems_of(
        (partial(row_problem, row, tokenizer, max_length, markup) for row in dataset),
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
    row: Any, tokenizer: Any, max_length: int | None, markup: Mapping[str, int] | None = None
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
    return _length_problem(tokenizer, messages, max_length) if max_length is not None else None


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


def _length_problem(tokenizer: Any, messages: Messages, max_length: int) -> str | None:
    from jinja2 import TemplateError

    try:
        length = len(conversation_ids(tokenizer, messages))
    except TemplateError as error:
        return (
            f" is refused by the chat template: {cut(str(error))}. Change or drop the row, or "
            "choose another template."
        )
    if length <= max_length:
        return None
    return (
        f" has {length} tokens, more than max_length={max_length}, so the end of "
        f"{short(messages[-1]['content'])} would be cut off. "
        f"Raise max_length to {length}, or shorten or drop the row."
    )


def _turn_problem(message: Any) -> str | None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        return f"{short(message)} is not a turn. It needs `role` and `content`."
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"unknown role {short(role)}. Use one of: {', '.join(ROLES)}."
    for key in _MORE_CONTENT:
        if message.get(key):
            return (
                f"the {role} has `{key}`: {short(message[key])}. Only the content is checked and "
                "learned. Write it into the content as the model shall write it, or drop the row."
            )
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
    if all(unicodedata.category(letter) in ("Zs", *HIDDEN) for letter in content):
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


def markup_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return text and id of every token that is markup: as text, it would be read as that.

    These are the special tokens, and the added tokens with which the chat template opens or ends a
    turn, since not every tokenizer calls these special. Other added tokens are text for which the
    vocabulary has a place, such as ``<think>`` in the answers of Qwen3.
    """
    found = set(special_tokens(tokenizer))
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    plain = {token for token in added - found if re.search(r"[^\w\s]", token)}
    if plain and tokenizer.chat_template:
        found |= _turn_tokens(tokenizer, found | plain)
    ids: Any = tokenizer.convert_tokens_to_ids(sorted(found))
    return dict(zip(sorted(found), ids, strict=True))


def _turn_tokens(tokenizer: Any, tokens: set[str]) -> set[str]:
    """Those of ``tokens`` that stand around the turns of a rendered conversation."""
    from jinja2 import TemplateError

    user, assistant = ({"role": role, "content": PROBE} for role in ("user", "assistant"))

    def first(text: str) -> set[str]:
        places = {token: text.find(token) for token in tokens if token in text}
        return {min(places, key=lambda token: (places[token], -len(token)))} if places else set()

    try:
        asked, prompt, answered = (
            str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened))
            for turns, opened in (([user], False), ([user], True), ([user, assistant], False))
        )
    except TemplateError:  # a template may refuse any conversation it likes
        return set()
    opening, ending = prompt.removeprefix(asked), answered.rpartition(PROBE)[2]
    return {token for token in tokens if token in asked} | first(opening) | first(ending)


def text_problems(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    markup: Mapping[str, int] | None = None,
) -> list[str | None]:
    """Say of each text why it cannot be the content of a turn; None where it can.

    A text may hold no token of ``markup`` (`markup_tokens`, if not given), neither as it is nor
    among the ids that the tokenizer makes of it: some normalize a text first, and then full-width
    letters spell a special token too. Nor may it hold half a character.
    """
    markup = markup_tokens(tokenizer) if markup is None else markup
    by_id = {number: token for token, number in markup.items()}
    # An unknown character is no markup, unless one token plays several parts.
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        by_id.pop(tokenizer.unk_token_id, None)
    halves = [half_character(text) for text in texts]
    whole = [text if half is None else "" for text, half in zip(texts, halves, strict=True)]
    problems = []
    for text, half, ids in zip(texts, halves, ids_of(tokenizer, whole), strict=True):
        written = next((token for token in markup if token in text), None)
        read = next((by_id[number] for number in ids if number in by_id), None)
        if half or not (written or read):
            problems.append(half)
            continue
        how = "contains" if written else "becomes, once the tokenizer has normalized it,"
        problems.append(
            f"{how} {written or read!r}, a special token of the tokenizer, in "
            f"{short(text)}. Remove it: the model would read it as markup."
        )
    return problems


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text by itself; no warning that it is longer than some model's context."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def half_character(text: str) -> str | None:
    """Why a text cannot be written down, or None. JSON can spell one half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"contains {text[error.start]!r}, half a character that cannot be written in UTF-8, "
            f"in {short(text)}. Remove it, or make the file again from its source."
        )
    return None


# --- Showing ---------------------------------------------------------------------------------


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
            f"<tr><td>{row}</td><td>{turn}</td><td>{html.escape(_visible(role))}</td>"
            '<td style="text-align: left; white-space: pre-wrap">'
            f"{html.escape(_visible(content))}</td></tr>"
            for row, turn, role, content in self.turns
        )
        return (
            f'<table class="sft-dataset"><caption>{self.caption}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
        )

    def __repr__(self) -> str:
        lines = [f"{'row':>4} {'turn':>4} {'role':<9} content"]
        for row, turn, role, content in self.turns:
            text = _visible(content).replace("\n", "\n" + " " * 20)  # under its own column
            lines.append(f"{row:>4} {turn:>4} {_visible(role):<9} {text}")
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


# Control characters, formatting (zero width, direction), and the two ends of line that are no \n.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def _visible(text: str) -> str:
    return re.sub(
        r"[^\n\t -~]",
        lambda found: (
            found[0].encode("unicode_escape").decode()
            if unicodedata.category(found[0]) in HIDDEN
            else found[0]
        ),
        text,
    )


# --- Measuring -------------------------------------------------------------------------------


def has_generation_markers(template: str) -> bool:
    """Whether a chat template marks what the assistant wrote. Explained in chapter 05."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def loss_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template_kwargs: dict[str, Any] | None = None,
) -> list[LossToken]:
    """Return each token of a conversation and whether loss falls on it with assistant-only loss.

    What carries loss is what the chat template writes between ``{% generation %}`` and
    ``{% endgeneration %}``. A well-known template without these markers is replaced by TRL's
    version with them, as `SFTTrainer` does. Explained in chapter 05.

    Raises `DataError` if there are no markers and TRL knows no version with them.
    """
    template = tokenizer.chat_template
    name = tokenizer.name_or_path or "this model"
    if not template:
        raise DataError(f"The tokenizer of {name!r} has no chat template. Set one first.")
    if not has_generation_markers(template):
        from trl.chat_template_utils import get_training_chat_template

        try:
            template = get_training_chat_template(tokenizer)
        except ValueError as error:
            raise DataError(
                f"The chat template of {name!r} has no {{% generation %}} markers, so it does not "
                "tell which tokens are the assistant's. Put {% generation %} and "
                "{% endgeneration %} around what the assistant writes, its end token included; "
                "templates/chatml.jinja in this package shows how."
            ) from error
    encoded: Any = tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **(template_kwargs or {}),
    )
    return [
        LossToken(str(tokenizer.decode([token])), token, bool(mask))
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ]


def sequence_lengths(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: dict[str, Any] | None = None,
) -> pd.Series:
    """Return the tokens of every rendered row, counted, by row. Explained in chapter 05."""
    import pandas as pd

    lengths = [
        len(conversation_ids(tokenizer, messages, template_kwargs)) for messages in dataset["messages"]
    ]
    return pd.Series(lengths, name="tokens").rename_axis("row")


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template_kwargs: dict[str, Any] | None = None,
) -> list[int]:
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, **(template_kwargs or {})
    )
    return encoded["input_ids"]
