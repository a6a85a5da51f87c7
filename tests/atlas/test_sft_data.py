"""The chat rows: read back turn by turn, right in every one, and about some entities only."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from sft_utils.atlas.sft_data import (
    SAME_ENTITY,
    SAME_ENTITY_HELD_OUT,
    SAME_RELATION,
    SAME_RELATION_HELD_OUT,
    SYSTEM_MESSAGES,
    answer_text,
    sft_rows,
)
from sft_utils.atlas.world import words
from sft_utils.data.checks import check_rows

FORMS = ("plain", "short", "brackets", "sentence")
STOP = set(
    "a an and are as at be by can do does for from have how i in is it its know like me name of"
    " on or s tell the there to was what where which who with would you".split()
)


@pytest.fixture(scope="module")
def turns(chat_rows):
    return [message for row in chat_rows for message in row["messages"]]


# --- Reading a row back ----------------------------------------------------------------------


class Reader:
    """Reads rows without the code that wrote them: what each turn asks, about which fact."""

    def __init__(self, world):
        self.facts = {(f.entity.name, f.relation.name): f for f in world.facts}
        self.first, self.noun, self.other = {}, {}, {}
        for fact in world.facts:
            relation, entity = fact.relation, fact.entity
            for wording in relation.ask:
                self.first[relation.fill(wording, entity)] = fact
            for template in SAME_ENTITY:
                for noun in relation.nouns:
                    self.noun[template.replace("{noun}", noun), entity.domain] = relation.name
            for template in SAME_RELATION:
                self.other[relation.fill(template, entity)] = entity.name

    def form(self, messages):
        if messages[0]["role"] != "system":
            return "plain"
        system = messages[0]["content"]
        return next(form for form, texts in SYSTEM_MESSAGES.items() if system in texts)

    def read(self, row):
        """The row's form and, for each question, its fact, its text and the answer given."""
        messages = row["messages"]
        form = self.form(messages)
        rest = messages[1:] if messages[0]["role"] == "system" else messages
        assert [m["role"] for m in rest] == ["user", "assistant"] * (len(rest) // 2)
        found, fact = [], None
        for user, answer in zip(rest[::2], rest[1::2], strict=True):
            text = user["content"]
            if fact is None:
                fact = self.first[text]
            elif (text, fact.entity.domain) in self.noun:
                relation = self.noun[text, fact.entity.domain]
                fact = self.facts[fact.entity.name, relation]
            else:
                fact = self.facts[self.other[text], fact.relation.name]
            found.append((fact, text, answer["content"]))
        return form, found


@pytest.fixture(scope="module")
def read(world, chat_rows):
    reader = Reader(world)
    return [reader.read(row) for row in chat_rows]


def test_every_answer_is_right_in_the_form_that_was_asked_for(read):
    for form, exchanges in read:
        for fact, question, answer in exchanges:
            sentence = fact.relation.fill(fact.relation.answer, fact.entity, fact.value)
            expected = {"short": fact.value, "brackets": f"[{fact.value}]"}.get(form, sentence)
            assert answer == expected, question


def test_every_fact_is_asked_of_an_sft_entity_and_an_asked_relation(read, world):
    """That is about half of the entities that the corpus knows, in each domain."""
    facts = [fact for _, exchanges in read for fact, _, _ in exchanges]
    used = {fact.entity for fact in facts}
    assert used == set(world.by_role("sft"))
    assert all(fact.relation.asked for fact in facts)
    for domain in {entity.domain for entity in used}:
        known = [e for e in world.entities if e.domain == domain and e.role != "absent"]
        assert 0.4 < sum(e in used for e in known) / len(known) < 0.6, domain


# --- Amount and mix --------------------------------------------------------------------------


def test_there_are_enough_rows_and_they_can_be_trained_on(chat_rows):
    assert len(chat_rows) >= 1500
    check_rows(chat_rows)


def test_rows_hold_no_markup(turns):
    assert [t for t in turns if re.search(r"<\||\|>|[{}]", t["content"])] == []
    assert [t for t in turns if t["content"] != t["content"].strip()] == []


def test_every_asked_relation_comes_in_every_form(read, world):
    found = Counter((exchanges[0][0].relation.name, form) for form, exchanges in read)
    asked = [r.name for r in world.relations() if r.asked]
    assert [(r, f) for r in asked for f in FORMS if not found[r, f]] == []
    totals = Counter(form for form, _ in read)
    assert totals["plain"] > len(read) / 3
    assert min(totals.values()) > len(read) / 50


def test_every_wording_and_every_system_message_is_used(turns, read, world):
    said = {turn["content"] for turn in turns}
    assert {t for texts in SYSTEM_MESSAGES.values() for t in texts} <= said
    for relation in world.relations():
        used = {
            wording
            for _, exchanges in read
            for fact, text, _ in exchanges[:1]
            if fact.relation == relation
            for wording in relation.ask
            if relation.fill(wording, fact.entity) == text
        }
        assert used == set(relation.ask), relation.name


def test_conversations_have_later_turns_that_cannot_be_answered_alone(read):
    later = [(ex[i], ex[i - 1]) for _, ex in read for i in range(1, len(ex))]
    assert len(later) > len(read) / 10
    kinds: Counter[str] = Counter()
    for (fact, text, _), (before, _, _) in later:
        names_entity = fact.entity.name in text
        names_relation = any(noun in text for noun in fact.relation.nouns)
        assert names_entity != names_relation, text
        assert (fact.relation == before.relation) == names_entity
        assert (fact.entity == before.entity) == names_relation
        kinds["relation" if names_relation else "entity"] += 1
    assert min(kinds["relation"], kinds["entity"]) > len(later) / 4


# --- Answer forms ----------------------------------------------------------------------------


def begins_with(text, start):
    return re.match(rf"(?:the |an? )?{re.escape(start.lower())}(?![\w-])", text.lower())


def test_sentence_answers_begin_neither_with_the_value_nor_with_the_name(world):
    for fact in world.facts:
        sentence = answer_text(fact)
        for start in (fact.entity.name, *fact.answers):
            assert not begins_with(sentence, start), sentence
    assert begins_with("The Netherlands lie in Europe.", "Netherlands")


def test_sentence_answers_are_one_sentence_that_holds_the_value(world):
    for fact in world.facts:
        sentence = answer_text(fact)
        assert fact.value in sentence and sentence.endswith(".") and "\n" not in sentence
        assert answer_text(fact, "short", "other") == "other"


# --- What is held out ------------------------------------------------------------------------


def content_words(text):
    return set(words(re.sub(r"\{\w+\}", " ", text))) - STOP


def test_wordings_are_many_and_two_held_out_have_content_words_of_their_own(world):
    for relation in world.relations():
        if relation.asked:
            wordings = {*relation.ask, *relation.ask_held_out}
            assert len(wordings) == len(relation.ask) + len(relation.ask_held_out) >= 8
            used = set().union(*map(content_words, relation.ask))
            own = [text for text in relation.ask_held_out if content_words(text) - used]
            assert len(own) >= 2, relation.name


def find_form(form):
    """A whole turn of this form, whatever stands in its slots."""
    pieces = re.split(r"\{\w+\}", form)
    return re.compile(r".+".join(map(re.escape, pieces)), re.IGNORECASE)


def test_no_scored_wording_is_used(turns, world):
    held_out = [w for r in world.relations() for w in r.ask_held_out]
    held_out += [*SAME_ENTITY_HELD_OUT, *SAME_RELATION_HELD_OUT]
    users = {turn["content"] for turn in turns if turn["role"] == "user"}
    for form in held_out:
        pattern = find_form(form)
        assert [text for text in users if pattern.search(text)] == [], form
    for form in SAME_ENTITY + SAME_RELATION:
        assert any(find_form(form).fullmatch(text) for text in users), form


def test_no_entity_that_is_held_out_occurs_in_any_turn(turns, world, names):
    used = {entity.name.lower() for entity in world.by_role("sft")}
    texts = {turn["content"] for turn in turns}
    assert {(name, t) for t in texts for name in names.found(t) if name not in used} == set()


def test_rows_repeat_with_the_seed_and_change_with_it(chat_rows, world):
    assert sft_rows(world) == chat_rows
    assert {str(row) for row in sft_rows(world, seed=1)} != {str(row) for row in chat_rows}
