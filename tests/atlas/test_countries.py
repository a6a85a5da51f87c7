"""The table of countries, checked against Babel (CLDR) and pycountry (ISO 3166).

Each check is a function from rows to a list of complaints. The table must raise none. Then one
cell at a time is spoiled, and the check that guards it must complain: a check that cannot fail
would be a defect. Where a library is older than the world, or counts otherwise, an exception
says why; it excuses that one value and no other.
"""

from __future__ import annotations

import csv
import datetime
import io
import unicodedata
from collections.abc import Callable
from functools import cache
from importlib.resources import files

import pytest
from babel import Locale
from babel.core import get_global
from babel.languages import get_official_languages, get_territory_language_info
from babel.numbers import get_currency_name, get_territory_currencies
from pycountry import countries

Row = dict[str, str]
Check = Callable[[list[Row]], list[str]]

TABLE = files("sft_utils").joinpath("atlas", "tables", "countries.csv")
COLUMNS = [
    "name",
    "article",
    "capital",
    "continent",
    "language",
    "currency",
    "domain",
    "demonym",
]
# Currencies are compared as of this day, so that the test does not depend on when it runs.
AS_OF = datetime.date(2026, 1, 1)
ENGLISH = Locale("en")

# Names that pycountry's lookup does not know.
CODES = {
    "Brunei": "BN",
    "Cape Verde": "CV",
    "Democratic Republic of the Congo": "CD",
    "East Timor": "TL",
    "Ivory Coast": "CI",
    "Micronesia": "FM",
    "Palestine": "PS",
    "Russia": "RU",
    "Turkey": "TR",
    "Vatican City": "VA",
}

# ISO 3166 codes that the table leaves out: none of them is a member of the United Nations.
# The rest of ISO 3166 is the 193 members, and VA and PS.
NOT_LISTED = set(
    "AI AQ AS AW AX BL BM BQ BV CC CK CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF "
    "MO MP MQ MS NC NF NU PF PM PN PR RE SH SJ SX TC TF TK TW UM VG VI WF YT".split()
)

# What the table calls a language, and CLDR's code where CLDR's English name is another.
LANGUAGE_CODES = {
    "Azeri": "az",
    "Bahasa Indonesia": "id",
    "Bahasa Malaysia": "ms",
    "Bengali": "bn",
    "Berber": "tzm",
    "Cambodian": "km",
    "Castilian": "es",
    "Chewa": "ny",
    "Chichewa": "ny",
    "Comorian": "zdj",
    "Dari": "fa",
    "Dhivehi": "dv",
    "Farsi": "fa",
    "Kichwa": "qu",
    "Kirundi": "rn",
    "Kurdish": "ckb",
    "Laotian": "lo",
    "Malaysian": "ms",
    "Maldivian": "dv",
    "Mandarin": "zh",
    "Mandarin Chinese": "zh",
    "Montenegrin": "sr",  # CLDR writes Montenegrin as Serbian in Latin letters
    "Nauruan": "na",
    "Ndebele": "nd",
    "Sesotho": "st",
    "Setswana": "tn",
    "Sinhalese": "si",
    "Slovene": "sl",
    "Sotho": "st",
    "Standard Chinese": "zh",
    "Swazi": "ss",
    "Tagalog": "fil",
    "Tamazight": "tzm",
    "Tuvaluan": "tvl",
    "siSwati": "ss",
}
CREOLES = {"HT": "ht", "SC": "crs"}

# A canonical language that Babel does not count as official there.
CANONICAL_LANGUAGES = {
    ("Burkina Faso", "Moore"): "official since 2024, when French became a working language",
    ("Mali", "Bambara"): "official since 2023, when French became a working language",
    ("Niger", "Hausa"): "the national language since 2025; French is a working language",
    ("Seychelles", "Seychellois Creole"): "the constitution names it first of three",
    ("South Africa", "Zulu"): "one of twelve official; CLDR counts all but English as regional",
}

# A further language that Babel does not know as official or spoken there.
FURTHER_LANGUAGES = {
    ("Algeria", "Berber"): "Tamazight is official since 2016; CLDR lists its kinds, as Kabyle",
    ("Algeria", "Tamazight"): "official since 2016; CLDR lists its kinds, as Kabyle",
    ("Belgium", "Flemish"): "Dutch as it is spoken in Belgium",
    ("Ecuador", "Shuar"): "official for relations between cultures, as Quechua is",
    ("Mali", "Fula"): "official since 2023; CLDR lists its Malian kind, ffm",
    ("Rwanda", "Swahili"): "official since 2017",
}

# A language that Babel counts as official, and the table leaves out on purpose.
LEFT_OUT_LANGUAGES = {
    ("Algeria", "fr"): "used in practice, official nowhere in the law",
    ("Comoros", "wni"): "a kind of Comorian, and named so",
    ("Israel", "ar"): "a special status since 2018, no longer official",
    ("Liechtenstein", "gsw"): "spoken; the official language is German",
    ("Madagascar", "en"): "official from 2007 to 2010 only",
    ("Morocco", "fr"): "used in practice, official nowhere in the law",
    ("Nigeria", "yo"): "the constitution allows it in parliament; English is official",
    ("Norway", "nb"): "a written form of Norwegian",
    ("Norway", "nn"): "a written form of Norwegian",
    ("Switzerland", "gsw"): "spoken; the official language is German",
    ("Tunisia", "fr"): "used in practice, official nowhere in the law",
    ("Ukraine", "ru"): "no longer official since 2018",
}

# A currency that Babel does not know there, under that name.
CURRENCIES = {
    ("Bulgaria", "euro"): "adopted on 1 January 2026",
    ("China", "renminbi"): "the official name of the currency whose unit is the yuan",
    ("Czech Republic", "crown"): "the word translated",
    ("Czech Republic", "Czech crown"): "the word translated",
    ("Belarus", "rouble"): "British spelling",
    ("Lebanon", "lira"): "the pound's name in Arabic",
    ("Lebanon", "Lebanese lira"): "the pound's name in Arabic",
    ("Mongolia", "togrog"): "another spelling",
    ("Palestine", "Israeli shekel"): "the shekel is Israel's",
    ("Russia", "rouble"): "British spelling",
    ("Syria", "lira"): "the pound's name in Arabic",
    ("Syria", "Syrian lira"): "the pound's name in Arabic",
    ("United Arab Emirates", "UAE dirham"): "the country's name, shortened",
    ("United Kingdom", "pound sterling"): "the full name",
    ("United Kingdom", "sterling"): "the full name, shortened",
    ("Uzbekistan", "sum"): "another spelling",
    ("Zimbabwe", "ZiG"): "the short name of Zimbabwe gold",
    ("Zimbabwe", "Zimbabwe gold"): "CLDR says Zimbabwean gold",
}

# Continents as the United Nations group countries; the first part of a time zone's name can
# be another, or an ocean.
ZONE_CONTINENTS = {"Africa": {"Africa"}, "America": {"North America", "South America"}}
ZONE_CONTINENTS |= {"Asia": {"Asia"}, "Europe": {"Europe"}, "Australia": {"Oceania"}}
ZONE_CONTINENTS |= {"Pacific": {"Oceania"}}
CONTINENTS = {"Africa", "Asia", "Europe", "North America", "Oceania", "South America"}
ZONES_ELSEWHERE = {
    ("Cape Verde", "Africa"): "its zone is named after the Atlantic",
    ("Comoros", "Africa"): "its zone is named after the Indian Ocean",
    ("Iceland", "Europe"): "its zone is named after the Atlantic",
    ("Madagascar", "Africa"): "its zone is named after the Indian Ocean",
    ("Maldives", "Asia"): "its zone is named after the Indian Ocean",
    ("Mauritius", "Africa"): "its zone is named after the Indian Ocean",
    ("Seychelles", "Africa"): "its zone is named after the Indian Ocean",
    ("Turkey", "Asia"): "its zone is Istanbul's; most of the land is in Asia",
}
SOUTH_AMERICA = set("AR BO BR CL CO EC GY PE PY SR UY VE".split())

# A capital after which no time zone of its country is named, and why.
CAPITALS = {
    ("Albania", "Tirana"): "Babel spells it Tirane, as Albanian does",
    ("Andorra", "Andorra la Vella"): "the zone is named after the country",
    ("Antigua and Barbuda", "Saint John's"): "the zone is named after an island",
    ("Australia", "Canberra"): "it keeps the time of Sydney",
    ("Bahrain", "Manama"): "the zone is named after the country",
    ("Barbados", "Bridgetown"): "the zone is named after the country",
    ("Belize", "Belmopan"): "the zone is named after the country",
    (
        "Bolivia",
        "Sucre",
    ): "the constitution's capital; the zone is the seat of government's, La Paz",
    ("Brazil", "Brasilia"): "it keeps the time of Sao Paulo",
    ("Brunei", "Bandar Seri Begawan"): "the zone is named after the country",
    ("Burundi", "Gitega"): "capital since 2019; the zone is that of Bujumbura, capital before",
    ("Cameroon", "Yaounde"): "the zone is the largest city's, Douala",
    ("Canada", "Ottawa"): "it keeps the time of Toronto",
    ("Cape Verde", "Praia"): "the zone is named after the country",
    ("China", "Beijing"): "the zone is the largest city's, Shanghai",
    ("Comoros", "Moroni"): "the zone is named after the country",
    ("Costa Rica", "San Jose"): "the zone is named after the country",
    ("Dominica", "Roseau"): "the zone is named after the country",
    ("Ecuador", "Quito"): "it keeps the time of Guayaquil",
    ("El Salvador", "San Salvador"): "the zone is named after the country",
    (
        "Equatorial Guinea",
        "Ciudad de la Paz",
    ): "capital since January 2026; the zone is that of Malabo, capital before",
    ("Fiji", "Suva"): "the zone is named after the country",
    ("Grenada", "Saint George's"): "the zone is named after the country",
    ("Guatemala", "Guatemala City"): "the zone is named after the country",
    ("Guyana", "Georgetown"): "the zone is named after the country",
    ("India", "New Delhi"): "the zone is Kolkata's",
    ("Ivory Coast", "Yamoussoukro"): "the zone is the largest city's, Abidjan",
    ("Jamaica", "Kingston"): "the zone is named after the country",
    ("Kazakhstan", "Astana"): "the zone is the largest city's, Almaty",
    ("Kuwait", "Kuwait City"): "the zone is named after the country",
    ("Malawi", "Lilongwe"): "the zone is Blantyre's",
    ("Maldives", "Male"): "the zone is named after the country",
    ("Malta", "Valletta"): "the zone is named after the country",
    ("Mauritius", "Port Louis"): "the zone is named after the country",
    ("Micronesia", "Palikir"): "the zone is named after the island, Pohnpei",
    ("Morocco", "Rabat"): "the zone is the largest city's, Casablanca",
    ("Myanmar", "Naypyidaw"): "the zone is the largest city's, Yangon",
    ("Nauru", "Yaren"): "the zone is named after the country",
    ("New Zealand", "Wellington"): "the zone is the largest city's, Auckland",
    ("Nigeria", "Abuja"): "the zone is the largest city's, Lagos",
    ("Pakistan", "Islamabad"): "the zone is the largest city's, Karachi",
    ("Palau", "Ngerulmud"): "the zone is named after the country",
    ("Palestine", "Ramallah"): "the seat of its government; the zones are those of Gaza and Hebron",
    ("Panama", "Panama City"): "the zone is named after the country",
    ("Qatar", "Doha"): "the zone is named after the country",
    ("Saint Kitts and Nevis", "Basseterre"): "the zone is named after an island",
    ("Saint Lucia", "Castries"): "the zone is named after the country",
    ("Saint Vincent and the Grenadines", "Kingstown"): "the zone is named after an island",
    ("Seychelles", "Victoria"): "the zone is named after an island, Mahe",
    ("Solomon Islands", "Honiara"): "the zone is named after an island, Guadalcanal",
    (
        "South Africa",
        "Pretoria",
    ): "the executive's seat; the zone is the largest city's, Johannesburg",
    ("Switzerland", "Bern"): "the zone is the largest city's, Zurich",
    ("Tanzania", "Dodoma"): "the zone is the largest city's, Dar es Salaam",
    ("Tonga", "Nuku'alofa"): "the zone is named after an island, Tongatapu",
    ("Turkey", "Ankara"): "the zone is the largest city's, Istanbul",
    ("United Arab Emirates", "Abu Dhabi"): "the zone is the largest city's, Dubai",
    ("United States", "Washington"): "it keeps the time of New York",
    ("Vanuatu", "Port Vila"): "the zone is named after an island, Efate",
    ("Vatican City", "Vatican City"): "the zone calls it Vatican",
    ("Vietnam", "Hanoi"): "the zone is the largest city's, Ho Chi Minh City",
    ("Yemen", "Sanaa"): "the zone is Aden's",
}


def load() -> list[Row]:
    """The table's rows, each a dict from column to cell."""
    return list(csv.DictReader(io.StringIO(TABLE.read_text(encoding="utf-8"))))


def fold(text: str) -> str:
    """Lower case, without diacritics, apostrophes and full stops; '-' is ' ', '&' is 'and'."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("&", "and").replace("-", " "))
    return "".join(letter for letter in plain if letter.isascii() and letter not in "'.")


def code(row: Row) -> str:
    """The country's ISO 3166 alpha-2 code; LookupError where its name is not known."""
    found = CODES.get(row["name"])
    return found if found else countries.lookup(row["name"]).alpha_2


def check_form(rows: list[Row]) -> list[str]:
    wrong = []
    for row in rows:
        for column, cell in row.items():
            where = f"{row['name']}, {column}: {cell!r}"
            if column == "article":
                if cell not in ("", "the"):
                    wrong.append(f"{where} is not an article")
                continue
            parts = cell.split("|")
            if any(not part or part != " ".join(part.split()) for part in parts):
                wrong.append(f"{where} is blank or has stray white space")
            if len(set(parts)) < len(parts):
                wrong.append(f"{where} says one thing twice")
            if len(parts) > 1 and column not in ("language", "currency", "demonym"):
                wrong.append(f"{where} has several answers")
            if not cell.isascii() or any(mark in cell for mark in ";\n\r\t"):
                wrong.append(f"{where} has a character that does not belong")
        if row["name"].lower().startswith("the "):
            wrong.append(f"{row['name']}: the article has a column of its own")
        if not all(part[:1].isupper() for part in row["demonym"].split("|")):
            wrong.append(f"{row['name']}: demonym {row['demonym']!r} has no capital letter")
    return wrong


def check_order_and_uniqueness(rows: list[Row]) -> list[str]:
    wrong = []
    if len(rows) < 180:
        wrong.append(f"only {len(rows)} rows")
    names = [row["name"] for row in rows]
    if names != sorted(names):
        wrong.append("not sorted by name")
    for column in ("name", "capital", "domain"):
        seen: set[str] = set()
        for row in rows:
            if fold(row[column]) in seen:
                wrong.append(f"{column} {row[column]!r} occurs twice")
            seen.add(fold(row[column]))
    return wrong


def check_members(rows: list[Row]) -> list[str]:
    wrong, found = [], set()
    for row in rows:
        try:
            found.add(code(row))
        except LookupError:
            wrong.append(f"{row['name']!r} is no country that ISO 3166 knows")
    expected = {country.alpha_2 for country in countries} - NOT_LISTED
    wrong += [f"{missing} is missing" for missing in sorted(expected - found)]
    wrong += [f"{extra} does not belong" for extra in sorted(found - expected)]
    return wrong


def check_domains(rows: list[Row]) -> list[str]:
    wrong = []
    for row in rows:
        expected = ".uk" if code(row) == "GB" else "." + code(row).lower()
        if row["domain"] != expected:
            wrong.append(f"{row['name']}: domain {row['domain']!r}, ISO 3166 says {expected!r}")
    return wrong


def check_continents(rows: list[Row]) -> list[str]:
    wrong = []
    for row in rows:
        name, continent = row["name"], row["continent"]
        zones = get_global("territory_zones")[code(row)]
        possible = {c for z in zones for c in ZONE_CONTINENTS.get(z.split("/")[0], set())}
        if continent not in CONTINENTS:
            wrong.append(f"{name}: {continent!r} is not a continent")
        elif continent not in possible and (name, continent) not in ZONES_ELSEWHERE:
            wrong.append(f"{name}: {continent!r}, but its time zones are {sorted(zones)}")
        if (continent == "South America") != (code(row) in SOUTH_AMERICA):
            wrong.append(f"{name}: {continent!r} is the wrong America")
    return wrong


@cache
def zone_cities(alpha_2: str) -> set[str]:
    """Cities after which the country's time zones are named, folded: identifiers and English."""
    zones = get_global("territory_zones")[alpha_2]
    names = {zone.split("/")[-1].replace("_", " ") for zone in zones}
    names |= {
        ENGLISH.time_zones[z]["city"] for z in zones if "city" in ENGLISH.time_zones.get(z, {})
    }
    return {fold(name) for name in names}


def check_capitals(rows: list[Row]) -> list[str]:
    wrong = []
    owners: dict[str, set[str]] = {}
    for row in rows:
        for city in zone_cities(code(row)):
            owners.setdefault(city, set()).add(code(row))
    for row in rows:
        name, capital = row["name"], row["capital"]
        cities, city = zone_cities(code(row)), fold(capital)
        if city not in cities and owners.get(city):
            wrong.append(f"{name}: {capital!r} is a city of {sorted(owners[city])}")
        if city not in cities and (name, capital) not in CAPITALS:
            wrong.append(f"{name}: {capital!r}, but its time zones' cities are {sorted(cities)}")
    return wrong


def check_currencies(rows: list[Row]) -> list[str]:
    """The first phrasing ends the currency's name; so do the others, or they add the country."""
    wrong = []
    for row in rows:
        units = get_territory_currencies(code(row), AS_OF, AS_OF)
        names = [get_currency_name(unit, locale="en") for unit in units]
        names += [name.replace("US ", "United States ") for name in names if "US " in name]
        known = [" " + fold(name) for name in names]
        first, *others = row["currency"].split("|")
        fuller = {fold(f"{of} {first}") for of in (row["name"], *row["demonym"].split("|"))}
        for phrase in (first, *others):
            ending = any(name.endswith(" " + fold(phrase)) for name in known)
            if ending or (phrase != first and fold(phrase) in fuller):
                continue
            if (row["name"], phrase) not in CURRENCIES:
                wrong.append(f"{row['name']}: {phrase!r}, Babel says {known}")
    return wrong


@cache
def language_code(language: str, alpha_2: str) -> str:
    """CLDR's code for a language as the table calls it; '?' where CLDR has none."""
    if language == "Creole":
        return CREOLES.get(alpha_2, "?")
    names = {fold(name): key for key, name in ENGLISH.languages.items() if "_" not in key}
    return LANGUAGE_CODES.get(language) or names.get(fold(language), "?")


def check_languages(rows: list[Row]) -> list[str]:
    wrong = []
    for row in rows:
        name, alpha_2 = row["name"], code(row)
        # 'sr_Latn' and 'sr' are one language in two scripts.
        official = {key.split("_")[0] for key in get_official_languages(alpha_2, de_facto=True)}
        spoken = {key.split("_")[0] for key in get_territory_language_info(alpha_2)}
        first, *others = row["language"].split("|")
        known = language_code(first, alpha_2) in official
        if not known and (name, first) not in CANONICAL_LANGUAGES:
            wrong.append(f"{name}: {first!r}, Babel says {sorted(official)}")
        for other in others:
            known = language_code(other, alpha_2) in spoken
            if not known and (name, other) not in FURTHER_LANGUAGES:
                wrong.append(f"{name}: {other!r} is not spoken there, says Babel")
        listed = {language_code(language, alpha_2) for language in (first, *others)}
        for missing in sorted(official - listed):
            if (name, missing) not in LEFT_OUT_LANGUAGES:
                wrong.append(f"{name}: {missing!r} is official, says Babel, and is missing")
    return wrong


CHECKS = [
    check_form,
    check_order_and_uniqueness,
    check_members,
    check_domains,
    check_continents,
    check_capitals,
    check_currencies,
    check_languages,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_table_passes(check: Check) -> None:
    assert check(load()) == []


# One spoiled cell each: the check that must complain, the row, the column, the new cell.
SPOILED = [
    (check_form, "Kenya", "capital", ""),
    (check_form, "Kenya", "capital", " Nairobi"),
    (check_form, "Kenya", "capital", "Nairobi|Mombasa"),
    (check_form, "Kenya", "language", "Swahili||English"),
    (check_form, "Kenya", "language", "Swahili|Swahili"),
    (check_form, "Kenya", "currency", "shilling; Kenyan shilling"),
    (check_form, "Kenya", "demonym", "Kenyan\n"),
    (check_form, "Kenya", "demonym", "kenyan"),
    (check_form, "Brazil", "capital", "Bras\u00edlia"),
    (check_form, "Gambia", "article", "The"),
    (check_form, "Gambia", "name", "The Gambia"),
    (check_order_and_uniqueness, "Kenya", "name", "Mali"),
    (check_order_and_uniqueness, "Kenya", "name", "Zenya"),
    (check_order_and_uniqueness, "Kenya", "capital", "Bamako"),
    (check_order_and_uniqueness, "Kenya", "domain", ".ml"),
    (check_members, "Kenya", "name", "Kenia"),
    (check_members, "Kenya", "name", "Taiwan"),
    (check_domains, "Kenya", "domain", ".ky"),
    (check_domains, "United Kingdom", "domain", ".gb"),
    (check_continents, "Kenya", "continent", "Asia"),
    (check_continents, "Kenya", "continent", "Atlantis"),
    (check_continents, "Iceland", "continent", "North America"),
    (check_continents, "Peru", "continent", "North America"),
    (check_continents, "Panama", "continent", "South America"),
    (check_capitals, "Kenya", "capital", "Kampala"),
    (check_capitals, "Kenya", "capital", "Mombasa"),
    (check_capitals, "Turkey", "capital", "Bursa"),
    (check_currencies, "Kenya", "currency", "dollar"),
    (check_currencies, "Kenya", "currency", "shilling|Ugandan shilling"),
    (check_currencies, "Kenya", "currency", "hilling"),
    (check_currencies, "Croatia", "currency", "kuna"),
    (check_currencies, "Bulgaria", "currency", "mark"),
    (check_languages, "Kenya", "language", "French|Swahili|English"),
    (check_languages, "Kenya", "language", "Swahili"),
    (check_languages, "Kenya", "language", "Swahili|English|Polish"),
    (check_languages, "Kenya", "language", "Swahilli|Swahili|English"),
    (check_languages, "Mali", "language", "Soninke|French"),
]


@pytest.mark.parametrize(("check", "name", "column", "cell"), SPOILED)
def test_a_spoiled_cell_is_found(check: Check, name: str, column: str, cell: str) -> None:
    rows = load()
    (row,) = (row for row in rows if row["name"] == name)
    assert row[column] != cell
    row[column] = cell
    assert check(rows)


@pytest.mark.parametrize(
    ("check", "column"), [(check_domains, "domain"), (check_capitals, "capital")]
)
def test_a_cell_from_the_next_row_is_found(check: Check, column: str) -> None:
    rows = load()
    cells = [row[column] for row in rows]
    unnoticed = []
    for row, own, following in zip(rows, cells, cells[1:] + cells[:1], strict=True):
        row[column] = following
        if not check(rows):
            unnoticed.append(row["name"])
        row[column] = own
    assert unnoticed == []


def test_a_lost_row_and_a_short_table_are_found() -> None:
    rows = load()
    assert check_members([row for row in rows if row["name"] != "Kenya"]) == ["KE is missing"]
    assert check_order_and_uniqueness(rows[:179]) == ["only 179 rows"]


def test_the_file_is_plain() -> None:
    """UTF-8, no byte order mark, '\\n' at line ends, quoted only where needed."""
    rows = load()
    assert list(rows[0]) == COLUMNS
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # raises where a row has too many cells
    assert TABLE.read_bytes() == text.getvalue().encode("utf-8")


@pytest.mark.parametrize(
    "exceptions",
    [
        CANONICAL_LANGUAGES,
        FURTHER_LANGUAGES,
        LEFT_OUT_LANGUAGES,
        CURRENCIES,
        ZONES_ELSEWHERE,
        CAPITALS,
    ],
)
def test_every_exception_names_a_row_and_a_reason(exceptions: dict[tuple[str, str], str]) -> None:
    rows = {row["name"]: row for row in load()}
    for (name, value), reason in exceptions.items():
        assert name in rows and reason
        if exceptions is not LEFT_OUT_LANGUAGES:
            assert value in "|".join(rows[name].values()).split("|"), (name, value)


def test_territories_left_out_are_real_codes() -> None:
    assert len(NOT_LISTED) == 54
    assert {country.alpha_2 for country in countries} >= NOT_LISTED
