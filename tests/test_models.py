"""Loading: float32, safetensors only, whole or not at all; and every token that ends an answer."""

import json
import math
import os
import shutil
import warnings

import pytest
import torch
from conftest import SPECIAL, make_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel

from sft_utils import hub, models
from sft_utils.atlas import shipped
from sft_utils.hub import ModelLoadError
from sft_utils.models import end_token_ids, load_model_and_tokenizer, load_tokenizer, resolve
from sft_utils.wording import short


def load_error(source, **options):
    with pytest.raises(ModelLoadError) as caught:
        load_model_and_tokenizer(source, **options)
    return str(caught.value)


# --- What is loaded --------------------------------------------------------------------------


def test_loads_the_saved_weights_in_float32(saved, qwen):
    model, tokenizer = load_model_and_tokenizer(saved, device="cpu")
    assert not model.training
    expected = qwen.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name]), name
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == SPECIAL
    assert tokenizer.padding_side == "right"


def test_float32_even_from_a_bfloat16_checkpoint(saved, qwen):
    qwen.to(torch.bfloat16).save_pretrained(saved)
    assert load_model_and_tokenizer(saved)[0].dtype == torch.float32
    assert load_model_and_tokenizer(saved, dtype="auto")[0].dtype == torch.bfloat16
    assert load_model_and_tokenizer(saved, dtype=torch.float16)[0].dtype == torch.float16


def test_tied_embeddings_are_not_missing_weights(saved):
    make_model("qwen3", tie_word_embeddings=True).save_pretrained(saved)
    model, _ = load_model_and_tokenizer(saved)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_chat_template_by_name_by_path_and_its_own(saved, tmp_path):
    own = load_model_and_tokenizer(saved)[1].chat_template
    assert own == (models.TEMPLATES / "chatml.jinja").read_text()
    mine = tmp_path / "mine.jinja"
    mine.write_text("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    assert load_model_and_tokenizer(saved, chat_template=mine)[1].chat_template == mine.read_text()
    kept = load_model_and_tokenizer(saved, fallback_chat_template=mine)[1].chat_template
    assert kept == own
    (saved / "chat_template.jinja").unlink()
    assert load_model_and_tokenizer(saved)[1].chat_template is None
    for option in ("chat_template", "fallback_chat_template"):
        filled = load_model_and_tokenizer(saved, **{option: "chatml.jinja"})[1].chat_template
        assert filled == own


OTHER = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"


def _with_templates(saved, form, **templates):
    """A checkpoint whose tokenizer has named templates, in a form that files have."""
    config = json.loads((saved / "tokenizer_config.json").read_text())
    (saved / "chat_template.jinja").unlink()
    if form == "folder":
        folder = saved / "additional_chat_templates"
        folder.mkdir()
        for name, text in templates.items():
            default = name == "default"
            file = saved / "chat_template.jinja" if default else folder / f"{name}.jinja"
            file.write_text(text)
        return
    config["chat_template"] = (
        [{"name": name, "template": text} for name, text in templates.items()]
        if form == "list"
        else templates
    )
    (saved / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("form", ["folder", "list", "dict"])
def test_of_named_templates_default_is_used(saved, tmp_path, form):
    shutil.copytree(saved, tmp_path / "other")
    _with_templates(saved, form, default=OTHER, tool_use="{{ tools }}")
    assert load_model_and_tokenizer(saved)[1].chat_template == OTHER
    assert load_tokenizer(saved).chat_template == OTHER
    shutil.copytree(tmp_path / "other", saved, dirs_exist_ok=True)
    shutil.rmtree(saved / "additional_chat_templates", ignore_errors=True)
    _with_templates(saved, form, rag=OTHER, tool_use="{{ tools }}")
    for options in ({"source": saved}, {"source": tmp_path / "other", "chat_template_from": saved}):
        with pytest.raises(ModelLoadError, match=r"several chat templates \(rag, tool_use\) and"):
            load_model_and_tokenizer(**options)
    mine = load_model_and_tokenizer(saved, chat_template="chatml.jinja")[1].chat_template
    assert mine == (models.TEMPLATES / "chatml.jinja").read_text()


def test_the_template_of_another_model_takes_the_place_of_its_own(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text(OTHER)
    other = load_model_and_tokenizer(saved, chat_template_from=tmp_path / "other")[1]
    assert other.chat_template == OTHER


def test_the_mark_at_the_beginning_of_a_file_is_dropped(saved, tmp_path):
    mine = tmp_path / "mine.jinja"
    for file in (mine, saved / "chat_template.jinja"):
        file.write_text(OTHER, encoding="utf-8-sig")
    for options in ({}, {"chat_template": mine}):
        assert load_model_and_tokenizer(saved, **options)[1].chat_template == OTHER


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            b"{% for m in messages %}\n{% endif %}",
            "not written in Jinja's syntax, line 2: ",
        ),
        (b"{% generate %}", "line 1: Encountered unknown tag 'generate'"),
        ("Grüße".encode("latin-1"), "is not text in UTF-8"),
        ("{{ 1 }}".encode("utf-16"), "is not text in UTF-8"),
    ],
)
def test_a_template_that_cannot_be_read(saved, tmp_path, content, problem):
    mine = tmp_path / "mine.jinja"
    mine.write_bytes(content)
    with pytest.raises(ModelLoadError, match=rf"mine\.jinja' .*{problem}"):
        load_model_and_tokenizer(saved, chat_template=mine)


@pytest.mark.parametrize("pad", [None, "<|endoftext|>"])
def test_a_model_without_any_end_token(saved, qwen, chat_tokenizer, pad):
    qwen.config.eos_token_id = qwen.generation_config.eos_token_id = None
    qwen.save_pretrained(saved)
    chat_tokenizer.eos_token, chat_tokenizer.pad_token = None, pad
    chat_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    chat_tokenizer.save_pretrained(saved)
    with pytest.raises(ModelLoadError, match="names no token that ends an answer.* stop_tokens = "):
        load_model_and_tokenizer(saved)
    model, tokenizer = load_model_and_tokenizer(saved, stop_tokens=["<|im_end|>"])
    assert end_token_ids(model, tokenizer) == [2]
    assert tokenizer.pad_token == (pad or "<|endoftext|>")


def test_a_template_whose_end_of_turn_is_no_token_is_reported(saved, tmp_path):
    template = tmp_path / "odd.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}[END]{% endfor %}")
    with pytest.warns(UserWarning, match="cannot learn to stop"):
        load_model_and_tokenizer(saved, chat_template=template)


# --- The pad token ---------------------------------------------------------------------------


def _without_pad(saved, tokenizer, **special):
    tokenizer.pad_token = None
    for name, value in special.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(saved)


def test_a_missing_pad_token_is_chosen_among_those_that_end_nothing(saved, chat_tokenizer):
    _without_pad(saved, chat_tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, tokenizer = load_model_and_tokenizer(saved)
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.pad_token_id not in end_token_ids(model, tokenizer)


def test_a_pad_token_is_kept(saved, chat_tokenizer):
    """Even one that would not be chosen."""
    chat_tokenizer.pad_token = "<|im_end|>"
    chat_tokenizer.save_pretrained(saved)
    assert load_model_and_tokenizer(saved)[1].pad_token == "<|im_end|>"


def test_no_token_to_spare_for_padding_is_reported(saved, chat_tokenizer):
    """<|endoftext|> ends documents, the other two are the template's."""
    _without_pad(saved, chat_tokenizer, eos_token="<|endoftext|>")
    with pytest.warns(UserWarning, match="no token to spare"):
        assert load_model_and_tokenizer(saved)[1].pad_token == "<|endoftext|>"


# --- End tokens ------------------------------------------------------------------------------


def test_end_tokens_of_tokenizer_config_generation_config_and_template(qwen, chat_tokenizer):
    chat_tokenizer.eos_token = "<|endoftext|>"  # 0
    qwen.config.eos_token_id = 5
    qwen.generation_config.eos_token_id = [7, 8]
    assert end_token_ids(qwen, chat_tokenizer) == [0, 2, 5, 7, 8]
    chat_tokenizer.chat_template = None
    assert end_token_ids(qwen, chat_tokenizer) == [0, 5, 7, 8]
    chat_tokenizer.eos_token = None
    qwen.config.eos_token_id = qwen.generation_config.eos_token_id = None
    assert end_token_ids(qwen, chat_tokenizer) == []


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
    ],
)
def test_a_template_without_an_end_of_turn_adds_none(qwen, tokenizer, template):
    tokenizer.chat_template = template
    assert end_token_ids(qwen, tokenizer) == [2]


# --- Names -----------------------------------------------------------------------------------


def test_resolve(tmp_path, monkeypatch):
    monkeypatch.setitem(shipped.MODELS, "atlas-base", tmp_path / "atlas-base")
    (tmp_path / "atlas-base").mkdir()
    assert resolve("atlas-base") == str(tmp_path / "atlas-base")
    assert resolve(tmp_path) == str(tmp_path)
    assert resolve("Qwen/Qwen3-0.6B-Base") == "Qwen/Qwen3-0.6B-Base"


def test_an_address_with_a_password_is_shown_without():
    assert "https://<hidden>@host/model" in load_error("https://me:secret@host/model")


def test_unknown_atlas_checkpoint():
    message = load_error("atlas-huge")
    assert "'atlas-huge'" in message
    assert "atlas-base" in message


def test_absent_atlas_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setitem(shipped.MODELS, "atlas-base", tmp_path / "atlas-base")
    message = load_error("atlas-base")
    assert "'atlas-base' is missing" in message
    assert "make models" in message


@pytest.mark.parametrize(
    "source",
    ["/nowhere/model", "./model", "a/b/c", "~/nowhere", "~nosuchuser/x", "", "a\0b", "n" * 5000,
     "owner/" + "n" * 300, "nowhere/model.gguf"],
)  # fmt: skip
def test_missing_folder(source):
    message = load_error(source)
    assert short(source) in message and len(message) < 500
    assert "no such folder or file" in message


# --- Bad folders -----------------------------------------------------------------------------


def edit_json(saved, name, **changes):
    write_json(saved, name, json.loads((saved / name).read_text()) | changes)


def edit_config(saved, **changes):
    edit_json(saved, "config.json", **changes)


def edit_weights(saved, edit):
    weights = load_file(saved / "model.safetensors")
    edit(weights)
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})


def lose(pattern):
    return lambda saved: [path.unlink() for path in saved.glob(pattern)]


def truncate(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


ADAPTER = {"base_model_name_or_path": "owner/base"}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 269060552\n"


def write_json(saved, name, content):
    (saved / name).write_text(json.dumps(content))


def write_index(saved, file):
    """Shards in place of the one file of weights."""
    lose("model.safetensors")(saved)
    content = {"metadata": {}, "weight_map": {"model.norm.weight": file}}
    write_json(saved, "model.safetensors.index.json", content)
    touch(saved / "model-00001-of-00001.safetensors")


def touch(path):
    path.parent.mkdir(exist_ok=True)
    path.touch()


def move_into(saved, name):
    files = list(saved.iterdir())
    (saved / name).mkdir()
    for path in files:
        path.rename(saved / name / path.name)


BROKEN = {
    "no config": (lose("config.json"), "no config.json"),
    "no tokenizer": (lose("tokenizer*"), "no tokenizer"),
    "no weights": (lose("model.safetensors"), "model.safetensors is missing"),
    "truncated weights": (truncate, "damaged"),
    "broken config": (lambda saved: (saved / "config.json").write_text("{"), "damaged"),
    "an end token that is none": (
        lambda saved: write_json(saved, "generation_config.json", {"eos_token_id": "x"}),
        "Cannot load the model in … TypeError",
    ),
    "a length that is none": (
        lambda saved: edit_json(saved, "tokenizer_config.json", model_max_length="x"),
        "Cannot load the model in … TypeError",
    ),
    "a missing weight": (
        lambda saved: edit_weights(saved, lambda weights: weights.pop("model.norm.weight")),
        "1 weights are missing … model.norm.weight",
    ),
    "an unexpected weight": (
        lambda saved: edit_weights(saved, lambda weights: weights.update(extra=torch.zeros(2))),
        "have no place in the model … extra",
    ),
    "a weight of another shape": (
        lambda saved: edit_config(saved, intermediate_size=48),
        "(64, 32) in the file, (48, 32) in the model",
    ),
    "a weight that is no number": (
        lambda saved: edit_weights(saved, lambda w: w["model.norm.weight"][3:5].fill_(math.nan)),
        "2 of 32 in model.norm.weight are NaN or infinite",
    ),
    "an infinite weight": (
        lambda saved: edit_weights(saved, lambda w: w["lm_head.weight"][0, :1].fill_(-math.inf)),
        "1 of 9600 in lm_head.weight are NaN or infinite",
    ),
    "a weight file that is one no more": (
        lambda saved: (saved / "model.safetensors").write_text("<!doctype html>" * 99),
        "model.safetensors in … is damaged or incomplete",
    ),
    "an adapter": (
        lambda saved: (
            lose("config.json")(saved),
            write_json(saved, "adapter_config.json", ADAPTER),
        ),
        "holds an adapter … of the model 'owner/base' … merge_and_unload",
    ),
    "an adapter beside a model": (
        lambda saved: write_json(saved, "adapter_config.json", ADAPTER),
        "holds an adapter",
    ),
    "an adapter that says nothing": (
        lambda saved: write_json(saved, "adapter_config.json", []),
        "adapter_config.json in … holds list in place of an object",
    ),
    "pointers in place of weights": (
        lambda saved: (saved / "model.safetensors").write_text(POINTER),
        "model.safetensors in … Git LFS … `git lfs pull`",
    ),
    "a pointer in place of a tokenizer": (
        lambda saved: (saved / "tokenizer.json").write_text(POINTER),
        "tokenizer.json in … `git lfs pull`",
    ),
    "an index to a pickle": (lambda saved: write_index(saved, "evil.bin"), "weights from evil.bin"),
    "an index to elsewhere": (
        lambda saved: write_index(saved, "../other/model.safetensors"),
        "weights from ../other/model.safetensors",
    ),
    "an index to an absolute path": (
        lambda saved: write_index(saved, "/tmp/a.safetensors"),
        "weights from /tmp/a.safetensors",
    ),
    "an index without a list": (
        lambda saved: write_json(saved, "model.safetensors.index.json", {}),
        "weights from None",
    ),
    "an index that is no JSON": (
        lambda saved: (saved / "model.safetensors.index.json").write_text("{"),
        "model.safetensors.index.json in … cannot be read",
    ),
    "shards of several processes": (
        lambda saved: (saved / "model.safetensors").rename(
            saved / "shard-00001-model-00001-of-00001.safetensors"
        ),
        "shards of several processes",
    ),
    "checkpoints of a training": (
        lambda saved: move_into(saved, "checkpoint-12"),
        "holds no model, but checkpoints of a training. Give … one of them: checkpoint-12.",
    ),
    "folders with models": (
        lambda saved: move_into(saved, "final"),
        "holds no model, but folders with models. Give … one of them: final.",
    ),
    "shards of FSDP": (
        lambda saved: (
            lose("*.safetensors")(saved),
            touch(saved / "pytorch_model_fsdp_0/a.distcp"),
        ),
        "`accelerate merge-weights SHARDS OUT` … : pytorch_model_fsdp_0.",
    ),
    "shards of DeepSpeed": (
        lambda saved: (lose("*.safetensors")(saved), touch(saved / "zero_to_fp32.py")),
        "zero_to_fp32.py . OUT --safe_serialization",
    ),
    "a data set": (
        lambda saved: (lose("*")(saved), touch(saved / "dataset_info.json")),
        "a data set, which is the source of [data]",
    ),
    "a tokenizer alone": (
        lambda saved: (lose("config.json")(saved), lose("model.safetensors")(saved)),
        "holds a tokenizer alone … no config.json",
    ),
    "a tokenizer of another model": (
        lambda saved: make_model("qwen3", vocab_size=200).save_pretrained(saved),
        "ids up to 299 … 200 embeddings",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder(saved, case):
    damage, parts = BROKEN[case]
    damage(saved)
    message = load_error(saved)
    assert str(saved) in message
    assert [part for part in parts.split(" … ") if part not in message] == []


def test_a_pointer_in_place_of_a_tokenizer_that_is_read_alone(saved):
    (saved / "tokenizer.json").write_text(POINTER)
    with pytest.raises(ModelLoadError, match="git lfs pull"):
        load_tokenizer(saved)


def test_a_file_instead_of_a_folder(saved):
    assert "it is a file" in load_error(saved / "model.safetensors")


def test_only_pickled_weights_are_not_opened(saved, monkeypatch):
    (saved / "model.safetensors").unlink()
    torch.save({}, saved / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was opened"))
    message = load_error(saved)
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_a_missing_shard(saved, qwen):
    (saved / "model.safetensors").unlink()
    qwen.save_pretrained(saved, max_shard_size="20KB")
    shards = sorted(saved.glob("*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    assert shards[-1].name in load_error(saved)


def test_code_in_the_folder_is_never_run(saved):
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit_config(saved, model_type="mine", auto_map=auto_map)
    (saved / "evil.py").write_text("raise SystemExit('the code ran')")
    assert "Cannot load the model" in load_error(saved)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_model_that_reads_ahead_is_refused(tmp_path, chat_tokenizer, is_decoder, dtype):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    sizes |= {"vocab_size": 300, "num_hidden_layers": 1}
    how = {"return_dict": False, "initializer_range": 0.5}
    config = BertConfig(is_decoder=is_decoder, **how, **sizes)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    chat_tokenizer.save_pretrained(tmp_path)
    if is_decoder:
        load_model_and_tokenizer(tmp_path, dtype=dtype)
        return
    with pytest.raises(ModelLoadError, match="'bert' and looks at the tokens after a place"):
        load_model_and_tokenizer(tmp_path, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float33", "int8", "nn"])
def test_unknown_dtype(saved, dtype):
    assert repr(dtype) in load_error(saved, dtype=dtype)


@pytest.mark.parametrize("option", ["chat_template", "fallback_chat_template"])
def test_unknown_chat_template(saved, option):
    message = load_error(saved, **{option: "none.jinja"})
    assert "'none.jinja'" in message
    assert "chatml.jinja" in message


# --- The Hub, unreachable --------------------------------------------------------------------


def test_unreachable_hub_says_what_is_missing_and_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = load_error("owner/model-that-is-not-cached")
    for part in ("'owner/model-that-is-not-cached'", str(tmp_path), "cannot be reached"):
        assert part in message
    for way_out in ("connect", "HF_HOME", "SFT_PROFILE=atlas", "local folder"):
        assert way_out in message


def test_a_hub_that_answers_but_has_no_such_model(monkeypatch):
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    message = load_error("owner/no-such-model")
    assert "Check its name" in message
    assert "cannot be reached" not in message


def test_a_filled_cache_is_enough(monkeypatch, tmp_path, saved):
    """What `hf download` leaves behind: a snapshot under the name of the repository."""
    repository = tmp_path / "models--owner--tiny"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(saved, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, tokenizer = load_model_and_tokenizer("owner/tiny")
    assert tokenizer.name_or_path == "owner/tiny"
    expected = load_file(saved / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model.model.norm.weight, expected)
    assert os.environ["DISABLE_SAFETENSORS_CONVERSION"] == "1"
