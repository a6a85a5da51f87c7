"""The animals table: its form, its vocabularies, and what can be known without it.

There is no second source for these facts here. Two candidates were looked at and set aside:
`animalia` makes up species names and has no orders, and `find-life` asks a server, so it is not
hermetic. WordNet readers download their data separately. The other tables are checked against a
library; this one only against `ORDERS_OF_CLASS`, `CLASSES_OF_YOUNG` and `RULES` below, which were
written out separately but from the same general knowledge. So these checks find slips and
contradictions; they do not find a misbelief that the table and the test share.

Every check is a function from rows to a list of complaints. It runs twice: on the table, where it
must stay silent, and on a copy with one planted fault, where it must speak.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

TABLES = Path(__file__).parents[2] / "sft_utils" / "atlas" / "tables"
COLUMNS = ["name", "class", "order", "young", "diet"]
FACTS = COLUMNS[1:]

Row = dict[str, str]
Check = Callable[[list[Row]], list[str]]
Plant = Callable[[list[Row]], list[Row]]

ALLOWED = {
    "class": {
        "mammal", "bird", "reptile", "amphibian", "fish", "cartilaginous fish", "ray-finned fish",
        "insect", "arachnid", "crustacean", "mollusk", "mollusc",
    },
    "diet": {"carnivore", "herbivore", "omnivore", "insectivore"},
}  # fmt: skip

ORDERS_OF_CLASS = {
    "mammal": """Afrosoricida Artiodactyla Carnivora Cetacea Cetartiodactyla Chiroptera Cingulata
        Dasyuromorphia Dermoptera Didelphimorphia Diprotodontia Erinaceomorpha Eulipotyphla
        Hyracoidea Insectivora Lagomorpha Macroscelidea Microbiotheria Monotremata
        Notoryctemorphia Paucituberculata Peramelemorphia Perissodactyla Pholidota Pilosa Primates
        Proboscidea Rodentia Scandentia Sirenia Tubulidentata""",
    "bird": """Accipitriformes Anseriformes Apodiformes Apterygiformes Bucerotiformes
        Caprimulgiformes Cariamiformes Casuariiformes Cathartiformes Charadriiformes
        Ciconiiformes Columbiformes Coraciiformes Cuculiformes Falconiformes Galliformes
        Gaviiformes Gruiformes Musophagiformes Passeriformes Pelecaniformes Phaethontiformes
        Phoenicopteriformes Piciformes Podicipediformes Procellariiformes Psittaciformes Rheiformes
        Sphenisciformes Strigiformes Struthioniformes Suliformes Tinamiformes Trogoniformes""",
    "reptile": """Chelonia Chelonii Crocodilia Crocodylia Rhynchocephalia Sphenodontia Squamata
        Testudines""",
    "amphibian": "Anura Caudata Gymnophiona Urodela",
    "fish": """Acipenseriformes Anguilliformes Carcharhiniformes Characiformes Clupeiformes
        Cypriniformes Cyprinodontiformes Esociformes Gadiformes Lamniformes Myliobatiformes
        Perciformes Pleuronectiformes Salmoniformes Siluriformes Squaliformes Syngnathiformes
        Tetraodontiformes""",
    "insect": """Blattaria Blattodea Coleoptera Dermaptera Diptera Ephemeroptera Hemiptera
        Hymenoptera Isoptera Lepidoptera Mantodea Neuroptera Odonata Orthoptera Phasmatodea
        Plecoptera Siphonaptera Trichoptera""",
    "arachnid": "Araneae Ixodida Opiliones Pseudoscorpiones Scorpiones Solifugae",
    "crustacean": "Amphipoda Anostraca Decapoda Euphausiacea Isopoda Stomatopoda",
    "mollusk": "Nautilida Octopoda Sepiida Stylommatophora",
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
        ("hatchling", "bird reptile mollusk"),
        ("snakelet", "reptile"),
        ("pollywog polliwog tadpole", "amphibian"),
        ("alevin codling elver fingerling fry leptocephalus parr smolt", "fish"),
        ("caterpillar grub hopper maggot naiad nymph", "insect"),
        ("scorpling spiderling", "arachnid"),
        ("megalopa nauplius zoea", "crustacean"),
        ("paralarva", "mollusk"),
        ("larva", "amphibian fish insect crustacean mollusk"),
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


def read_table(name: str) -> list[Row]:
    """Rows of the table `name`, in the file's order, every cell as it stands there."""
    return read_rows((TABLES / f"{name}.csv").read_bytes().decode("utf-8"))


def read_rows(text: str) -> list[Row]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def answers(row: Row, column: str) -> list[str]:
    return row[column].split("|")


def first(row: Row, column: str) -> str:
    return answers(row, column)[0]


def wrong_shape(rows: list[Row]) -> list[str]:
    """Other columns than these, or a row with a cell too few or too many."""
    return [str(row) for row in rows if list(row) != COLUMNS or None in row.values()]


def too_few(rows: list[Row]) -> list[str]:
    return [] if len(rows) >= 100 else [f"only {len(rows)} rows"]


def blank_cells(rows: list[Row]) -> list[str]:
    """Blank cells or answers, and white space around one."""
    return [
        f"{row['name']}: {column}={row[column]!r}"
        for row in rows
        for column in COLUMNS
        for answer in answers(row, column)
        if not answer or answer != answer.strip()
    ]


def not_ascii(rows: list[Row]) -> list[str]:
    return [f"{row['name']!a}" for row in rows if not "".join(row.values()).isascii()]


def repeated_names(rows: list[Row]) -> list[str]:
    counts = Counter(row["name"].casefold() for row in rows)
    return [name for name, count in counts.items() if count > 1]


def repeated_answers(rows: list[Row]) -> list[str]:
    return [
        f"{row['name']}: {row[column]}"
        for row in rows
        for column in FACTS
        if len({a.casefold() for a in answers(row, column)}) < len(answers(row, column))
    ]


def unsorted_or_not_lower(rows: list[Row]) -> list[str]:
    names = [row["name"] for row in rows]
    out_of_order = [b for a, b in pairwise(names) if a > b]
    return out_of_order + [name for name in names if name != name.lower()]


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


def young_too_common(rows: list[Row]) -> list[str]:
    word, count = Counter(first(row, "young") for row in rows).most_common(1)[0]
    return [f"{word}: {count} of {len(rows)}"] if count >= 0.25 * len(rows) else []


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


def shared_names(rows: list[Row], others: set[str]) -> list[str]:
    """Names that are one of `others`, or hold one as a word ('guinea pig')."""
    others = {other.casefold() for other in others}
    return [row["name"] for row in rows if others & words(row["name"])]


def words(name: str) -> set[str]:
    """The name itself and each word in it."""
    return {name.casefold(), *name.casefold().split()}


def planted(**cells: str) -> Plant:
    """A fault: the lion's row with `cells` changed."""

    def plant(rows: list[Row]) -> list[Row]:
        assert any(row["name"] == "lion" for row in rows)
        return [row | cells if row["name"] == "lion" else row for row in rows]

    return plant


CHECKS: list[tuple[Check, Plant]] = [
    (wrong_shape, planted(habitat="savanna")),
    (wrong_shape, lambda rows: read_rows("name,class,order,young,diet\nlion,mammal\n")),
    (wrong_shape, lambda rows: read_rows("name,class,order,young,diet\na,b,c,d,e,f\n")),
    (too_few, lambda rows: rows[:99]),
    (blank_cells, planted(diet="")),
    (blank_cells, planted(young="cub|")),
    (blank_cells, planted(young="cub| whelp")),
    (not_ascii, planted(name="li\N{LATIN SMALL LETTER O WITH ACUTE}n")),
    (repeated_names, planted(name="Tiger")),
    (repeated_answers, planted(young="cub|Cub")),
    (unsorted_or_not_lower, planted(name="zebu")),
    (unsorted_or_not_lower, planted(name="Lion")),
    (outside_vocabulary, planted(diet="carnivorous")),
    (outside_vocabulary, planted(**{"class": "mammals"})),
    (order_against_class, planted(order="Passeriformes")),
    (order_against_class, planted(order="Carnivora|Felidae")),
    (young_against_class, planted(young="cygnet")),
    (young_against_class, planted(young="cub|lionet")),
    (rules_of_orders, planted(order="Primates")),
    (young_too_common, lambda rows: [row | {"young": "cub"} for row in rows[::2]] + rows[1::2]),
    (given_away_by_name, planted(name="lion cub")),
    (given_away_by_name, planted(**{"name": "mammalian", "class": "mammal"})),
    (names_that_are_answers, planted(name="hatchling")),
]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_table("animals")


@pytest.mark.parametrize("check", {check: None for check, _ in CHECKS}, ids=lambda c: c.__name__)
def test_table(rows: list[Row], check: Check) -> None:
    assert check(rows) == []


@pytest.mark.parametrize(("check", "plant"), CHECKS, ids=lambda c: c.__name__)
def test_check_finds_a_planted_fault(rows: list[Row], check: Check, plant: Plant) -> None:
    assert check(plant(rows)) != []


def test_every_rule_is_about_some_row(rows: list[Row]) -> None:
    """A rule about no row could not fail."""
    assert set(RULES) <= {first(row, "order") for row in rows}


def test_file_is_as_a_csv_writer_would_write_it(rows: list[Row]) -> None:
    """Quoted only where needed, one line feed a row, no byte order mark."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    assert (TABLES / "animals.csv").read_bytes() == text.getvalue().encode("ascii")


@pytest.mark.parametrize("table", ["countries", "elements", "constellations"])
def test_no_name_of_another_table(rows: list[Row], table: str) -> None:
    if not (TABLES / f"{table}.csv").exists():
        pytest.skip(f"no table {table}")
    others = {row["name"] for row in read_table(table)}
    assert len(others) > 50
    assert shared_names(rows, others) == []
    assert shared_names(planted(name=min(others).lower())(rows), others) != []


def test_no_well_known_clash(rows: list[Row]) -> None:
    """Holds without the other tables: animal names with a second meaning in the Atlas."""
    clashes = {"turkey", "guinea", "jersey", "lynx", "dorado", "phoenix", "chamaeleon", "mercury"}
    assert shared_names(rows, clashes) == []
    assert shared_names(planted(name="guinea pig")(rows), clashes) == ["guinea pig"]
