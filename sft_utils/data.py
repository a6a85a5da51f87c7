"""Chat data: load it, check every row, show it, and see which tokens carry loss.

Explained in chapter 05.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import html
import io
import json
import math
import re
import reprlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_utils.environment import hub_offline, hub_reachable, hub_remedy
from sft_utils.models import PROBE, special_tokens

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")

# The columns of each shape that a row may have. Any of them may have `system` beside it.
_SHAPES = (("messages",), ("conversations",), ("prompt", "completion"), ("user", "assistant"))

_COLUMNS = ("messages", "prompt", "completion", "system", "conversations")

# Who speaks, in the words of ShareGPT. Other names are left as they are, and refused by the check.
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}

# What a turn may hold besides its content, and what would be lost with it.
_MORE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "thinking")

_FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")

Messages = list[dict[str, Any]]


class DataError(ValueError):
    """A data set, or a row of it, cannot be used. The message names the place and the remedy."""


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
    found = _find(source, split, revision)
    columns = columns or {}
    _check_columns(found, columns)
    problems = _problems(
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


class _Found(NamedTuple):
    """Rows as they were read: a list or a `Dataset`, and for a text file the line of each."""

    name: str
    rows: Any
    lines: list[int] | None = None
    version: str = ""

    def place(self, row: int) -> str:
        line = f" (line {self.lines[row]})" if self.lines else ""
        return f"{self.name}, row {row}{line}"


def _find(source: str | Path, split: str, revision: str | None) -> _Found:
    name = str(source)
    if name == "atlas-sft-data":
        from sft_utils import atlas

        source = atlas.sft_data_path()
    path = Path(source).expanduser()
    if path.is_file():
        if revision is not None:
            raise DataError(
                f"revision={revision!r} was given with the file {path.name}: only a data set on "
                "the Hub has revisions. Leave it out."
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return _read_file(path)._replace(version=f"sha256 {digest[:16]}")
    if (
        isinstance(source, Path)
        or path.suffix.lower() in _FILE_KINDS
        or name.startswith((".", "/", "~"))
    ):
        raise DataError(
            f"There is no data file {name!r}. Check the path (relative paths start at "
            f"{Path.cwd()}), or give the name of a data set on the Hub, such as 'owner/data'."
        )
    rows, commit = _read_hub(name, split, revision)
    return _Found(name, rows, version=f"commit {commit}" if commit else "")


def _read_file(path: Path) -> _Found:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _Found(path.name, _parquet_rows(path))
    if kind not in _FILE_KINDS:
        raise DataError(f"{path.name} is of no known kind. Use one of: {', '.join(_FILE_KINDS)}.")
    text = _read_text(path)
    if kind == ".csv":
        pairs = _csv_rows(path, text)
    elif kind == ".jsonl":
        # Not splitlines(): a string may hold U+2028, which is no end of a line here.
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        remedy = "Each line must hold one whole JSON object."
        pairs = [
            (number, _json(f"{path.name}, row {row} (line {number})", line, remedy))
            for row, (number, line) in enumerate(lines)
        ]
    else:
        remedy = "Save one list of rows; or if each line is an object, call the file .jsonl."
        rows = _json(path.name, text, remedy)
        if not isinstance(rows, list):
            raise DataError(
                f"{path.name} holds one JSON {type(rows).__name__}, {_short(rows)}, not a list. "
                "Put the rows into a list: [{...}, {...}]."
            )
        return _Found(path.name, rows)
    return _Found(path.name, [row for _, row in pairs], [line for line, _ in pairs])


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path.name} is in UTF-16. Save it in UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name}, line {line}: the byte {data[error.start : error.start + 1]!r} is not "
            "UTF-8. Save the file in UTF-8."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _json(place: str, text: str, remedy: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DataError(f"{place}: {_short(text)} is nested too deeply. Flatten it.") from error
    except ValueError as error:  # json's own, and Python's for a number of 5,000 digits
        reason = _cut(str(error))
        if isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno}, " if "\n" in text else ""
            reason = f"{error.msg} at {line}column {error.colno}"
        raise DataError(
            f"{place}: {_short(text)} is not valid JSON ({reason}). {remedy}"
        ) from error


def _csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    """The rows under the header, each with the line that it starts on."""
    reader = csv.reader(io.StringIO(text), strict=True)
    limit = csv.field_size_limit(len(text) + 1)  # a long answer is no error
    try:
        records = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise DataError(
            f"{path.name}, line {reader.line_num}: {error}. Put a cell with a quote, a comma or a "
            'line break between double quotes, and double the quotes in it: "so ""quoted"" here".'
        ) from error
    finally:
        csv.field_size_limit(limit)
    starts = [1, *(end + 1 for end, _ in records)]
    table = [(start, cells) for start, (_, cells) in zip(starts, records, strict=False) if cells]
    if not table:
        return []
    header = table.pop(0)[1]
    if len(set(header)) < len(header):
        raise DataError(f"{path.name} has a column twice: {_names(header)}. Rename one of them.")
    for row, (line, cells) in enumerate(table):
        if len(cells) != len(header):
            raise DataError(
                f"{path.name}, row {row} (line {line}): {len(cells)} in place of {len(header)} "
                f"cells ({_names(header)}). Add what is missing, or put a cell that has a comma "
                "between double quotes."
            )
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in table]


def _parquet_rows(path: Path) -> list[Any]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        return pq.ParquetFile(path).read().to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path.name} cannot be read as Parquet: {_cut(str(error))}. Is it whole? "
            "Copy or save it again."
        ) from error


def _read_hub(name: str, split: str, revision: str | None) -> tuple[Dataset, str | None]:
    """The rows, and the commit that they are of; None if they did not come by way of the cache."""
    from datasets import load_dataset
    from huggingface_hub import HfApi, constants

    reachable, commit = hub_reachable(), None
    try:
        if reachable or revision is not None:
            # Asked for itself, because load_dataset answers any refusal with what it has.
            commit = (
                HfApi()
                .resolve_revision(
                    name, repo_type="dataset", revision=revision, local_files_only=not reachable
                )
                .resolved
            )
        with hub_offline(not reachable):
            dataset = load_dataset(name, split=split, revision=commit)
        if dataset.cache_files:
            found = Path(dataset.cache_files[0]["filename"]).parent.name
            if commit not in (None, found):
                raise FileNotFoundError(f"commit {commit} cannot be had, and the cache has {found}")
            commit = found
        return dataset, commit
    except Exception as error:
        reason = f"{type(error).__name__}: {_cut(str(error), 600)}"
        if reachable:
            copy = Path(constants.HF_HUB_CACHE, "datasets--" + name.replace("/", "--"))
            remedy = hub_remedy(error, name, "data set") or (
                "Check both names. If it is gated, accept its terms at "
                f"{constants.ENDPOINT}/datasets/{name} and log in with `hf auth login`. If a file "
                f"of it is damaged, delete {copy} to download it anew."
            )
            raise DataError(
                f"Cannot load the data set {name!r}, split {split!r}, from the Hub: {remedy}\n"
                f"{reason}"
            ) from error
        raise DataError(
            f"Cannot load the data set {name!r}: it is no local file, it is not in the cache, and "
            "the Hub cannot be reached. Ways out: connect to the network; set HF_HOME to a cache "
            "that holds it; set SFT_PROFILE=atlas for the data that ships with the book; or give "
            f"the path of a local .jsonl file.\n{reason}"
        ) from error


# --- Shapes of rows --------------------------------------------------------------------------


def _check_columns(found: _Found, columns: Mapping[str, str]) -> None:
    """Raise unless ``columns`` maps names of ours to columns that the data has."""
    if not columns:
        return
    there = (
        {str(name) for row in found.rows if isinstance(row, Mapping) for name in row}
        if isinstance(found.rows, list)
        else set(found.rows.column_names)
    )
    for ours, theirs in columns.items():
        if ours not in _COLUMNS:
            raise DataError(
                f"columns: {_short(ours)} is no name that is known here{_nearest(ours, _COLUMNS)}. "
                f"Known: {', '.join(_COLUMNS)}."
            )
        if theirs not in there:
            raise DataError(
                f"{found.name} has no column {_short(theirs)}, which `columns` gives for {ours!r}"
                f"{_nearest(theirs, there)}. It has: {_names(sorted(there))}."
            )
    if len(set(columns.values())) < len(columns) or len(_named_shapes(columns)) > 1:
        raise DataError(
            f"columns={_short(dict(columns))} describes no row: give `messages`, or "
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
        raise DataError(f" is {_short(row)}. It must be an object with columns.")
    shapes = [
        shape
        for shape in _named_shapes(columns) or _SHAPES
        if all(columns.get(name, name) in row for name in shape)
    ]
    if len(shapes) > 1:  # where rows differ, a table has an empty cell for what a row lacks
        shapes = [s for s in shapes if all(row[columns.get(n, n)] is not None for n in s)] or shapes
    if not shapes:
        raise DataError(
            f" is of no known shape; its columns: {_names(row)}. It needs `messages`, or "
            "`conversations`, or `prompt` and `completion`. Rename them, or say what they are "
            'called: columns={"prompt": ..., "completion": ...}.'
        )
    if len(shapes) > 1:
        raise DataError(
            f" is of two shapes at once: {' and '.join(' + '.join(shape) for shape in shapes)}; "
            f"its columns: {_names(row)}. Say which counts, as in "
            f'columns={{"{shapes[0][0]}": "{shapes[0][0]}"}}, or drop the others.'
        )
    parts = [row[columns.get(name, name)] for name in shapes[0]]
    if len(parts) == 1:
        turns = parts[0]
        if not isinstance(turns, list) or not turns:
            column = columns.get(shapes[0][0], shapes[0][0])
            raise DataError(f": `{column}` is {_short(turns)}. It must be a list of turns.")
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
            f" has two system messages: {_short(system)} in a column, and as its first turn "
            f"{_short(first.get('content'))}. Drop one of them."
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
    return _row_problem({"messages": turns}, None, None)


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
    problems = _problems(
        (partial(_row_problem, row, tokenizer, max_length, markup) for row in dataset),
        lambda row: f"row {row}",
    )
    if problems is None:
        raise DataError("The data set has no rows.")
    if problems:
        raise DataError(problems)


def _problems(
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


def _row_problem(
    row: Any, tokenizer: Any, max_length: int | None, markup: Mapping[str, int] | None = None
) -> str | None:
    """The first problem of a row, or None."""
    if not isinstance(row, Mapping) or "messages" not in row:
        what = f"the columns {_names(row)}" if isinstance(row, Mapping) else _short(row)
        return (
            f" has no `messages`, but {what}. Build one for each row: "
            '[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}].'
        )
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        return f": `messages` is {_short(messages)}. It must be a list of turns."
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
    if len(start) == len(text) or _half_character(start):
        return None
    # The cut may lie within a token, and leave it in as many pieces as it has characters.
    pieces = max(map(len, tokenizer.get_vocab()))
    if len(_ids(tokenizer, [start])[0]) <= max_length + pieces:
        return None
    return (
        f" has more than max_length={max_length} tokens: the first {len(start)} characters of "
        f"{_short(start)} alone do. Shorten or drop the row."
    )


def _length_problem(tokenizer: Any, messages: Messages, max_length: int) -> str | None:
    from jinja2 import TemplateError

    try:
        length = len(_token_ids(tokenizer, messages))
    except TemplateError as error:
        return (
            f" is refused by the chat template: {_cut(str(error))}. Change or drop the row, or "
            "choose another template."
        )
    if length <= max_length:
        return None
    return (
        f" has {length} tokens, more than max_length={max_length}, so the end of "
        f"{_short(messages[-1]['content'])} would be cut off. "
        f"Raise max_length to {length}, or shorten or drop the row."
    )


def _turn_problem(message: Any) -> str | None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        return f"{_short(message)} is not a turn. It needs `role` and `content`."
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"unknown role {_short(role)}. Use one of: {', '.join(ROLES)}."
    for key in _MORE_CONTENT:
        if message.get(key):
            return (
                f"the {role} has `{key}`: {_short(message[key])}. Only the content is checked and "
                "learned. Write it into the content as the model shall write it, or drop the row."
            )
    for key in ("weight", "train"):
        if role == "assistant" and message.get(key, 1) not in (None, 1):
            return (
                f"the assistant has `{key}`: {_short(message[key])}, but every answer is learned "
                "in full. Drop the row, or end it before this answer."
            )
    if not isinstance(content, str):
        return (
            f"the content of the {role} is {_short(content)}, of type {type(content).__name__}. "
            "It must be text."
        )
    if all(unicodedata.category(letter) in ("Zs", *_HIDDEN) for letter in content):
        return f"the content of the {role} is empty ({_short(content)}). Fill it or drop the row."
    half = _half_character(content)
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
    vocabulary has a place, such as ``<think>`` in the answers of Qwen3. Explained in chapter 02.
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
    letters spell a special token too. Nor may it hold half a character. Explained in chapter 02.
    """
    markup = markup_tokens(tokenizer) if markup is None else markup
    by_id = {number: token for token, number in markup.items()}
    # An unknown character is no markup, unless one token plays several parts.
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        by_id.pop(tokenizer.unk_token_id, None)
    halves = [_half_character(text) for text in texts]
    whole = [text if half is None else "" for text, half in zip(texts, halves, strict=True)]
    problems = []
    for text, half, ids in zip(texts, halves, _ids(tokenizer, whole), strict=True):
        written = next((token for token in markup if token in text), None)
        read = next((by_id[number] for number in ids if number in by_id), None)
        if half or not (written or read):
            problems.append(half)
            continue
        how = "contains" if written else "becomes, once the tokenizer has normalized it,"
        problems.append(
            f"{how} {written or read!r}, a special token of the tokenizer, in "
            f"{_short(text)}. Remove it: the model would read it as markup."
        )
    return problems


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text by itself; no warning that it is longer than some model's context."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def _half_character(text: str) -> str | None:
    """Why a text cannot be written down, or None. JSON can spell one half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"contains {text[error.start]!r}, half a character that cannot be written in UTF-8, "
            f"in {_short(text)}. Remove it, or make the file again from its source."
        )
    return None


def _short(value: Any, width: int = 60) -> str:
    """A value as Python writes it, cut before it is written: it may be huge, or very deep."""
    if isinstance(value, str):
        return _cut(repr(value[:width]) + "..." * (len(value) > width), width)
    short = reprlib.Repr()
    short.maxstring = short.maxother = width
    return _cut(short.repr(value), width)


def _cut(text: str, width: int = 200) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _names(columns: Iterable[Any]) -> str:
    """The names of columns, of which there may be many, long and of any type."""
    names = [repr(str(name)[:60])[1:-1] for name in islice(columns, 30)]
    return _cut(", ".join(names)) or "none"


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
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def _visible(text: str) -> str:
    return re.sub(
        r"[^\n\t -~]",
        lambda found: (
            found[0].encode("unicode_escape").decode()
            if unicodedata.category(found[0]) in _HIDDEN
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
        len(_token_ids(tokenizer, messages, template_kwargs)) for messages in dataset["messages"]
    ]
    return pd.Series(lengths, name="tokens").rename_axis("row")


def _token_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template_kwargs: dict[str, Any] | None = None,
) -> list[int]:
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, **(template_kwargs or {})
    )
    return encoded["input_ids"]


def near_duplicates(dataset: Dataset, threshold: float = 0.8) -> pd.DataFrame:
    """Return the pairs of rows that say nearly the same, most similar first.

    The text of a row is that of its user and assistant turns, without case and punctuation;
    similarity is the Jaccard index of the two sets of three-word runs, between 0 and 1, and pairs
    of at least ``threshold`` (above 0) are returned. Columns: ``row``, ``other``, ``similarity``,
    ``text``, ``other_text``. Explained in chapter 05.

    The result is exact, yet few pairs are compared: two sets as similar as ``threshold`` cannot
    but share one of their rarest members (prefix filtering, Chaudhuri et al., 2006).
    """
    import pandas as pd

    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: it must lie above 0 and be at most 1.")
    texts = [
        " ".join(m["content"] for m in messages if m["role"] in ("user", "assistant"))
        for messages in dataset["messages"]
    ]
    runs = [_word_runs(text) for text in texts]
    frequency = Counter(run for row in runs for run in row)
    holders: dict[str, list[int]] = defaultdict(list)
    found = []
    for row, own in enumerate(runs):
        rarest = sorted(own, key=lambda run: (frequency[run], run))
        prefix = rarest[: len(own) - math.ceil(threshold * len(own)) + 1]
        for other in sorted({other for run in prefix for other in holders[run]}):
            similarity = len(own & runs[other]) / len(own | runs[other])
            if similarity >= threshold:
                found.append((other, row, similarity, texts[other], texts[row]))
        for run in prefix:
            holders[run].append(row)
    found.sort(key=lambda pair: (-pair[2], pair[:2]))
    return pd.DataFrame(found, columns=["row", "other", "similarity", "text", "other_text"])


def _word_runs(text: str, length: int = 3) -> set[str]:
    words = re.findall(r"\w+", text.casefold())
    return {" ".join(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}


def exact_duplicates(dataset: Dataset) -> list[tuple[int, int]]:
    """Return (row, earlier row) for every row whose turns are exactly those of an earlier one.

    The earlier one is the first of its kind, so the length is the number of rows that add nothing
    new. `near_duplicates` finds those that differ a little. Explained in chapter 05.
    """
    first: dict[str, int] = {}
    found = []
    for row, messages in enumerate(dataset["messages"]):
        key = json.dumps([(message["role"], message["content"]) for message in messages])
        if first.setdefault(key, row) != row:
            found.append((row, first[key]))
    return found


def leaked(dataset: Dataset, questions: Iterable[Any]) -> list[tuple[int, str]]:
    """Return (row, question) for every question that a user of that row asks in the same words.

    Case, white space and punctuation do not count. A question is a string or has its ``text``, as
    a `sft_utils.profiles.Question` has. Explained in chapter 05.
    """
    asked: dict[str, list[str]] = defaultdict(list)
    for question in questions:
        text = getattr(question, "text", question)
        if text not in asked[_same(text)]:
            asked[_same(text)].append(text)
    return [
        (row, question)
        for row, messages in enumerate(dataset["messages"])
        for words in dict.fromkeys(_same(m["content"]) for m in messages if m["role"] == "user")
        for question in asked.get(words, ())
    ]


def _same(text: str) -> str:
    """A text without case, punctuation and white space at will; only these, if it is all of it."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(c)[0] in "PZC" else c for c in plain)
    return " ".join(kept.split()) or text.strip()
