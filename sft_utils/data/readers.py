"""Rows as they are read from a file or from the Hub, each with its place for error messages.

What a row means is told in `sft_utils.data.rows`. Explained in chapter 05.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import registry
from ..files import file_hash
from ..hub import hub_offline, hub_reachable, hub_remedy
from ..wording import cut, names_of, short

if TYPE_CHECKING:
    from datasets import Dataset

FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")


class DataError(ValueError):
    """A data set, or a row of it, cannot be used. The message names the place and the remedy."""


class Rows(NamedTuple):
    """Rows as they were read: a list or a `Dataset`, and for a text file the line of each."""

    name: str
    rows: Any
    lines: list[int] | None = None
    version: str = ""

    def place(self, row: int) -> str:
        line = f" (line {self.lines[row]})" if self.lines else ""
        return f"{self.name}, row {row}{line}"


def find_rows(source: str | Path, split: str, revision: str | None) -> Rows:
    """Read all rows of a source, as `sft_utils.load_sft_dataset` takes it. Raises `DataError`."""
    name = str(source)
    source = registry.rows().get(name, source)
    path = Path(source).expanduser()
    if path.is_file():
        if revision is not None:
            raise DataError(
                f"revision={revision!r} was given with the file {path.name}: only a data set on "
                "the Hub has revisions. Leave it out."
            )
        return read_rows(path)._replace(version=f"sha256 {file_hash(path)[:16]}")
    if (
        isinstance(source, Path)
        or path.suffix.lower() in FILE_KINDS
        or name.startswith((".", "/", "~"))
    ):
        raise DataError(
            f"There is no data file {name!r}. Check the path (relative paths start at "
            f"{Path.cwd()}), or give the name of a data set on the Hub, such as 'owner/data'."
        )
    rows, commit = _read_hub(name, split, revision)
    return Rows(name, rows, version=f"commit {commit}" if commit else "")


def read_rows(path: Path) -> Rows:
    """Read all rows of a file, by the end of its name. Raises `DataError`."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return Rows(path.name, _parquet_rows(path))
    if kind not in FILE_KINDS:
        raise DataError(f"{path.name} is of no known kind. Use one of: {', '.join(FILE_KINDS)}.")
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
                f"{path.name} holds one JSON {type(rows).__name__}, {short(rows)}, not a list. "
                "Put the rows into a list: [{...}, {...}]."
            )
        return Rows(path.name, rows)
    return Rows(path.name, [row for _, row in pairs], [line for line, _ in pairs])


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
        raise DataError(f"{place}: {short(text)} is nested too deeply. Flatten it.") from error
    except ValueError as error:  # json's own, and Python's for a number of 5,000 digits
        reason = cut(str(error))
        if isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno}, " if "\n" in text else ""
            reason = f"{error.msg} at {line}column {error.colno}"
        raise DataError(f"{place}: {short(text)} is not valid JSON ({reason}). {remedy}") from error


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
        raise DataError(f"{path.name} has a column twice: {names_of(header)}. Rename one of them.")
    for row, (line, cells) in enumerate(table):
        if len(cells) != len(header):
            raise DataError(
                f"{path.name}, row {row} (line {line}): {len(cells)} in place of {len(header)} "
                f"cells ({names_of(header)}). Add what is missing, or put a cell that has a comma "
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
            f"{path.name} cannot be read as Parquet: {cut(str(error))}. Is it whole? "
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
        reason = f"{type(error).__name__}: {cut(str(error), 600)}"
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
