"""The experiment on a real model, tried with a tiny one: what is asked, trained and recorded."""

from __future__ import annotations

import json

import pytest
from conftest import code_cells, make_model, make_tokenizer

from sft_utils import claims
from sft_utils.atlas import real_model
from sft_utils.atlas.real_model import BEFORE, SEEDS, TRIED, Run
from sft_utils.atlas.world import load_world
from sft_utils.data.rows import read_sft_dataset
from sft_utils.training import records


def test_the_instructions_are_a_hundred_rows_in_alpacas_columns():
    reading = read_sft_dataset(real_model.INSTRUCTIONS)
    texts = [row["messages"][0]["content"] for row in reading.dataset]
    assert (len(texts), len(set(texts))) == (100, 100)
    assert reading.read_as.startswith("Alpaca rows")


def test_no_row_and_no_instruction_asks_an_everyday_question():
    lines = real_model.EVERYDAY.read_text("utf8").splitlines()
    asked = [(one["text"], one["answers"]) for one in map(json.loads, lines)]
    told = read_sft_dataset(real_model.INSTRUCTIONS).dataset["messages"][:]
    assert len({text for text, _ in asked} - {turns[0]["content"] for turns in told}) == 40
    facts = [fact for fact in load_world().facts if fact.entity.role != "absent"]
    for text, answers in asked:
        assert not [f for f in facts if f.entity.name in text and f.value in answers], text


def test_dev_and_test_questions_are_about_other_entities():
    dev, test = ({q.entity for q in real_model.questions(half)} for half in ("dev", "test"))
    assert dev and test and not dev & test
    assert len(real_model.questions("test")) == real_model.QUESTIONS["test"]


def test_each_run_has_a_recipe_of_its_own():
    runs = [*BEFORE, *TRIED, *(Run("full", 1e-4, seed, "instructions") for seed in SEEDS)]
    assert len({run.name for run in runs}) == len(runs)
    recipes = {tuple(real_model.recipe(run).values()) for run in runs}
    assert len(recipes) == len(runs)
    assert real_model.recipe(TRIED[0]) == real_model.recipe(Run("full", TRIED[0].rate))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny model in the real one's place, few questions, and records of the test's own."""
    monkeypatch.setattr(
        real_model.experiment,
        "load_trainee",
        lambda profile: (
            make_model("llama", max_position_embeddings=512),
            make_tokenizer(chat=True),
        ),
    )
    monkeypatch.setattr(real_model, "QUESTIONS", {"dev": 2, "test": 3})
    monkeypatch.setattr(real_model, "ANSWER_TOKENS", 4)
    monkeypatch.setattr(real_model.records, "FOLDER", tmp_path / "records")
    monkeypatch.setenv("SFT_RUNS", str(tmp_path / "runs"))
    rows = read_sft_dataset(real_model.INSTRUCTIONS).dataset
    short = rows.filter(lambda row: len(str(row["messages"])) < 150)  # a tiny tokenizer's tokens
    monkeypatch.setattr(real_model, "rows", lambda profile, kind, seed: short.select(range(8)))
    return monkeypatch


@pytest.mark.parametrize("run", [BEFORE[0], Run("full", 1e-3), Run("lora", 1e-3, seed=1)])
def test_a_run_is_recorded_and_read_again(tiny, run):
    with pytest.raises(records.RecordError, match=rf"no record {run.name}\.json"):
        real_model.result(run)
    tiny.setenv(records.LIVE, "all")
    made = real_model.result(run, live=True)
    assert {half: len(made.results[half]) for half in ("dev", "test")} == {"dev": 2, "test": 3}
    asked = {(q.entity, q.relation) for q in real_model.questions("test")}
    facts = made.results["facts"]
    assert set(zip(facts["entity"], facts["relation"], strict=True)) == asked
    assert set(facts["forms"]) == {real_model.FORMS} and (facts["right"] <= facts["forms"]).all()
    assert len(made.results["everyday"]) == 40
    assert made.about["seeds"] == ([run.seed] if run.trains else [])
    tiny.setenv(records.LIVE, "0")
    kept = real_model.result(run)
    assert not kept.live
    assert kept.results["test"]["response"].tolist() == made.results["test"]["response"].tolist()


def test_if_nothing_was_learned_the_claims_of_chapter_14_fail(monkeypatch):
    load = real_model.result
    monkeypatch.setattr(real_model, "result", lambda run, live=False: load(BEFORE[0]))
    stated = []
    monkeypatch.setattr(claims, "claim", lambda *given, **limits: stated.append((given, limits)))
    page = {}
    for cell in code_cells("14-at-135-million.md"):
        exec(cell, page)
    made = [claims.Claim(*given, **limits) for given, limits in stated]
    assert {claim.name: claim.holds for claim in made} == {
        "real-stops": False, "real-answers": False,
    }  # fmt: skip
