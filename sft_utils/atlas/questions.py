"""The scored questions of the Atlas, each labeled; splits are named cells of that grid.

A question is labeled by its entity's role, whether fine-tuning asked the relation, whether it
used the wording, the domain and the answer's form. Facts that give themselves away are left
out. The recipe was tuned on the ``dev`` entities; ``test`` is scored for what is published.
Chapter 10 shows the grid and chapter 11 the scores.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from .sft_data import (
    SAME_ENTITY_HELD_OUT,
    SAME_RELATION_HELD_OUT,
    SYSTEM_MESSAGES,
    Message,
    answer_text,
    follow_up_text,
    sft_rows,
    system_turn,
    turn,
)
from .world import Fact, World, stands_in


@dataclass(frozen=True)
class Question:
    """``messages`` ends with the user's turn. ``answers`` are the exact right answers, and
    ``values`` the right values within them, the canonical one first in both."""

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    fact: Fact
    wording: str  # "used" or "held out"
    form: str  # "plain", "short", "brackets", "sentence" or "follow-up"

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]

    @property
    def values(self) -> tuple[str, ...]:
        return self.fact.answers

    @property
    def entity(self) -> str:
        return self.fact.entity.name

    @property
    def relation(self) -> str:
        return self.fact.relation.name

    @property
    def labels(self) -> dict[str, str]:
        """The cell of the grid that this question belongs to."""
        return {
            "entity": self.fact.entity.role,
            "relation": "asked" if self.fact.relation.asked else "never asked",
            "wording": self.wording,
            "domain": self.fact.entity.domain,
            "form": "instruction" if self.form in SYSTEM_MESSAGES else self.form,
        }


#: A split is the set of questions whose labels have these values.
SPLITS: dict[str, dict[str, str]] = {
    f"{name}-{role}": {"entity": role, **labels}
    for role in ("dev", "test")
    for name, labels in {
        "headline": {"relation": "asked", "wording": "held out", "form": "plain"},
        "used-wording": {"relation": "asked", "wording": "used", "form": "plain"},
        "instruction": {"relation": "asked", "form": "instruction"},
        "follow-up": {"relation": "asked", "form": "follow-up"},
        "never-asked": {"relation": "never asked"},
    }.items()
} | {
    "seen-entity": {"entity": "sft", "wording": "held out", "form": "plain", "relation": "asked"},
    "seen-question": {"entity": "sft", "wording": "used", "form": "plain", "relation": "asked"},
    "absent-entity": {"entity": "absent", "relation": "asked", "form": "plain"},
    "untouched-domain": {"entity": "untouched"},
}


def scored_questions(split: str, world: World, seed: int = 0) -> list[Question]:
    """All questions of one split, in a fixed order.

    Raises ``KeyError`` naming the known splits if there is no such split.
    """
    if split not in SPLITS:
        raise KeyError(f"No split {split!r}; the splits are {', '.join(SPLITS)}.")
    wanted = SPLITS[split]
    rng = random.Random(f"questions {seed} {split}")
    facts = [
        fact
        for fact in world.facts
        if fact.entity.role == wanted["entity"]
        and wanted.get("relation", "") in ("", "asked" if fact.relation.asked else "never asked")
        and not fact.gives_itself_away
    ]
    makers = {"instruction": _instruction, "follow-up": _follow_up}
    make = makers.get(wanted.get("form", ""), _plain)
    questions = list(make(facts, rng, wanted.get("wording", "held out")))
    if split == "seen-question":
        asked = {turn["content"] for row in sft_rows(world) for turn in row["messages"]}
        questions = [question for question in questions if question.text in asked]
    return questions


def _right_answers(fact: Fact, form: str) -> tuple[str, ...]:
    return tuple(answer_text(fact, form, value) for value in fact.answers)


def _plain(facts: list[Fact], rng: random.Random, wording: str) -> Iterable[Question]:
    for fact in facts:
        relation = fact.relation
        texts = rng.sample(relation.ask, 4) if wording == "used" else relation.ask_held_out
        for text in texts:
            message: Message = {"role": "user", "content": relation.fill(text, fact.entity)}
            if not _gives_away([message], fact):
                yield Question((message,), _right_answers(fact, "plain"), fact, wording, "plain")


def _instruction(facts: list[Fact], rng: random.Random, wording: str) -> Iterable[Question]:
    for question in _plain(facts, rng, "held out"):
        form = rng.choice(tuple(SYSTEM_MESSAGES))
        yield Question(
            (*system_turn(form, rng), *question.messages),
            _right_answers(question.fact, form),
            question.fact,
            "held out",
            form,
        )


def _follow_up(facts: list[Fact], rng: random.Random, wording: str) -> Iterable[Question]:
    """A conversation with one right answer in it, then a turn that depends on it."""
    for fact in facts:
        same_entity = [f for f in facts if f.entity == fact.entity and f != fact]
        same_relation = [f for f in facts if f.relation == fact.relation and f != fact]
        for earlier, templates in (
            (same_entity, SAME_ENTITY_HELD_OUT),
            (same_relation, SAME_RELATION_HELD_OUT),
        ):
            text = follow_up_text(rng.choice(templates), fact)
            for first in rng.sample(earlier, len(earlier)):
                asked = first.relation.fill(rng.choice(first.relation.ask), first.entity)
                opening = turn(asked, answer_text(first))
                # An opening that holds the right value would reward copying it.
                if not _gives_away(opening, fact):
                    messages = (*opening, {"role": "user", "content": text})
                    answers = _right_answers(fact, "plain")
                    yield Question(messages, answers, fact, "held out", "follow-up")
                    break


def _gives_away(messages: list[Message], fact: Fact) -> bool:
    """True if a right value of the fact stands in one of the turns."""
    return any(stands_in(value, m["content"]) for value in fact.answers for m in messages)


def printed_questions(world: World, seed: int = 0) -> list[Question]:
    """The short list that pages print in full: for each asked relation, one test question.

    Drawn by seed from the headline split; ``profile_files/atlas.toml`` holds their texts.
    """
    rng = random.Random(f"printed {seed}")
    questions = scored_questions("headline-test", world)
    relations = [r.name for r in world.relations() if r.asked]
    return [rng.choice([q for q in questions if q.relation == name]) for name in relations]
