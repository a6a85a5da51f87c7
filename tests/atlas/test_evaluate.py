"""Asking and scoring, with stubs that answer what the test wants and tiny random models."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import chat_rows as conversations
from conftest import make_model, quick_config

from sft_utils import generation
from sft_utils.atlas import evaluate
from sft_utils.atlas.corpus import (
    PRONOUN,
    CorpusWriter,
    cloze_prompt,
    named_forms,
    one_form_texts,
    seen_forms,
)
from sft_utils.atlas.pretrain import WINDOW
from sft_utils.atlas.questions import SPLITS
from sft_utils.atlas.sft_data import turn
from sft_utils.evaluation.metrics import SCORES
from sft_utils.generation import render_prompt


@pytest.fixture(autouse=True)
def made_by_a_run(request, monkeypatch, tmp_path):
    """Stubs have no weights to hash, and what they answer is not kept."""
    monkeypatch.setenv("SFT_RUNS", str(tmp_path / "runs"))
    if "chat_tokenizer" not in request.fixturenames or "generate" in request.fixturenames:
        monkeypatch.setattr(evaluate, "origin", lambda model: {"run": "run", "seeds": (0,)})
        monkeypatch.setattr(evaluate, "_rests_on", lambda *given, **options: "nothing")
        monkeypatch.setattr(evaluate, "remember", lambda rests_on, ask: ask())


@pytest.fixture(scope="module")
def headline(questions):
    return questions["headline-dev"]


@pytest.fixture(scope="module")
def continents(headline):
    return [question for question in headline if question.relation == "continent"]


@pytest.fixture
def reader():
    """A random model whose context holds a byte-level few-shot prompt."""
    return make_model("qwen3", max_position_embeddings=1024)


@pytest.fixture
def generate(monkeypatch):
    """Replaces `generate_responses`: keeps the calls, answers with ``generate.answer(prompt)``."""

    class Stub:
        calls: list[tuple[list, dict]] = []

        def answer(self, prompt):
            return "", True

        def __call__(self, model, tokenizer, prompts, *, return_details=False, **options):
            self.calls = [*self.calls, (prompts, options)]
            found = [SimpleNamespace(response=r, stopped=s) for r, s in map(self.answer, prompts)]
            return found if return_details else [answer.response for answer in found]

    stub = Stub()
    monkeypatch.setattr(generation, "generate_responses", stub)
    return stub


# --- Asked once --------------------------------------------------------------------------------


BATCHES: list[int] = []  # how many prompts were answered; a list of the test's own would be seen


def test_the_same_model_is_asked_once_and_scored_each_time(
    reader, chat_tokenizer, headline, monkeypatch
):
    batch = generation._generate_batch

    def ask(questions, tokenizer=chat_tokenizer, **options):
        before = len(BATCHES)
        found = evaluate.score_split(reader, tokenizer, questions, max_new_tokens=3, **options)
        return found, len(BATCHES) - before

    def counted(model, encoded, config):
        BATCHES.append(len(encoded))
        return batch(model, encoded, config)

    monkeypatch.setattr(generation, "_generate_batch", counted)
    first, count = ask(headline[:3])
    assert count == 1
    again, count = ask(headline[:3])
    assert count == 0 and again.equals(first) and again.attrs == first.attrs

    with monkeypatch.context() as patch:  # not what was scored is kept, but what was said
        always = SimpleNamespace(exact=True, right_value=True, value_anywhere=True, stops=True)
        patch.setattr(evaluate, "score_answer", lambda *given, **named: always)
        patch.setattr(evaluate, "asdict", vars)
        scored, count = ask(headline[:3])
        assert count == 0 and scored["exact"].all() and not first["exact"].any()

    assert ask(headline[:2])[1] == 1
    assert ask(headline[:3], way="plain")[1] == 1
    assert ask(headline[:3], batch_size=2)[1] == 2
    assert ask(headline[:3], temperature=1.0, seed=1)[1] == 1
    assert ask(headline[:3], temperature=1.0, seed=1)[1] == 0
    assert [ask(headline[:3], temperature=1.0)[1] for _ in range(2)] == [1, 1]
    chat_tokenizer.chat_template += " "
    assert ask(headline[:3])[1] == 1
    monkeypatch.setattr(generation, "end_token_ids", lambda model, tokenizer: [5])
    assert ask(headline[:3])[1] == 1
    monkeypatch.setattr(generation, "_generate_batch", lambda *given: counted(*given))
    assert ask(headline[:3])[1] == 1  # the code that answers is another
    with torch.no_grad():
        next(reader.parameters()).add_(1)
    assert ask(headline[:3])[1] == 1


# --- Scoring given responses -----------------------------------------------------------------


def test_score_responses_gives_a_row_for_each_question_in_order(headline):
    asked = headline[:6]
    good = evaluate.score_responses(asked, [(q.answers[0], True) for q in asked])
    assert good["question"].tolist() == [q.text for q in asked]
    assert good["entity"].tolist() == [q.entity for q in asked]
    assert good["right"].tolist() == [q.answers[0] for q in asked]
    assert good[list(SCORES)].all(axis=None)
    bad = evaluate.score_responses(asked, [("I do not know.", False)] * 6)
    assert not bad[list(SCORES)].any(axis=None)


def test_another_value_of_the_same_relation_is_wrong_and_of_another_does_no_harm(questions):
    question = next(q for q in questions["seen-entity"] if q.relation == "continent")
    other = "Asia" if question.values[0] != "Asia" else "Europe"
    right = question.values[0]
    texts = [f"{right} or {other}", f"{right}, where English is spoken", f"{right} dollar"]
    table = evaluate.score_responses([question] * 3, [(text, True) for text in texts])
    assert table["right_value"].tolist() == [False, True, True]


# --- Ways of asking --------------------------------------------------------------------------


def test_chat_sends_the_conversation(questions, generate):
    asked = questions["follow-up-dev"][:5]
    evaluate.score_split(None, None, asked, max_new_tokens=7)
    (prompts, options), *more = generate.calls
    assert prompts == [list(q.messages) for q in asked] and not more
    assert options.get("chat", True) and options["max_new_tokens"] == 7


def test_the_tables_say_what_made_the_model(headline, generate):
    """The first is of a split that is named."""
    named = evaluate.score_split(None, None, "headline-dev")
    assert named["question"].tolist() == [question.text for question in headline]
    forms = (evaluate.cloze(None, None, "dev"), evaluate.cloze_in_one_form(None, None, "dev"))
    for table in (named, *forms):
        assert (table.attrs["run"], table.attrs["seeds"]) == ("run", (0,))
        assert not table["exact" if table is named else "correct"].any()


def test_plain_sends_the_bare_question(headline, generate):
    evaluate.score_split(None, None, headline[:5], way="plain")
    ((prompts, options),) = generate.calls
    assert prompts == [q.text for q in headline[:5]] and options["chat"] is False


def test_few_shot_takes_the_first_line_and_stops_where_it_ends(headline, generate):
    question = headline[0]
    replies = {
        f" {question.values[0]}\nQ: And": (question.values[0], True),
        f" {question.values[0]} and on": (f"{question.values[0]} and on", False),
        f"\n{question.values[0]}\n": (question.values[0], False),
    }
    for reply, expected in replies.items():
        generate.answer = lambda prompt, reply=reply: (reply, False)
        row = evaluate.score_split(None, None, [question], way="few-shot").iloc[0]
        assert (row["response"], row["stops"]) == expected
        assert row["right_value"]
    assert generate.calls[0] == ([evaluate.few_shot_prompt(question)], generate.calls[0][1])
    assert generate.calls[0][1]["chat"] is False


def test_prefill_scores_the_opening_and_what_the_model_adds(headline, generate, chat_tokenizer):
    asked = headline[::100]
    by_prompt = {evaluate.prefilled_prompt(chat_tokenizer, q): q for q in asked}
    generate.answer = lambda prompt: (
        by_prompt[prompt].answers[0].removeprefix(evaluate.opening(by_prompt[prompt])),
        True,
    )
    table = evaluate.score_split(None, chat_tokenizer, asked, way="prefill")
    assert table["response"].tolist() == [q.answers[0] for q in asked]
    assert table["exact"].all()
    assert generate.calls[0][1]["chat"] is False


def test_an_unknown_way_is_an_error_that_names_the_known_ones(headline, generate):
    with pytest.raises(ValueError, match="'guess'.*chat.*plain.*few-shot.*prefill"):
        evaluate.score_split(None, None, headline[:1], way="guess")


# --- Few-shot --------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [s for s in SPLITS if SPLITS[s]["entity"] != "untouched"])
def test_few_shot_shows_four_answered_questions_on_other_sft_entities(world, questions, split):
    """In wordings that fine-tuning used, where the relation has any."""
    answers = {}
    for fact in world.facts:
        for wording in fact.relation.ask or fact.relation.ask_held_out:
            answers[fact.relation.fill(wording, fact.entity)] = fact
    asked = questions[split]
    for question in asked[:: len(asked) // 25]:
        prompt = evaluate.few_shot_prompt(question)
        assert prompt == evaluate.few_shot_prompt(question)
        *shots, last, end = prompt.split("\n")
        assert (last, end) == (f"Q: {question.text}", "A:")
        assert len(shots) == 8
        facts = [answers[line.removeprefix("Q: ")] for line in shots[::2]]
        assert [line.removeprefix("A: ") for line in shots[1::2]] == [f.value for f in facts]
        assert {f.relation for f in facts} == {question.fact.relation}
        assert {f.entity.role for f in facts} == {"sft"}
        assert len({f.entity for f in facts} | {question.fact.entity}) == 5


def test_few_shot_never_answers_the_question_itself(world, questions, names):
    """As many shots as there are other entities: nothing is left but the one asked."""
    question = questions["seen-entity"][0]
    facts = [f for f in world.facts if f.relation == question.fact.relation]
    others = sum(f.entity.role == "sft" for f in facts) - 1
    *shots, _, _ = evaluate.few_shot_prompt(question, shots=others).split("\n")
    assert len(shots) == 2 * others
    assert question.entity.lower() not in names.found("\n".join(shots[::2]))


# --- Prefill ---------------------------------------------------------------------------------


def test_the_opening_is_the_right_sentence_up_to_its_value(world, questions):
    fact = next(f for f in world.facts if f.key == "Kenya/capital")
    question = replace(questions["seen-entity"][0], fact=fact)
    expected = fact.relation.answer.split(" {v}")[0].replace("{e}", "Kenya")
    assert "Kenya" in expected and evaluate.opening(question) == expected
    for question in questions["headline-dev"] + questions["untouched-domain"]:
        rest = question.answers[0].removeprefix(evaluate.opening(question))
        assert rest != question.answers[0] and rest.startswith(" ") and question.values[0] in rest


# --- Ranking ---------------------------------------------------------------------------------


def mean_log_probability(model, ids, start):
    """That of the tokens from ``start`` on, without batches, padding and masks."""
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return scores[start - 1 : -1][range(len(ids) - start), ids[start:]].mean().item()


def test_ranking_draws_as_many_candidates_as_asked_with_the_right_one(
    world, headline, reader, chat_tokenizer
):
    questions = [q for q in headline if q.relation == "capital"][:4]
    table = evaluate.rank_candidates(reader, chat_tokenizer, questions, candidates=4)
    for question, row in zip(questions, table.itertuples(), strict=True):
        assert len(set(row.candidates)) == len(row.candidates) == 4
        assert set(row.candidates) & set(question.values) == {question.values[0]}
        assert set(row.candidates) <= world.values(question.fact.relation)
        assert row.chosen in row.candidates


def test_the_chosen_candidate_is_the_likeliest_by_mean_log_probability(
    world, continents, chat_tokenizer
):
    """This tokenizer reads the prompt's line break and the A of "Asia" as one token, and a token
    across the end of the prompt counts for the candidate."""
    from tokenizers import AddedToken

    chat_tokenizer.add_tokens([AddedToken("\nA", special=False, normalized=False)])
    model = make_model("qwen3", vocab_size=301, max_position_embeddings=1024)
    table = evaluate.rank_candidates(model, chat_tokenizer, continents[:3], candidates=50)
    for question, row in zip(continents, table.itertuples(), strict=False):
        prompt, means = render_prompt(chat_tokenizer, list(question.messages)), {}
        assert {*row.candidates} == world.values(question.fact.relation) - {*question.values[1:]}
        for value in row.candidates:
            ids = chat_tokenizer(prompt + value, add_special_tokens=False)["input_ids"]
            known = prompt[:-1] if value.startswith("A") else prompt
            start = len(chat_tokenizer(known, add_special_tokens=False)["input_ids"])
            assert (ids[start] == 300) == value.startswith("A")
            means[value] = mean_log_probability(model, ids, start)
        assert row.chosen == max(means, key=means.get)
        assert row.right == question.values[0] and row.correct == (row.chosen == row.right)
    alone = evaluate.rank_candidates(model, chat_tokenizer, continents[:1], candidates=1)
    assert alone["correct"].all()


# --- Cloze -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(world):
    """Every prompt that cloze may send, with what is right after it."""
    return {
        prompt: (fact, form, right)
        for fact in world.facts
        if fact.entity.role in ("dev", "test")
        for form in named_forms(fact.relation)
        for prompt, right in [cloze_prompt(fact, form)]
    }


def test_cloze_sends_withheld_forms_as_they_are_and_knows_the_right_end(world, known, generate):
    generate.answer = lambda prompt: (f" {known[prompt][2][-1]}. And so on", False)
    table = evaluate.cloze(None, None, "dev")
    ((prompts, options),) = generate.calls
    assert options["chat"] is False
    assert table["correct"].all()  # the last alternative is right too
    facts = [known[prompt][0] for prompt in prompts]
    expected = [f for f in world.facts if f.entity.role == "dev" and not f.gives_itself_away]
    assert Counter(f.key for f in facts) == Counter(f.key for f in expected)
    assert all(known[p][1] not in seen_forms(known[p][0]) for p in prompts)


def test_cloze_asks_a_part_of_the_facts_in_several_forms(known, generate):
    table = evaluate.cloze(None, None, "dev", most=7, forms_per_fact=3)
    facts = table.groupby(["entity", "relation"]).size()
    assert (len(facts), set(facts)) == (7, {3})
    assert table["prompt"].is_unique and set(table["prompt"]) <= known.keys()
    again = evaluate.cloze(None, None, "dev", most=7, forms_per_fact=3)
    assert again["prompt"].tolist() == table["prompt"].tolist()  # so that two models can be paired


def test_how_well_a_fact_is_known():
    import pandas as pd

    told = {"a": (True, True), "b": (True, False), "c": (False, False)}
    rows = [(e, "r", hit) for e, hits in told.items() for hit in hits]
    table = pd.DataFrame(rows, columns=["entity", "relation", "correct"])
    assert evaluate.how_known(table).tolist() == ["known", "partly known", "unknown"]


def test_a_continuation_that_only_begins_like_the_value_is_wrong(known, generate):
    """26 is not 2, and C6 is not C."""
    generate.answer = lambda prompt: (f" {known[prompt][2][0]}6", False)
    table = evaluate.cloze(None, None, "dev", asked_only=True)
    table = table[table["relation"].isin(["number", "symbol"])]
    assert len(table) > 20
    assert table[table["correct"]]["prompt"].tolist() == []
    assert all(known[prompt][0].relation.asked for prompt in generate.calls[0][0])


def test_cloze_of_the_control_begins_with_its_own_text(world, generate):
    texts = one_form_texts(world)
    right = {}
    for fact in world.facts:
        if fact.entity.role == "dev":
            whole = texts[fact.entity]
            for value in fact.answers[:1]:
                end = PRONOUN[0].replace("{noun}", fact.relation.nouns[0])
                sentence = fact.relation.fill(end, fact.entity, value)
                begun = whole[: whole.index(sentence) + len(cloze_prompt(fact, end)[0])]
                right[begun] = whole.removeprefix(begun)
    generate.answer = lambda prompt: (right[prompt], False)
    table = evaluate.cloze_in_one_form(None, None, "dev")
    assert table["correct"].all()
    assert len(table) == sum(
        f.entity.role == "dev" and not f.gives_itself_away for f in world.facts
    )


# --- Controls --------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["headline-dev", "instruction-dev", "follow-up-dev"])
def test_answering_the_most_common_value_is_right_where_it_is(world, questions, split):
    asked = questions[split][::5]
    common = evaluate.most_common_answers(world)
    for relation in [r for r in world.relations() if r.asked]:
        values = Counter(
            f.value for f in world.facts if f.relation == relation and f.entity.role == "sft"
        )
        assert values[common[relation.name]] == max(values.values())
    table = evaluate.answer_most_common(asked)
    expected = [common[q.relation] in q.values for q in asked]
    assert table["exact"].tolist() == expected
    assert 0.05 < sum(expected) / len(expected) < 0.5
    assert table["stops"].all()


def test_the_nearest_row_gives_its_answer(headline):
    question = next(q for q in headline if q.relation == "capital")
    first, *_ = question.text.split(question.entity)
    rows = [
        {"messages": turn("What is the symbol of iron?", "Fe")},
        {
            "messages": [
                {"role": "system", "content": question.text},
                *turn("Name the currency of Peru.", "The sol."),
                *turn(f"{first} Somewhere?", "NEAREST"),
            ]
        },
        {"messages": turn("And of lead?", "Pb")},
    ]
    table = evaluate.answer_nearest_row([question], rows)
    assert table["response"].tolist() == ["NEAREST"]
    assert not table["exact"].any()


def test_shuffling_swaps_values_within_each_relation_of_fine_tuning_alone(world, monkeypatch):
    monkeypatch.setattr(evaluate, "sft_rows", lambda changed: changed)
    shuffled = evaluate.shuffled_answers(world)
    assert [f.key for f in shuffled.facts] == [f.key for f in world.facts]
    for relation in world.relations():
        before = [f for f in world.facts if f.relation == relation]
        after = [f for f in shuffled.facts if f.relation == relation]
        pairs = [(a.answers, b.answers, a.entity) for a, b in zip(before, after, strict=True)]
        taught = [(a, b) for a, b, entity in pairs if relation.asked and entity.role == "sft"]
        assert all(a == b for a, b, e in pairs if not (relation.asked and e.role == "sft"))
        assert Counter(a for a, _ in taught) == Counter(b for _, b in taught)
        if len({a for a, _ in taught}) > 20:
            assert sum(a != b for a, b in taught) > 0.8 * len(taught), relation.name


def test_shuffled_rows_ask_the_same_and_answer_otherwise(world, chat_rows):
    rows, shuffled = chat_rows, evaluate.shuffled_answers(world)
    assert shuffled == evaluate.shuffled_answers(world) != evaluate.shuffled_answers(world, seed=1)
    assert len(rows) == len(shuffled)
    changed = total = 0
    for row, other in zip(rows, shuffled, strict=True):
        for a, b in zip(row["messages"], other["messages"], strict=True):
            assert a["role"] == b["role"]
            if a["role"] == "assistant":
                total += 1
                changed += a["content"] != b["content"]
            else:
                assert a == b
    assert changed > total / 2


# --- What fine-tuning costs --------------------------------------------------------------------


def test_replay_rows_are_as_long_as_a_chat_and_every_token_carries_loss(world, chat_tokenizer):
    rows = evaluate.replay_rows(chat_tokenizer, 2 * WINDOW + 1)
    length = evaluate.REPLAY_TOKENS
    assert WINDOW % length == 0
    assert [len(row["input_ids"]) for row in rows] == [length] * (2 * WINDOW // length + 1)
    assert all(row["labels"] == row["input_ids"] for row in rows)
    ids = [token for row in rows for token in row["input_ids"]]
    document = next(CorpusWriter(world, evaluate.REPLAY_SEED).documents())
    read = chat_tokenizer(document, add_special_tokens=False)["input_ids"]
    assert ids[: len(read)] == read[: len(ids)]
    assert rows == evaluate.replay_rows(chat_tokenizer, 2 * WINDOW + 1)
    assert evaluate.replay_rows(chat_tokenizer, 0) == []


def test_trl_trains_on_all_of_a_replay_row_and_on_the_answers_alone_of_a_chat(
    tmp_path, reader, chat_tokenizer
):
    """Chat rows that TRL has tokenized, beside replay rows: the labels stay what they are."""
    from datasets import Dataset, concatenate_datasets
    from trl import SFTTrainer

    def prepared(rows, **changes):
        config = quick_config(tmp_path, **changes)
        trainer = SFTTrainer(reader, config, train_dataset=rows, processing_class=chat_tokenizer)
        return trainer.train_dataset.select_columns(["input_ids", "labels"])

    chats = prepared(conversations([("What is it?", "Lima.")] * 2))
    replayed = Dataset.from_list(evaluate.replay_rows(chat_tokenizer, 1))
    mixed = prepared(concatenate_datasets([chats, replayed]), assistant_only_loss=False)
    first, _, last = mixed["labels"]
    assert mixed["labels"][:2] == chats["labels"]
    assert chat_tokenizer.decode([t for t in first if t != -100]).strip() == "Lima.<|im_end|>"
    assert last == mixed["input_ids"][2] == replayed["input_ids"][0]


def test_kl_follows_the_tuned_models_own_answers_token_by_token(headline, reader, chat_tokenizer):
    """Against the definition, one token at a time; a model has not moved from itself."""
    other = make_model("qwen3", max_position_embeddings=1024, seed=1)
    asked = headline[:3]
    table = evaluate.kl_to_base(reader, other, chat_tokenizer, asked, max_new_tokens=5)
    answers = generation.generate_responses(
        reader,
        chat_tokenizer,
        [list(q.messages) for q in asked],
        max_new_tokens=5,
        return_details=True,
    )
    expected = []
    for question, answer in zip(asked, answers, strict=True):
        ids = chat_tokenizer(answer.prompt, add_special_tokens=False)["input_ids"]
        for token in answer.token_ids:
            with torch.no_grad():
                p, q = (
                    model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
                    for model in (reader, other)
                )
            expected.append(
                (
                    question.text,
                    chat_tokenizer.decode([token]),
                    sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True)),
                    sum(b * math.log(b / a) for a, b in zip(p.tolist(), q.tolist(), strict=True)),
                )
            )
            ids = [*ids, token]
    assert list(zip(table["question"], table["token"], strict=True)) == [e[:2] for e in expected]
    assert table["kl"].tolist() == pytest.approx([e[2] for e in expected], rel=1e-3)
    assert table["kl_base"].tolist() == pytest.approx([e[3] for e in expected], rel=1e-3)
    assert (table["kl"] > 0.1).all() and (table["kl"] - table["kl_base"]).abs().max() > 0.01
    assert set(table["entity"]) == {q.entity for q in asked}
    same = evaluate.kl_to_base(reader, reader, chat_tokenizer, asked[:2], max_new_tokens=4)
    assert same[["kl", "kl_base"]].abs().max().max() < 1e-5
