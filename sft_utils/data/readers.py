"""Rows as they are read from a file or from the Hub, each with its place for error messages.

What a row means is told in `sft_utils.data.rows`. Explained in chapter 05.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import registry
from ..files import file_hash, is_lfs_pointer
from ..hub import hub_offline, hub_reachable, hub_remedy
from ..wording import cut, names_of, short
from .text_files import DataError, csv_rows, json_rows, jsonl_rows, read_text

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # each also with .gz behind it
FILE_KINDS = (*TEXT_KINDS, ".parquet")

# How the shards of a split are called, where a folder holds those of several.
_SPLIT = re.compile(r"(train|validation|valid|val|dev|test|eval)(?![a-z])", re.IGNORECASE)

Wanted = Callable[[str], bool]


class Rows(NamedTuple):
    """Rows as they were read, a list or a `Dataset`, and how the place of one is called.

    ``unread`` are the columns of a table that nobody asked for, each with how many rows have
    something in it. ``notes`` say what was found out about the source and is not plain.
    """

    name: str
    rows: Any
    place: Callable[[int], str]
    version: str = ""
    unread: dict[str, int] = {}
    notes: tuple[str, ...] = ()


def find_rows(
    source: str | Path, split: str, revision: str | None, wanted: Wanted | None = None
) -> Rows:
    """Read all rows of a source, as `sft_utils.load_sft_dataset` takes it. Raises `DataError`.

    Of a table, only the columns whose names are ``wanted`` are read; without it, all.
    """
    name = str(source)
    source = registry.rows().get(name, source)
    path = Path(os.path.expanduser(source))
    is_folder = os.path.isdir(path)
    if is_folder or os.path.isfile(path):
        if revision is not None:
            raise DataError(
                f"revision={short(revision)} was given with the {'folder' if is_folder else 'file'}"
                f" {path.name}: only a data set on the Hub has revisions. Leave it out."
            )
        if is_folder:
            return _read_folder(path, split, wanted)
        _check_unsplit(path.name, split)
        return read_rows(path, wanted)._replace(version=_version([path]))
    if isinstance(source, Path) or _kind(name) or name.startswith((".", "/", "~")):
        raise DataError(
            f"There is no data file {short(name, 250)}. Check the path (relative paths start at "
            f"{Path.cwd()}), or give the name of a data set on the Hub, such as 'owner/data'."
        )
    dataset, commit = _read_hub(name, split, revision)
    found = _of_dataset(name, dataset, wanted)
    return found._replace(version=f"commit {commit}" if commit else "")


def _check_unsplit(name: str, split: str) -> None:
    """Raise if another split than the usual one is asked of what has none."""
    if split != "train":
        raise DataError(
            f"split={short(split)} was given with {cut(name, 250)}, which has no splits, and all "
            "of its rows would be read. Leave it out, or give a file with the rows that you mean."
        )


def read_rows(path: Path, wanted: Wanted | None = None) -> Rows:
    """Read all rows of a file, by the end of its name; ``wanted`` as in `find_rows`.

    Raises `DataError`.
    """
    kind = _kind(path.name)
    if not kind:
        raise DataError(
            f"{path.name} is of no known kind. Use one of: {', '.join(FILE_KINDS)}; "
            "all but the last also packed, with .gz behind it."
        )
    if is_lfs_pointer(path):
        raise DataError(
            f"{path.name} is a pointer of Git LFS in place of the data. Fetch them: run "
            "`git lfs pull` in the repository."
        )
    if kind == ".parquet":
        return _parquet_rows(path, wanted)
    text = read_text(path)
    notes: tuple[str, ...] = ()
    if kind == ".json":
        rows, notes = json_rows(path.name, text, wanted or (lambda name: False))
        return Rows(path.name, rows, partial(_place, path.name), notes=notes)
    if kind in (".jsonl", ".ndjson"):
        pairs = jsonl_rows(path.name, text)
    else:
        pairs, notes = csv_rows(path.name, text, separator="\t" if kind == ".tsv" else None)
    lines = [line for line, _ in pairs]
    return Rows(
        path.name,
        [row for _, row in pairs],
        lambda row: f"{_place(path.name, row)} (line {lines[row]})",
        notes=notes,
    )


def _kind(name: str) -> str:
    """The end of a file's name that says how it is read, without .gz; empty if none is known."""
    name = name.lower()
    kind = os.path.splitext(name.removesuffix(".gz"))[1]
    return kind if kind in (TEXT_KINDS if name.endswith(".gz") else FILE_KINDS) else ""


def _place(name: str, row: int) -> str:
    return f"{name}, row {row}"


def _version(files: Sequence[Path]) -> str:
    """The beginning of the SHA-256 sum of a file, or of the names and sums of several."""
    if len(files) == 1:
        return f"sha256 {file_hash(files[0])[:16]}"
    sums = "".join(f"{file.name} {file_hash(file)}\n" for file in files)
    return f"sha256 {hashlib.sha256(sums.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


# --- Folders ---------------------------------------------------------------------------------


def _read_folder(path: Path, split: str, wanted: Wanted | None) -> Rows:
    """The rows of all shards in a folder, in the order of their names, or of ``save_to_disk``."""
    inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    if {"dataset_dict.json", "state.json"} & {file.name for file in inside}:
        return _saved(path, split, wanted)
    files = [file for file in inside if _kind(file.name) and file.is_file()]
    if not files:
        folders = [file.name for file in inside if file.is_dir()]
        others = f"; it holds the folders {names_of(folders)}" if folders else ""
        raise DataError(
            f"The folder {short(str(path), 250)} holds no data file{others}. Give a file, or a "
            f"folder with files of one kind: {', '.join(FILE_KINDS)}."
        )
    kinds = {_kind(file.name): file.name for file in files}
    if len(kinds) > 1:
        raise DataError(
            f"The folder {short(str(path), 250)} holds data files of several kinds: "
            f"{names_of(kinds.values())}. Give one of them, or move the others out."
        )
    splits = {file: _SPLIT.match(file.name) for file in files}
    named = {match[1].lower() if match else "" for match in splits.values()}
    if named == {""}:
        _check_unsplit(f"the folder {path.name}", split)
    elif split not in {"train", *named} or (len(named) > 1 and named != {"", split}):
        files = [file for file, match in splits.items() if match and match[1].lower() == split]
        if not files:
            raise DataError(
                f"The folder {short(str(path), 250)} holds files of the splits "
                f"{names_of(sorted(filter(None, named)))}, and none of {short(split)}. Name one "
                "of them as `split`, or give one file."
            )
    parts = [read_rows(file, wanted) for file in files]

    def place(row: int) -> str:
        for part in parts:
            if row < len(part.rows):
                return part.place(row)
            row -= len(part.rows)
        raise IndexError(row)

    unread: dict[str, int] = {}
    for part in parts:
        unread |= {name: count + unread.get(name, 0) for name, count in part.unread.items()}
    return Rows(
        path.name,
        [row for part in parts for row in part.rows],
        place,
        _version(files),
        unread,
        (
            f"{len(files)} file{'s' * (len(files) > 1)}: {names_of(file.name for file in files)}",
            *dict.fromkeys(note for part in parts for note in part.notes),
        ),
    )


def _saved(path: Path, split: str, wanted: Wanted | None) -> Rows:
    """The rows of a folder that ``save_to_disk`` wrote."""
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except Exception as error:
        raise DataError(
            f"The folder {short(str(path), 250)} cannot be read as one that save_to_disk wrote: "
            f"{cut(str(error))}. Copy or save it again; if Git LFS has its files, run `git lfs "
            "pull`."
        ) from error
    name = path.name
    if isinstance(found, DatasetDict):
        if split not in found:
            raise DataError(
                f"{path.name} has no split {short(split)}. It has: {names_of(found)}. Name one of "
                "them as `split`."
            )
        path, found = path / split, found[split]
    else:
        _check_unsplit(name, split)
    files = sorted(file for file in path.iterdir() if file.is_file())
    return _of_dataset(name, found, wanted)._replace(version=_version(files))


# --- Tables ----------------------------------------------------------------------------------


def _of_dataset(name: str, dataset: Dataset, wanted: Wanted | None) -> Rows:
    unread = {
        column: _filled(dataset.data.column(column))
        for column in dataset.column_names
        if wanted and not wanted(column)
    }
    kept = [column for column in dataset.column_names if column not in unread]
    # A data set without columns has no length either.
    rows: Any = dataset.select_columns(kept) if kept else [{}] * len(dataset)
    return Rows(name, rows, partial(_place, name), unread=unread)


def _parquet_rows(path: Path, wanted: Wanted | None) -> Rows:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        table = pq.ParquetFile(path).read()
        names = table.column_names
        skipped = {n for n, column in enumerate(names) if wanted and not wanted(column)}
        unread = {names[n]: _filled(table.column(n)) for n in sorted(skipped)}
        rows = table.select([n for n in range(len(names)) if n not in skipped]).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise DataError(
            f"{path.name} cannot be read as Parquet: {cut(str(error))}. Is it whole? "
            "Copy or save it again."
        ) from error
    return Rows(path.name, rows, partial(_place, path.name), unread=unread)


def _filled(column: Any) -> int:
    """How many cells of an Arrow column have something in them; no cell is made a Python value."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]
    import pyarrow.types as kinds  # type: ignore[import-untyped]

    if kinds.is_string(column.type) or kinds.is_large_string(column.type):
        sizes = pc.binary_length(column)
    elif kinds.is_list(column.type) or kinds.is_large_list(column.type):
        sizes = pc.list_value_length(column)
    else:
        return len(column) - column.null_count
    return pc.sum(pc.greater(sizes, 0)).as_py() or 0


# --- The Hub ----------------------------------------------------------------------------------


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
                f"Cannot load the data set {short(name)}, split {short(split)}, from the Hub: "
                f"{remedy}\n{reason}"
            ) from error
        raise DataError(
            f"Cannot load the data set {short(name)}: it is no local file, it is not in the cache, "
            "and the Hub cannot be reached. Ways out: connect to the network; set HF_HOME to a "
            "cache that holds it; set SFT_PROFILE=atlas for the data that ships with the book; or "
            f"give the path of a local .jsonl file.\n{reason}"
        ) from error
