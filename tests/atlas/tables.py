"""The tables as they stand in their files."""

from __future__ import annotations

import csv
import io

from sft_utils.atlas.world import FOLDER

Row = dict[str, str]


def read_text(table: str) -> str:
    return (FOLDER / "tables" / f"{table}.csv").read_bytes().decode("utf-8")


def read_rows(text: str) -> list[Row]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def read_table(table: str) -> list[Row]:
    """The rows in the file's order, every cell as it stands there."""
    return read_rows(read_text(table))
