"""The Atlas as data: entities, relations and facts, read from the tables that people edit.

A *fact* is an entity, a relation and the right answers, the canonical one first. Every entity
has a *role* that says where it may appear: in the fine-tuning data (``sft``), only in questions
(``dev`` and ``test``), nowhere in the corpus's facts (``absent``), or in a domain that
fine-tuning never touches (``untouched``). Chapter 05 shows the roles.
"""

from __future__ import annotations

import csv
import random
import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_SENTENCES = ("introductions", "mentions")
DOMAINS = ("countries", "elements", "animals", "constellations")
ROLES = ("sft", "dev", "test", "absent", "untouched")
#: Share of a domain's entities in each role; what remains is fine-tuning's.
SHARES = {"absent": 0.14, "dev": 0.21, "test": 0.21}
SHORT = 6  # letters of the absent names that the corpus never mentions


@dataclass(frozen=True)
class Entity:
    """One row of a table. ``role`` is one of :data:`ROLES`."""

    name: str
    domain: str
    role: str
    article: str = ""
    mentioned: bool = True  # False: the name stands nowhere in the corpus

    @property
    def phrase(self) -> str:
        """The name inside a sentence: ``the Netherlands``, ``the lion``, ``iron``."""
        return f"{self.article} {self.name}".strip()


@dataclass(frozen=True)
class Relation:
    """What can be said and asked of a domain's entities, read from ``relations/*.toml``."""

    name: str
    domain: str
    asked: bool
    nouns: tuple[str, ...]
    descriptions: tuple[str, ...]
    sentences: tuple[str, ...]
    glosses: tuple[str, ...]
    answer: str
    ask: tuple[str, ...]
    ask_held_out: tuple[str, ...]
    article: str = ""

    def value_phrase(self, value: str) -> str:
        """The value inside a sentence: ``the shilling``, ``a cub``, ``Nairobi``."""
        return indefinite(value) if self.article == "a" else f"{self.article} {value}".strip()

    def fill(self, template: str, entity: Entity, value: str = "", noun: str = "") -> str:
        """Put an entity and a value into a form. ``{E}`` is ``{e}`` at a sentence's start."""
        phrase = entity.phrase
        return template.format(
            e=phrase,
            E=phrase[0].upper() + phrase[1:],
            n=entity.name,
            v=value,
            av=self.value_phrase(value),
            iv=indefinite(value),
            noun=noun,
            Noun=noun[:1].upper() + noun[1:],
        )


@dataclass(frozen=True)
class Fact:
    """``answers[0]`` is canonical: the corpus and the fine-tuning data use only that one."""

    entity: Entity
    relation: Relation
    answers: tuple[str, ...]

    @property
    def value(self) -> str:
        return self.answers[0]

    @property
    def key(self) -> str:
        return f"{self.entity.name}/{self.relation.name}"

    @property
    def gives_itself_away(self) -> bool:
        """True where a value stands in the name, or the name in the value (Mexico City)."""
        name = self.entity.name
        return stands_in(name, self.value) or any(stands_in(a, name) for a in self.answers)


@dataclass(frozen=True)
class Domain:
    """A table, the words that introduce its entities, and its relations by name."""

    name: str
    singular: str
    plural: str
    introductions: tuple[str, ...]
    mentions: tuple[str, ...]
    relations: dict[str, Relation] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """Everything the models of the Atlas can know."""

    domains: dict[str, Domain]
    entities: tuple[Entity, ...]
    facts: tuple[Fact, ...]

    def by_role(self, *roles: str) -> list[Entity]:
        return [entity for entity in self.entities if entity.role in roles]

    def relations(self) -> list[Relation]:
        return [r for domain in self.domains.values() for r in domain.relations.values()]

    def values(self, relation: Relation) -> set[str]:
        """Every right answer of a relation, over all entities, alternatives included."""
        return {a for fact in self.facts if fact.relation == relation for a in fact.answers}


def indefinite(value: str) -> str:
    """The value with its indefinite article: ``an insect``, ``a mammal``."""
    return f"{'an' if value[:1] in tuple('aeio') else 'a'} {value}"


def words(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())


def stands_in(part: str, text: str) -> bool:
    """True if the words of ``part`` stand in ``text``, in a row, whatever their case."""
    return f" {' '.join(words(part))} " in f" {' '.join(words(text))} "


@cache
def load_world(folder: Path = FOLDER, seed: int = 0) -> World:
    """Read tables and relations, and give every entity its role (seeded, by domain)."""
    entities, facts = [], []
    domains = {name: _read_domain(folder / "relations" / f"{name}.toml") for name in DOMAINS}
    tables = {
        name: _read_table(folder / "tables" / f"{name}.csv", ["name", *domain.relations])
        for name, domain in domains.items()
    }
    values = {
        row[r] for name, rows in tables.items() for row in rows for r in domains[name].relations
    }
    for name, rows in tables.items():
        domain = domains[name]
        roles = _assign_roles(
            [row["name"] for row in rows], seed, any(r.asked for r in domain.relations.values())
        )
        for row in rows:
            role, mentioned = roles[row["name"]]
            mentioned = mentioned or row["name"] in values  # "toucan" is what Tucana means
            article = "the" if name == "animals" else row.get("article", "")
            entity = Entity(row["name"], name, role, article, mentioned)
            entities.append(entity)
            for relation in domain.relations.values():
                facts.append(Fact(entity, relation, tuple(row[relation.name].split("|"))))
    return World(domains, tuple(entities), tuple(facts))


def _assign_roles(names: list[str], seed: int, asked: bool) -> dict[str, tuple[str, bool]]:
    if not asked:
        return {name: ("untouched", True) for name in names}
    rng = random.Random(f"roles {seed} {names[0]}")
    shuffled = rng.sample(sorted(names), len(names))
    roles: dict[str, tuple[str, bool]] = {}
    # Half of the absent names stand nowhere in the corpus, so the tokenizer has no token for
    # them; short ones keep their length in tokens close to that of the other names.
    absent = round(SHARES["absent"] * len(names))
    for name in [name for name in shuffled if len(name) <= SHORT and " " not in name][
        : absent // 2
    ]:
        roles[name] = ("absent", False)
    rest = iter(name for name in shuffled if name not in roles)
    for role, count in (
        ("absent", absent - len(roles)),
        ("dev", round(SHARES["dev"] * len(names))),
        ("test", round(SHARES["test"] * len(names))),
    ):
        roles |= {name: (role, True) for name in islice(rest, count)}
    return roles | {name: ("sft", True) for name in rest}


def _read_domain(path: Path) -> Domain:
    table: dict[str, Any] = tomllib.loads(path.read_text("utf8"))
    head = {key: _frozen(table.pop(key)) for key in ("singular", "plural", *_SENTENCES)}
    relations = {
        name: Relation(name, path.stem, **{key: _frozen(value) for key, value in row.items()})
        for name, row in table.items()
    }
    return Domain(path.stem, **head, relations=relations)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read_table(path: Path, columns: list[str]) -> list[dict[str, str]]:
    with path.open(encoding="utf8", newline="") as file:
        reader = csv.DictReader(file)
        missing = set(columns) - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path.name}: no column {sorted(missing)}; add it or the relation.")
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        for column in columns:
            if not (row[column] or "").strip():
                raise ValueError(f"{path.name}, line {number}: {column} is blank; fill it in.")
    return rows
