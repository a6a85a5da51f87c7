"""The scored questions: each in its cell, fair, answerable, and none of them seen too early."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from transformers import AutoTokenizer

from sft_utils.atlas.questions import SPLITS, printed_questions, scored_questions
from sft_utils.atlas.sft_data import SYSTEM_MESSAGES, answer_text
from sft_utils.atlas.shipped import MODELS
from sft_utils.evaluation.metrics import score_answer
from sft_utils.evaluation.statistics import draw
from sft_utils.profiles import load_profile

PARTS = ("headline", "used-wording", "instruction", "follow-up", "never-asked")
every_split = pytest.mark.parametrize("split", SPLITS)


@pytest.fixture(scope="module")
def sft_users(chat_rows):
    """Every user turn of the fine-tuning data."""
    messages = (m for row in chat_rows for m in row["messages"])
    return {m["content"] for m in messages if m["role"] == "user"}


def holds(text, value):
    return re.search(rf"(?<![\w.-]){re.escape(value)}(?![\w-])", text)


def conversation(question):
    return tuple((m["role"], m["content"]) for m in question.messages)


# --- Cells -----------------------------------------------------------------------------------


@every_split
def test_a_split_is_its_cell_large_and_over_all_its_entities_and_relations(questions, world, split):
    found, cell = questions[split], SPLITS[split]
    assert len(found) >= 300
    assert max(Counter(map(conversation, found)).values()) == 1
    for question in found:
        assert cell.items() <= question.labels.items(), question.text
        assert question.labels["entity"] == question.fact.entity.role
        assert (question.labels["relation"] == "asked") == question.fact.relation.asked
    facts = [f for f in world.facts if f.entity.role == cell["entity"] and not f.gives_itself_away]
    if "relation" in cell:
        facts = [f for f in facts if f.relation.asked == (cell["relation"] == "asked")]
    assert {q.relation for q in found} == {f.relation.name for f in facts}
    assert {q.entity for q in found} == {f.entity.name for f in facts}


@every_split
def test_the_text_has_the_wording_that_the_label_says(questions, split):
    for question in questions[split]:
        if question.form == "follow-up":
            continue
        fact = question.fact
        used = {fact.relation.fill(w, fact.entity) for w in fact.relation.ask}
        held_out = {fact.relation.fill(w, fact.entity) for w in fact.relation.ask_held_out}
        assert not used & held_out
        assert question.text in (used if question.wording == "used" else held_out)


def test_dev_and_test_share_no_entity_and_no_question(questions):
    """Both halves have every part."""
    for part in PARTS:
        dev, test = questions[f"{part}-dev"], questions[f"{part}-test"]
        assert not {q.entity for q in dev} & {q.entity for q in test}
        assert not set(map(conversation, dev)) & set(map(conversation, test))
        if part != "follow-up":
            assert not {q.text for q in dev} & {q.text for q in test}


def test_an_unknown_split_is_an_error_that_names_the_known_ones(world):
    with pytest.raises(KeyError, match="nonsense.*headline-dev.*untouched-domain"):
        scored_questions("nonsense", world)


# --- Fairness --------------------------------------------------------------------------------


@every_split
def test_no_right_value_stands_in_the_question_or_before_it(questions, split):
    """Else copying would be right; nor does a fact give itself away."""
    found = {
        (q.text, message["content"])
        for q in questions[split]
        for message in q.messages
        for value in q.values
        if holds(message["content"], value)
    }
    assert found == set()
    assert [q.fact.key for q in questions[split] if q.fact.gives_itself_away] == []


@every_split
def test_only_seen_questions_were_asked_in_fine_tuning(questions, sft_users, split):
    texts = {q.text for q in questions[split]}
    assert texts & sft_users == (texts if split == "seen-question" else set())


def test_absent_names_that_the_corpus_mentions_match_the_others_in_tokens(world):
    """Else a wrong answer about them might be the tokenizer's doing.

    Names that the corpus never mentions cannot match: a tokenizer trained on it has no token for
    them. They are short, so that the gap stays small; chapter 05 shows it.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODELS["atlas-base"])

    def mean_length(entities):
        texts = [" " + entity.name for entity in entities]
        return sum(map(len, tokenizer(texts)["input_ids"])) / len(texts)

    held_out = mean_length(world.by_role("dev", "test"))
    absent = world.by_role("absent")
    assert abs(mean_length([e for e in absent if e.mentioned]) - held_out) <= 0.75
    assert all(len(e.name) <= 6 for e in absent if not e.mentioned)
    assert mean_length([e for e in absent if not e.mentioned]) - held_out <= 2.5


# --- Right answers ---------------------------------------------------------------------------


def test_an_exact_answer_scores_on_all_counts_and_a_wrong_value_on_none(questions, world):
    """Whichever alternative it gives; the wrong value stands in the right sentence."""
    vocabulary = {relation.name: world.values(relation) for relation in world.relations()}

    def score(response, question):
        return score_answer(
            response,
            answers=question.answers,
            values=question.values,
            other_values=vocabulary[question.relation],
            stopped=True,
            entity=question.entity,
        )

    every = {(q.fact.key, q.answers): q for split in SPLITS for q in questions[split]}
    for place, (_, question) in enumerate(sorted(every.items())):
        for answer, value in zip(question.answers, question.values, strict=True):
            right = score(answer, question)
            assert value in answer and right.exact, answer
            assert right.right_value and right.value_anywhere, answer
        if place % 9 == 0:
            other = min(vocabulary[question.relation] - set(question.values))
            wrong = score(answer_text(question.fact, question.form, other), question)
            assert not (wrong.exact or wrong.right_value or wrong.value_anywhere), question


@every_split
def test_values_and_answers_are_the_facts_own_canonical_one_first(questions, split):
    for question in questions[split]:
        assert question.values == question.fact.answers
        assert question.answers[0] == answer_text(question.fact, question.form)
        assert question.messages[-1]["role"] == "user"


@pytest.mark.parametrize("half", ["dev", "test"])
def test_an_instruction_asks_for_the_form_of_its_answer(questions, half):
    found = questions[f"instruction-{half}"]
    for question in found:
        system, user = question.messages
        assert (system["role"], user["role"]) == ("system", "user")
        assert system["content"] in SYSTEM_MESSAGES[question.form]
        if question.form != "sentence":
            assert question.answers[0].strip("[]") == question.values[0]
    forms = Counter(q.form for q in found)
    assert forms.keys() == SYSTEM_MESSAGES.keys()
    assert max(forms.values()) - min(forms.values()) <= len(found) / 20
    by_relation = Counter((q.relation, q.form) for q in found)
    assert len(by_relation) == 3 * len({q.relation for q in found})  # each relation in each form


@pytest.mark.parametrize("half", ["dev", "test"])
def test_a_follow_up_depends_on_the_turn_before_it(questions, world, half):
    """It names the entity or the relation, and what it leaves out stands in the opening."""
    answers = {}
    for fact in world.facts:
        for wording in fact.relation.ask:
            answers[fact.relation.fill(wording, fact.entity)] = fact
    kinds: Counter[bool] = Counter()
    for question in questions[f"follow-up-{half}"]:
        opening, answer, last = question.messages
        assert [m["role"] for m in question.messages] == ["user", "assistant", "user"]
        first = answers[opening["content"]]
        assert answer["content"] == answer_text(first)
        names_entity = bool(holds(last["content"], question.entity))
        names_relation = any(n in last["content"] for n in question.fact.relation.nouns)
        assert names_entity != names_relation
        assert first.entity != question.fact.entity or names_relation
        assert (first.relation == question.fact.relation) == names_entity
        assert first.key != question.fact.key
        assert first.entity.role == half
        kinds[names_entity] += 1
    assert min(kinds[True], kinds[False]) > 100


# --- The list that pages print ---------------------------------------------------------------


def test_the_printed_list_has_a_headline_question_for_each_asked_relation(questions, world):
    printed = printed_questions(world)
    assert [q.relation for q in printed] == [r.name for r in world.relations() if r.asked]
    assert all(q in questions["headline-test"] for q in printed)
    assert [q.text for q in load_profile("atlas").questions] == [q.text for q in printed]


# --- Seeds -----------------------------------------------------------------------------------


def test_questions_repeat_and_another_seed_draws_others_where_any_are_drawn(questions, world):
    for split in SPLITS:
        assert scored_questions(split, world) == questions[split]
    assert scored_questions("used-wording-dev", world, seed=1) != questions["used-wording-dev"]


def test_a_drawn_part_keeps_the_order_and_every_relation(questions):
    whole = questions["headline-test"]
    part = draw(whole, 290)
    assert [q for q in whole if q in part] == part
    assert len(part) == 290
    assert draw(whole, 290) == part != draw(whole, 290, seed=1)
    assert draw(whole, len(whole) + 1) == whole
    assert {q.relation for q in part} == {q.relation for q in whole}
