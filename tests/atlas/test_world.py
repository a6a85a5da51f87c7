"""The world as data: enough of it, each entity in one role, and errors that name the cell."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import MISSING, fields

import pytest
from conftest import ROOT, run_alone

from sft_utils.atlas.world import (
    FOLDER,
    ROLES,
    Entity,
    Fact,
    Relation,
    indefinite,
    load_world,
    words,
)


def relation(**changes):
    """A relation with nothing to say but what the test gives it."""
    empty = {"name": "made up", "domain": "countries", "asked": True, "answer": "It is {v}."}
    lists = {f.name: () for f in fields(Relation) if f.default is MISSING}
    return Relation(**lists | empty | changes)


# --- Size and shape --------------------------------------------------------------------------


def test_every_entity_has_one_fact_for_each_relation_of_its_domain(world):
    found = Counter((f.entity.name, f.relation.name) for f in world.facts)
    expected = {
        (e.name, name) for e in world.entities for name in world.domains[e.domain].relations
    }
    assert found.keys() == expected
    assert set(found.values()) == {1}


def test_relation_names_are_unique_over_all_domains(world):
    # Controls and tables of scores are keyed by the relation's name alone.
    names = Counter(r.name for r in world.relations())
    assert [name for name, count in names.items() if count > 1] == []


def test_every_form_of_every_relation_can_be_filled(world):
    """No unknown slot, an entity in each, a value only where one belongs."""
    for relation in world.relations():
        entity = next(e for e in world.entities if e.domain == relation.domain)
        for form in relation.sentences:
            filled = relation.fill(form, entity, "VALUE")
            assert entity.name in filled.lower() + filled and "VALUE" in filled, form
        for form in (*relation.ask, *relation.ask_held_out, *relation.glosses):
            filled = relation.fill(form, entity, "VALUE", "noun")
            assert entity.name in filled and "VALUE" not in filled, form
        assert "VALUE" in relation.fill(relation.answer, entity, "VALUE")


def test_only_asked_relations_have_wordings_for_fine_tuning(world):
    assert {r.name for r in world.relations() if r.asked} == {
        r.name for r in world.relations() if r.ask
    }
    assert all(r.ask_held_out for r in world.relations())


# --- Roles -----------------------------------------------------------------------------------


def test_a_domain_is_untouched_exactly_if_nothing_of_it_is_asked(world):
    for domain in world.domains.values():
        roles = Counter(e.role for e in world.entities if e.domain == domain.name)
        if any(r.asked for r in domain.relations.values()):
            assert roles.keys() == set(ROLES) - {"untouched"}
            assert roles["dev"] == roles["test"]
            assert roles["sft"] > roles["dev"] > roles["absent"] // 2
        else:
            assert roles.keys() == {"untouched"}


def test_only_absent_entities_go_unmentioned_and_they_do_by_about_half(world):
    assert all(e.mentioned for e in world.entities if e.role != "absent")
    absent = world.by_role("absent")
    assert 0.4 <= sum(e.mentioned for e in absent) / len(absent) <= 0.6
    for domain in {e.domain for e in absent}:
        group = [e.mentioned for e in absent if e.domain == domain]
        assert 0.3 <= sum(group) / len(group) <= 0.7, domain


def test_roles_are_stable_for_a_seed_and_change_with_it(world):
    fresh = load_world.__wrapped__(FOLDER, 0)
    assert fresh is not world
    assert fresh == world
    other = load_world.__wrapped__(FOLDER, 1)
    assert [e.name for e in other.entities] == [e.name for e in world.entities]
    changed = sum(a.role != b.role for a, b in zip(other.entities, world.entities, strict=True))
    assert changed > 100


# --- Facts that give themselves away ---------------------------------------------------------


def test_giving_away_means_whole_words_and_the_name_gives_away_alternatives_too(world):
    made_up = relation()

    def gives(name, *answers):
        entity = Entity(name, "countries", "dev")
        return Fact(entity, made_up, answers).gives_itself_away

    assert gives("Guinea-Bissau", "Bissau")
    assert gives("Mexico", "Mexico City")
    assert gives("South Africa", "the south", "Africa")
    assert not gives("Kenya", "shilling", "Kenya shilling")
    assert gives("MONACO", "monaco")
    assert not gives("Oman", "Romania")
    assert not gives("El Salvador", "San Salvador")
    given = {f.key for f in world.facts if f.gives_itself_away}
    assert {"Kuwait/capital", "Czech Republic/language", "Leo/abbreviation"} <= given
    assert not {"Kenya/capital", "France/language", "iron/symbol", "lead/number"} & given


# --- Words -----------------------------------------------------------------------------------


def test_phrases_values_and_articles():
    young = relation(article="a", answer="It is {av}.")
    lion = Entity("lion", "animals", "sft", "the")
    assert young.fill("{E} and {e}, {n}: {v}", lion, "cub") == "The lion and the lion, lion: cub"
    assert young.fill(young.answer, lion, "infant") == "It is an infant."
    assert young.fill("{Noun} or {noun}: {iv}", lion, "cub", "young") == "Young or young: a cub"
    assert relation(article="the").value_phrase("sol") == "the sol"
    assert relation().value_phrase("Lima") == "Lima"
    assert indefinite("insect") == "an insect" and indefinite("mammal") == "a mammal"
    assert Entity("iron", "elements", "sft").phrase == "iron"
    assert words("What's Guinea-Bissau, 7?") == ["what", "s", "guinea", "bissau", "7"]


# --- Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("countries", ",Kabul,", ",  ,", "countries.csv, line 2: capital is blank"),
        ("constellations", ",Ptolemy", ",", "constellations.csv, line 2: author is blank"),
        ("elements", "helium,He,2,noble gas,1,s,gas", "helium", "elements.csv, line 3: symbol is"),
        ("countries", "capital", "Capital", r"countries.csv: no column \['capital'\]; add it"),
    ],
)
def test_what_a_table_lacks_is_named_by_file_line_and_column(
    tmp_path, world, table, old, new, message
):
    for name in ("tables", "relations"):
        shutil.copytree(FOLDER / name, tmp_path / name)
    assert load_world.__wrapped__(tmp_path) == world
    path = tmp_path / "tables" / f"{table}.csv"
    path.write_text(path.read_text("utf8").replace(old, new, 1), "utf8")
    with pytest.raises(ValueError, match=message):
        load_world.__wrapped__(tmp_path)


# --- Hash seeds ------------------------------------------------------------------------------

MADE = """
import hashlib
from itertools import islice
from sft_utils.atlas.corpus import CorpusWriter
from sft_utils.atlas.questions import scored_questions
from sft_utils.atlas.sft_data import sft_rows
from sft_utils.atlas.world import load_world
world = load_world()
corpus = list(islice(CorpusWriter(world).documents(), 50))
questions = [(q.messages, q.answers) for q in scored_questions("follow-up-dev", world)]
for made in (corpus, sft_rows(world), questions):
    print(hashlib.sha256(repr(made).encode()).hexdigest())
"""


def test_corpus_rows_and_questions_do_not_depend_on_the_hash_seed():
    printed = [
        run_alone(sys.executable, "-c", MADE, cwd=ROOT, PYTHONHASHSEED=seed) for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert len(set(printed[0].split())) == 3
