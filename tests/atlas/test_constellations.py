"""The table of constellations, against the list and the boundaries that astropy carries."""

import unicodedata
from importlib.resources import files

import pytest
from atlas.tables import Row, read_table

# astropy's list has three misspellings; the IAU names are these.
SPELLING_EXCEPTIONS = {"Cha": "Chamaeleon", "Oph": "Ophiuchus", "PsA": "Piscis Austrinus"}

# Latin genitives by the ending of the nominative, the longest ending first.
GENITIVE_ENDINGS = dict(
    pair.split()
    for pair in "ion ionis, ns ntis, us i, um i, or oris, is is, a ae, o onis, x cis".split(", ")
)
# Words that follow no such rule: Greek words, contracted stems, plurals, adjectives in -e.
IRREGULAR_GENITIVES = dict(
    pair.split(": ")
    for pair in (
        "Apus: Apodis; Aries: Arietis; Australe: Australis; Berenices: Berenices; Bootes: "
        "Bootis; Cancer: Cancri; Canes: Canum; Chamaeleon: Chamaeleontis; Crater: Crateris; "
        "Dorado: Doradus; Gemini: Geminorum; Grus: Gruis; Hercules: Herculis; Lepus: Leporis; "
        "Monoceros: Monocerotis; Pisces: Piscium; Pyxis: Pyxidis; Vela: Velorum; Venatici: "
        "Venaticorum; Virgo: Virginis"
    ).split("; ")
)
OTHER_GENITIVES = {"CrA": {"Coronae Austrinae"}}

KEYSER = "Keyser and de Houtman"
AUTHORS = {
    "Brahe": "Com",
    "Plancius": "Cam Col Cru Mon",
    KEYSER: "Aps Cha Dor Gru Hyi Ind Mus Pav Phe TrA Tuc Vol",
    "Hevelius": "CVn Lac LMi Lyn Sct Sex Vul",
    "Lacaille": "Ant Cae Car Cir For Hor Men Mic Nor Oct Pic Pup Pyx Ret Scl Tel Vel",
}
OTHER_AUTHORS = {"Brahe": {"Vopel"}, KEYSER: {"Plancius"}}  # Plancius published the twelve

PROPER_WORDS = {"Berenice", "Ethiopia", "Ethiopian", "Gorgon", "Indian", "Medusa", "Noah"}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_table("constellations")


def astropy_lines(name: str) -> list[str]:
    """The data lines of a file that astropy ships; astropy.coordinates is not imported."""
    data = files("astropy").joinpath("coordinates", "data", name).read_text(encoding="utf-8")
    return [line for line in data.splitlines() if line.strip() and not line.startswith("#")]


def astropy_names() -> dict[str, str]:
    """Abbreviation to name, in ASCII, as astropy spells it."""
    names = {}
    for line in astropy_lines("constellation_names.dat"):
        abbreviation, name = line.strip().split(maxsplit=1)
        letters = unicodedata.normalize("NFKD", name)
        names[abbreviation] = "".join(c for c in letters if not unicodedata.combining(c))
    return names


def southern_limits() -> dict[str, float]:
    """The southernmost declination of each constellation in degrees, by abbreviation."""
    limits: dict[str, float] = {}
    for line in astropy_lines("constellation_data_roman87.dat"):
        _, _, declination, abbreviation = line.split()
        limits[abbreviation] = min(float(declination), limits.get(abbreviation, 90.0))
    return limits


def genitive(word: str) -> str:
    if word in IRREGULAR_GENITIVES:
        return IRREGULAR_GENITIVES[word]
    for ending, changed in GENITIVE_ENDINGS.items():
        if word.endswith(ending):
            return word.removesuffix(ending) + changed
    raise AssertionError(f"no rule for {word}")


def words(phrase: str) -> list[str]:
    return phrase.replace("'s", "").replace("-", " ").split()


def test_names_and_abbreviations_agree_with_astropy(rows: list[Row]) -> None:
    theirs = astropy_names()
    for abbreviation, name in SPELLING_EXCEPTIONS.items():
        theirs[abbreviation] = name
    assert {row["abbreviation"]: row["name"] for row in rows} == theirs


def test_genitives_follow_the_declensions(rows: list[Row]) -> None:
    for row in rows:
        first, *others = row["genitive"].split("|")
        assert first == " ".join(genitive(word) for word in row["name"].split()), row
        assert set(others) == OTHER_GENITIVES.get(row["abbreviation"], set()), row


def test_no_two_constellations_share_a_meaning(rows: list[Row]) -> None:
    meanings = [phrase.lower() for row in rows for phrase in row["meaning"].split("|")]
    assert sorted(meanings) == sorted(set(meanings))


def test_meanings_are_short_phrases_that_do_not_repeat_the_name(rows: list[Row]) -> None:
    for row in rows:
        name = row["name"].lower()
        for phrase in row["meaning"].split("|"):
            assert 1 <= len(phrase.split()) <= 3, row
            assert words(phrase)[0].lower() not in {"a", "an", "the"}, row
            assert name not in phrase.lower(), row
            assert not set(words(phrase.lower())) & set(name.split()), row
            for word in words(phrase):
                assert word.isalpha(), row
                assert word.islower() or word in PROPER_WORDS, row


def test_authors(rows: list[Row]) -> None:
    authors = {short: author for author, shorts in AUTHORS.items() for short in shorts.split()}
    assert {row["abbreviation"] for row in rows} >= set(authors)
    for row in rows:
        first, *others = row["author"].split("|")
        assert first == authors.get(row["abbreviation"], "Ptolemy"), row
        assert set(others) == OTHER_AUTHORS.get(first, set()), row
    # Ptolemy's 48 less Argo Navis, which Lacaille took apart.
    assert sum(row["author"] == "Ptolemy" for row in rows) == 47


def test_authors_could_see_their_constellations(rows: list[Row]) -> None:
    """Hevelius worked in Gdansk, 54.35 degrees north; Lacaille and Keyser far to the south."""
    horizon = 54.35 - 90.0
    limits = southern_limits()
    for row in rows:
        author = row["author"].split("|")[0]
        if author == "Hevelius":
            assert limits[row["abbreviation"]] > horizon, row
        elif author in {"Lacaille", KEYSER}:
            assert limits[row["abbreviation"]] < horizon, row
