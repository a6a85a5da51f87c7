"""The cheaper step learns what TRL's own step learns, and leaves to TRL what it cannot do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import chat_rows, make_model, make_tokenizer, quick_config
from peft import LoraConfig
from transformers import PrinterCallback
from trl import SFTTrainer

from sft_utils.training.fingerprints import fingerprint
from sft_utils.training.trainer import LabelOnlyTrainer

ROWS = chat_rows(
    ("What is the capital " * (1 + n % 3) + f"{n}?", "It is " + "Lima, " * (n % 4) + f"{n}.")
    for n in range(12)
)
LOGGED = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm")


def build(kind, folder, rows=ROWS, model=None, adapter=None, **changes):
    settings = {
        "max_steps": 3, "per_device_train_batch_size": 3, "learning_rate": 1e-2,
        "logging_steps": 1, "report_to": "none",
    }  # fmt: skip
    trainer = kind(
        model or make_model("qwen3", tie_word_embeddings=True),
        quick_config(folder, **settings | changes),
        train_dataset=rows,
        eval_dataset=rows.select(range(5)) if changes.get("eval_strategy") else None,
        processing_class=make_tokenizer(chat=True),
        peft_config=adapter,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def log_of(trainer):
    trainer.train()
    return [
        {key.removeprefix("eval_"): value for key, value in entry.items()}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"assistant_only_loss": False},
        {"packing": True, "max_length": 64},
        {"padding_free": True, "max_length": None},
        {"adapter": LoraConfig(r=4, target_modules="all-linear")},
        {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True},
        {"activation_checkpointing": True},
        {"loss_type": "dft"},
    ],
    ids=lambda changes: ", ".join(changes) or "plain",
)
def test_losses_and_all_else_in_the_log_are_those_of_trl(tmp_path, changes):
    theirs, ours = (
        log_of(build(kind, tmp_path, **changes)) for kind in (SFTTrainer, LabelOnlyTrainer)
    )
    assert len(ours) == len(theirs) > 2
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in [key for key in LOGGED if key in one]:
            assert one[key] == pytest.approx(other[key], rel=2e-5, abs=2e-6), key
    assert ours[0]["loss"] != ours[-1]["loss"] > 0  # there is something to compare


def test_bfloat16_is_that_of_trl_to_its_own_precision(tmp_path):
    theirs, ours = (
        log_of(build(kind, tmp_path, bf16=True)) for kind in (SFTTrainer, LabelOnlyTrainer)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)


def test_only_positions_with_a_label_are_projected(tmp_path, monkeypatch):
    trainer = build(LabelOnlyTrainer, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    head, projected = trainer.model.get_output_embeddings(), []
    head.register_forward_hook(lambda module, given, out: projected.append(tuple(given[0].shape)))
    trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(7))
    labels = (batch["labels"][:, 1:] != -100).sum().item()
    assert projected == [(labels, 32)] and labels < batch["labels"].numel() / 2


def test_a_batch_without_a_label_has_no_loss_and_a_gradient_of_zero(tmp_path):
    trainer = build(LabelOnlyTrainer, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == 0
    assert all(not w.grad.any() for w in trainer.model.parameters() if w.grad is not None)


def scaled(**settings):
    from transformers import GraniteConfig, GraniteForCausalLM

    shape = make_model("llama").config.to_dict()
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "max_position_embeddings")  # fmt: skip
    config = GraniteConfig(
        **{k: shape[k] for k in keep}, pad_token_id=0, eos_token_id=2, **settings
    )
    torch.manual_seed(0)
    return GraniteForCausalLM(config)


@pytest.mark.parametrize(
    "alter",
    [
        lambda trainer: (
            setattr(trainer.args, "_n_gpu", 0)
            or setattr(type(trainer.args), "world_size", property(lambda args: 2))
        ),
        lambda trainer: setattr(trainer, "model", scaled(logits_scaling=4.0)),
        lambda trainer: setattr(trainer.model.config, "final_logit_softcapping", 30.0),
        lambda trainer: setattr(
            trainer.model.config, "get_text_config", lambda *given: SimpleNamespace()
        ),
    ],
    ids=["two processes", "scaled logits", "capped logits", "more than text"],
)
def test_what_it_cannot_do_is_left_to_trl(tmp_path, monkeypatch, alter):
    trainer = build(LabelOnlyTrainer, tmp_path)
    monkeypatch.setattr(type(trainer.args), "world_size", type(trainer.args).world_size)
    alter(trainer)
    asked = []
    monkeypatch.setattr(SFTTrainer, "compute_loss", lambda self, model, *given: asked.append(model))
    trainer.compute_loss(trainer.model, {})
    assert asked == [trainer.model]


def test_a_model_whose_logits_are_scaled_trains_as_with_trl(tmp_path):
    theirs, ours = (
        log_of(build(kind, tmp_path, model=scaled(logits_scaling=4.0)))
        for kind in (SFTTrainer, LabelOnlyTrainer)
    )
    assert [entry["loss"] for entry in ours] == [entry["loss"] for entry in theirs]


def test_its_runs_are_kept_apart_from_those_of_trl(tmp_path):
    prints = [fingerprint(build(kind, tmp_path)) for kind in (SFTTrainer, *[LabelOnlyTrainer] * 2)]
    assert prints[1] == prints[2] != prints[0]
