"""What is taken away repeats the run with TRL alone; its model needs plain transformers only."""

import ast
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import chat_rows, make_model, make_tokenizer, quick_config
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback
from trl import SFTTrainer
from trl.scripts import sft

from sft_utils.data.loss_mask import with_markers
from sft_utils.data.rows import load_sft_dataset
from sft_utils.export import bundle
from sft_utils.export.bundle import take_away
from sft_utils.export.trl_script import run_yaml, train_script
from sft_utils.generation import generate_responses
from sft_utils.models import load_model_and_tokenizer
from sft_utils.results import Measure
from sft_utils.training import runs
from sft_utils.training.arguments import own_metric, run_arguments

SCORE = Measure(0.75, "%", n=120, entities=30, low=0.625, high=0.875, seeds=(0,), run="abc")
LOSS = Measure(0.5, "nats", n=16)
CARD = {
    "name": "owner/tiny-sft",
    "data": "owner/rows",
    "results": {"exact answers | dev": SCORE, "validation loss": LOSS},
    "before": {"exact answers | dev": Measure(0.25, "%", low=0.125, high=0.375)},
    "limits": ["It knows nothing else."],
}


class DevScores(TrainerCallback):
    """Adds a score that only this callback knows, best at the first evaluation after an update."""

    def __init__(self):
        self.records = []

    def on_evaluate(self, args, state, control, metrics, **given):
        metrics["eval_dev_exact"] = 1 / state.global_step if state.global_step else 0.0
        self.records.append(state.global_step)


def pairs(count, first=0):
    return chat_rows((f"Number {i}?", f"It is {i}.") for i in range(first, first + count))


# --- The run again, on the Atlas's small model -------------------------------------------------


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """A short run with the settings of chapter 07, and the folder that is taken away from it."""
    place = tmp_path_factory.mktemp("atlas")
    model, tokenizer = load_model_and_tokenizer("atlas-small", device="cpu")
    rows = load_sft_dataset("atlas-sft-data")
    train_rows, validation_rows = rows.select(range(60)), rows.select(range(60, 76))
    config = quick_config(
        place / "checkpoints", seed=0, max_steps=6, train_sampling_strategy="group_by_length",
        per_device_train_batch_size=8, per_device_eval_batch_size=8, gradient_accumulation_steps=2,
        learning_rate=3e-3, lr_scheduler_type="cosine", warmup_steps=1, max_length=256,
        eval_strategy="steps", eval_steps=2, eval_on_start=True, save_strategy="steps",
        save_steps=2, save_total_limit=1, save_only_model=True, load_best_model_at_end=True,
        greater_is_better=True, metric_for_best_model="dev_exact", logging_steps=1,
        hub_token="hf_secret", run_name="mine",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=train_rows, eval_dataset=validation_rows,
        processing_class=tokenizer, callbacks=[DevScores()],
    )  # fmt: skip
    runs.train(trainer, place / "runs")
    assert trainer.state.best_global_step == 2
    folder = take_away(
        trainer, place / "taken", **CARD | {"data": "atlas-sft-data"}, start="atlas-small",
        train_rows=train_rows, validation_rows=validation_rows,
    )  # fmt: skip
    return trainer, folder


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """Returns a function that runs a script in a folder, with an empty cache."""

    def run(folder, script, *arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(script, run_name="__main__")

    return run


def losses(log_history):
    """Each loss and each loss on validation rows, with its update."""
    return [
        (entry["step"], name, entry[name])
        for entry in log_history
        for name in ("loss", "eval_loss", "learning_rate", "grad_norm")
        if name in entry
    ]


def assert_same_losses(state_file, trainer):
    found = losses(json.loads(state_file.read_text("utf8"))["log_history"])
    expected = losses(trainer.state.log_history)
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    for (step, name, one), (_, _, other) in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5), f"{name} after update {step}"


def test_the_losses_tell_one_order_of_rows_from_another(taken):
    """Else the two tests after this one could not fail."""
    trainer, _ = taken
    trained = [value for _, name, value in losses(trainer.state.log_history) if name == "loss"]
    judged = [value for _, name, value in losses(trainer.state.log_history) if name == "eval_loss"]
    assert (len(trained), len(judged)) == (6, 4)
    assert min(abs(one - other) for one, other in zip(trained, trained[1:], strict=False)) > 1e-3
    assert judged[0] - judged[-1] > 0.1


def test_trl_sft_repeats_the_run(taken, run_script):
    """The script that the command launches."""
    trainer, folder = taken
    run_script(folder, sft.__file__, "--config", "run.yaml")
    state_file = folder / "out-trl" / "checkpoint-6" / "trainer_state.json"
    assert_same_losses(state_file, trainer)
    state = json.loads(state_file.read_text("utf8"))
    judged = {e["step"]: e["eval_loss"] for e in state["log_history"] if "eval_loss" in e}
    assert state["best_global_step"] == min(judged, key=judged.get) == 6  # not 2: no dev score
    assert AutoTokenizer.from_pretrained(folder / "out-trl").chat_template


def test_the_script_repeats_the_run(taken, run_script):
    trainer, folder = taken
    run_script(folder, "train.py")
    assert_same_losses(folder / "out-script" / "trainer_state.json", trainer)


def check_script(text):
    """It is short, and imports no more than its reader has."""
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.M))
    assert imported - set(sys.stdlib_module_names) <= {"transformers", "trl", "datasets"}
    assert "sft_utils" not in text
    lines = text.splitlines()
    assert len(lines) <= 60
    assert max(len(line) for line in lines) <= 100


def test_no_path_of_this_machine_and_no_secret_is_in_the_texts(taken):
    trainer, folder = taken
    assert trainer.args.hub_token == "hf_secret"
    for file in ("run.yaml", "train.py", "model/README.md", "model/config.json"):
        text = (folder / file).read_text("utf8")
        for part in (str(folder.parent), str(Path(bundle.__file__).parent), "hf_secret", "mine"):
            assert part not in text, file


def test_plain_transformers_gives_the_same_answers(taken):
    trainer, folder = taken
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert model.dtype == torch.float32
    questions = ["What is the capital of Kenya?", "How do chemists write silicon?", "Hello"]
    expected = generate_responses(
        trainer.model, trainer.processing_class, questions, max_new_tokens=20, return_details=True
    )
    for question, answer in zip(questions, expected, strict=True):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        found = model.generate(**prompt, max_new_tokens=20, do_sample=False)
        assert found[0, prompt["input_ids"].shape[1] :].tolist() == answer.token_ids
    assert len({answer.response for answer in expected}) == 3


# --- A tiny model, for everything that needs no run of its own ----------------------------------


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A base model without a chat template, whose end token is not that of a turn."""
    folder = tmp_path_factory.mktemp("start") / "tiny"
    model = make_model("llama", max_position_embeddings=256, eos_token_id=0)
    model.generation_config = GenerationConfig(eos_token_id=0)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    (folder / "optimizer.pt").write_text("old")
    return folder


@pytest.fixture(scope="module")
def build(tmp_path_factory, start):
    """Returns a function that builds a small trainer, but for the changes asked for."""

    def trainer(*, trained=False, validation_rows=None, given=None, **changes):
        model, tokenizer = load_model_and_tokenizer(
            start, device="cpu", chat_template="chatml.jinja"
        )
        built = SFTTrainer(
            model,
            quick_config(tmp_path_factory.mktemp("out"), **{"max_steps": 1} | changes),
            train_dataset=pairs(12),
            eval_dataset=validation_rows,
            processing_class=tokenizer,
            **given or {},
        )
        if trained:
            built.train()
        return built

    return trainer


@pytest.fixture(scope="module")
def plain(build):
    """A trainer after its one update. Whoever changes it changes it back."""
    return build(trained=True)


def take(trainer, folder, start, **changes):
    given = {"train_rows": pairs(12), "validation_rows": None, "start": start} | CARD
    return take_away(trainer, folder, **given | changes)


@pytest.fixture(scope="module")
def local(plain, start, tmp_path_factory):
    """What is taken away from it, with a system message and a template's own argument."""
    asked = {"system": 'Say "less".', "template_kwargs": {"thinking": False}}
    return take(plain, tmp_path_factory.mktemp("local") / "taken", start, **asked)


def test_the_arguments_are_those_that_differ(build, start):
    """Of those that a short run has; they still make a short script."""
    given = {
        "learning_rate": 1e-5, "max_length": None, "lr_scheduler_type": "constant_with_warmup",
        "lr_scheduler_kwargs": {}, "optim": "sgd", "per_device_train_batch_size": 4,
        "adam_beta1": 0.5, "adam_beta2": 0.5, "adam_epsilon": 0.5, "weight_decay": 0.1,
    }  # fmt: skip
    trainer = build(**given, hub_token="hf_secret", seed=42)
    assert run_arguments(trainer) == given | {
        "use_cpu": True, "bf16": False, "activation_checkpointing": False,
        "assistant_only_loss": True, "max_steps": 1, "save_strategy": "no",
        "eos_token": "<|im_end|>",
    }  # fmt: skip
    text = train_script(trainer, start)
    check_script(text)
    assert " adam_beta1=0.5," in text


def test_what_is_written_is_read_by_trl_as_it_was(build, start, tmp_path):
    """The parser of `trl sft` gives the run's own arguments back, for YAML's odd cases too."""
    trainer = build(learning_rate=1e-5, max_length=None, optim_args="a=1e-5,b=no", run_name="no")
    file = tmp_path / "run.yaml"
    file.write_text(run_yaml(trainer, start))
    _, config, _, _, rest, _ = sft.make_parser().parse_args_and_config(
        ["--config", str(file)], return_remaining_strings=True, separate_remaining_strings=True
    )
    assert rest == ["--num_processes", "1"]  # for accelerate
    for name, value in run_arguments(trainer).items():
        assert getattr(config, name) == value, name
    assert (config.learning_rate, config.max_length) == (1e-5, None)
    assert config.optim_args == "a=1e-5,b=no"


def test_a_metric_of_ones_own_is_replaced_and_said(taken, local):
    trainer, folder = taken
    chosen = run_arguments(trainer)
    assert (chosen["metric_for_best_model"], chosen["greater_is_better"]) == ("loss", False)
    for file in ("run.yaml", "train.py"):
        text = (folder / file).read_text("utf8")
        assert text.count("The checkpoint was chosen by dev_exact") == 1
        assert "chosen" not in (local / file).read_text("utf8")


def test_the_end_of_a_turn_ends_generation(plain, local):
    config = GenerationConfig.from_pretrained(local / "model")
    assert (config.eos_token_id, config.pad_token_id) == ([0, 2], 0)
    assert plain.model.generation_config.eos_token_id == 0  # the trainer's stays as it was
    written = yaml.safe_load((local / "run.yaml").read_text("utf8"))
    assert written["eos_token"] == "<|im_end|>"


def test_a_template_that_writes_the_end_token_keeps_it(plain, monkeypatch):
    """Another end token would change the rows: the template asks the tokenizer for it."""
    tokenizer = plain.processing_class
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template + "{{- eos_token -}}")
    assert "eos_token" not in run_arguments(plain)


def test_a_template_that_was_given_markers_repeats_the_run(start, tmp_path, run_script):
    """And the model has its own template, not the one that was made for the training."""
    model, tokenizer = load_model_and_tokenizer(start, device="cpu", chat_template="chatml.jinja")
    template = re.sub(r"\{%- (end)?generation -%\}", "", tokenizer.chat_template)
    tokenizer.chat_template = "{{ style }}" + template
    rows = pairs(12).add_column("chat_template_kwargs", [{"style": "It is "}] * 12)
    config = quick_config(tmp_path / "out", max_steps=2, logging_steps=1)
    given = with_markers(tokenizer, rows)
    trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=given)
    trainer.train()
    folder = take(trainer, tmp_path / "taken", start, train_rows=rows)
    assert "was given markers" in (folder / "run.yaml").read_text("utf8")
    own = AutoTokenizer.from_pretrained(folder / "model").chat_template
    assert own == tokenizer.chat_template.rstrip("\n") != given.chat_template
    run_script(folder, "train.py")
    assert_same_losses(folder / "out-script" / "trainer_state.json", trainer)


def test_a_folder_is_copied_and_nothing_asks_for_what_was_not_there(local):
    names = {path.name for path in (local / "start").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "optimizer.pt" not in names
    assert "base_model" not in ModelCard.load(local / "model" / "README.md").data.to_dict()
    assert [path.name for path in (local / "data").iterdir()] == ["train.jsonl"]
    for file in ("run.yaml", "train.py"):
        assert "validation" not in (local / file).read_text("utf8")


def test_a_name_on_the_hub_is_kept(plain, tmp_path):
    folder = take(plain, tmp_path / "hub", "owner/base", revision="abc123")
    assert not (folder / "start").exists()
    written = yaml.safe_load((folder / "run.yaml").read_text("utf8"))
    assert (written["model_name_or_path"], written["model_revision"]) == ("owner/base", "abc123")
    script = (folder / "train.py").read_text("utf8")
    check_script(script)
    assert script.count('from_pretrained("owner/base", revision="abc123"') == 2
    assert ModelCard.load(folder / "model" / "README.md").data.base_model == "owner/base"


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["q_proj"], [r"(.*\.)?q_proj"]),  # a list of one is a pattern to TRL
        (r".*\.[qv]_proj", r".*\.[qv]_proj"),
    ],
)
def test_the_adapter_is_named_and_merged(
    build, start, tmp_path, run_script, monkeypatch, targets, named
):
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    changes = {"learning_rate": 0.1, "max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    trainer = build(trained=True, given={"peft_config": adapter}, **changes)
    folder = take(trainer, tmp_path / "taken", start)
    written = yaml.safe_load((folder / "run.yaml").read_text("utf8"))
    assert (written["use_peft"], written["lora_r"], written["lora_alpha"]) == (True, 4, 8)
    assert written["lora_target_modules"] == named
    assert "peft " in (folder / "train.py").read_text("utf8").partition("import")[0]
    check_script((folder / "train.py").read_text("utf8"))
    run_script(folder, "train.py")
    assert_same_losses(folder / "out-script" / "trainer_state.json", trainer)
    run_script(folder, sft.__file__, "--config", "run.yaml")
    assert_same_losses(folder / "out-trl" / "checkpoint-3" / "trainer_state.json", trainer)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    ids = torch.tensor([[5, 6, 7]])
    trainer.model.eval()
    with torch.no_grad():
        expected, plain = trainer.model(ids).logits, model(ids).logits
        base = AutoModelForCausalLM.from_pretrained(start)(ids).logits
    torch.testing.assert_close(plain, expected, atol=1e-4, rtol=0)
    assert (plain - base).abs().max() > 1e-2
    assert not hasattr(model, "peft_config")
    shutil.copytree(start, folder / "start", dirs_exist_ok=True)
    monkeypatch.chdir(folder)  # where the adapter's own base is found
    adapted = AutoPeftModelForCausalLM.from_pretrained("adapter")
    torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-4, rtol=0)
    assert str(tmp_path) not in (folder / "adapter" / "adapter_config.json").read_text("utf8")


# --- The card ----------------------------------------------------------------------------------


def test_the_card_says_what_was_measured(local):
    text = (local / "model" / "README.md").read_text("utf8")
    for part in (
        "| exact answers \\| dev | 75.0 % | 62.5 to 87.5 % | 120 "
        "| 25.0 % (95 % interval: 12.5 to 37.5 %) |",
        "| validation loss | 0.50 nats | – | 16 | – |",
        "Fingerprint of the run or of the weights: `abc`.",
        "`owner/rows`: 12 conversations to train on, 0 for validation.",
        "`tiny` after supervised fine-tuning:",
        "The weights are those after the last of 1 updates.",
        "\n- It knows nothing else.\n",
        "with seed 42",
        "\nmax_steps: 1\n",
        r"""    {"role": "system", "content": "Say \"less\"."},""",
        " thinking=False,",
        "\nollama create my-model -f Modelfile\nhf upload owner/tiny-sft ./model ",
    ):
        assert part in text, part
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    ast.parse(code[1])


def test_the_head_of_the_card_is_what_the_hub_reads(local):
    data = ModelCard.load(local / "model" / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert (data.model_name, data.datasets) == ("owner/tiny-sft", ["owner/rows"])
    found = {result.metric_name: result for result in data.eval_results}
    exact = found["exact answers | dev"]
    assert exact.metric_value == "75.0 % (95 % interval: 62.5 to 87.5 %)"
    assert found["validation loss"].metric_value == "0.50 nats"
    assert len(found) == 2  # what was before training is no score of this model


def test_the_card_names_what_the_checkpoint_was_chosen_by(taken):
    _, folder = taken
    text = ModelCard.load(folder / "model" / "README.md").content
    assert "those after update 2 of 6, chosen by `dev_exact`" in text
    assert "\nmetric_for_best_model: dev_exact\ngreater_is_better: true\n" in text


def test_a_run_that_chose_nothing_says_so(plain, start, tmp_path, monkeypatch):
    """It was to choose, and ended before the first evaluation."""
    monkeypatch.setattr(plain.args, "load_best_model_at_end", True)
    folder = take(plain, tmp_path / "taken", start)
    assert "those after the last of 1 updates" in (folder / "model" / "README.md").read_text("utf8")


def test_data_of_ones_own_is_named_without_its_place(plain, start, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}")
    folder = take(plain, tmp_path / "taken", start, data=str(file))
    card = ModelCard.load(folder / "model" / "README.md")
    assert "datasets" not in card.data.to_dict()
    assert "`rows.jsonl`: 12" in card.content and str(tmp_path) not in card.content


# --- Whole or not at all -----------------------------------------------------------------------


def refusal(trainer, place, start, kind=ValueError, **changes):
    """The message of a refusal, which leaves nothing behind."""
    with pytest.raises(kind) as raised:
        take(trainer, place / "new" / "taken", start, **changes)
    assert not (place / "new").exists()
    return str(raised.value)


def test_a_folder_that_is_there_stays_as_it_is(plain, start, tmp_path):
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(FileExistsError, match="is there already. Give another folder"):
        take(plain, folder, start)
    assert list(folder.iterdir()) == []


def test_a_failure_on_the_way_leaves_nothing(plain, start, tmp_path, monkeypatch):
    def fail(trainer, folder):
        folder.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(bundle, "save_model", fail)
    (tmp_path / "new").mkdir()
    with pytest.raises(OSError, match="disk full"):
        take(plain, tmp_path / "new" / "taken", start)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"results": {"exact": 0.9}}, TypeError, "results['exact'] is 0.9. Give a Measure"),
        ({"before": {"loss": LOSS}}, ValueError, "before['loss'] has no partner in results"),
        ({"results": {}, "before": {}}, ValueError, "scores and limits"),
        ({"limits": "None."}, ValueError, "scores and limits"),
        ({"name": "my model"}, ValueError, "name 'my model'"),
        ({"train_rows": pairs(12).select(range(11, -1, -1))}, ValueError, "train_rows are not"),
        ({"validation_rows": pairs(2)}, ValueError, "validation_rows are not"),
    ],
)
def test_what_a_card_needs_and_other_rows(plain, start, tmp_path, changes, kind, message):
    assert message in refusal(plain, tmp_path, start, kind, **changes)


def test_an_untrained_model_is_not_taken_away(build, start, tmp_path):
    assert "made no update" in refusal(build(), tmp_path, start)


def test_a_row_that_no_loss_falls_on_may_have_been_dropped(build, start, tmp_path):
    """TRL drops rows whose answer lies beyond max_length."""
    labels = build().train_dataset[0]["labels"]
    first = next(i for i, label in enumerate(labels) if label != -100)
    trainer = build(trained=True, max_length=1 + first)
    assert 0 < len(trainer.train_dataset) < 12
    take(trainer, tmp_path / "taken", start)
    lines = (tmp_path / "taken" / "data" / "train.jsonl").read_text("utf8").splitlines()
    assert len(lines) == 12


def my_loss(outputs, labels, num_items_in_batch=None):
    return outputs["loss"]


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("compute_loss_func", my_loss, r"compute_loss_func is your own, .*my_loss"),
        ("data_collator", my_loss, "data_collator is your own"),
        ("__class__", type("MyTrainer", (SFTTrainer,), {}), "the trainer is your own"),
        ("eval_dataset", {"one": pairs(1)}, r"several evaluation sets \(one\)"),
        ("processing_class.chat_template", None, "no chat template"),
        ("args.lr_scheduler_kwargs", {"f": my_loss}, "lr_scheduler_kwargs="),
    ],
)
def test_code_of_ones_own_is_refused(plain, start, tmp_path, monkeypatch, part, value, message):
    """`trl sft` cannot be given any."""
    *owners, name = part.split(".")
    owner = getattr(plain, owners[0]) if owners else plain
    monkeypatch.setattr(owner, name, value)
    assert re.search(message, refusal(plain, tmp_path, start))


@pytest.mark.parametrize(
    ("metric", "own"),
    [(None, False), ("loss", False), ("eval_loss", False), ("eval_mean_token_accuracy", False),
     ("mean_token_accuracy", False), ("dev_exact", True), ("eval_dev_exact", True)],
)  # fmt: skip
def test_what_trl_computes_by_itself_chooses_in_the_exported_run_too(metric, own):
    assert own_metric(SimpleNamespace(metric_for_best_model=metric)) is own
