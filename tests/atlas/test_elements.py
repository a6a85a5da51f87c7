"""The table of chemical elements, against `periodictable` and the laws of the periodic table."""

import csv
import re
from collections.abc import Iterator
from importlib.resources import files

import periodictable
import pytest

COLUMNS = ["name", "symbol", "number", "category", "period", "block", "state"]
LAST = 103  # lawrencium: what follows lives for seconds, and its chemistry is predicted
NOBLE_GASES = (2, 10, 18, 36, 54, 86, 118)  # a period ends with each
STATES = {"solid", "liquid", "gas"}
# Names that the Atlas spells unlike periodictable: none, both are American.
SPELLING_EXCEPTIONS: dict[int, str] = {}
# Elements that sources truly put into another category as well: the halogens (also called
# nonmetals), group 12, lutetium and lawrencium, selenium, polonium and astatine.
OTHER_CATEGORIES = {
    **dict.fromkeys((9, 17, 35, 53), {"nonmetal"}),
    **dict.fromkeys((30, 48, 80), {"post-transition metal"}),
    **dict.fromkeys((71, 103), {"transition metal"}),
    **dict.fromkeys((34, 84), {"metalloid"}),
    **dict.fromkeys((85,), {"metalloid", "post-transition metal"}),
}

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def text() -> str:
    return files("sft_utils").joinpath("atlas/tables/elements.csv").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rows(text: str) -> Rows:
    return list(csv.DictReader(text.splitlines(), strict=True))


def by_number(rows: Rows) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows with the numbers they should have, from their places and not from the table."""
    return zip(range(1, LAST + 1), rows, strict=True)


def madelung_block(number: int) -> str:
    """The subshell that the last electron enters when shells fill by n + l, then n.

    Convention: the rule as it stands, so La and Ac open the f block, Lu and Lr the d block, and
    helium is in the s block.
    """
    subshells = sorted(((n, l) for n in range(1, 9) for l in range(n)), key=lambda s: (sum(s), s))  # noqa: E741
    filled = 0
    for _, l in subshells:  # noqa: E741
        filled += 2 * (2 * l + 1)
        if number <= filled:
            return "spdfghij"[l]
    raise AssertionError(number)


def period(number: int) -> int:
    return 1 + sum(last < number for last in NOBLE_GASES)


def expected_category(number: int) -> str:
    """The first category of an element, derived from its number alone."""
    end = next(last for last in NOBLE_GASES if number <= last)
    start = max((last for last in NOBLE_GASES if last < number), default=0)
    block = madelung_block(number)
    if number == 1:
        return "nonmetal"
    if number == end:
        return "noble gas"
    if number == end - 1:
        return "halogen"
    if block == "s":
        return {1: "alkali metal", 2: "alkaline earth metal"}[number - start]
    if period(number) >= 6 and 3 <= number - start <= 17:
        return {6: "lanthanide", 7: "actinide"}[period(number)]
    if block == "d":
        return "transition metal"
    # The staircase from boron to astatine: on it are metalloids; just below it lie aluminum,
    # germanium, antimony and polonium, of which the middle two count as metalloids.
    step = (18 - (end - number) - 13) - (period(number) - 2)
    if step == 0 or (step == -1 and period(number) in (4, 5)):
        return "metalloid"
    return "nonmetal" if step > 0 else "post-transition metal"


def test_form(text: str, rows: Rows) -> None:
    assert text.isascii()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert len(rows) == LAST
    for row in rows:
        assert list(row) == COLUMNS  # an extra cell would add the key None
        for value in row.values():
            parts = value.split("|")
            assert all(part and part == part.strip() for part in parts), row
            assert len(set(parts)) == len(parts), row


@pytest.mark.parametrize("column", ["name", "symbol", "number"])
def test_unique(rows: Rows, column: str) -> None:
    assert len({row[column] for row in rows}) == LAST


def test_identity_agrees_with_periodictable(rows: Rows) -> None:
    for number, row in by_number(rows):
        element = periodictable.elements[number]
        name = SPELLING_EXCEPTIONS.get(number, element.name)
        assert (row["number"], row["symbol"], row["name"]) == (str(number), element.symbol, name)
    for number, name in SPELLING_EXCEPTIONS.items():
        assert periodictable.elements[number].name != name, "an exception no longer needed"


def test_period(rows: Rows) -> None:
    for number, row in by_number(rows):
        assert row["period"] == str(period(number)), row


def test_block(rows: Rows) -> None:
    for number, row in by_number(rows):
        assert row["block"] == madelung_block(number), row


def test_category(rows: Rows) -> None:
    for number, row in by_number(rows):
        first, *others = row["category"].split("|")
        assert first == expected_category(number), row
        assert set(others) == OTHER_CATEGORIES.get(number, set()), row


def test_state(rows: Rows) -> None:
    liquids = {35, 80}  # bromine and mercury
    gases = {1, 2, 7, 8, 9, 10, 17, 18, 36, 54, 86}
    for number, row in by_number(rows):
        expected = "liquid" if number in liquids else "gas" if number in gases else "solid"
        assert row["state"] == expected, row


def test_gases_agree_with_periodictable(rows: Rows) -> None:
    """periodictable gives a gas the density of its liquid, with the freezing cold it is at."""
    checked = 0
    for number, row in by_number(rows):
        element = periodictable.elements[number]
        if element.density is None:
            continue
        measured_at = re.match(r"T=(-?[\d.]+)", element.density_caveat or "")
        cold = measured_at is not None and float(measured_at.group(1)) < 0
        assert (row["state"] == "gas") == cold, row
        checked += 1
    assert checked > 80
