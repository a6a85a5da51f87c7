"""Models as ONNX for the page of chapter 26: the same logits, the same bytes, or said why not."""

import json

import conftest
import pytest
import torch

from sft_utils.export import onnx_model
from sft_utils.export.onnx_model import ExportError, export_onnx, is_whole, onnx_logits, pack
from sft_utils.profiles import load_profile

CLOSE = 1e-5  # of the largest logit


def make_model(kind, seed=0):
    """One layer: tracing takes seconds for each."""
    return conftest.make_model(kind, seed=seed, num_hidden_layers=1)


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].numpy()


def worst(model, path, lengths):
    """The largest difference of a logit, as a share of the largest logit, over some lengths."""
    found = 0.0
    for length in lengths:
        ids = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(length))
        expected = logits(model, ids.tolist())
        difference = abs(onnx_logits(path, ids.tolist()) - expected).max()
        found = max(found, float(difference / abs(expected).max()))
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all tests: an architecture is traced once."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("kind", conftest.thinned(["qwen3", "llama"], 2))
def test_logits_are_those_of_pytorch_at_every_length(tmp_path, store, kind):
    model = make_model(kind)
    export_onnx(model, tmp_path / "model.onnx", store)
    assert worst(model, tmp_path / "model.onnx", (1, 2, 17, 128)) <= CLOSE


def test_one_graph_serves_other_weights_and_holds_none_of_the_first(tmp_path, store, monkeypatch):
    first, second = make_model("qwen3"), make_model("qwen3", seed=1)
    export_onnx(first, tmp_path / "first.onnx", store)
    monkeypatch.setattr(onnx_model, "_trace", lambda model: pytest.fail("traced again"))
    export_onnx(second, tmp_path / "second.onnx", store)
    assert worst(second, tmp_path / "second.onnx", (5, 60)) <= CLOSE
    assert worst(first, tmp_path / "second.onnx", (5, 60)) > 0.01


@pytest.mark.weekly
def test_a_damaged_graph_is_traced_anew_and_same_weights_give_same_bytes(tmp_path, store):
    model = make_model("llama")
    export_onnx(model, tmp_path / "a.onnx", store)
    for path in store.glob("*/*.onnx"):
        path.write_bytes(path.read_bytes()[:-1])
    export_onnx(model, tmp_path / "b.onnx", store)
    text = (tmp_path / "a.onnx").read_bytes()
    assert text == (tmp_path / "b.onnx").read_bytes()
    for trace in (b"site-packages", str(tmp_path).encode(), b"stack_trace", b".py"):
        assert trace not in text


def test_an_adapter_is_merged_and_the_model_left_as_it_was(tmp_path, store):
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    adapted = get_peft_model(make_model("qwen3"), settings).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    before = logits(adapted, [5, 6, 7])
    export_onnx(adapted, tmp_path / "model.onnx", store)
    assert worst(adapted, tmp_path / "model.onnx", (3, 30)) <= CLOSE
    assert (logits(adapted, [5, 6, 7]) == before).all()
    assert any("lora_B" in name for name, _ in adapted.named_parameters())


def test_a_trainers_own_forward_does_not_reach_the_file(tmp_path, store):
    model, other = make_model("qwen3"), make_model("qwen3", seed=1)
    model.forward = other.forward  # as if wrapped: the weights that count are the model's
    export_onnx(model, tmp_path / "model.onnx", store)
    del model.forward
    assert worst(model, tmp_path / "model.onnx", (5,)) <= CLOSE


def test_a_model_that_is_too_large_is_refused_with_the_limit(tmp_path, store, monkeypatch):
    model = make_model("qwen3")
    size = 4 * model.num_parameters()
    monkeypatch.setattr(onnx_model, "LARGEST", size)
    export_onnx(model, tmp_path / "fits.onnx", store)
    monkeypatch.setattr(onnx_model, "LARGEST", size - 1)
    with pytest.raises(ExportError, match=f"{size:,} bytes, and more than {size - 1:,}"):
        export_onnx(model, tmp_path / "model.onnx", store)
    assert not (tmp_path / "model.onnx").exists()


def test_an_architecture_that_cannot_be_exported_is_said(tmp_path, store):
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=300, hidden_size=16, state_size=4, num_hidden_layers=1)
    with pytest.raises(ExportError, match="cannot write its architecture, MambaForCausalLM"):
        export_onnx(MambaForCausalLM(config), tmp_path / "model.onnx", store)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, store, monkeypatch):
    monkeypatch.setattr(onnx_model, "_logits", lambda model, ids: torch.ones(300).numpy())
    with pytest.raises(ExportError, match="differ from PyTorch's"):
        export_onnx(make_model("qwen3"), tmp_path / "model.onnx", store)
    assert list(tmp_path.iterdir()) == []


def test_a_pack_holds_what_the_page_needs(store, chat_tokenizer):
    profile = load_profile("atlas")
    models = [
        ("base", make_model("qwen3"), chat_tokenizer),
        ("trained", make_model("llama"), chat_tokenizer),
    ]
    folder = pack(profile, models, store)
    assert is_whole(folder)
    setup = json.loads((folder / "ask.json").read_text())
    assert [(m["part"], m["name"]) for m in setup["models"]] == [
        ("base", "atlas-base"),
        ("trained", "atlas-small"),
    ]
    assert setup["left_out"] == []
    assert setup["max_new_tokens"] == profile.generation.max_new_tokens
    question = profile.questions[0].text
    assert setup["examples"][0] == question
    for entry in setup["models"]:
        assert entry["ends"] == [2]
        assert entry["markup"] == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
        check = entry["check"]
        turns = [{"role": "user", "content": question}]
        expected = chat_tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        assert check["prompt"] == expected
        assert check["ids"] == chat_tokenizer(expected)["input_ids"]
    assert pack(profile, models, store) == folder
    assert [path.name for path in store.iterdir() if len(path.name) != 64] == []


def test_a_pack_names_what_it_leaves_out(store, chat_tokenizer, monkeypatch):
    monkeypatch.setattr(onnx_model, "LARGEST", 0)
    folder = pack(load_profile("atlas"), [("base", make_model("qwen3"), chat_tokenizer)], store)
    setup = json.loads((folder / "ask.json").read_text())
    assert setup["models"] == []
    [left_out] = setup["left_out"]
    assert left_out["name"] == "atlas-base" and "bytes" in left_out["why"]


def test_a_damaged_pack_is_made_again(store, chat_tokenizer):
    models = [("trained", make_model("llama"), chat_tokenizer)]
    folder = pack(load_profile("atlas"), models, store)
    [path] = folder.glob("*.onnx")
    text = path.read_bytes()
    path.write_bytes(text[:-1])
    assert not is_whole(folder)
    assert pack(load_profile("atlas"), models, store) == folder
    assert path.read_bytes() == text
