"""Chat rows of any common shape (ShareGPT, Alpaca, preferences) as ``messages``. Chapter 05."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..chat import Messages
from ..wording import cut, names_of, short
from .checks import problems_of, row_problem
from .readers import DataError, Rows, find_rows

if TYPE_CHECKING:
    from datasets import Dataset


class Shape(NamedTuple):
    """Columns that rows are known by: all turns in one, or what is asked and what is answered."""

    name: str
    answer: str
    question: str = ""
    more: tuple[str, ...] = ()  # joined to the question where it is there: a text to work on

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row of this shape must have."""
        return (self.question, self.answer) if self.question else (self.answer,)


_TEXTS = ("input", "context")
PREFERENCE = "preference rows"
SHAPES = (
    Shape("rows of turns", "messages"),
    Shape("rows of turns", "conversations"),
    Shape("rows of turns", "conversation"),
    Shape("Alpaca rows", "output", "instruction", _TEXTS),
    Shape("Dolly rows", "response", "instruction", _TEXTS),
    Shape("rows of question and answer", "answer", "question", _TEXTS),
    Shape("rows of question and response", "response", "question", _TEXTS),
    Shape("rows of prompt and completion", "completion", "prompt"),
    Shape("rows of prompt and response", "response", "prompt"),
    Shape("rows of query and response", "response", "query"),
    Shape("rows of user and assistant", "assistant", "user"),
    Shape("rows of input and output", "output", "input"),
    Shape("rows of inputs and targets", "targets", "inputs"),
    Shape("rows of problem and solution", "solution", "problem"),
    Shape(PREFERENCE, "chosen", "prompt"),
    Shape(PREFERENCE, "chosen", "question"),
    Shape(PREFERENCE, "chosen"),
)
_UNPAIRED = ("prompt", "completion")  # rows for KTO are these and a label
_SYSTEM = ("system", "system_prompt", "system_message")

# What an answer depends on besides the texts, and what would be lost with it.
_TOOLS = ("tools", "tool_calls", "functions", "function_call")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_DEPENDS = (*_TOOLS, "history", *_MEDIA)
_LOST = (
    "The answer may depend on it, and only roles and texts are learned. Write it into a turn as "
    "the model shall read it, or drop these rows."
)

COLUMNS = ("messages", "prompt", "input", "completion", "system", "conversations")

# Who speaks, in the words of ShareGPT. Other names are left as they are, and refused by the check.
_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "assistant"), "assistant"),
    "system": "system",
}
_TOOL_SPEAKERS = ("tool", "function", "function_call", "function_response", "observation")


class Reading(NamedTuple):
    """A data set as `load_sft_dataset` returns it, and what was made of the columns of its rows.

    ``shapes`` says as what rows were read, with how many; ``unused`` which columns were not used,
    with how many rows have something there; ``first`` is the first row as it came; ``notes`` say
    what was found out about the source.
    """

    dataset: Dataset
    shapes: dict[str, int]
    unused: dict[str, int]
    first: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def read_as(self) -> str:
        """As what the rows were read, such as ``Alpaca rows (instruction -> user, ...)``."""
        counts = self.shapes.items()
        told = [name if len(counts) == 1 else f"{count:,} as {name}" for name, count in counts]
        return "; ".join([*told, *self.notes])

    @property
    def not_used(self) -> str:
        """The columns with something in them that nothing was made of, or ``no column``."""
        told = [
            f"{short(name)[1:-1] or '(no name)'} ({count:,} row{'s' * (count != 1)})"
            for name, count in self.unused.items()
        ]
        return cut("columns " + ", ".join(told), 1000) if told else "no column"


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

    ``source`` is ``"atlas-sft-data"``; a local file (``.jsonl``, ``.ndjson``, ``.json``, ``.csv``,
    ``.tsv``, each also with ``.gz`` behind it, or ``.parquet``); a folder of such files, all of one
    kind; a folder that ``save_to_disk`` wrote; or the name of a data set on the Hub. ``revision``
    is the Hub's, and ``split`` that of whatever has several. A row has

    - turns, in ``messages``, ``conversations`` or ``conversation``: a list of
      ``{"role": ..., "content": ...}`` or of ShareGPT's ``{"from": "human", "value": ...}``. A
      content may be a list of parts with texts, which are joined as they are; or
    - a question and an answer, in two columns of `SHAPES`: ``instruction`` and ``output``,
      ``prompt`` and ``completion``, and so on. Both are texts, or both lists of turns; every
      assistant's turn is learned then, those in the question too. To an ``instruction`` or a
      ``question``, what ``input`` or ``context`` has is joined after a blank line. Of ``prompt``,
      ``chosen`` and ``rejected`` the chosen answer is learned;

    and, if you like, ``system`` or ``system_prompt``: a text that goes before the turns.
    ``columns`` says how the data calls these, as in ``{"prompt": "q", "completion": "a"}``, and
    which of two shapes counts. The result has one column, ``messages``, whose turns have a role
    and a content.

    ``rows`` keeps the first so many, or with ``seed`` a random sample of that size.
    `resolved_version` tells which version of the data the result was made from, and
    `read_sft_dataset` as what the rows were read, and what of them was not used.

    Raises `DataError` if the data cannot be found or read, if it lacks a column of ``columns``, or
    for a bad row (see `check_rows`), by file, row, and line where a file has lines; so too for a
    row with tools, images or anything else that its answer depends on and a text cannot tell.
    """
    return read_sft_dataset(
        source, split=split, rows=rows, seed=seed, revision=revision, columns=columns
    ).dataset


def read_sft_dataset(
    source: str | Path,
    *,
    split: str = "train",
    rows: int | None = None,
    seed: int | None = None,
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Reading:
    """As `load_sft_dataset`, with what was made of the columns of the rows."""
    from datasets import Dataset, Features, Value

    if rows is not None and rows < 1:
        raise DataError(f"rows={rows}: ask for at least one row, or for all with rows=None.")
    columns = columns or {}
    found = find_rows(source, split, revision, partial(_is_known, columns))
    _check_columns(found, columns)
    shapes: Counter[str] = Counter()
    unused: Counter[str] = Counter({name: n for name, n in found.unread.items() if n})
    for name in unused:
        if _plain(name) in _DEPENDS:
            raise DataError(
                f"{found.name} has something in `{name}` in {unused[name]:,} rows. {_LOST}"
            )

    def problem(row: Any) -> str | None:
        try:
            turns, shape, left = _read(row, columns, found.unread)
        except DataError as error:
            return str(error)
        shapes[shape] += 1
        unused.update(left)
        return row_problem({"messages": turns}, None, None)

    problems = problems_of((partial(problem, row) for row in found.rows), found.place)
    if problems is None:
        raise DataError(f"{found.name} has no rows. Is this the file or the split that you mean?")
    if problems:
        raise DataError(problems)

    first = {**found.rows[0], **dict.fromkeys(found.unread, "(not read)")}
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
    if not is_list:
        dataset = dataset.map(
            convert,
            features=features,
            remove_columns=dataset.column_names,
            keep_in_memory=True,
            load_from_cache_file=False,  # the cache would not see a change of this module
        )
    return Reading(dataset, dict(shapes), dict(unused), first, found.notes)


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
    there = {str(name) for name in found.unread} | (
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
    kinds = {"prompt" if ours in ("input", "completion") else ours for ours in columns} - {"system"}
    if len(set(columns.values())) < len(columns) or len(kinds) > 1:
        raise DataError(
            f"columns={short(dict(columns))} describes no row: give `messages`, or "
            "`conversations`, or `prompt` and `completion`, and to each a column of its own."
        )


def _nearest(name: str, names: Iterable[str]) -> str:
    short = [other for other in names if len(other) <= 100]
    found = difflib.get_close_matches(name[:100], sorted(short), n=1, cutoff=0)
    return f"; the nearest is {found[0]!r}" if found else ""


def _plain(name: object) -> str:
    """The name of a column without case and the space around it."""
    return str(name).strip().casefold()


def _is_known(columns: Mapping[str, str], name: str) -> bool:
    """Whether a column can tell something of a row's shape or turns."""
    known = {name for shape in SHAPES for name in (*shape.columns, *shape.more)}
    known |= {*_SYSTEM, *_TOOLS, "history", "text", "rejected", "label"}
    return name in columns.values() or _plain(name) in known


@lru_cache(1000)
def _shapes_of(names: frozenset[str], named: frozenset[str]) -> list[Shape]:
    """The shapes whose columns are all there, but for those whose columns are part of another's.

    ``named`` are those of `COLUMNS` for which the reader gave a column.
    """
    said = [Shape("rows of turns", name) for name in ("messages", "conversations") if name in named]
    if named & {"prompt", "completion"}:
        said = [Shape("rows", "completion", "prompt", ("input",) if "input" in named else ())]
    there = [shape for shape in said or SHAPES if names.issuperset(shape.columns)]
    if names & {
        "instruction",
        "question",
        "prompt",
        "query",
    }:  # then `input` is not all that is asked
        there = [shape for shape in there if shape.question != "input"]
    whole = {shape: names & {*shape.columns, *shape.more} for shape in there}
    return [shape for shape in there if not any(whole[shape] < other for other in whole.values())]


def _read(
    row: Any, columns: Mapping[str, str], unread: Iterable[str] = ()
) -> tuple[list[Any], str, list[str]]:
    """The turns of a row of any shape, not checked; as what it was read; columns not used.

    Raises `DataError` if the shape is not clear. The message goes behind the place of the row;
    ``unread`` are columns of the data that the row is given without.
    """
    if not isinstance(row, Mapping):
        remedy = " Call a file with one list of rows .json." if isinstance(row, list) else ""
        raise DataError(f" is {short(row)}. It must be an object with columns.{remedy}")
    names = {_plain(name): name for name in row} | {name: name for name in row} | {**columns}
    names = {ours: theirs for ours, theirs in names.items() if theirs in row}
    shapes = _shapes_of(frozenset(names), frozenset(columns))
    if len(shapes) > 1:  # where rows differ, a table has an empty cell for what a row lacks
        full = [shape for shape in shapes if all(_has(row[names[n]]) for n in shape.columns)]
        shapes = full or shapes
    if not shapes:
        raise DataError(_no_shape(row, unread))
    turns, *others = [_turns(row, shape, names) for shape in shapes]
    if any(other != turns for other in others):
        raise DataError(_several_shapes(row, unread, shapes, names))
    shape = shapes[0]
    own = ("system",) if "system" in columns else _SYSTEM
    system = [names[name] for name in own if name in names]
    used = {*system, *(names[name] for name in (*shape.columns, *shape.more) if name in names)}
    left = [name for name in row if name not in used and _has(row[name])]
    for name in [name for name in left if _plain(name) in _DEPENDS]:
        if row[name] in ("[]", "{}", "null"):  # none, as a table without lists has to write it
            left.remove(name)
        else:
            raise DataError(f" has something in `{name}`: {short(row[name])}. {_LOST}")
    if shape.columns == _UNPAIRED and str(row.get(names.get("label"))).casefold() == "false":
        raise DataError(
            " has `label` false: by it, rows for KTO mark an answer that is not wanted, and every "
            "answer is learned. Drop these rows, or rename the column if it means something else."
        )
    for name in system:
        turns = _with_system(turns, row[name])
    return turns, _told(row, shape, names, system), left


def _has(value: Any) -> bool:
    """Whether there is something in a cell."""
    return bool(value.strip() if isinstance(value, str) else value not in (None, [], {}))


def _no_shape(row: Mapping[str, Any], unread: Iterable[str]) -> str:
    listed = names_of([*row, *unread])
    if any(_plain(name) == "text" for name in row):
        return (
            f" holds a text and no conversation; its columns: {listed}. The loss falls on the "
            "turns of the assistant, and a text has none. Give the turns that the text was made "
            'of as `messages`; or say where question and answer stand: columns={"prompt": ..., '
            '"completion": ...}. Text to be continued is for pretraining.'
        )
    return (
        f" is of no known shape; its columns: {listed}. It needs `messages`, or `conversations`, "
        "or `prompt` and `completion`. Rename them, or say what they are called: "
        'columns={"prompt": ..., "completion": ...}.'
    )


def _several_shapes(
    row: Mapping[str, Any], unread: Iterable[str], shapes: list[Shape], names: Mapping[str, str]
) -> str:
    told = " and ".join(" + ".join(names[name] for name in shape.columns) for shape in shapes)
    ours = ("prompt", "completion") if shapes[0].question else ("messages",)
    choice = {name: names[own] for name, own in zip(ours, shapes[0].columns, strict=True)}
    return (
        f" is of two shapes at once: {told}; its columns: {names_of([*row, *unread])}. Say which "
        f"counts, as in columns={json.dumps(choice)}, or drop the others."
    )


def _told(row: Mapping[str, Any], shape: Shape, names: Mapping[str, str], system: list[str]) -> str:
    """As what a row was read: the name of its shape, and which column went where."""
    before = "".join(f"{name} -> system, " for name in system)
    answer = names[shape.answer]
    if not shape.question:
        shared = any(isinstance(turn, Mapping) and "from" in turn for turn in row[answer])
        name = "ShareGPT rows" if shared else shape.name
        return f"{name} ({before}{answer} -> turns)"
    asked = " + ".join(names[n] for n in (shape.question, *shape.more) if n in names)
    after = "; no rejected answer is learned" if shape.name == PREFERENCE else ""
    return f"{shape.name} ({before}{asked} -> user, {answer} -> assistant{after})"


def _turns(row: Mapping[str, Any], shape: Shape, names: Mapping[str, str]) -> list[Any]:
    """The turns of a row that is of this shape."""
    answer = row[names[shape.answer]]
    if not shape.question:
        if not isinstance(answer, list) or not answer:
            raise DataError(
                f": `{names[shape.answer]}` is {short(answer)}. It must be a list of turns"
                + (
                    ", not a text that spells one. Save the rows as .jsonl or .parquet."
                    if isinstance(answer, str) and answer.lstrip().startswith("[")
                    else "."
                )
            )
        return _plain_turns(answer)
    asked = row[names[shape.question]]
    texts = [row[names[name]] for name in shape.more if name in names and _has(row[names[name]])]
    if texts:
        texts = [asked, *texts] if _has(asked) else texts
        bad = next((text for text in texts if not isinstance(text, str)), None)
        if bad is not None:
            raise DataError(
                f" has {short(bad)} where texts are joined to a question. Make it text."
            )
        asked = "\n\n".join(texts)
    if shape.name == PREFERENCE:
        asked, answer = _chosen(asked, answer, row.get(names.get("rejected", "")))
    asked = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    answer = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    return _plain_turns([*asked, *answer])


def _chosen(asked: Any, chosen: Any, rejected: Any) -> tuple[Any, Any]:
    """What is asked and the chosen answer, of which either may hold what is asked once more."""
    if isinstance(chosen, list):
        turns = [turn for turn in _plain_turns(chosen) if isinstance(turn, Mapping)]
        if not turns or turns[0].get("role") == "assistant":
            return asked, chosen
        last = _plain_turns(asked)[-1] if isinstance(asked, list) and asked else {"content": asked}
        if not isinstance(last, Mapping) or last.get("content") not in [
            t.get("content") for t in turns
        ]:
            raise DataError(
                f": `chosen` begins before the answer and does not hold what is asked, "
                f"{short(asked)}. If it is the whole conversation, say "
                'columns={"messages": "chosen"}.'
            )
        return [], chosen
    texts = (chosen, rejected)
    if isinstance(asked, str) and all(isinstance(t, str) and t.startswith(asked) for t in texts):
        return asked, chosen[len(asked) :].lstrip()
    return asked, chosen


def _plain_turns(turns: list[Any]) -> list[Any]:
    """Turns of any dialect with ``role`` and ``content``; what is no turn is left as it is."""
    plain = []
    for number, turn in enumerate(turns):
        try:
            plain.append(_plain_turn(turn) if isinstance(turn, Mapping) else turn)
        except DataError as error:
            raise DataError(f", turn {number}: {error}") from error
    return plain


def _plain_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    # Where turns are of several dialects, a table has an empty cell for what a turn lacks.
    plain, role = dict(turn), turn.get("role")
    if role is None and "from" in turn:
        role = turn["from"]
        if role in _TOOL_SPEAKERS:
            raise DataError(
                f"{role!r} speaks: a tool, or a call of one. Only texts are learned: write what "
                "the model shall write into a turn of `gpt` and what it shall read into one of "
                "`human`, or drop the row."
            )
    if role is not None:
        plain["role"] = (
            _SPEAKERS.get(role.strip().casefold(), role) if isinstance(role, str) else role
        )
    if turn.get("content") is None and "value" in turn:
        plain["content"] = turn["value"]
    content = plain.get("content")
    if isinstance(content, list) and content and all(_has_type(part) for part in content):
        plain["content"] = "".join(_text_of(part) for part in content)
    return plain


def _has_type(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("type"), str)


def _text_of(part: Mapping[str, Any]) -> str:
    """The text of a part of a content."""
    if part["type"] in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    raise DataError(
        f"a part of the content is of type {short(part['type'])}, {short(dict(part))}. Only text "
        "is learned. Put it into words, or drop the row."
    )


def _with_system(turns: list[Any], system: Any) -> list[Any]:
    """The turns after a system message that a column holds."""
    if not _has(system):
        return turns
    first = turns[0] if turns and isinstance(turns[0], Mapping) else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": system}, *turns]
    if first.get("content") != system:
        raise DataError(
            f" has two system messages: {short(system)} in a column, and as its first turn "
            f"{short(first.get('content'))}. Drop one of them."
        )
    return turns


def _plain_row(row: Any, columns: Mapping[str, str]) -> dict[str, Messages]:
    """A checked row as it is kept: role and content of each turn, nothing else."""
    turns, *_ = _read(row, columns)
    return {"messages": [{"role": turn["role"], "content": turn["content"]} for turn in turns]}
