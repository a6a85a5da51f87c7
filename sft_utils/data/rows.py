"""Chat rows of any common shape (ShareGPT, prompt and completion) as ``messages``. Chapter 05."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat import Messages
from ..wording import names_of, short
from .checks import problems_of, row_problem
from .readers import DataError, Rows, find_rows

if TYPE_CHECKING:
    from datasets import Dataset

# The columns of each shape that a row may have. Any of them may have `system` beside it.
_SHAPES = (("messages",), ("conversations",), ("prompt", "completion"), ("user", "assistant"))

COLUMNS = ("messages", "prompt", "completion", "system", "conversations")

# Who speaks, in the words of ShareGPT. Other names are left as they are, and refused by the check.
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}


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
