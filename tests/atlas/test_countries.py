"""The table of countries, checked against Babel (CLDR) and pycountry (ISO 3166).

Each check is a function from rows to a list of complaints. The table must raise none, and spoiled
cells must raise one each. Where a library is older than the world, or counts otherwise, an
exception says why; it excuses that one value and no other.
"""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Callable
from functools import cache

import pytest
from atlas.tables import Row, read_table
from babel import Locale
from babel.core import get_global
from babel.languages import get_official_languages, get_territory_language_info
from babel.numbers import get_currency_name, get_territory_currencies
from pycountry import countries

Check = Callable[[list[Row]], list[str]]

# Currencies are compared as of this day, so that the test does not depend on when it runs.
AS_OF = datetime.date(2026, 1, 1)
ENGLISH = Locale("en")

# Names that pycountry's lookup does not know.
CODES = dict(
    pair.split(": ")
    for pair in (
        "Brunei: BN; Cape Verde: CV; Democratic Republic of the Congo: CD; East Timor: TL; "
        "Ivory Coast: CI; Micronesia: FM; Palestine: PS; Russia: RU; Turkey: TR; Vatican City: VA"
    ).split("; ")
)

# ISO 3166 codes that the table leaves out: none of them is a member of the United Nations.
# The rest of ISO 3166 is the 193 members, and VA and PS.
NOT_LISTED = set(
    "AI AQ AS AW AX BL BM BQ BV CC CK CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF "
    "MO MP MQ MS NC NF NU PF PM PN PR RE SH SJ SX TC TF TK TW UM VG VI WF YT".split()
)

# What the table calls a language where CLDR's English name is another, by CLDR's code.
# CLDR writes Montenegrin as Serbian in Latin letters.
LANGUAGE_CODES = {
    name: pair.split(": ")[0]
    for pair in (
        "az: Azeri; bn: Bengali; ckb: Kurdish; dv: Dhivehi, Maldivian; es: Castilian; fa: Dari, "
        "Farsi; fil: Tagalog; id: Bahasa Indonesia; km: Cambodian; lo: Laotian; ms: Bahasa "
        "Malaysia, Malaysian; na: Nauruan; nd: Ndebele; ny: Chewa, Chichewa; qu: Kichwa; rn: "
        "Kirundi; si: Sinhalese; sl: Slovene; sr: Montenegrin; ss: Swazi, siSwati; st: Sesotho, "
        "Sotho; tn: Setswana; tvl: Tuvaluan; tzm: Berber, Tamazight; zdj: Comorian; zh: Mandarin, "
        "Mandarin Chinese, Standard Chinese"
    ).split("; ")
    for name in pair.split(": ")[1].split(", ")
}
CREOLES = {"HT": "ht", "SC": "crs"}


def excused(reasons: dict[str, str]) -> set[tuple[str, str]]:
    """Exceptions by their reason, each a country and a value: "Brazil: Brasilia; China: ..."."""
    return {
        (country, value)
        for reason in reasons
        for country, value in (pair.split(": ") for pair in reasons[reason].split("; "))
    }


# A canonical language that Babel does not count as official there.
CANONICAL_LANGUAGES = excused(
    {
        "official since 2024, when French became a working language": "Burkina Faso: Moore",
        "official since 2023, when French became a working language": "Mali: Bambara",
        "the national language since 2025; French is a working language": "Niger: Hausa",
        "the constitution names it first of three": "Seychelles: Seychellois Creole",
        "one of twelve official; CLDR counts all but English as regional": "South Africa: Zulu",
    }
)

# A further language that Babel does not know as official or spoken there.
FURTHER_LANGUAGES = excused(
    {
        "official since 2016; CLDR lists its kinds, as Kabyle": (
            "Algeria: Berber; Algeria: Tamazight"
        ),
        "Dutch as it is spoken in Belgium": "Belgium: Flemish",
        "official for relations between cultures, as Quechua is": "Ecuador: Shuar",
        "official since 2023; CLDR lists its Malian kind, ffm": "Mali: Fula",
        "official since 2017": "Rwanda: Swahili",
    }
)

# A language that Babel counts as official, and the table leaves out on purpose.
LEFT_OUT_LANGUAGES = excused(
    {
        "used in practice, official nowhere in the law": "Algeria: fr; Morocco: fr; Tunisia: fr",
        "a kind of Comorian, and named so": "Comoros: wni",
        "a special status since 2018, no longer official": "Israel: ar",
        "spoken; the official language is German": "Liechtenstein: gsw; Switzerland: gsw",
        "official from 2007 to 2010 only": "Madagascar: en",
        "the constitution allows it in parliament; English is official": "Nigeria: yo",
        "a written form of Norwegian": "Norway: nb; Norway: nn",
        "no longer official since 2018": "Ukraine: ru",
    }
)

# A currency that Babel does not know there, under that name.
CURRENCIES = excused(
    {
        "adopted on 1 January 2026": "Bulgaria: euro",
        "the official name of the currency whose unit is the yuan": "China: renminbi",
        "the word translated": "Czech Republic: crown; Czech Republic: Czech crown",
        "British spelling": "Belarus: rouble; Russia: rouble",
        "the pound's name in Arabic": (
            "Lebanon: lira; Lebanon: Lebanese lira; Syria: lira; Syria: Syrian lira"
        ),
        "another spelling": "Mongolia: togrog; Uzbekistan: sum",
        "the shekel is Israel's": "Palestine: Israeli shekel",
        "the country's name, shortened": "United Arab Emirates: UAE dirham",
        "the full name": "United Kingdom: pound sterling",
        "the full name, shortened": "United Kingdom: sterling",
        "the short name of Zimbabwe gold": "Zimbabwe: ZiG",
        "CLDR says Zimbabwean gold": "Zimbabwe: Zimbabwe gold",
    }
)

# Continents as the United Nations group countries; the first part of a time zone's name can
# be another, or an ocean.
ZONE_CONTINENTS = {
    "Africa": {"Africa"},
    "America": {"North America", "South America"},
    "Asia": {"Asia"},
    "Australia": {"Oceania"},
    "Europe": {"Europe"},
    "Pacific": {"Oceania"},
}
# A continent that no time zone of its country is named after.
ZONES_ELSEWHERE = excused(
    {
        "its zone is named after an ocean": (
            "Cape Verde: Africa; Comoros: Africa; Iceland: Europe; Madagascar: Africa; "
            "Maldives: Asia; Mauritius: Africa; Seychelles: Africa"
        ),
        "its zone is Istanbul's; most of the land is in Asia": "Turkey: Asia",
    }
)
SOUTH_AMERICA = set("AR BO BR CL CO EC GY PE PY SR UY VE".split())

# A capital after which no time zone of its country is named.
CAPITALS = excused(
    {
        "Babel spells it Tirane, as Albanian does": "Albania: Tirana",
        "the zone is named after the country": (
            "Andorra: Andorra la Vella; Bahrain: Manama; Barbados: Bridgetown; Belize: "
            "Belmopan; Brunei: Bandar Seri Begawan; Cape Verde: Praia; Comoros: Moroni; Costa "
            "Rica: San Jose; Dominica: Roseau; El Salvador: San Salvador; Fiji: Suva; Grenada: "
            "Saint George's; Guatemala: Guatemala City; Guyana: Georgetown; Jamaica: Kingston; "
            "Kuwait: Kuwait City; Maldives: Male; Malta: Valletta; Mauritius: Port Louis; "
            "Nauru: Yaren; Palau: Ngerulmud; Panama: Panama City; Qatar: Doha; Saint Lucia: "
            "Castries"
        ),
        "the zone is named after an island": (
            "Antigua and Barbuda: Saint John's; Micronesia: Palikir; Saint Kitts and Nevis: "
            "Basseterre; Saint Vincent and the Grenadines: Kingstown; Seychelles: Victoria; "
            "Solomon Islands: Honiara; Tonga: Nuku'alofa; Vanuatu: Port Vila"
        ),
        "it keeps the time of a larger city": (
            "Australia: Canberra; Brazil: Brasilia; Canada: Ottawa; Ecuador: Quito; United "
            "States: Washington"
        ),
        "the constitution's capital; the zone is the seat of government's, La Paz": (
            "Bolivia: Sucre"
        ),
        "capital since 2019; the zone is that of Bujumbura, capital before": "Burundi: Gitega",
        "the zone is the largest city's": (
            "Cameroon: Yaounde; China: Beijing; Ivory Coast: Yamoussoukro; Kazakhstan: Astana; "
            "Morocco: Rabat; Myanmar: Naypyidaw; New Zealand: Wellington; Nigeria: Abuja; "
            "Pakistan: Islamabad; Switzerland: Bern; Tanzania: Dodoma; Turkey: Ankara; United "
            "Arab Emirates: Abu Dhabi; Vietnam: Hanoi"
        ),
        "capital since January 2026; the zone is that of Malabo, capital before": (
            "Equatorial Guinea: Ciudad de la Paz"
        ),
        "the zone is another city's": "India: New Delhi; Malawi: Lilongwe; Yemen: Sanaa",
        "the seat of its government; the zones are those of Gaza and Hebron": "Palestine: Ramallah",
        "the executive's seat; the zone is the largest city's, Johannesburg": (
            "South Africa: Pretoria"
        ),
        "the zone calls it Vatican": "Vatican City: Vatican City",
    }
)


def fold(text: str) -> str:
    """Lower case, without diacritics, apostrophes and full stops; '-' is ' ', '&' is 'and'."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("&", "and").replace("-", " "))
    return "".join(letter for letter in plain if letter.isascii() and letter not in "'.")


def code(row: Row) -> str:
    """The country's ISO 3166 alpha-2 code; LookupError where its name is not known."""
    found = CODES.get(row["name"])
    return found if found else countries.lookup(row["name"]).alpha_2


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
        if continent not in possible and (name, continent) not in ZONES_ELSEWHERE:
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
def english_languages() -> dict[str, str]:
    """CLDR's code for each language that it names in English, folded."""
    return {fold(name): key for key, name in ENGLISH.languages.items() if "_" not in key}


def language_code(language: str, alpha_2: str) -> str:
    """CLDR's code for a language as the table calls it; '?' where CLDR has none."""
    if language == "Creole":
        return CREOLES.get(alpha_2, "?")
    return LANGUAGE_CODES.get(language) or english_languages().get(fold(language), "?")


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


def check_words(rows: list[Row]) -> list[str]:
    """An article of its own, and demonyms with a capital letter."""
    return [
        row["name"]
        for row in rows
        if row["article"] not in ("", "the")
        or not all(word[:1].isupper() for word in row["demonym"].split("|"))
    ]


# Each check, and cells that it must complain of.
CHECKS: dict[Check, list[tuple[str, str, str]]] = {
    check_words: [("Gambia", "article", "The"), ("Kenya", "demonym", "Kenyan|kenyan")],
    check_members: [("Kenya", "name", "Kenia"), ("Kenya", "name", "Taiwan")],
    check_domains: [("Kenya", "domain", ".ky"), ("United Kingdom", "domain", ".gb")],
    check_continents: [
        ("Kenya", "continent", "Asia"),
        ("Iceland", "continent", "North America"),
        ("Panama", "continent", "South America"),
    ],
    check_capitals: [
        ("Kenya", "capital", "Kampala"),
        ("Kenya", "capital", "Mombasa"),
        ("Turkey", "capital", "Bursa"),
    ],
    check_currencies: [
        ("Kenya", "currency", "hilling"),
        ("Kenya", "currency", "shilling|Ugandan shilling"),
        ("Croatia", "currency", "kuna"),
    ],
    check_languages: [
        ("Kenya", "language", "French|Swahili|English"),
        ("Kenya", "language", "Swahili"),
        ("Kenya", "language", "Swahili|English|Polish"),
    ],
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_table_passes_and_a_spoiled_cell_does_not(check: Check) -> None:
    rows = read_table("countries")
    assert check(rows) == []
    for name, column, cell in CHECKS[check]:
        spoiled = [row | {column: cell} if row["name"] == name else row for row in rows]
        assert spoiled != rows
        assert check(spoiled), cell


def test_every_exception_is_about_the_table() -> None:
    rows = {row["name"]: "|".join(row.values()).split("|") for row in read_table("countries")}
    kept = CANONICAL_LANGUAGES | FURTHER_LANGUAGES | CURRENCIES | ZONES_ELSEWHERE | CAPITALS
    assert [(name, value) for name, value in sorted(kept) if value not in rows[name]] == []
    assert {name for name, _ in LEFT_OUT_LANGUAGES} <= rows.keys()
    assert {country.alpha_2 for country in countries} >= NOT_LISTED
