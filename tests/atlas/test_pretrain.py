"""Pretraining in small: the tokenizer, the packed windows, the schedule, and a loss that falls."""

from __future__ import annotations

import json
import math
from itertools import chain, islice, repeat

import pytest
import torch

from sft_utils.atlas import pretrain as module
from sft_utils.atlas.corpus import CorpusWriter
from sft_utils.atlas.world import load_world
from sft_utils.data.rows import load_sft_dataset
from sft_utils.generation import generate_responses
from sft_utils.models import load_model_and_tokenizer

DOCUMENTS = 80


@pytest.fixture(scope="module")
def documents():
    return list(islice(CorpusWriter(load_world()).documents(), DOCUMENTS))


@pytest.fixture(scope="module")
def tokenizer(documents):
    return module.train_tokenizer(iter(documents), vocabulary=700)


def tiny(architecture="Llama", **changes):
    """The sizes of a hundredth: two layers of width 32, 15 updates of 4 rows."""
    sizes = {
        "layers": 2, "width": 32, "feed_forward": 64, "heads": 2, "key_value_heads": 1,
        "updates": 15, "rows": 4, "learning_rate": 1e-2, "warmup": 2,
    }  # fmt: skip
    return module.Recipe(architecture, **sizes | changes)


# --- The tokenizer ---------------------------------------------------------------------------


def test_the_tokenizer_reads_the_given_documents_and_nothing_else():
    documents = ["Zebras graze. The zebra eats grass."] * 20
    tokenizer = module.train_tokenizer(iter(documents), vocabulary=400)
    vocabulary = tokenizer.get_vocab()
    assert "Ġzebra" in vocabulary and "Ġgrass" in vocabulary
    for word in ("lion", "Kenya", "capital", "user", "assistant", "What"):
        assert len(tokenizer(word)["input_ids"]) > 1, word
    longer = {t for t in vocabulary if len(t) > 1 and t not in tokenizer.all_special_tokens}
    assert all(token.replace("Ġ", " ") in documents[0] for token in longer)


def test_the_special_tokens_come_first_and_stay_whole(tokenizer):
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(specials) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert tokenizer("".join(specials))["input_ids"] == [0, 1, 2]
    assert set(tokenizer.all_special_tokens) == set(specials)
    assert not set(tokenizer("Kenya")["input_ids"]) & {0, 1, 2}  # none is added


def test_digits_are_single_tokens(documents, tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(" 2026 and 118")["input_ids"])
    assert [t for t in tokens if t.isdigit()] == list("2026118")
    assert [t for t in tokenizer.get_vocab() if len(t) > 1 and any(c.isdigit() for c in t)] == []


def test_every_text_comes_back_as_it_was(documents, tokenizer):
    for text in [*documents[:20], "São Tomé  \n\n\t naïve 東京 🦊 it's", " ", "a  b ."]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


# --- Windows ---------------------------------------------------------------------------------


def test_windows_are_the_documents_end_to_end_with_an_end_after_each(documents, tokenizer):
    ids = [[*tokenizer(document)["input_ids"], 0] for document in documents]
    assert len(ids[0]) > 2 * module.WINDOW  # runs over rows and batches
    expected = list(chain.from_iterable(ids))
    batches = list(islice(module.windows(chain(documents, repeat("x")), tokenizer, 3), 8))
    assert all(batch.shape == (3, module.WINDOW) and batch.dtype == torch.long for batch in batches)
    flat = torch.cat([batch.flatten() for batch in batches]).tolist()
    assert len(flat) == 8 * 3 * module.WINDOW < len(expected)
    assert flat == expected[: len(flat)]  # nothing padded, nothing skipped, nothing twice


def test_windows_end_where_finite_documents_end(tokenizer):
    assert len([*module.windows(iter(["Kenya and Peru. " * 200] * 3), tokenizer, 1)]) >= 2


# --- The schedule ----------------------------------------------------------------------------


def test_the_learning_rate_warms_up_then_follows_a_cosine_to_a_twentieth():
    factors = [module.learning_rate_factor(step, 1100, 100) for step in range(1101)]
    assert factors[:100] == pytest.approx([(i + 1) / 100 for i in range(100)])
    assert factors[100] == pytest.approx(1.0)
    assert factors[600] == pytest.approx((1 + 0.05) / 2)
    assert factors[350] == pytest.approx(0.05 + 0.95 * (1 + math.sqrt(0.5)) / 2)
    assert factors[1100] == pytest.approx(0.05)
    assert all(a > b for a, b in zip(factors[100:], factors[101:], strict=False))
    assert module.learning_rate_factor(5000, 1100, 100) == pytest.approx(0.05)
    assert module.learning_rate_factor(0, 10, 0) == pytest.approx(1.0)
    assert 0 < module.learning_rate_factor(3, 2, 100) <= 0.04  # fewer updates than warm-up


# --- Models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["Qwen3", "Llama"])
def test_a_model_has_the_sizes_of_its_recipe(tokenizer, architecture):
    model = module.build_model(tiny(architecture), tokenizer)
    assert type(model).__name__ == f"{architecture}ForCausalLM"
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, 32, 64)
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 2, None)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert config.max_position_embeddings == tokenizer.model_max_length >= 2 * module.WINDOW


def test_the_loss_falls_within_a_hundredth_of_the_updates(tokenizer):
    heard = []
    stream = CorpusWriter(load_world(), 1).documents()
    model, losses = module.pretrain(
        tiny(), stream, tokenizer, on_step=lambda *step: heard.append(step)
    )
    assert heard == list(enumerate(losses)) and len(losses) == 15
    assert losses[0] == pytest.approx(math.log(len(tokenizer)), abs=0.3)
    assert sum(losses[-3:]) / 3 < losses[0] - 0.7
    assert not model.training


def test_pretraining_repeats_with_the_seed_and_only_with_it(documents, tokenizer):
    def losses(seed):
        recipe = tiny(updates=2, rows=1)
        return module.pretrain(recipe, chain(documents, repeat("x")), tokenizer, seed=seed)[1]

    assert losses(0) == losses(0) != losses(1)


def test_every_update_has_the_rate_of_its_step(documents, tokenizer, monkeypatch):
    """A rate of zero from the second update on leaves the weights where the first took them."""
    monkeypatch.setattr(module, "learning_rate_factor", lambda step, *_: float(step == 0))

    def weights(updates):
        stream = chain(documents, repeat("x"))
        return module.pretrain(tiny(updates=updates, rows=1), stream, tokenizer)[0].state_dict()

    start, once, thrice = weights(0), weights(1), weights(3)
    for name in once:
        assert torch.equal(once[name], thrice[name]), name
    assert any(not torch.equal(start[name], once[name]) for name in once)


# --- make models -----------------------------------------------------------------------------


def test_main_writes_whole_checkpoints_and_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOKENIZER_DOCUMENTS", 40)
    recipes = {"atlas-base-1form": tiny("Qwen3", rows=1), "atlas-small": tiny("Llama", rows=1)}
    monkeypatch.setattr(module, "RECIPES", recipes)
    module.main(["--only", *recipes, "--scale", "0.2", "--out", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"atlas-sft-data.jsonl", *recipes}  # no half-written folder is left
    lines = (tmp_path / "atlas-sft-data.jsonl").read_text("utf8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == module.sft_rows(load_world())
    assert len(load_sft_dataset(tmp_path / "atlas-sft-data.jsonl")) == len(rows)
    for name in recipes:
        model, tokenizer = load_model_and_tokenizer(tmp_path / name)
        kinds = {path.suffix for path in (tmp_path / name).iterdir()}
        assert kinds == {".json", ".jinja", ".md", ".safetensors"}
        assert set(model.generation_config.eos_token_id) == {0, 2}
        assert "3 updates" in (tmp_path / name / "README.md").read_text()
        assert generate_responses(model, tokenizer, ["Hello?"], max_new_tokens=2)
