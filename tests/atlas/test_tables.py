"""What every table is: a plain file in its order, each name once, each answer clean."""

from __future__ import annotations

import csv
import io

import pytest
from atlas.tables import Row, read_rows, read_table, read_text

from sft_utils.atlas.world import DOMAINS

COLUMNS = {
    "countries": "name article capital continent language currency domain demonym",
    "elements": "name symbol number category period block state",
    "animals": "name class order young diet",
    "constellations": "name abbreviation genitive meaning author",
}
UNIQUE = {
    "countries": ("name", "capital", "domain"),
    "elements": ("name", "symbol", "number"),
    "animals": ("name",),
    "constellations": ("name", "abbreviation", "genitive"),
}


def as_written(table: str, rows: list[Row]) -> bytes:
    """The file by a CSV writer: ASCII, '\\n' at line ends, quoted only where needed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS[table].split(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # raises where a row has too many cells
    return text.getvalue().encode("ascii")


def unclean(rows: list[Row]) -> list[str]:
    """Answers that are blank, padded, of several lines, or given twice."""
    found = []
    for row in rows:
        for column, cell in row.items():
            parts = [] if column == "article" and not cell else cell.split("|")
            clean = all(part and part == " ".join(part.split()) for part in parts)
            if not clean or len({part.casefold() for part in parts}) < len(parts):
                found.append(f"{row['name']}, {column}: {cell!r}")
    return found


def twice(rows: list[Row], column: str) -> list[str]:
    cells = [row[column].casefold() for row in rows]
    return sorted({cell for cell in cells if cells.count(cell) > 1})


@pytest.mark.parametrize("table", DOMAINS)
def test_a_table_is_plain_sorted_and_clean(table: str) -> None:
    rows = read_table(table)
    assert read_text(table).encode() == as_written(table, rows)
    assert unclean(rows) == []
    assert {column: twice(rows, column) for column in UNIQUE[table]} == dict.fromkeys(
        UNIQUE[table], []
    )
    names = [row["name"] for row in rows]
    assert table == "elements" or names == sorted(names)  # elements are sorted by number


def test_a_name_stands_in_one_table_only() -> None:
    assert twice([row for table in DOMAINS for row in read_table(table)], "name") == []


@pytest.mark.parametrize("cell", ["", " Nairobi", "Nairobi|", "Nairobi|nairobi", "Nai\nrobi"])
def test_an_unclean_cell_is_found(cell: str) -> None:
    rows = read_rows("name,article,capital\nPeru,,Lima\nKenya,,\n")
    rows[1]["capital"] = cell
    assert unclean(rows) == [f"Kenya, capital: {cell!r}"]
