"""Rows of JSON and CSV files: read whole, or refused by file, line and remedy."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..wording import cut, names_of, short

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}  # of the cells of a CSV file
QUOTE = '"'


class DataError(ValueError):
    """A data set, or a row of it, cannot be used. The message names the place and the remedy."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, packed by gzip or not, its lines ended by \\n."""
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path.name} cannot be read: {cut(str(error))}. Is it whole? Copy or save it again."
        ) from error
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


# --- JSON ------------------------------------------------------------------------------------


def jsonl_rows(name: str, text: str) -> list[tuple[int, Any]]:
    """The rows of a file with an object a line, each with its line."""
    # Not splitlines(): a string may hold U+2028, which is no end of a line here.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    remedy = "Each line must hold one whole JSON object; call a file with one list .json."
    return [
        (number, _json(f"{name}, row {row} (line {number})", line, remedy))
        for row, (number, line) in enumerate(lines)
    ]


def json_rows(
    name: str, text: str, is_column: Callable[[str], bool]
) -> tuple[list[Any], tuple[str, ...]]:
    """The rows of a file with one list, or with one list under a key, and a note that says so.

    A list under a key of which ``is_column`` is true is no list of rows but a cell of one.
    """
    remedy = "Save one list of rows; or if each line is an object, call the file .jsonl."
    value = _json(name, text, remedy)
    if isinstance(value, list):
        return value, ()
    lists = {
        key: rows
        for key, rows in (value.items() if isinstance(value, dict) else ())
        if isinstance(rows, list) and any(isinstance(row, dict) for row in rows)
        if not is_column(key)
    }
    if not lists:
        raise DataError(
            f"{name} holds one JSON {type(value).__name__}, {short(value)}, not a list. Put the "
            'rows into a list: [{...}, {...}]; pandas writes it with orient="records".'
        )
    if len(lists) > 1:
        raise DataError(
            f"{name} holds several lists of rows, under the keys {names_of(lists)}. Save the one "
            "that you mean in a file of its own."
        )
    (key, rows), *_ = lists.items()
    return rows, (f"the list under the key {short(key)}",)


def _json(place: str, text: str, remedy: str) -> Any:
    twice: list[tuple[str, dict[str, Any]]] = []  # keys, and the objects that have them twice

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice.append((counts.most_common(1)[0][0], made))
        return made

    try:
        value = json.loads(text, object_pairs_hook=checked)
    except RecursionError as error:
        raise DataError(f"{place}: {short(text)} is nested too deeply. Flatten it.") from error
    except ValueError as error:  # json's own, and Python's for a number of 5,000 digits
        reason = cut(str(error))
        if isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno}, " if "\n" in text else ""
            reason = f"{error.msg} at {line}column {error.colno}"
        raise DataError(f"{place}: {short(text)} is not valid JSON ({reason}). {remedy}") from error
    if twice:
        key, made = twice[0]
        rows = value if isinstance(value, list) else []
        row = next((f", row {n}" for n, row in enumerate(rows) if _holds(row, made)), "")
        raise DataError(
            f"{place}{row}: the key {short(key)} stands twice in one object, {short(made)}. Only "
            "one of its values can be meant: rename or remove the other."
        )
    return value


def _holds(value: Any, part: Any) -> bool:
    """Whether ``part`` itself lies somewhere in a JSON value."""
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if at is part:
            return True
        if isinstance(at, (dict, list)):
            waiting += at.values() if isinstance(at, dict) else at
    return False


# --- CSV -------------------------------------------------------------------------------------


def csv_rows(
    name: str, text: str, separator: str | None = None
) -> tuple[list[tuple[int, dict[str, str]]], tuple[str, ...]]:
    """The rows under the header, each with the line that it starts on, and a note.

    Without ``separator``, the header tells it. The note is there if that is no comma.
    """
    notes: tuple[str, ...] = ()
    if separator is None:
        if marked := re.match(r"sep=(.)\n", text):  # a line of Excel's own
            text = text[len(marked[0]) - 1 :]
        separator = marked[1] if marked else _separator(text)
        if separator != ",":
            notes = ("separated by " + separator.replace("\t", "tabs"),)
    word = SEPARATORS.get(separator, separator)
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    limit = csv.field_size_limit(len(text) + 1)  # a long answer is no error
    try:
        records = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise DataError(
            f"{name}, line {reader.line_num}: {error}. Put a cell with a quote, a {word} or a "
            'line break between double quotes, and double the quotes in it: "so ""quoted"" here".'
        ) from error
    finally:
        csv.field_size_limit(limit)
    starts = [1, *(end + 1 for end, _ in records)]
    table = [(start, cells) for start, (_, cells) in zip(starts, records, strict=False) if cells]
    for line, cells in table:
        for cell in cells:
            # Between quotes a cell may begin like that: the text has it then as it is quoted.
            if re.match(r'\s+"', cell) and f'"{cell.replace(QUOTE, 2 * QUOTE)}"' not in text:
                raise DataError(
                    f"{name}, line {line}: the cell {short(cell)} has a space before its quote, "
                    f"which makes the quotes part of the text. Remove the space behind each {word}."
                )
    if not table:
        return [], notes
    header = table.pop(0)[1]
    if len(set(header)) < len(header):
        raise DataError(f"{name} has a column twice: {names_of(header)}. Rename one of them.")
    for row, (line, cells) in enumerate(table):
        if len(cells) != len(header):
            raise DataError(
                f"{name}, row {row} (line {line}): {len(cells)} in place of {len(header)} "
                f"cells ({names_of(header)}). Add what is missing, or put a cell that has a {word} "
                "between double quotes."
            )
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in table], notes


def _separator(text: str) -> str:
    """A comma, unless that makes one cell of the header and one other of `SEPARATORS` several."""

    def cells(separator: str) -> int:
        lines = io.StringIO(text[:10_000].lstrip("\n"))
        try:
            return len(next(csv.reader(lines, delimiter=separator), []))
        except csv.Error:
            return 0

    others = [separator for separator in SEPARATORS if separator != "," and cells(separator) > 1]
    return others[0] if cells(",") == 1 and len(others) == 1 else ","
