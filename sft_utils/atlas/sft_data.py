"""The Atlas's fine-tuning data: chat rows in the ``messages`` format, about some entities only.

Rows are single questions, questions under a system message that changes the answer's form, and
conversations whose later turns depend on earlier ones. The wordings in ``ask_held_out`` and the
``HELD_OUT`` follow-ups never appear here. Chapter 05 shows the rows.
"""

from __future__ import annotations

import random
from typing import Any

from .world import Entity, Fact, World

Message = dict[str, Any]

#: What a system message asks for, by the answer form that it asks for.
SYSTEM_MESSAGES = {
    "short": (
        "Answer in as few words as possible.",
        "Give only the answer, no sentence.",
        "Be brief: just the value.",
    ),
    "brackets": (
        "Put the answer in square brackets.",
        "Reply with the value between [ and ].",
        "Use square brackets and nothing else.",
    ),
    "sentence": (
        "Answer in one full sentence.",
        "Reply with a whole sentence.",
        "Write a complete sentence.",
    ),
}
#: Later turns that ask for another relation of the same entity.
SAME_ENTITY = ("And its {noun}?", "What about its {noun}?", "Its {noun}?", "And the {noun}?")
SAME_ENTITY_HELD_OUT = ("Now the {noun}, please.", "How about its {noun}?")
#: Later turns that ask for the same relation of another entity.
SAME_RELATION = ("And of {e}?", "What about {e}?", "The same of {e}?")
SAME_RELATION_HELD_OUT = ("Now of {e}, please.", "How about {e}?")

#: The form of a row's answer is drawn from these; ``plain`` has no system message.
FORMS = ("plain", "plain", "plain", "short", "short", "brackets", "brackets", "sentence")
ROWS_PER_FACT = 3
CONVERSATIONS_PER_ENTITY = 2


def answer_text(fact: Fact, form: str = "plain", value: str | None = None) -> str:
    """The right answer in one form: ``plain`` and ``sentence`` are the same sentence."""
    value = value or fact.value
    if form == "short":
        return value
    if form == "brackets":
        return f"[{value}]"
    return fact.relation.fill(fact.relation.answer, fact.entity, value)


def system_turn(form: str, rng: random.Random) -> list[Message]:
    """The system message that asks for a form, none for ``plain``."""
    if form == "plain":
        return []
    return [{"role": "system", "content": rng.choice(SYSTEM_MESSAGES[form])}]


def turn(question: str, answer: str) -> list[Message]:
    """A user's question and the assistant's answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def follow_up_text(template: str, fact: Fact) -> str:
    """A later turn that asks for a fact without naming all of it."""
    return fact.relation.fill(template, fact.entity, noun=fact.relation.nouns[0])


def sft_rows(world: World, seed: int = 0) -> list[dict[str, list[Message]]]:
    """All rows, shuffled. Only facts of entities with the role ``sft`` and of asked relations."""
    rng = random.Random(f"sft {seed}")
    facts: dict[Entity, list[Fact]] = {}
    for fact in world.facts:
        if fact.entity.role == "sft" and fact.relation.asked:
            facts.setdefault(fact.entity, []).append(fact)
    rows = []
    for entity, own in facts.items():
        for fact in own:
            for wording in rng.sample(fact.relation.ask, ROWS_PER_FACT):
                form = rng.choice(FORMS)
                question = fact.relation.fill(wording, entity)
                rows.append(system_turn(form, rng) + turn(question, answer_text(fact, form)))
        for _ in range(CONVERSATIONS_PER_ENTITY):
            form = rng.choice(("plain", "plain", "short", "brackets"))
            others = [e for e in facts if e.domain == entity.domain]
            rows.append(system_turn(form, rng) + _conversation(own, others, facts, form, rng))
    rng.shuffle(rows)
    return [{"messages": row} for row in rows]


def _conversation(
    own: list[Fact],
    others: list[Entity],
    facts: dict[Entity, list[Fact]],
    form: str,
    rng: random.Random,
) -> list[Message]:
    """A question, then one or two follow-ups on the same entity or the same relation."""
    fact = rng.choice(own)
    messages = turn(
        fact.relation.fill(rng.choice(fact.relation.ask), fact.entity), answer_text(fact, form)
    )
    for _ in range(rng.randint(1, 2)):
        if rng.random() < 0.6:
            fact = rng.choice([f for f in facts[fact.entity] if f != fact])
            template = rng.choice(SAME_ENTITY)
        else:
            other = rng.choice([e for e in others if e != fact.entity])
            fact = next(f for f in facts[other] if f.relation == fact.relation)
            template = rng.choice(SAME_RELATION)
        messages += turn(follow_up_text(template, fact), answer_text(fact, form))
    return messages
