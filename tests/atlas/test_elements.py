"""The table of chemical elements, against `periodictable` and the laws of the periodic table."""

import re
from collections.abc import Iterator

import periodictable
import pytest
from atlas.tables import Row, read_table

LAST = 103  # lawrencium: what follows lives for seconds, and its chemistry is predicted
NOBLE_GASES = (2, 10, 18, 36, 54, 86, 118)  # a period ends with each
# Elements that sources truly put into another category as well: the halogens (also called
# nonmetals), group 12, lutetium and lawrencium, selenium, polonium and astatine.
OTHER_CATEGORIES = {
    **dict.fromkeys((9, 17, 35, 53), {"nonmetal"}),
    **dict.fromkeys((30, 48, 80), {"post-transition metal"}),
    **dict.fromkeys((71, 103), {"transition metal"}),
    **dict.fromkeys((34, 84), {"metalloid"}),
    **dict.fromkeys((85,), {"metalloid", "post-transition metal"}),
}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_table("elements")


def by_number(rows: list[Row]) -> Iterator[tuple[int, Row]]:
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


def test_identity_agrees_with_periodictable(rows: list[Row]) -> None:
    for number, row in by_number(rows):
        theirs = periodictable.elements[number]  # American spelling, as the table has it
        found = (row["number"], row["symbol"], row["name"])
        assert found == (str(number), theirs.symbol, theirs.name)


def test_period_and_block(rows: list[Row]) -> None:
    for number, row in by_number(rows):
        found = (row["period"], row["block"])
        assert found == (str(period(number)), madelung_block(number)), row


def test_category(rows: list[Row]) -> None:
    for number, row in by_number(rows):
        first, *others = row["category"].split("|")
        assert first == expected_category(number), row
        assert set(others) == OTHER_CATEGORIES.get(number, set()), row


def test_state(rows: list[Row]) -> None:
    liquids = {35, 80}  # bromine and mercury
    gases = {1, 2, 7, 8, 9, 10, 17, 18, 36, 54, 86}
    for number, row in by_number(rows):
        expected = "liquid" if number in liquids else "gas" if number in gases else "solid"
        assert row["state"] == expected, row


def test_gases_agree_with_periodictable(rows: list[Row]) -> None:
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
