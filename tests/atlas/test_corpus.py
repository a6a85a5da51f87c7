"""The corpus states true facts in running text, and nothing that fine-tuning or cloze will ask.

All checks read one seeded sample of documents. Each search is also shown to find what it looks
for where it does stand.
"""

from __future__ import annotations

import re
from itertools import islice

import pytest

from sft_utils.atlas import sft_data
from sft_utils.atlas.corpus import (
    CorpusWriter,
    cloze_forms,
    cloze_prompt,
    named_forms,
    one_form_documents,
    one_form_texts,
    seen_forms,
)
from sft_utils.atlas.sft_data import SYSTEM_MESSAGES
from sft_utils.atlas.world import load_world

DOCUMENTS = 1000
SLOT = re.compile(r"\{(?:e|E|n|v|av|iv|noun|Noun)\}")


def write(documents, seed=0):
    return list(islice(CorpusWriter(load_world(), seed).documents(), documents))


@pytest.fixture(scope="module")
def sample():
    return write(DOCUMENTS)


@pytest.fixture(scope="module")
def text(sample):
    return "\n\n".join(sample)


def split_sentences(text):
    """Lines, and sentences within them; a period inside a word (.ke) ends none."""
    return re.split(r"\n+|(?<=[.?!])\s+", text)


@pytest.fixture(scope="module")
def sentences(text):
    return set(split_sentences(text))


def whole_word(part):
    return re.compile(rf"(?<![\w.-]){re.escape(part)}(?![\w-])")


def test_names_are_found_as_whole_words_and_the_longest(names, world):
    text = "In Guinea-Bissau and New Guinea, Nigerian gold; the Lion of South Africa's; golden."
    assert names.found(text) == ["guinea-bissau", "guinea", "gold", "lion", "south africa"]
    assert list(names.spans("gold, Gold or golden")) == [(0, 4, "gold"), (6, 10, "gold")]
    for entity in world.entities:
        assert names.found(f"Is it {entity.phrase}, then?") == [entity.name.lower()]


# --- No chat, no answered questions ----------------------------------------------------------

MARKUP = re.compile(
    r"<\||\|>|\{|\}|\[|^\W*(?:user|assistant|system|human|question|answer|q|a)\W*:",
    re.IGNORECASE | re.MULTILINE,
)


def test_no_chat_markup_and_no_question(text):
    assert MARKUP.search(text) is None and "?" not in text
    for spoiled in ("<|im_start|>user", "A nice\nUser: Hi", "[Nairobi]", "Q: What?", "The {noun}"):
        assert MARKUP.search(spoiled), spoiled


# --- No wording of fine-tuning ---------------------------------------------------------------


def find_form(form, lower):
    """A form with anything within a sentence in its slots, in a lower-case text."""
    pieces = [piece.lower() for piece in SLOT.split(form)]
    if max(pieces, key=len) not in lower:
        return None
    pattern = re.compile(r"[^.?!\n]{1,60}?".join(map(re.escape, pieces)))
    matches = pattern.finditer(lower)
    return next((m for m in matches if not re.match(r"[\w.-]", lower[m.start() - 1 :])), None)


def sft_forms(world):
    for relation in world.relations():
        yield from (*relation.ask, *relation.ask_held_out)
        if relation.asked:
            yield relation.answer
    follow_ups = (
        *sft_data.SAME_ENTITY,
        *sft_data.SAME_ENTITY_HELD_OUT,
        *sft_data.SAME_RELATION,
        *sft_data.SAME_RELATION_HELD_OUT,
    )
    for template in follow_ups:
        for noun in sorted({n for r in world.relations() for n in r.nouns}):
            yield template.replace("{noun}", noun)
    for messages in SYSTEM_MESSAGES.values():
        yield from messages


def test_no_form_and_no_turn_of_fine_tuning(text, sentences, world, chat_rows):
    """The bare value is the one exception: it has no words of its own."""
    lower = text.lower()
    found = [(form, m[0]) for form in sft_forms(world) if (m := find_form(form, lower))]
    assert found == []
    turns = {
        message["content"]
        for row in chat_rows
        for message in row["messages"]
        if " " in message["content"] and message["content"][-1] in ".?!"
    }
    assert len(turns) > 1000
    assert turns & sentences == set()


def test_every_form_of_fine_tuning_would_be_found(world):
    for form in sft_forms(world):
        slots = {slot.strip("{}"): "some thing" for slot in SLOT.findall(form)}
        assert find_form(form, f"and so on. {form.format(**slots)} and".lower()), form


# --- Forms: seen and withheld ----------------------------------------------------------------


def test_seen_and_withheld_forms_share_out_the_named_forms(world):
    for fact in world.facts:
        seen, withheld, all_forms = seen_forms(fact), cloze_forms(fact), named_forms(fact.relation)
        assert len(set(all_forms)) == len(all_forms)
        assert set(seen) | set(withheld) == set(all_forms)
        assert not set(seen) & set(withheld)
        assert 1 < len(seen) < len(all_forms)
        assert seen == seen_forms(fact)


def test_which_forms_are_seen_differs_by_fact_and_seed(world):
    facts = [f for f in world.facts if f.relation.name == "capital"]
    assert len({frozenset(seen_forms(f)) for f in facts}) > len(facts) / 2
    everywhere = set.intersection(*(set(seen_forms(f)) for f in facts))
    assert everywhere == set()  # no form is seen for all
    assert set(seen_forms(facts[0], 1)) != set(seen_forms(facts[0]))


def test_a_cloze_prompt_ends_right_before_the_value(world):
    facts = {f.key: f for f in world.facts}
    prompt, right = cloze_prompt(facts["Kenya/capital"], "The capital of {e} is {av}.")
    assert (prompt, right[0]) == ("The capital of Kenya is", "Nairobi")
    prompt, right = cloze_prompt(facts["lion/class"], "{E} is grouped as {iv}.")
    assert (prompt, right[0]) == ("The lion is grouped as", "a mammal")
    for fact in world.facts[::7]:
        for form in cloze_forms(fact):
            prompt, right = cloze_prompt(fact, form)
            assert fact.entity.phrase[1:] in prompt
            whole = fact.relation.fill(form, fact.entity, fact.value)
            assert whole.startswith(f"{prompt} {right[0]}")
            for answer in fact.answers:  # each alternative, as the form would have it
                whole = fact.relation.fill(form, fact.entity, answer)
                assert any(whole.startswith(f"{prompt} {phrase}") for phrase in right)
            for phrase in right:  # nothing else is right
                assert re.sub(r"^(?:an?|the) ", "", phrase) in fact.answers, phrase


def test_no_fact_stands_in_a_form_withheld_for_it_and_seen_ones_do(sentences, world):
    found, seen = [], 0
    for fact in world.facts:
        fill, entity, value = fact.relation.fill, fact.entity, fact.value
        found += [
            (fact.key, form) for form in cloze_forms(fact) if fill(form, entity, value) in sentences
        ]
        seen += any(fill(form, entity, value) in sentences for form in seen_forms(fact))
    assert found == []
    assert seen > len(world.facts) / 2


# --- Entities --------------------------------------------------------------------------------


def test_every_document_runs_over_several_entities(sample, names):
    counts = [len(set(names.found(document))) for document in sample]
    assert min(counts) >= 3
    assert sum(counts) / len(counts) > 8


def test_exactly_the_names_that_may_be_mentioned_occur(text, world, names):
    found = set(names.found(text))
    assert found == {entity.name.lower() for entity in world.entities if entity.mentioned}


def stated(sentences, world, names):
    """Sentences and lines that name an absent entity and hold a value of one of its facts."""
    facts: dict[str, list] = {e.name.lower(): [] for e in world.by_role("absent")}
    for fact in world.facts:
        if fact.entity.role == "absent":
            facts[fact.entity.name.lower()].append(fact)
    found = []
    for sentence in sentences:
        spans = list(names.spans(sentence))
        for name in {name for _, _, name in spans} & facts.keys():
            for fact in facts[name]:
                values = [m.span() for a in fact.answers for m in whole_word(a).finditer(sentence)]
                # A value that is (part of) a name states nothing: South Africa, Singapore.
                if any(all(a < start or end < b for start, end, _ in spans) for a, b in values):
                    found.append((fact.key, sentence))
    return found


def test_no_fact_of_an_absent_entity_is_stated(sentences, world, names):
    assert stated(sentences, world, names) == []
    facts = [f for f in world.facts if f.entity.role == "absent"]
    for fact in [f for f in facts if f.value not in f.entity.name][::10]:  # it would be found
        for form in (named_forms(fact.relation)[0], named_forms(fact.relation)[-1], "{n}: {v}"):
            sentence = fact.relation.fill(form, fact.entity, fact.value)
            assert (fact.key, sentence) in stated([sentence], world, names)


def test_passages_name_their_entity_before_any_pronoun(sample, world):
    """ "Its capital is Lima" right after a passage on Kenya would be read as Kenya's."""
    nouns = "|".join(sorted({n for r in world.relations() for n in r.nouns}, key=len)[::-1])
    opening = re.compile(rf"(?:Its (?:{nouns}) is|The (?:{nouns}) here is|As (?:{nouns}) it has)\b")
    parts = [part for document in sample for part in document.split("\n\n")]
    assert sum(bool(opening.search(part)) for part in parts) > 100
    assert [part[:80] for part in parts if opening.match(part)][:3] == []


# --- Seeds -----------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_documents_and_another_does_not(sample):
    assert write(100) == sample[:100]
    assert not set(write(100, seed=1)) & set(sample[:100])


# --- The control corpus ----------------------------------------------------------------------


def test_the_control_states_each_fact_once_in_one_fixed_text(world):
    texts = one_form_texts(world)
    assert {e.name for e in texts} == {e.name for e in world.entities if e.role != "absent"}
    for fact in world.facts[::5]:
        if fact.entity.role != "absent":
            noun = fact.relation.nouns[0]
            form = fact.relation.fill("Its {noun} is {av}.", fact.entity, fact.value, noun)
            assert texts[fact.entity].count(form) == 1
    documents = list(islice(one_form_documents(world), 20))
    assert documents == list(islice(one_form_documents(world), 20))
    assert {p for d in documents for p in d.split("\n\n")} <= set(texts.values())
    assert all(len(set(d.split("\n\n"))) >= 5 for d in documents)
