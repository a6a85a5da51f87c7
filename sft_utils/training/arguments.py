"""The arguments of a run that differ from TRL's defaults, as plain values."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..chat import end_of_turn_id
from ..redaction import is_secret, redact_text, without_secrets
from .fingerprints import NO_EFFECT

if TYPE_CHECKING:
    from trl import SFTTrainer

# Set from other arguments, or named in the files in another way.
_LEFT_OUT = NO_EFFECT | {
    "do_eval", "do_train", "gradient_checkpointing", "model_init_kwargs", "chat_template_path",
    "pad_token",
}  # fmt: skip
# What TRL settles by the machine where it is not given: always written.
_SETTLED = ("bf16", "use_cpu", "activation_checkpointing")
_LORA = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
}


def run_arguments(trainer: SFTTrainer) -> dict[str, Any]:
    """Return the arguments of `SFTConfig` in which the run differs from the defaults.

    They are plain values. Places, what is only shown, and what is secret are left out.
    ``eos_token`` is the token by which the chat template ends a turn, so that the saved model
    stops there. A metric that TRL does not compute by itself is replaced by the validation loss.

    Raises ``ValueError`` for an argument that is no plain value.
    """
    from trl import SFTConfig

    args: Any = trainer.args
    # Made by the same class, so that what it derives from other arguments is derived here too.
    settled = {"use_cpu": args.use_cpu, "bf16": False, "activation_checkpointing": False}
    with _accelerator_kept():
        defaults: Any = SFTConfig(output_dir="unused", **settled)
    found = {}
    for field in dataclasses.fields(SFTConfig):
        value = getattr(args, field.name)
        default = field.default if field.name in _SETTLED else getattr(defaults, field.name)
        left_out = field.name in _LEFT_OUT or is_secret(field.name)
        if not left_out and value != default:
            found[field.name] = _plain(field.name, without_secrets(value))
    if own_metric(args):
        found |= {"metric_for_best_model": "loss", "greater_is_better": False}
    turn_end = _turn_end(tokenizer_of(trainer))
    if turn_end is not None:
        found.setdefault("eos_token", turn_end)
    return found


@contextlib.contextmanager
def _accelerator_kept() -> Iterator[None]:
    """Let arguments be made without harm to a trainer that was built and is not trained yet.

    Transformers forgets the state of the process whenever it makes arguments.
    """
    from accelerate.state import AcceleratorState

    before = dict(AcceleratorState._shared_state)
    try:
        yield
    finally:
        AcceleratorState._shared_state.update(before)


def tokenizer_of(trainer: Any) -> Any:
    """The trainer's tokenizer."""
    return trainer.processing_class


def _turn_end(tokenizer: Any) -> str | None:
    """The token that ends a turn, unless calling it the end token changes how rows are written."""
    turn_end = end_of_turn_id(tokenizer)
    if turn_end is None:
        return None
    if turn_end != tokenizer.eos_token_id and "eos_token" in tokenizer.chat_template:
        return None
    return tokenizer.convert_ids_to_tokens(turn_end)


def own_metric(args: Any) -> bool:
    """Whether the checkpoint was chosen by something that only a callback computed."""
    metric = (args.metric_for_best_model or "loss").removeprefix("eval_")
    return metric not in ("loss", "mean_token_accuracy", "entropy")  # TRL's own trainer has these


def kept_update(trainer: Any) -> int | None:
    """The update whose checkpoint was chosen and loaded at the end, or None if the last stayed.

    Nothing was chosen where the run ended before it was evaluated, or what was best not saved.
    """
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return int(best.rpartition("-")[2]) if best else None


def dtype_of(trainer: Any) -> str:
    """The number type of the weights."""
    return str(trainer.model.dtype).removeprefix("torch.")


def lora_arguments(trainer: Any) -> dict[str, Any]:
    """The settings of an adapter, under the names of TRL's ``ModelConfig``; empty without one."""
    adapters = getattr(trainer.model, "peft_config", None)
    if not adapters:
        return {}
    (adapter,) = adapters.values()
    found = {name: getattr(adapter, of) for name, of in _LORA.items()}
    targets = found["lora_target_modules"]
    if isinstance(targets, set):
        # TRL takes a list of one for a pattern, which has to fit the whole name of a module.
        one = [rf"(.*\.)?{re.escape(name)}" for name in targets]
        found["lora_target_modules"] = one if len(one) == 1 else sorted(targets)
    return found


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(
            f"{name}={redact_text(repr(value))} is no plain value, so that run.yaml cannot hold "
            "it. Keep the script that makes it."
        ) from error
