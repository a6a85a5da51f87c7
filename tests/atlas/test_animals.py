"""The animals table: its vocabularies, and what can be known without it.

There is no second source for these facts here. Two candidates were looked at and set aside:
`animalia` makes up species names and has no orders, and `find-life` asks a server, so it is not
hermetic. WordNet readers download their data separately. The other tables are checked against a
library; this one only against `ORDERS_OF_CLASS`, `CLASSES_OF_YOUNG` and `RULES` below, which were
written out separately but from the same general knowledge. So these checks find slips and
contradictions; they do not find a misbelief that the table and the test share.

Every check is a function from rows to a list of complaints. It runs on the table, where it must
stay silent, and on copies with one planted fault each, where it must speak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from atlas.tables import Row, read_table

FACTS = ["class", "order", "young", "diet"]

Check = Callable[[list[Row]], list[str]]

ALLOWED = {
    "class": {
        "mammal", "bird", "reptile", "amphibian", "fish", "cartilaginous fish", "insect",
        "arachnid",
    },
    "diet": {"carnivore", "herbivore", "omnivore", "insectivore"},
}  # fmt: skip

ORDERS_OF_CLASS = {
    "mammal": """Artiodactyla Carnivora Cetacea Cetartiodactyla Cingulata Didelphimorphia
        Diprotodontia Erinaceomorpha Eulipotyphla Insectivora Lagomorpha Monotremata
        Perissodactyla Pholidota Primates Proboscidea Rodentia Sirenia""",
    "bird": """Accipitriformes Anseriformes Apterygiformes Casuariiformes Charadriiformes
        Ciconiiformes Columbiformes Falconiformes Galliformes Passeriformes Pelecaniformes
        Phoenicopteriformes Piciformes Procellariiformes Psittaciformes Sphenisciformes
        Strigiformes""",
    "reptile": "Chelonia Crocodilia Crocodylia Squamata Testudines",
    "amphibian": "Anura Caudata Urodela",
    "fish": "Cypriniformes Esociformes Myliobatiformes Salmoniformes Syngnathiformes",
    "insect": """Blattaria Blattodea Coleoptera Hymenoptera Isoptera Lepidoptera Mantodea Odonata
        Orthoptera""",
    "arachnid": "Araneae",
}
CLASS_OF_ORDER = {
    order: animal_class
    for animal_class, orders in ORDERS_OF_CLASS.items()
    for order in orders.split()
}

CLASSES_OF_YOUNG = {
    word: set(classes.split())
    for words, classes in [
        ("bunny calf cria cub fawn foal hoglet infant joey kid kit kitten lamb leveret", "mammal"),
        ("pangopup piglet porcupette puggle puppy whelp", "mammal"),
        ("pup", "mammal fish"),
        ("chick colt cygnet duckling eaglet eyas fledgling gosling nestling owlet", "bird"),
        ("peachick puffling squab", "bird"),
        ("hatchling snakelet", "reptile"),
        ("pollywog polliwog tadpole", "amphibian"),
        ("alevin fingerling fry parr smolt", "fish"),
        ("caterpillar grub hopper naiad nymph", "insect"),
        ("spiderling", "arachnid"),
        ("larva", "amphibian insect"),
    ]
    for word in words.split()
}

# What holds for every member of an order: (column, the one canonical value).
RULES = {
    "Anura": ("young", "tadpole"),
    "Araneae": ("diet", "carnivore"),
    "Crocodilia": ("diet", "carnivore"),
    "Diprotodontia": ("young", "joey"),
    "Falconiformes": ("diet", "carnivore"),
    "Lagomorpha": ("diet", "herbivore"),
    "Lepidoptera": ("young", "caterpillar"),
    "Monotremata": ("young", "puggle"),
    "Orthoptera": ("young", "nymph"),
    "Perissodactyla": ("diet", "herbivore"),
    "Primates": ("young", "infant"),
    "Salmoniformes": ("diet", "carnivore"),
    "Sirenia": ("diet", "herbivore"),
    "Sphenisciformes": ("diet", "carnivore"),
    "Strigiformes": ("young", "owlet"),
}


def answers(row: Row, column: str) -> list[str]:
    return row[column].split("|")


def first(row: Row, column: str) -> str:
    return answers(row, column)[0]


def outside_vocabulary(rows: list[Row]) -> list[str]:
    return [
        f"{row['name']}: {column}={answer}"
        for row in rows
        for column, allowed in ALLOWED.items()
        for answer in answers(row, column)
        if answer not in allowed
    ]


def order_against_class(rows: list[Row]) -> list[str]:
    """An order that is unknown here, or belongs to another class."""
    return [
        f"{row['name']}: {order} is of {CLASS_OF_ORDER.get(order)}, not {first(row, 'class')}"
        for row in rows
        for order in answers(row, "order")
        if CLASS_OF_ORDER.get(order) != first(row, "class")
    ]


def young_against_class(rows: list[Row]) -> list[str]:
    """A word for the young that is unknown here, or not used in that class."""
    return [
        f"{row['name']}: {word}"
        for row in rows
        for word in answers(row, "young")
        if first(row, "class") not in CLASSES_OF_YOUNG.get(word, set())
    ]


def rules_of_orders(rows: list[Row]) -> list[str]:
    complaints = []
    for row in rows:
        column, value = RULES.get(first(row, "order"), ("", ""))
        if column and first(row, column) != value:
            complaints.append(f"{row['name']}: {column}={first(row, column)}, expected {value}")
    return complaints


def given_away_by_name(rows: list[Row]) -> list[str]:
    """A right answer that stands inside the name, as in 'catfish'."""
    return [
        f"{row['name']}: {answer}"
        for row in rows
        for column in FACTS
        for answer in answers(row, column)
        if answer.casefold() in row["name"].casefold()
    ]


def names_that_are_answers(rows: list[Row]) -> list[str]:
    values = {a.casefold() for row in rows for column in FACTS for a in answers(row, column)}
    return [row["name"] for row in rows if row["name"].casefold() in values]


def clashes(rows: list[Row]) -> list[str]:
    """Names that are a name of another table or of this Atlas's words, or hold one as a word."""
    others = set("turkey guinea jersey lynx dorado phoenix chamaeleon mercury".split())
    for table in ("countries", "elements", "constellations"):
        others |= {row["name"].casefold() for row in read_table(table)}
    names = [row["name"].casefold() for row in rows]
    return [name for name in names if others & {name, *name.split()}]


# Each check, and the cells of the lion that it must complain of.
CHECKS: dict[Check, list[dict[str, str]]] = {
    outside_vocabulary: [{"diet": "carnivorous"}, {"class": "mammal|mammals"}],
    order_against_class: [{"order": "Passeriformes"}, {"order": "Carnivora|Felidae"}],
    young_against_class: [{"young": "cygnet"}, {"young": "cub|lionet"}],
    rules_of_orders: [{"order": "Primates"}],
    given_away_by_name: [{"name": "lion cub"}, {"name": "mammalian"}],
    names_that_are_answers: [{"name": "hatchling"}],
    clashes: [{"name": "guinea pig"}, {"name": "turkey"}, {"name": "iron"}],
}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_table("animals")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_table_passes_and_a_planted_fault_does_not(rows: list[Row], check: Check) -> None:
    assert check(rows) == []
    for cells in CHECKS[check]:
        lion = next(row for row in rows if row["name"] == "lion") | cells
        assert check([*rows, lion]), cells


def test_names_are_lower_case_and_enough(rows: list[Row]) -> None:
    assert [row["name"] for row in rows if row["name"] != row["name"].lower()] == []
    assert len(rows) >= 100


def test_no_word_for_the_young_is_a_good_guess(rows: list[Row]) -> None:
    [(word, count)] = Counter(first(row, "young") for row in rows).most_common(1)
    assert count < 0.25 * len(rows), word


def test_every_rule_is_about_some_row(rows: list[Row]) -> None:
    """A rule about no row could not fail."""
    assert set(RULES) <= {first(row, "order") for row in rows}
