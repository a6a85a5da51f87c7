"""What a result rests on, as hashes: weights, rows, settings, code, versions and the machine.

`fingerprint` is that of a fine-tuning, under which the store of `sft_utils.training.runs` keeps it.
Explained in chapter 07.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import types
from typing import TYPE_CHECKING, Any

from ..redaction import without_secrets

if TYPE_CHECKING:
    from transformers import Trainer

# Arguments that say where things are written and what is shown, not what is computed. Every other
# argument counts, those of future versions too, but for what `redaction` calls secret.
NO_EFFECT = {
    "output_dir",
    "run_name",
    "project",
    "report_to",
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "hub_always_push",
    "hub_revision",
    "dataset_num_proc",
}
_ONLY_SHOWN = {"PrinterCallback", "ProgressCallback", "NotebookProgressCallback"}
_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")


def fingerprint(trainer: Trainer) -> str:
    """Return 64 hex digits that stand for everything the result of ``trainer.train()`` rests on.

    The weights and the model's config, the tokenized rows, the tokenizer, the collator, the
    arguments except those that only name places or outputs, functions and callbacks with their
    source and settings, the versions of the libraries, and the machine as far as it rounds
    differently: device, processor capability, dtype, threads. Not seen: what a function of yours
    reads from a global variable.
    """
    digest = hashlib.sha256()
    for part in (
        weights_hash(trainer.model),
        rows_hash(trainer.train_dataset),
        rows_hash(trainer.eval_dataset),
        environment(trainer.model, trainer.args.device.type),
        without_secrets({k: v for k, v in trainer.args.to_dict().items() if k not in NO_EFFECT}),
        tokenizer_state(trainer.processing_class),
        [
            describe(callback)
            for callback in trainer.callback_handler.callbacks
            if type(callback).__name__ not in _ONLY_SHOWN
        ],
        [
            describe(getattr(trainer, name, None))
            for name in ("data_collator", "compute_loss_func", "compute_metrics")
        ],
        describe_class(type(trainer)),
        _own_settings(trainer),
        _optimizer_state(trainer),
    ):
        digest.update(json.dumps(part, sort_keys=True, default=describe).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def weights_hash(model: Any) -> str:
    """Return 64 hex digits for a model's weights, and for which of them are trained."""
    import torch

    digest = hashlib.sha256()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {name in trained}\0".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def rows_hash(dataset: Any) -> Any:
    """Return a hash of every row of a data set, of each part if there are several."""
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {name: rows_hash(part) for name, part in dataset.items()}
    if not hasattr(dataset, "__len__"):
        raise TypeError("A streamed data set cannot be fingerprinted: load it whole.")
    digest = hashlib.sha256()
    rows = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=describe).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def recorders_of(trainer: Trainer) -> dict[str, Any]:
    """The callbacks that keep a list ``records``, by class name; a second of a class is name-2."""
    found: dict[str, Any] = {}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(getattr(callback, "records", None), list):
            name, number = type(callback).__name__, 2
            while name in found:
                name, number = f"{type(callback).__name__}-{number}", number + 1
            found[name] = callback
    return found


def environment(model: Any, device: str) -> dict[str, Any]:
    """What a model's numbers rest on besides its weights: config, versions, how it rounds."""
    import platform
    from importlib.metadata import version

    import torch

    config = getattr(model, "config", None)
    return {
        "versions": {name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "dtype": str(getattr(model, "dtype", None)),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "model": type(model).__qualname__,
        "config": config_state(config),
        "attention": getattr(config, "_attn_implementation", None),
        **_adapters(model),
    }


def _adapters(model: Any) -> dict[str, Any]:
    """The settings of LoRA, which neither the weights nor the model's config tell in full."""
    from importlib.metadata import version

    adapters = getattr(model, "peft_config", None)
    if not adapters:
        return {}
    settings = {name: adapter.to_dict() for name, adapter in adapters.items()}
    for setting in settings.values():
        setting.pop("base_model_name_or_path", None)  # where the model was loaded from
    return {"adapters": settings, "peft": version("peft")}


def config_state(config: Any) -> Any:
    """A model's config, but not the place that the model was loaded from."""
    if config is None:
        return None
    state = json.loads(config.to_json_string(use_diff=False))
    state.pop("_name_or_path", None)
    return state


def tokenizer_state(tokenizer: Any) -> Any:
    """What a tokenizer makes of a text or a conversation rests on, but not its last call."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if backend is not None:
        # Left behind by the last call, and set anew by the next.
        state.pop("padding", None)
        state.pop("truncation", None)
    return {
        "state": state,
        "template": tokenizer.chat_template,
        "special": tokenizer.special_tokens_map,
        "padding_side": tokenizer.padding_side,
    }


def code_of(module: types.ModuleType) -> dict[str, Any]:
    """The source of the functions in a module, those it imports from this package among them."""
    return {n: describe(f) for n, f in vars(module).items() if isinstance(f, types.FunctionType)}


def digest(value: Any) -> str:
    """Return 64 hex digits for a value of plain data, or what `describe` makes of any other."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=describe).encode()).hexdigest()


def _own_settings(trainer: Trainer) -> Any:
    """The plain attributes of a trainer of a class of your own, such as the weight of a loss."""
    if type(trainer).__module__.partition(".")[0] in _LIBRARIES:
        return None
    return {k: v for k, v in vars(trainer).items() if isinstance(v, bool | int | float | str)}


def _optimizer_state(trainer: Trainer) -> Any:
    if trainer.optimizer is None:
        return None
    return [type(trainer.optimizer).__qualname__, trainer.optimizer.state_dict()]


def describe(value: Any, depth: int = 4) -> Any:
    """Describe a value in JSON: data as it is, code by its source, objects by their attributes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, list | tuple | set | frozenset):
        items = [describe(item, depth - 1) for item in value]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    if isinstance(value, dict):
        return {str(key): describe(item, depth - 1) for key, item in value.items()}
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [
            value.__qualname__,
            _source(value),
            describe([value.__defaults__, value.__kwdefaults__, cells], depth - 1),
        ]
    if isinstance(value, types.MethodType):
        return describe(value.__func__, depth)
    if isinstance(value, type):
        return describe_class(value)
    if isinstance(value, functools.partial):
        return describe([value.func, value.args, value.keywords], depth)
    if hasattr(value, "tolist"):  # arrays and tensors
        return [type(value).__qualname__, str(getattr(value, "dtype", None)), value.tolist()]
    if hasattr(value, "state_dict"):  # a model held by a callback
        return type(value).__qualname__
    if hasattr(value, "backend_tokenizer"):
        return tokenizer_state(value)
    name = describe_class(type(value))
    # What a callback has written down is a result of training, not a setting of it.
    attributes = {k: v for k, v in getattr(value, "__dict__", {}).items() if k != "records"}
    return [name, describe(attributes, depth - 1) if attributes else _plain_text(value)]


def _plain_text(value: Any) -> str | None:
    """The text of a value such as a path or a dtype, unless it shows a memory address."""
    text = str(value)
    return None if " at 0x" in text else text


def describe_class(kind: type) -> Any:
    """A class of a library by its name, for its version is known; any other with its source."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.partition(".")[0] in (*_LIBRARIES, "builtins", "pathlib", "enum"):
        return name
    members = {}
    for key, member in vars(kind).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, types.FunctionType):
            members[key] = _source(function)
        elif not key.startswith("__"):
            members[key] = describe(member, 2)
    return [name, members, [describe_class(base) for base in kind.__bases__]]


def _source(function: types.FunctionType) -> Any:
    try:
        return inspect.getsource(function)
    except OSError:  # typed at a prompt: there is only the compiled code
        return _code(function.__code__)


def _code(code: types.CodeType) -> Any:
    constants = [
        _code(constant) if isinstance(constant, types.CodeType) else describe(constant)
        for constant in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]
