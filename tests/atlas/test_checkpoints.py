"""What the shipped checkpoints are, and what they must show.

The targets are point estimates on the test half, greedy, over whole splits; a figure for each
relation counts once in a macro average. Never reach one by weakening a split or a scorer: change
the world, the data or the training, and run `make models` again.
"""

from __future__ import annotations

import json

import pytest
import torch
from conftest import own_files
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sft_utils.atlas.evaluate import cloze, cloze_in_one_form, score_split
from sft_utils.atlas.pretrain import make_tokenizer
from sft_utils.atlas.questions import scored_questions
from sft_utils.atlas.sft_data import sft_rows
from sft_utils.atlas.shipped import MODELS, ROWS
from sft_utils.atlas.world import load_world
from sft_utils.models import TEMPLATES, end_token_ids, load_model_and_tokenizer

ARCHITECTURES = {
    "atlas-base": "Qwen3ForCausalLM",
    "atlas-sft": "Qwen3ForCausalLM",
    "atlas-small": "LlamaForCausalLM",
    "atlas-base-1form": "Qwen3ForCausalLM",
}
END_OF_TURN, END_OF_DOCUMENT = "<|im_end|>", "<|endoftext|>"

each_checkpoint = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def load():
    """Each checkpoint once, as the book loads it."""
    loaded = {}

    def loader(name):
        if name not in loaded:
            loaded[name] = load_model_and_tokenizer(name, device="cpu")
        return loaded[name]

    return loader


def macro(table, score):
    """The mean over relations: each counts once, however many questions it has."""
    return table.groupby("relation")[score].mean().mean()


def told(table, score):
    """What a failure shows: the score of every relation."""
    means = table.groupby("relation")[score].mean().sort_values()
    return f"{score} by relation: {means.round(3).to_dict()}"


# --- The folders -----------------------------------------------------------------------------


def test_there_are_these_four_of_at_most_20_mb():
    files = own_files("sft_utils/atlas/checkpoints/*/*")
    assert {path.parent.name for path in files} == set(ARCHITECTURES) == set(MODELS)
    assert sum(file.stat().st_size for file in files) <= 20e6


@each_checkpoint
def test_transformers_alone_loads_it_whole(name):
    folder = MODELS[name]
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
    sizes = {name: load(name)[0].num_parameters() for name in MODELS}
    assert all(0.5e6 < size < 1.5e6 for size in sizes.values()), sizes
    assert sizes["atlas-small"] < sizes["atlas-base"]
    assert sizes["atlas-base"] == sizes["atlas-sft"] == sizes["atlas-base-1form"]


# --- What ends a turn ------------------------------------------------------------------------


@each_checkpoint
def test_everything_agrees_on_the_end_of_a_turn(load, name):
    folder = MODELS[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end, pad = tokenizer.convert_tokens_to_ids([END_OF_TURN, END_OF_DOCUMENT])
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (END_OF_TURN, end)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (END_OF_DOCUMENT, pad)
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (end, pad)
    generation = GenerationConfig.from_pretrained(folder)
    assert {end} <= set(generation.eos_token_id) <= {end, pad}
    assert generation.pad_token_id == pad
    assert end_token_ids(*load(name)) == sorted([end, pad])


@each_checkpoint
def test_the_template_is_the_one_of_the_package_and_answers_are_learned_to_their_end(name):
    tokenizer = AutoTokenizer.from_pretrained(MODELS[name])
    assert tokenizer.chat_template == (TEMPLATES / "chatml.jinja").read_text("utf8")
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes"}]
    row = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(row["input_ids"], row["assistant_masks"], strict=True)
    learned = [token for token, learns in pairs if learns]
    assert learned == [*tokenizer("Yes")["input_ids"], tokenizer.eos_token_id]
    prompt = tokenizer.apply_chat_template(
        messages[:1], return_dict=True, add_generation_prompt=True
    )
    assert row["input_ids"][: len(prompt["input_ids"])] == prompt["input_ids"]


# --- Tokenizer and data are made from the tables ---------------------------------------------


def test_the_tokenizer_is_the_one_that_the_corpus_gives():
    made = json.loads(make_tokenizer(load_world()).backend_tokenizer.to_str())
    for name in MODELS:
        shipped = json.loads((MODELS[name] / "tokenizer.json").read_text("utf8"))
        for part in ("added_tokens", "pre_tokenizer", "decoder", "normalizer"):
            assert shipped[part] == made[part], (name, part)
        assert shipped["model"]["vocab"] == made["model"]["vocab"], name
        merges = [
            [merge if isinstance(merge, str) else " ".join(merge) for merge in m["model"]["merges"]]
            for m in (shipped, made)
        ]
        assert merges[0] == merges[1], name


def test_the_data_set_is_the_one_that_the_tables_give():
    lines = ROWS["atlas-sft-data"].read_text("utf8").splitlines()
    assert [json.loads(line) for line in lines] == sft_rows(load_world())


# --- What they show --------------------------------------------------------------------------


@pytest.mark.weekly
@pytest.mark.parametrize(("name", "target"), [("atlas-base", 0.97), ("atlas-sft", 0.95)])
def test_the_base_knows_the_facts_and_the_reference_still_does(load, name, target):
    table = cloze(*load(name))
    assert table["relation"].nunique() >= 12 and len(table) >= 1000
    assert macro(table, "correct") >= target, told(table, "correct")


@pytest.mark.weekly
def test_the_reference_answers_about_held_out_entities(load):
    table = score_split(*load("atlas-sft"), "headline-test")
    assert len(table) >= 300
    asked = scored_questions("headline-test", load_world())
    assert {question.entity for question in asked} == set(table["entity"])
    for score, target in (("exact", 0.90), ("right_value", 0.93), ("stops", 0.99)):
        for found in (table[score].mean(), macro(table, score)):
            assert found >= target, told(table, score)


@pytest.mark.weekly
@pytest.mark.parametrize("split", ["instruction-test", "follow-up-test"])
def test_the_reference_follows_instructions_and_conversations(load, split):
    table = score_split(*load("atlas-sft"), split)
    assert len(table) >= 300
    for found in (table["exact"].mean(), macro(table, "exact")):
        assert found >= 0.85, told(table, "exact")


@pytest.mark.weekly
def test_the_control_completes_its_own_texts(load):
    """Its only form of each fact, after the text that always stood before it."""
    table = cloze_in_one_form(*load("atlas-base-1form"), "sft", "dev", "test", "untouched")
    pairs = zip(table["response"], table["right"], strict=True)
    right = [response.startswith(f" {value}.") for response, value in pairs]
    assert len(right) > 1500 and table["prompt"].is_unique
    assert sum(right) / len(right) >= 0.95
