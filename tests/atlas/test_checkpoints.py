"""What the shipped checkpoints are, and what they must show.

The targets are point estimates on the test half, greedy, over whole splits; a figure for each
relation counts once in a macro average. Never reach one by weakening a split or a scorer: change
the world, the data or the training, and run `make models` again.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
import torch
from conftest import own_files
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sft_utils.atlas import CHECKPOINTS, checkpoint, sft_data_path
from sft_utils.atlas.corpus import PRONOUN, one_form_texts
from sft_utils.atlas.evaluate import cloze, score_split
from sft_utils.atlas.pretrain import make_tokenizer
from sft_utils.atlas.questions import scored_questions
from sft_utils.atlas.sft_data import sft_rows
from sft_utils.atlas.world import load_world
from sft_utils.generation import generate_responses
from sft_utils.models import TEMPLATES, end_token_ids, load_model_and_tokenizer

ARCHITECTURES = {
    "atlas-base": "Qwen3ForCausalLM",
    "atlas-sft": "Qwen3ForCausalLM",
    "atlas-small": "LlamaForCausalLM",
    "atlas-base-1form": "Qwen3ForCausalLM",
}
END_OF_TURN, END_OF_DOCUMENT = "<|im_end|>", "<|endoftext|>"

each_checkpoint = pytest.mark.parametrize("name", CHECKPOINTS)


@pytest.fixture(scope="module")
def load():
    """Each checkpoint once, as the book loads it."""
    loaded = {}

    def loader(name):
        if name not in loaded:
            loaded[name] = load_model_and_tokenizer(name, device="cpu")
        return loaded[name]

    return loader


@pytest.fixture(scope="module")
def scores(load):
    """Each split once for each model that is asked."""
    scored = {}

    def score(name, split):
        if (name, split) not in scored:
            scored[name, split] = score_split(*load(name), split)
        return scored[name, split]

    return score


@pytest.fixture(scope="module")
def completed(load):
    """The cloze table of each model that is asked."""
    tables = {}

    def complete(name):
        if name not in tables:
            tables[name] = cloze(*load(name))
        return tables[name]

    return complete


def macro(table, score):
    """The mean over relations: each counts once, however many questions it has."""
    return table.groupby("relation")[score].mean().mean()


def told(table, score):
    """What a failure shows: the score of every relation."""
    means = table.groupby("relation")[score].mean().sort_values()
    return f"{score} by relation: {means.round(3).to_dict()}"


# --- The folders -----------------------------------------------------------------------------


def test_all_checkpoints_together_are_at_most_20_mb():
    assert (
        sum(file.stat().st_size for file in own_files("sft_utils/atlas/checkpoints/*/**/*")) <= 20e6
    )


def test_there_are_these_four_and_no_other():
    assert {path.parent.name for path in own_files("sft_utils/atlas/checkpoints/*/*")} == set(
        ARCHITECTURES
    )


@each_checkpoint
def test_transformers_alone_loads_it_whole(name):
    folder = checkpoint(name)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == ARCHITECTURES[name]
    assert model.config.architectures == [ARCHITECTURES[name]]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert len(tokenizer) == model.config.vocab_size
    text = "The capital of Kenya is Nairobi."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_sizes_are_the_ones_that_the_book_tells(load):
    sizes = {name: load(name)[0].num_parameters() for name in CHECKPOINTS}
    assert all(0.5e6 < size < 1.5e6 for size in sizes.values()), sizes
    assert sizes["atlas-small"] < sizes["atlas-base"]
    assert sizes["atlas-base"] == sizes["atlas-sft"] == sizes["atlas-base-1form"]


def test_the_reference_is_the_base_with_other_weights(load):
    (base, _), (reference, _), (control, _) = map(
        load, ("atlas-base", "atlas-sft", "atlas-base-1form")
    )
    before, after, other = (model.state_dict() for model in (base, reference, control))
    assert before.keys() == after.keys() == other.keys()
    distance = {
        name: sum(float((before[k] - weights[k]).norm() ** 2) for k in before) ** 0.5
        for name, weights in (("reference", after), ("control", other))
    }
    assert 0 < distance["reference"] < distance["control"] / 2


@each_checkpoint
def test_the_card_says_what_it_is(name):
    card = (checkpoint(name) / "README.md").read_text("utf8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    for part in (f"# {name}\n", ARCHITECTURES[name], "make models", END_OF_TURN):
        assert part in card, part


# --- What ends a turn ------------------------------------------------------------------------


@each_checkpoint
def test_everything_agrees_on_the_end_of_a_turn(name):
    folder = checkpoint(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end, pad = tokenizer.convert_tokens_to_ids([END_OF_TURN, END_OF_DOCUMENT])
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (END_OF_TURN, end)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (END_OF_DOCUMENT, pad)
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (end, pad)
    generation = GenerationConfig.from_pretrained(folder)
    ends = generation.eos_token_id
    assert end in (ends if isinstance(ends, list) else [ends])
    assert set(ends if isinstance(ends, list) else [ends]) <= {end, pad}
    assert generation.pad_token_id == pad
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes"}]
    row = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [
        token
        for token, learns in zip(row["input_ids"], row["assistant_masks"], strict=True)
        if learns
    ]
    assert learned == [*tokenizer("Yes")["input_ids"], end]
    prompt = tokenizer.apply_chat_template(
        messages[:1], return_dict=True, add_generation_prompt=True
    )
    assert row["input_ids"][: len(prompt["input_ids"])] == prompt["input_ids"]


@each_checkpoint
def test_generation_stops_at_the_end_of_a_turn_and_of_a_document(load, name):
    model, tokenizer = load(name)
    assert end_token_ids(model, tokenizer) == sorted(
        tokenizer.convert_tokens_to_ids([END_OF_TURN, END_OF_DOCUMENT])
    )


@each_checkpoint
def test_the_template_is_the_one_of_the_package(name):
    template = (TEMPLATES / "chatml.jinja").read_text("utf8")
    assert (checkpoint(name) / "chat_template.jinja").read_text("utf8") == template
    assert AutoTokenizer.from_pretrained(checkpoint(name)).chat_template == template


# --- Tokenizer and data are made from the tables ---------------------------------------------


def test_the_tokenizer_is_the_one_that_the_corpus_gives():
    made = json.loads(make_tokenizer(load_world()).backend_tokenizer.to_str())
    for name in CHECKPOINTS:
        shipped = json.loads((checkpoint(name) / "tokenizer.json").read_text("utf8"))
        for part in ("added_tokens", "pre_tokenizer", "decoder", "normalizer"):
            assert shipped[part] == made[part], (name, part)
        assert shipped["model"]["vocab"] == made["model"]["vocab"], name
        merges = [
            [merge if isinstance(merge, str) else " ".join(merge) for merge in m["model"]["merges"]]
            for m in (shipped, made)
        ]
        assert merges[0] == merges[1], name


def test_the_data_set_is_the_one_that_the_tables_give():
    lines = sft_data_path().read_text("utf8").splitlines()
    assert [json.loads(line) for line in lines] == sft_rows(load_world())


# --- What they show --------------------------------------------------------------------------


def test_the_base_knows_the_facts(completed):
    table = completed("atlas-base")
    assert table["relation"].nunique() >= 12 and len(table) >= 1000
    assert macro(table, "correct") >= 0.97, told(table, "correct")


def test_the_base_does_not_answer_in_chat(scores):
    table = scores("atlas-base", "headline-test")
    assert len(table) >= 300
    for score in (table["exact"].mean(), macro(table, "exact")):
        assert score <= 0.05, told(table, "exact")


@pytest.mark.parametrize(
    ("score", "target"), [("exact", 0.90), ("right_value", 0.93), ("stops", 0.99)]
)
def test_the_reference_answers_about_held_out_entities(scores, score, target):
    table = scores("atlas-sft", "headline-test")
    assert len(table) >= 300
    assert {question.entity for question in scored_questions("headline-test", load_world())} == set(
        table["entity"]
    )
    for found in (table[score].mean(), macro(table, score)):
        assert found >= target, told(table, score)


@pytest.mark.parametrize("split", ["instruction-test", "follow-up-test"])
def test_the_reference_follows_instructions_and_conversations(scores, split):
    table = scores("atlas-sft", split)
    assert len(table) >= 300
    for found in (table["exact"].mean(), macro(table, "exact")):
        assert found >= 0.85, told(table, "exact")


def test_the_reference_still_knows_the_facts(completed):
    table = completed("atlas-sft")
    assert macro(table, "correct") >= 0.95, told(table, "correct")


def test_the_reference_is_better_than_the_base_on_the_same_questions(scores):
    before, after = (scores(name, "headline-test") for name in ("atlas-base", "atlas-sft"))
    assert before["question"].tolist() == after["question"].tolist()
    for score in ("exact", "right_value", "stops"):
        gained = Counter(zip(before[score], after[score], strict=True))
        assert gained[False, True] > 4 * gained[True, False], (score, gained)


def test_the_control_completes_its_own_texts(load):
    """Its only form of each fact, after the text that always stood before it."""
    world, cuts = load_world(), []
    for entity, text in one_form_texts(world).items():
        start = world.domains[entity.domain].introductions[0]
        facts = [fact for fact in world.facts if fact.entity == entity]
        so_far = facts[0].relation.fill(start, entity)
        for fact in facts:
            opening, _, _ = PRONOUN[0].partition("{av}")
            begun = f"{so_far} {fact.relation.fill(opening, entity, noun=fact.relation.nouns[0])}"
            value = fact.relation.value_phrase(fact.value)
            so_far = f"{begun}{value}."
            cuts.append((begun.rstrip(), f" {value}."))
        assert so_far == text
    assert len(cuts) > 1500 and all(a != b for a, b in pairwise(cuts))
    responses = generate_responses(
        *load("atlas-base-1form"),
        [prompt for prompt, _ in cuts],
        chat=False,
        max_new_tokens=16,
        batch_size=256,
    )
    right = [
        response.startswith(value) for response, (_, value) in zip(responses, cuts, strict=True)
    ]
    assert sum(right) / len(right) >= 0.95
