"""A run is a value: computed once, recalled whole, and never taken for another."""

import errno
import json
import os
import random
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, chat_rows, make_model, make_tokenizer, quick_config, run_alone
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sft_utils.environment import seed_everything
from sft_utils.training import runs
from sft_utils.training.fingerprints import fingerprint
from sft_utils.training.runs import train

ROWS = [
    ("What is the capital of Kenya?", "It is Nairobi."),
    ("What is the capital of Peru?", "It is Lima."),
    ("Which animal is the largest?", "It is the blue whale."),
    ("Hi", "Hello."),
]


class Recorder(TrainerCallback):
    """Keeps the loss of every step, as a tuple that JSON does not know."""

    def __init__(self, every=1):
        self.every = every
        self.records = []

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.records.append({"step": state.global_step, "pair": (1, logs["loss"])})


@pytest.fixture
def build(tmp_path):
    """Returns a function that builds the same small trainer, but for the changes asked for."""

    def trainer(*, trainer_class=SFTTrainer, callbacks=(), **changes):
        settings = {
            "per_device_train_batch_size": 2,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "logging_steps": 1,
        }
        return trainer_class(
            make_model("qwen3", attention_dropout=0.2, tie_word_embeddings=True),
            quick_config(tmp_path / "out", **settings | changes),
            train_dataset=chat_rows(ROWS),
            processing_class=make_tokenizer(chat=True),
            callbacks=list(callbacks),
        )

    return trainer


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def weights(trainer):
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def recorder(trainer):
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, Recorder))


def entries(store):
    """What is in the store, without the locks."""
    return [path.name for path in store.iterdir() if path.name != ".locks"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- Computed once ---------------------------------------------------------------------------


def test_the_second_time_everything_is_as_after_the_first(build, store, monkeypatch):
    first, second = build(callbacks=[Recorder()]), build(callbacks=[Recorder()])
    start = weights(first)
    computed = train(first, store)
    assert not computed.reused
    assert not same(weights(first), start)

    model = second.model
    monkeypatch.setattr(second, "train", lambda: pytest.fail("trained again"))
    recalled = train(second, store)
    assert recalled.reused
    assert second.model is model
    assert same(weights(second), weights(first))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert recalled.fingerprint == computed.fingerprint
    assert recalled.path == computed.path == store / computed.fingerprint
    assert recalled.seconds == computed.seconds > 0
    assert [log["step"] for log in recalled.log_history] == [1, 2, 3, 3]
    assert recalled.log_history == computed.log_history
    assert second.state.log_history == first.state.log_history
    assert second.state.global_step == 3
    callback = recorder(second)
    assert callback.records == recorder(first).records
    assert recalled.records == computed.records == {"Recorder": callback.records}
    assert [record["step"] for record in callback.records] == [1, 2, 3]
    for trainer in (first, second):
        assert not trainer.model.training
        assert all(weight.grad is None for weight in trainer.model.parameters())


def test_it_is_what_trl_alone_computes(build, store):
    plain, kept = build(), build()
    seed_everything(plain.args.seed)
    plain.train()
    torch.rand(7)  # whatever a page did in between
    train(kept, store)
    assert same(weights(kept), weights(plain))


def test_a_model_tells_its_run_or_its_weights(build, store, monkeypatch):
    monkeypatch.setattr(runs, "_TRAINED", {})
    before = make_model("qwen3", tie_word_embeddings=True)
    assert runs.origin(before)["run"].startswith("weights ") and runs.origin(before)["seeds"] == ()
    for _ in range(2):  # computed, then recalled
        trainer = build(seed=5)
        run = train(trainer, store)
        assert runs.origin(trainer.model) == {"run": run.fingerprint, "seeds": (5,)}
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)  # another model since
    assert runs.origin(trainer.model)["run"].startswith("weights ")


def test_the_random_state_is_the_same_whether_computed_or_recalled(build, store):
    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    for reused in (False, True):
        trainer = build()
        before = state()
        assert train(trainer, store).reused is reused
        assert state() == before


def test_a_recalled_model_can_be_trained_on(build, store):
    train(build(), store)
    again = build()
    assert train(again, store).reused
    further = fingerprint(again)
    assert not train(again, store).reused
    assert (store / further).is_dir()


# --- The fingerprint -------------------------------------------------------------------------


def loss(outputs, labels, num_items_in_batch=None):
    return outputs["loss"]


def make_loss(factor):
    def loss(outputs, labels, num_items_in_batch=None):
        return factor * outputs["loss"]

    return loss


class MyTrainer(SFTTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = 1.0


class OtherCollator:
    def __init__(self, collator):
        self.__dict__.update(vars(collator))


def with_token(token):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([token])
    return tokenizer


def test_everything_that_matters_changes_the_fingerprint(build, monkeypatch):
    """Every change alone, and no two of them alike."""
    trainer = build()
    found = {"none": fingerprint(trainer)}

    def try_out(name, change):
        with monkeypatch.context() as patch:
            change(patch)
            found[name] = fingerprint(trainer)

    for name, value in {
        "learning_rate": 2e-2,
        "seed": 1,
        "assistant_only_loss": False,
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "save_strategy": "steps",
    }.items():
        try_out(name, lambda patch, n=name, v=value: patch.setattr(trainer.args, n, v))

    prepared = trainer.train_dataset
    tokenizer = trainer.processing_class
    optimizers = {rate: torch.optim.SGD(trainer.model.parameters(), lr=rate) for rate in (0.1, 0.2)}
    for name, attribute, value in (
        ("another order", "train_dataset", prepared.select([1, 0, 2, 3])),
        ("other labels", "train_dataset", prepared.map(lambda row: {"labels": row["input_ids"]})),
        ("evaluation", "eval_dataset", prepared),
        ("evaluations", "eval_dataset", {"mine": prepared}),
        ("weights", "model", make_model("qwen3", seed=1, tie_word_embeddings=True)),
        ("no dropout", "model", make_model("qwen3", tie_word_embeddings=True)),
        ("float64", "model", make_model("llama").to(torch.float64)),
        ("tokenizer", "processing_class", with_token("Nairobi")),
        ("collator", "data_collator", OtherCollator(trainer.data_collator)),
        ("loss", "compute_loss_func", loss),
        ("loss times 1", "compute_loss_func", make_loss(1)),
        ("loss times 2", "compute_loss_func", make_loss(2)),
        ("metrics", "compute_metrics", loss),
        ("optimizer 0.1", "optimizer", optimizers[0.1]),
        ("optimizer 0.2", "optimizer", optimizers[0.2]),
    ):
        try_out(name, lambda patch, a=attribute, v=value: patch.setattr(trainer, a, v))

    try_out("template", lambda patch: patch.setattr(tokenizer, "chat_template", "x"))
    norm = trainer.model.model.norm.weight
    try_out("frozen", lambda patch: patch.setattr(norm, "requires_grad", False))
    padding = trainer.data_collator
    try_out("padding", lambda patch: patch.setattr(padding, "pad_to_multiple_of", 8))
    callbacks = trainer.callback_handler.callbacks
    for every in (1, 2):
        try_out(
            f"callback {every}",
            lambda patch, e=every: patch.setattr(
                trainer.callback_handler, "callbacks", [*callbacks, Recorder(e)]
            ),
        )
    try_out("threads", lambda patch: patch.setattr(torch, "get_num_threads", lambda: 99))
    try_out("versions", lambda patch: patch.setattr("importlib.metadata.version", lambda n: "0"))

    alike = [{one, other} for one in found for other in found if one < other]
    alike = [pair for pair in alike if len({found[name] for name in pair}) == 1]
    assert alike == []
    assert fingerprint(trainer) == found["none"]


def test_the_trainers_class_and_its_own_settings_count(build):
    trainer = build(trainer_class=MyTrainer)
    found = [fingerprint(build()), fingerprint(trainer)]
    trainer.factor = 2.0
    found.append(fingerprint(trainer))
    assert len(set(found)) == 3


def test_places_outputs_and_what_was_done_in_between_do_not_count(build, monkeypatch):
    trainer = build(callbacks=[Recorder()])
    before = fingerprint(trainer)
    for name, value in {
        "output_dir": "elsewhere",
        "run_name": "other",
        "disable_tqdm": False,
        "log_level": "error",
        "hub_model_id": "me/mine",
        "hub_token": "secret",
        "dataset_num_proc": 1,
    }.items():
        monkeypatch.setattr(trainer.args, name, value)
        assert fingerprint(trainer) == before, name
    trainer.remove_callback(PrinterCallback)
    trainer.model.config.name_or_path = "another/folder"  # the weights count, not where they lay
    trainer.processing_class(["a", "a b"], padding=True, truncation=True, max_length=2)
    trainer.train_dataset = trainer.train_dataset.with_format("torch")
    recorder(trainer).records.append("old")
    torch.rand(3)
    assert fingerprint(trainer) == fingerprint(build(callbacks=[Recorder()])) == before


DESCRIBE = """
import functools, json, pathlib
from sft_utils.training.fingerprints import describe

class Thing:
    factor = FACTOR

    def __init__(self):
        self.names = {"a", "b", "c", "d"}
        self.path, self.nothing = pathlib.Path("a"), object()
        self.partial = functools.partial(print, {"x", "y", "z"}, end=Thing)

    @staticmethod
    def within(x):
        return x in {"p", "q", "r"} and (lambda y: y + CONSTANT)(x)

print(json.dumps(describe([Thing(), lambda x: x + CONSTANT])))
"""


def test_descriptions_are_the_same_in_every_process():
    """No memory address and no order of a hashed set is in them; every constant is."""
    settings = [(1, 1), (2, 1), (1, 2)]
    code = "\n".join(
        DESCRIBE.replace("FACTOR", str(factor)).replace("CONSTANT", str(constant))
        for factor, constant in settings
    )
    one, other = (
        run_alone(sys.executable, "-c", code, cwd=ROOT, PYTHONHASHSEED=str(seed)) for seed in (1, 2)
    )
    assert one == other
    assert "0x" not in one
    assert len(set(one.splitlines())) == len(settings)


def test_a_streamed_data_set_is_refused(build):
    trainer = build()
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    with pytest.raises(TypeError, match="streamed"):
        fingerprint(trainer)


# --- The store -------------------------------------------------------------------------------


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[:-1])
    elif how == "changed":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    else:
        path.write_text(how)


def test_a_damaged_entry_is_thrown_away_and_computed_again(build, store):
    first = build()
    entry = train(first, store).path
    expected = weights(first)
    damage(entry / "weights.safetensors", "changed")
    second = build()
    with pytest.warns(UserWarning, match=r"is damaged \(weights.safetensors changed"):
        assert not train(second, store).reused
    assert same(weights(second), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(build(), store).reused
    assert entries(store) == [entry.name]


def test_every_damage_is_found(build, store):
    trainer = build()
    entry = train(trainer, store).path
    start = weights(trainer)
    whole = shutil.copytree(entry, store.parent / "whole")
    cases = [
        (file, how)
        for file in (*runs._FILES, "manifest.json")
        for how in ("missing", "truncated", "changed")
    ]
    for file, how in [*cases, *(("manifest.json", text) for text in ("{}", "[]", "{oops"))]:
        damage(entry / file, how)
        with pytest.warns(UserWarning, match="is damaged"):
            assert runs._recall(trainer, entry, "key") is None, (file, how)
        assert entries(store) == []
        assert same(weights(trainer), start)
        shutil.copytree(whole, entry)
    assert runs._recall(trainer, entry, "key").reused


@pytest.mark.parametrize("call", ["train", "replace"])
def test_a_run_that_ends_early_leaves_no_entry(build, store, monkeypatch, call):
    def killed(*args, **given):
        raise KeyboardInterrupt

    trainer = build()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer if call == "train" else os, call, killed)
        train(trainer, store)
    assert entries(store) == []


def test_an_entry_that_is_there_already_stands(build, store):
    """As where the lock could not be had: the first one to finish is kept."""
    first, second = build(), build()
    run = train(first, store)
    assert runs._keep(second, run.path, {"seconds": 0.0, "records": {}})
    assert entries(store) == [run.fingerprint]
    assert json.loads((run.path / "result.json").read_text())["seconds"] == run.seconds


def test_a_store_that_cannot_be_written_costs_the_memo_not_the_run(build, tmp_path):
    (tmp_path / "file").write_text("in the way")
    trainer = build()
    start = weights(trainer)
    with pytest.warns(UserWarning, match="could not be kept"):
        run = train(trainer, tmp_path / "file")
    assert run.path is None
    assert not same(weights(trainer), start)


@pytest.mark.parametrize("call", ["safetensors.torch.save_model", "os.replace"])
def test_a_full_disk_costs_the_memo_not_the_run(build, store, monkeypatch, call):
    """safetensors has an error of its own for it."""

    def full(*args):
        if call == "os.replace":
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    trainer, plain = build(), build()
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="could not be kept in"):
        patch.setattr(call, full)
        run = train(trainer, store)
    assert run.path is None and entries(store) == []
    train(plain, store.parent / "other")
    assert same(weights(trainer), weights(plain))


@pytest.mark.parametrize("call", ["torch.save", "sft_utils.training.checkpoints.mark_whole"])
def test_a_disk_that_is_full_before_the_end_costs_the_checkpoints_not_the_run(
    build, store, monkeypatch, call
):
    module, name = call.rsplit(".", 1)
    save, settings = getattr(sys.modules[module], name), {"save_strategy": "steps", "save_steps": 1}

    def full(state, file=None):
        if file is None or ".partial" in str(file):
            raise OSError(errno.ENOSPC, "No space left") if file is None else RuntimeError("pos 0")
        save(state, file)

    trainer, plain = build(**settings), build(**settings)
    with monkeypatch.context() as patch, pytest.warns(UserWarning) as told:
        patch.setattr(call, lambda *given: full(given[0], *given[1:2] * (name == "save")))
        run = train(trainer, store)
    assert [str(w.message)[:43] for w in told] == [
        "No checkpoint could be written in " + str(store)[:9]
    ]
    assert entries(store) == [run.fingerprint] and trainer.args.save_steps == 1
    train(plain, store.parent / "other")
    assert same(weights(trainer), weights(plain))
    out = store.parent / "out"
    assert {path.name for path in out.glob("checkpoint-*")} >= {"checkpoint-2", "checkpoint-3"}


def put(path, what):
    """Something that is no folder, or not the one that belongs there."""
    aside = path.parent / "aside"
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "a file":
        path.write_text("in the way")
    else:
        (aside / "checkpoint-2").mkdir(parents=True)
        path.symlink_to(aside if what == "a link" else path.parent / "nowhere")
    return aside


@pytest.mark.parametrize("what", ["a file", "a link", "a dangling link"])
def test_what_is_no_folder_is_thrown_away(build, store, what):
    settings = {"save_strategy": "steps", "save_steps": 1}
    trainer, again = build(**settings), build(**settings)
    key = fingerprint(trainer)
    aside = put(store / f"{key}.partial", what)
    run = train(trainer, store)
    assert run.path == store / key and run.path.is_dir()
    assert what == "a file" or (aside / "checkpoint-2").is_dir()
    shutil.rmtree(run.path)
    shutil.rmtree(aside, ignore_errors=True)
    put(store / key, what)
    with pytest.warns(UserWarning, match=r"is damaged \(it is no folder\)"):
        assert not train(again, store).reused
    assert same(weights(again), weights(trainer))
    assert what == "a file" or (aside / "checkpoint-2").is_dir()
    assert {*entries(store)} <= {key, "aside"} and not (store / key).is_symlink()


def test_answers_whose_entry_is_no_file_are_computed_again(store):
    def computed():
        return runs.remember("answers", lambda: [1], store)

    computed()
    [name] = entries(store)
    for what in ("a folder", "a link", "a dangling link"):
        runs.remove(store / name)
        if what == "a folder":
            (store / name).mkdir()
        else:
            put(store / name, what)
        with pytest.warns(UserWarning, match="is damaged"):
            assert computed() == [1]
        assert (store / name).is_file() and not (store / name).is_symlink()
        runs.remove(store / "aside")


def test_a_damaged_entry_that_cannot_be_replaced_does_not_count_as_kept(build, store, monkeypatch):
    entry = train(build(), store).path
    damage(entry / "weights.safetensors", "changed")
    monkeypatch.setattr(runs, "_discard", lambda entry: None)
    damaged, kept = (pytest.warns(UserWarning, match=m) for m in ("is damaged", "not be kept"))
    with damaged, kept:
        assert train(build(), store).path is None


def test_records_of_two_callbacks_of_a_class(build, store):
    run = train(build(callbacks=[Recorder(), Recorder(every=2)]), store)
    assert list(run.records) == ["Recorder", "Recorder-2"]


def test_where_the_store_is(tmp_path, monkeypatch):
    monkeypatch.delenv("SFT_RUNS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "book" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "book" / "deep")
    assert runs.store_folder(None) == tmp_path / "cache" / "sft_utils" / "runs"
    for marker in ("_config.yml", "pyproject.toml"):
        (tmp_path / marker).write_text("")
        assert runs.store_folder(None) == tmp_path / ".runs"
        (tmp_path / marker).unlink()
    monkeypatch.setenv("SFT_RUNS", str(tmp_path / "mine"))
    assert runs.store_folder(None) == tmp_path / "mine"
    assert runs.store_folder("here") == Path.cwd() / "here"


def test_several_processes_of_one_run_are_refused(build, store, monkeypatch):
    trainer = build()
    monkeypatch.setattr(SFTConfig, "world_size", 2)
    with pytest.raises(RuntimeError, match="one process"):
        train(trainer, store)


# --- Answers -----------------------------------------------------------------------------------


def test_an_answer_is_remembered_until_what_it_rests_on_changes(store):
    asked = []

    def ask(rests_on):
        return runs.remember(rests_on, lambda: asked.append(rests_on) or [("yes", 1)], store)

    assert [ask({"a": 1}), ask({"a": 1}), ask({"a": 2})] == [[["yes", 1]]] * 3
    assert asked == [{"a": 1}, {"a": 2}]

    [file, _] = sorted(store.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for damage in (file.read_text()[:-9], file.read_text().replace("yes", "no"), "[]"):
        file.write_text(damage)
        with pytest.warns(UserWarning, match="damaged"):
            assert ask({"a": 1}) == [["yes", 1]]
        assert asked.pop() == {"a": 1}
    assert ask({"a": 1}) == [["yes", 1]] and len(asked) == 2


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(store, monkeypatch):
    def full(*given):
        raise OSError("no space left on device")

    monkeypatch.setattr(runs, "write_whole", full)
    with pytest.warns(UserWarning, match="could not be kept"):
        assert runs.remember("a", lambda: 1, store) == 1
    assert entries(store) == []
