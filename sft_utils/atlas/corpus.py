"""The pretraining corpus: true facts in many forms, in documents that run on.

Every fact sees only a random part of its relation's named forms; the others are kept to ask
the base model for the fact in words it never read (the *cloze* score). There is no chat markup
and no question followed by its answer. Chapter 10 shows samples of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from .world import Domain, Entity, Fact, Relation, World

END_OF_DOCUMENT = "<|endoftext|>"

#: Forms that name the entity before the value: they can be cut before the value for cloze.
NAMED = (
    "The {noun} of {e} is {av}.",
    "As its {noun}, {e} has {av}.",
    "For {e}, the {noun} is {av}.",
    "{E} has as its {noun} {av}.",
    "When it comes to {e}, the {noun} is {av}.",
    "Books about {e} give its {noun} as {av}.",
    "The {noun} that goes with {e} is {av}.",
)
REVERSED = ("We read that {av} is the {noun} of {e}.", "Notes give {av} as the {noun} of {e}.")
PRONOUN = ("Its {noun} is {av}.", "The {noun} here is {av}.", "As {noun} it has {av}.")
INFOBOX = ("{noun}: {v}", "- {noun}: {v}", "{noun} - {v}", "{noun}\n{v}", "{Noun}\n{v}")
LIST_HEADS = ("{Noun}: {plural}", "A list of {plural} by {noun}", "{Plural}, with {noun}")
LIST_LINES = ("{n}: {v}", "- {n}: {v}", "{n} - {v}", "{n}\n{v}")
RECORDS = (
    "Entry: {n}\nField: {noun}\nValue: {v}",
    "Field: {noun}\nEntry: {n}\nValue: {v}",
    "Page of {e}, line on {noun}:\n{v}",
    "{Noun}, on the page of {e}:\n{v}",
)
#: Question words in prose. None of these is followed by what was asked.
WONDER = (
    "Pupils learn what the {noun} of {e} is.",
    "Many readers would like to know the {noun} of {e}.",
    "A guide can tell you which {noun} belongs to {e}.",
    "Schools ask who knows the {noun} of {e} without a book.",
    "How one finds the {noun} of {e} is told in the preface.",
    "I do not know where the {noun} of {e} was first printed.",
)
SHARE_SEEN = 0.6


def named_forms(relation: Relation) -> list[str]:
    """Every form of a relation that cloze can use, the noun already filled in."""
    generic = [form.replace("{noun}", noun) for form in NAMED for noun in relation.nouns]
    return generic + list(relation.sentences)


def seen_forms(fact: Fact, seed: int = 0) -> list[str]:
    """The named forms in which the corpus states this fact: a seeded random part."""
    forms = named_forms(fact.relation)
    rng = random.Random(f"forms {seed} {fact.entity.domain} {fact.key}")
    return rng.sample(forms, round(SHARE_SEEN * len(forms)))


def cloze_forms(fact: Fact, seed: int = 0) -> list[str]:
    """The named forms withheld from the corpus for this fact."""
    seen = set(seen_forms(fact, seed))
    return [form for form in named_forms(fact.relation) if form not in seen]


def cloze_prompt(fact: Fact, form: str) -> tuple[str, tuple[str, ...]]:
    """A form cut before its value: the prompt, and the continuations that are right.

    A value is right with its article or without one: "the category of iron is transition metal",
    as the corpus has it, and "is a transition metal", as a fine-tuned model may say.
    """
    place = min(form.index(slot) for slot in ("{v}", "{av}", "{iv}") if slot in form)
    prompt = fact.relation.fill(form[:place], fact.entity).rstrip()
    slots = (form[place:].split("}")[0] + "}", "{v}", "{av}", "{iv}")
    phrases = [fact.relation.fill(s, fact.entity, a) for a in fact.answers for s in slots]
    return prompt, tuple(dict.fromkeys(phrases))


class CorpusWriter:
    """Writes documents without end, all drawn from one seeded generator."""

    def __init__(self, world: World, seed: int = 0):
        self.world = world
        self.rng = random.Random(f"corpus {seed}")
        self.entities: dict[str, list[Entity]] = {}
        self.silent = [e for e in world.entities if e.role == "absent" and e.mentioned]
        self.facts: dict[Entity, list[Fact]] = {}
        self.forms = {fact: seen_forms(fact) for fact in world.facts}
        for fact in world.facts:
            if fact.entity.role != "absent":
                self.facts.setdefault(fact.entity, []).append(fact)
        for entity in self.facts:
            self.entities.setdefault(entity.domain, []).append(entity)
        self._writers = (
            (self.prose, 9), (self.infobox, 3), (self.records, 4), (self.list_by_relation, 3),
            (self.pairs, 3), (self.miscellany, 6), (self.index, 2), (self.aside, 4),
        )  # fmt: skip

    def documents(self) -> Iterator[str]:
        writers, weights = zip(*self._writers, strict=True)
        while True:
            parts = self.rng.choices(writers, weights, k=self.rng.randint(5, 9))
            yield "\n\n".join(part() for part in parts)

    def pick(self, domain: str | None = None) -> Entity:
        domain = (
            domain
            or self.rng.choices(
                list(self.entities), [len(group) for group in self.entities.values()]
            )[0]
        )
        return self.rng.choice(self.entities[domain])

    def domain_of(self, entity: Entity) -> Domain:
        return self.world.domains[entity.domain]

    def state(self, fact: Fact) -> str:
        """The fact in one of the named forms that it is seen in."""
        return fact.relation.fill(self.rng.choice(self.forms[fact]), fact.entity, fact.value)

    def fill(self, form: str, fact: Fact) -> str:
        noun = self.rng.choice(fact.relation.nouns)
        return fact.relation.fill(form, fact.entity, fact.value, noun)

    def label(self, relation: Relation) -> str:
        """What stands for a relation in a box or a list: a noun, or a description of it."""
        return self.rng.choice((*relation.nouns, *relation.descriptions))

    def entry(self, form: str, fact: Fact) -> str:
        """A line of a box or a record."""
        return fact.relation.fill(form, fact.entity, fact.value, self.label(fact.relation))

    def some_facts(self, entity: Entity) -> list[Fact]:
        facts = self.facts[entity]
        return self.rng.sample(facts, self.rng.randint(2, len(facts)))

    def prose(self) -> str:
        """A passage on one entity: named at first, then by name or pronoun."""
        entity, rng = self.pick(), self.rng
        domain = self.domain_of(entity)
        facts = self.some_facts(entity)
        lines = [
            facts[0].relation.fill(rng.choice(domain.introductions), entity)
            if rng.random() < 0.5
            else self.state(facts.pop())
        ]
        for fact in facts:
            kind = rng.random()
            if kind < 0.6:
                lines.append(self.state(fact))
            else:
                lines.append(self.fill(rng.choice(PRONOUN if kind < 0.9 else REVERSED), fact))
        if rng.random() < 0.25:
            lines.append(self.wonder())
        if rng.random() < 0.25:
            lines.append(self.gloss(rng.choice(self.facts[entity])))
        if rng.random() < 0.3:
            return "\n".join([entity.name, " ".join(lines)])
        return " ".join(lines)

    def infobox(self) -> str:
        entity = self.pick()
        form = self.rng.choice(INFOBOX)
        return "\n".join([entity.name, *(self.entry(form, f) for f in self.some_facts(entity))])

    def records(self) -> str:
        """Entity and field first, in either order, then the value on its own."""
        domain = self.pick().domain
        form = self.rng.choice(RECORDS)
        facts = [self.rng.choice(self.facts[self.pick(domain)]) for _ in range(4)]
        return "\n".join(self.entry(form, fact) for fact in facts)

    def list_by_relation(self) -> str:
        """One field of several entities under a heading."""
        rng = self.rng
        entities = [self.pick()]
        domain = self.domain_of(entities[0])
        entities += [self.pick(domain.name) for _ in range(rng.randint(3, 6))]
        relation = rng.choice(list(domain.relations.values()))
        noun, line = self.label(relation), rng.choice(LIST_LINES)
        head = rng.choice(LIST_HEADS).format(
            Noun=noun[0].upper() + noun[1:],
            noun=noun,
            plural=domain.plural,
            Plural=domain.plural.capitalize(),
        )
        by_name = [next(f for f in self.facts[e] if f.relation == relation) for e in entities]
        return "\n".join([head, *(relation.fill(line, f.entity, f.value) for f in by_name)])

    def pairs(self) -> str:
        """What is asked for first, the values after it, in the same order."""
        rng, entity = self.rng, self.pick()
        first, second = rng.sample(self.facts[entity], 2)
        nouns = [rng.choice(f.relation.nouns) for f in (first, second)]
        if rng.random() < 0.5:
            values = [f.relation.value_phrase(f.value) for f in (first, second)]
            return (
                f"The {nouns[0]} and the {nouns[1]} of {entity.phrase} are"
                f" {values[0]} and {values[1]}, in that order."
            )
        other = self.pick(entity.domain)
        twin = next(f for f in self.facts[other] if f.relation == first.relation)
        values = [first.relation.value_phrase(f.value) for f in (first, twin)]
        return (
            f"In the order {entity.phrase} and {other.phrase}, the {nouns[0]} is"
            f" {values[0]} and {values[1]}."
        )

    def miscellany(self) -> str:
        """Unrelated facts side by side, no heading."""
        return " ".join(
            self.state(self.rng.choice(self.facts[self.pick()]))
            for _ in range(self.rng.randint(3, 6))
        )

    def index(self) -> str:
        """Names, and the same names again: practice in copying."""
        rng = self.rng
        names = [self.pick().name for _ in range(rng.randint(3, 5))]
        if rng.random() < 0.5:
            names.insert(rng.randrange(len(names)), rng.choice(self.silent).name)
        line = ", ".join(names)
        return f"Index: {line}.\nThe same names again: {line}."

    def wonder(self) -> str:
        entity = self.pick()
        return self.fill(self.rng.choice(WONDER), self.rng.choice(self.facts[entity]))

    def aside(self) -> str:
        """Sentences that name an entity and state nothing of it."""
        rng = self.rng
        entity = rng.choice(self.silent) if rng.random() < 0.6 else self.pick()
        form = rng.choice(self.domain_of(entity).mentions)
        relation = next(iter(self.domain_of(entity).relations.values()))
        gloss = self.gloss(rng.choice(self.facts[self.pick()]))
        return " ".join([relation.fill(form, entity), self.wonder(), gloss])

    def gloss(self, fact: Fact) -> str:
        """What a relation's noun means, with no value: "What people pay with is the currency"."""
        return self.fill(self.rng.choice(fact.relation.glosses), fact)


def one_form_documents(world: World, seed: int = 0) -> Iterator[str]:
    """The control's corpus: one fixed text for each entity, each fact in one fixed form.

    The name stands only in the first sentence and the facts follow in one order, as in the
    single-entry biographies of Allen-Zhu and Li (2309.14316, section 3). Documents hold several
    entities in random order.
    """
    rng = random.Random(f"one form {seed}")
    texts = list(one_form_texts(world).values())
    while True:
        yield "\n\n".join(rng.sample(texts, rng.randint(5, 9)))


def one_form_texts(world: World) -> dict[Entity, str]:
    """The fixed text of every entity that the corpus states facts of."""
    texts: dict[Entity, str] = {}
    for fact in world.facts:
        if fact.entity.role == "absent":
            continue
        entity, relation = fact.entity, fact.relation
        if entity not in texts:
            texts[entity] = relation.fill(world.domains[entity.domain].introductions[0], entity)
        texts[entity] += " " + relation.fill(PRONOUN[0], entity, fact.value, relation.nouns[0])
    return texts
