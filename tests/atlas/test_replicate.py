"""Replicates: what a seed may change and what not, and other pretrainings, which are recorded."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from itertools import islice

import pandas as pd
import pytest
from conftest import make_model, thinned

from sft_utils.atlas import pretrain
from sft_utils.atlas import replicate as module
from sft_utils.atlas.corpus import CorpusWriter
from sft_utils.atlas.pretrain import Recipe, train_tokenizer
from sft_utils.atlas.questions import scored_questions
from sft_utils.atlas.sft_data import sft_rows
from sft_utils.atlas.world import DOMAINS, load_world
from sft_utils.evaluation.statistics import seed_summary
from sft_utils.experiment import load_rows
from sft_utils.models import TEMPLATES, load_model_and_tokenizer
from sft_utils.profiles import load_profile
from sft_utils.training import records
from sft_utils.views import figures

WORLD = load_world()
each_seed = pytest.mark.parametrize("seed", module.SFT_SEEDS)


def of_role(world, role):
    return {entity.name for entity in world.by_role(role)}


def counts(world):
    return Counter((entity.domain, entity.role) for entity in world.entities)


# --- The world of a replicate ------------------------------------------------------------------


@each_seed
def test_half_of_the_test_entities_trade_places_and_nothing_else_changes(seed):
    changed = module.replicate_world(WORLD, seed)
    before, after = counts(WORLD), counts(changed)
    for domain in DOMAINS:
        test = before[domain, "test"]
        assert after[domain, "test"] == test - test // 2
        assert after[domain, "unused"] == test // 2
        assert after[domain, "sft"] == before[domain, "sft"]
    assert of_role(changed, "test") < of_role(WORLD, "test")
    assert of_role(changed, "unused") < of_role(WORLD, "sft")
    assert of_role(changed, "sft") <= of_role(WORLD, "sft") | of_role(WORLD, "test")
    for role in ("dev", "absent", "untouched"):
        assert changed.by_role(role) == WORLD.by_role(role)
    assert changed.domains == WORLD.domains
    for new, old in zip(changed.entities, WORLD.entities, strict=True):
        assert replace(new, role=old.role) == old
    for new, old in zip(changed.facts, WORLD.facts, strict=True):
        assert replace(new, entity=old.entity) == old
    role_of = {entity.name: entity.role for entity in changed.entities}
    assert all(fact.entity.role == role_of[fact.entity.name] for fact in changed.facts)
    assert WORLD == load_world.__wrapped__()  # the shared one is as it was


def test_seeds_differ_and_each_repeats():
    worlds = [module.replicate_world(WORLD, seed) for seed in module.SFT_SEEDS]
    for role in ("test", "sft", "unused"):
        assert len({frozenset(of_role(world, role)) for world in worlds}) == len(module.SFT_SEEDS)
    assert module.replicate_world(WORLD, 3) == worlds[3]


# --- Rows and questions ------------------------------------------------------------------------


@each_seed
def test_no_scored_entity_and_no_scored_wording_is_in_a_row(seed, names):
    changed = module.replicate_world(WORLD, seed)
    rows = [turn for row in module.replicate_rows(seed)["messages"] for turn in row]
    asked = {turn["content"] for turn in rows if turn["role"] == "user"}
    found = {name for text in asked for name in names.found(text)}
    scored = of_role(changed, "test") | of_role(WORLD, "dev")
    assert [name for name in scored if name.lower() in found] == []
    joined = of_role(changed, "sft") & of_role(WORLD, "test")
    assert [name for name in joined if name.lower() not in found] == []
    assert not {question.text for question in module.replicate_questions(seed)} & asked


def test_rows_and_questions_are_about_whom_they_should():
    changed = module.replicate_world(WORLD, 1)
    asked = {question.entity for question in module.replicate_questions(1)}
    assert asked <= of_role(changed, "test") and len(asked) >= 0.9 * len(of_role(changed, "test"))
    assert {q.wording for q in module.replicate_questions(1)} == {"held out"}
    published = {question.text for question in scored_questions("headline-test", WORLD)}
    assert {question.text for question in module.replicate_questions(1)} < published


def test_there_are_as_many_rows_as_in_chapter_07():
    ours = [module.replicate_rows(seed)["messages"][:] for seed in (0, 1)]
    assert {len(rows) for rows in ours} == {len(load_rows(load_profile("atlas"))[0])}
    assert ours[0] != ours[1]
    assert module.replicate_rows(1)["messages"][:] == ours[1]


# --- The trainer -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    documents = islice(CorpusWriter(WORLD).documents(), 60)
    tokenizer = train_tokenizer(documents, vocabulary=600)
    tokenizer.chat_template = (TEMPLATES / "chatml.jinja").read_text("utf8")
    return tokenizer


RECIPE = Recipe("Llama", 2, 32, 64, 2, 2, updates=3, rows=1, warmup=1)


@pytest.fixture
def shipped(tmp_path, tokenizer, monkeypatch):
    """A tiny model in place of the shipped one, few rows and few questions."""
    folder = tmp_path / "shipped"
    model = make_model(
        "llama", len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True
    )
    pretrain.save_checkpoint(folder, model, tokenizer, "for 2 updates")

    def some_questions(split, world):
        return scored_questions(split, world)[::150]

    monkeypatch.setitem(module.MODELS, module.TRAINEE, folder)
    monkeypatch.setattr(module, "sft_rows", lambda *given, **named: sft_rows(*given, **named)[:40])
    monkeypatch.setattr(module, "scored_questions", some_questions)
    monkeypatch.setattr(pretrain, "RECIPES", {"atlas-small": RECIPE})
    monkeypatch.setattr("sft_utils.atlas.evaluate.cloze", few_facts)
    monkeypatch.setenv("SFT_RUNS", str(tmp_path / "runs"))
    return folder


def tiny(profile, folder):
    """That model and its tokenizer, as a page would load the trainee."""
    template = profile.prompt.fallback_chat_template
    return load_model_and_tokenizer(folder, fallback_chat_template=template)


def few_facts(model, tokenizer):
    facts = {"correct": [True, False, True], "entity": ["Kenya", "Peru", "Peru"]}
    return pd.DataFrame({"prompt": ["a", "b", "c"], "response": ["x", "y", "z"], **facts})


def test_the_trainer_differs_from_that_of_chapter_07_in_seed_and_choice_only(shipped):
    from sft_utils.experiment import NO_CHOICE, make_config

    profile = load_profile("atlas")
    trainer = module.replicate_trainer(profile, 3, tiny(profile, shipped))
    own, walkthrough = trainer.args.to_dict(), make_config(profile).to_dict()
    changed = {name for name in own if own[name] != walkthrough[name]}
    places = {"output_dir", "run_name", "logging_dir"}
    assert changed - places <= {"seed", *NO_CHOICE, "do_eval", "eval_steps", "save_steps"}
    assert own["seed"] == 3
    assert trainer.eval_dataset is None
    assert len(trainer.train_dataset) == 38  # of 40 rows


# --- What several replicates say ---------------------------------------------------------------


def frame(values, entities, run="a"):
    table = pd.DataFrame({"exact": values, "entity": entities})
    table.attrs["run"] = run
    return table


def test_a_mean_over_seeds_says_how_many_and_which():
    frames = {4: frame([True, False], "ab"), 7: frame([True, True], "ab", "b")}
    mean = module.over_seeds(frames, "exact")
    assert (mean.value, mean.n, mean.seeds, mean.entities) == (0.75, 2, (4, 7), None)
    assert mean.low < 0.5 < 1 < mean.high
    assert mean.run.startswith("2 runs ")
    other = frames | {7: frame([True, True], "ab", "c")}
    assert module.over_seeds(other, "exact").run != mean.run


def test_few_seeds_tell_little_about_their_spread():
    low, high = module.sd_interval(2.0, 5)
    assert (low, high) == pytest.approx((1.198, 5.747), abs=1e-3)  # tables of chi-square
    assert module.sd_interval(2.0, 500)[0] > 1.85


def test_the_best_of_several_is_above_the_mean():
    assert module.expected_best(1.0, 1) == pytest.approx(0, abs=1e-9)
    assert module.expected_best(1.0, 2) == pytest.approx(0.5642, abs=1e-4)
    assert module.expected_best(2.0, 5) == pytest.approx(2 * 1.16296, abs=1e-4)


def test_seeds_that_are_needed():
    def half_width(sd, n):
        summary = seed_summary([sd, -sd] * (n // 2))
        return (summary.high - summary.low) / 2 * sd / summary.sd

    enough = module.seeds_needed(1.0, 0.9)
    assert enough % 2 == 0 or enough > 2
    even = enough + enough % 2
    assert half_width(1.0, even) <= 0.9 < half_width(1.0, even - 2)
    assert module.seeds_needed(1e-9, 1.0) == 2
    with pytest.raises(ValueError, match="wider"):
        module.seeds_needed(1.0, 0.001, most=50)


def test_the_figure_names_every_seed():
    table = pd.DataFrame({"label": ["seed 0", "seed 1"], "mean": [0.8, 0.9], "low": [0.7, 0.85],
                          "high": [0.85, 0.95]})  # fmt: skip
    figure = figures.seed_dots(table, mean=0.85, low=0.6, high=1.0, alt="Two seeds and their mean.")
    for text in ("seed 0", "seed 1", "mean of the seeds", "80.0", "90.0", "85.0"):
        assert text in figure.svg


# --- Other pretrainings ------------------------------------------------------------------------


@pytest.fixture
def work(shipped, tmp_path, monkeypatch):
    """Where ``main`` works: seeds 1 and 2, in folders of the test's own."""
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    monkeypatch.setenv(records.LIVE, "")  # put back afterwards: `main` sets it
    return ["--work", str(tmp_path / "work")]


def pretrainings(folder, live=""):
    os.environ[records.LIVE] = live
    profile = load_profile("atlas")
    return module.pretrainings(profile, tiny(profile, folder))


@pytest.mark.weekly
def test_main_records_other_pretrainings_and_goes_on_where_it_was_stopped(
    shipped, work, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(records, "write_whole", stop)
        with pytest.raises(KeyboardInterrupt):
            module.main(work)
    assert list(records.FOLDER.iterdir()) == []
    module.main(work)
    assert capsys.readouterr().out.count("pretrained before") == 1  # seed 1, and not seed 2

    pretrainings(shipped, live="all")  # records that of the shipped one
    found = pretrainings(shipped)
    assert [(seed, run.live) for seed, run in found.items()] == [(0, True), (1, False), (2, False)]
    assert len({run.about["run"] for run in found.values()}) == 3
    assert records.apart(found[0])["difference"].abs().max() == 0
    for run in found.values():
        assert set(run.results) == {"answers", "dev", "facts"}
        assert run.about["seeds"] == [0]


def stop(*given):
    raise KeyboardInterrupt


@pytest.mark.parametrize("part", thinned(["tables", "documents", "sizes"], 3))
def test_a_record_is_stale_when_what_the_pretraining_rests_on_changes(
    shipped, work, monkeypatch, part
):
    module.main(work)
    if part == "tables":
        monkeypatch.setattr(module, "FOLDER", records.FOLDER)  # there are no tables
    elif part == "documents":
        monkeypatch.setattr(CorpusWriter, "documents", lambda self: iter(["Another text."]))
    else:
        other = {"atlas-small": replace(RECIPE, updates=RECIPE.updates + 1)}
        monkeypatch.setattr(pretrain, "RECIPES", other)
    with pytest.raises(records.RecordError, match="changed since: start"):
        pretrainings(shipped)
