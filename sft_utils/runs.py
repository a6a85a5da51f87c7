"""A fine-tuning is a value: computed once from what the trainer holds, then kept.

Pages build a trainer with TRL and call ``train(trainer)`` where a script would call
``trainer.train()``. The store is a memo: deleting it costs time, never correctness. Explained in
chapter 07.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import os
import shutil
import tempfile
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .redaction import without_secrets

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
#: By the hash of trained weights: the run that they came from.
_TRAINED: dict[str, dict[str, Any]] = {}
_FILES = ("weights.safetensors", "state.json", "result.json")


@dataclass(frozen=True)
class Run:
    """What a fine-tuning gave. The trained weights are in ``trainer.model``.

    ``seconds`` is what the training itself took, then if it was ``reused``; ``log_history`` is
    that of the trainer; ``records`` holds, by class name, what callbacks with an attribute
    ``records`` wrote down; ``path`` is the entry in the store, or None if it could not be kept.
    """

    fingerprint: str
    reused: bool
    seconds: float
    log_history: list[dict[str, Any]]
    records: dict[str, Any]
    path: Path | None


def train(trainer: Trainer, store: str | Path | None = None) -> Run:
    """Fine-tune, or take the result of the same fine-tuning from the store.

    Either way ``trainer.model`` (in place, in evaluation mode), ``trainer.state`` and the
    ``records`` of its callbacks end up the same, and the global random state is as it was before:
    training starts from the trainer's seed. Checkpoints that the trainer writes on the way are
    no part of the result.

    A run that was stopped, or killed, goes on from its last whole checkpoint where the trainer's
    ``save_strategy`` makes any: they wait in the store, under the fingerprint and ``.partial``,
    until the run is finished. Of two processes that want the same run one computes it, and the
    other waits and takes it. Explained in chapter 11.

    ``store`` defaults to the environment variable ``SFT_RUNS``, then to ``.runs`` at the root of
    the book, then to the user's cache. An entry is kept whole or not at all, and a damaged one is
    thrown away and computed again. Explained in chapter 07.
    """
    if trainer.args.world_size > 1:
        raise RuntimeError("runs.train keeps runs of one process; call trainer.train() instead.")
    model: Any = trainer.model
    key = fingerprint(trainer)
    entry = _store(store) / key
    partial = entry.with_name(f"{key}.partial")
    with _turn(entry) as writable:
        run = _recall(trainer, entry, key)
        if run is None:
            run = _compute(trainer, entry, key, partial if writable else None)
        if run.path is not None:
            shutil.rmtree(partial, ignore_errors=True)
    model.eval()
    model.zero_grad()
    _TRAINED[_weights_hash(model)] = {"run": key, "seeds": (trainer.args.seed,)}
    return run


def _compute(trainer: Trainer, entry: Path, key: str, partial: Path | None) -> Run:
    from .checkpoints import train_resumably

    with _own_random_state(trainer.args.seed):
        seconds = train_resumably(trainer, partial)
    recorders = _recorders(trainer)
    # By way of JSON, so that a record reads the same now as when it is recalled.
    records = json.loads(json.dumps({name: c.records for name, c in recorders.items()}))
    _restore_records(trainer, records)
    kept = _keep(trainer, entry, {"seconds": seconds, "records": records})
    return Run(key, False, seconds, trainer.state.log_history, records, entry if kept else None)


def origin(model: Any) -> dict[str, Any]:
    """What made a model's weights, for the results that rest on them: ``run`` and ``seeds``.

    The fingerprint and the seed of the run if `train` made them here; a hash of the weights if
    not.
    """
    weights = _weights_hash(model)
    return _TRAINED.get(weights, {"run": f"weights {weights[:16]}", "seeds": ()})


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
        _weights_hash(trainer.model),
        _rows_hash(trainer.train_dataset),
        _rows_hash(trainer.eval_dataset),
        _environment(trainer),
        without_secrets({k: v for k, v in trainer.args.to_dict().items() if k not in NO_EFFECT}),
        _tokenizer_state(trainer.processing_class),
        [
            _describe(callback)
            for callback in trainer.callback_handler.callbacks
            if type(callback).__name__ not in _ONLY_SHOWN
        ],
        [
            _describe(getattr(trainer, name, None))
            for name in ("data_collator", "compute_loss_func", "compute_metrics")
        ],
        _describe_class(type(trainer)),
        _own_settings(trainer),
        _optimizer_state(trainer),
    ):
        digest.update(json.dumps(part, sort_keys=True, default=_describe).encode())
        digest.update(b"\0")
    return digest.hexdigest()


# --- What a fingerprint is made of -------------------------------------------------------------


def _weights_hash(model: Any) -> str:
    import torch

    digest = hashlib.sha256()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {name in trained}\0".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _rows_hash(dataset: Any) -> Any:
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {name: _rows_hash(part) for name, part in dataset.items()}
    if not hasattr(dataset, "__len__"):
        raise TypeError("A streamed data set cannot be fingerprinted: load it whole.")
    digest = hashlib.sha256()
    rows = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=_describe).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _environment(trainer: Trainer) -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    import torch

    model = trainer.model
    config = getattr(model, "config", None)
    return {
        "versions": {name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": trainer.args.device.type,
        "gpu": torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else None,
        "dtype": str(getattr(model, "dtype", None)),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "model": type(model).__qualname__,
        "config": _config_state(config),
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


def _config_state(config: Any) -> Any:
    """A model's config, but not the place that the model was loaded from."""
    if config is None:
        return None
    state = json.loads(config.to_json_string(use_diff=False))
    state.pop("_name_or_path", None)
    return state


def _tokenizer_state(tokenizer: Any) -> Any:
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


def _own_settings(trainer: Trainer) -> Any:
    """The plain attributes of a trainer of a class of your own, such as the weight of a loss."""
    if type(trainer).__module__.partition(".")[0] in _LIBRARIES:
        return None
    return {k: v for k, v in vars(trainer).items() if isinstance(v, bool | int | float | str)}


def _optimizer_state(trainer: Trainer) -> Any:
    if trainer.optimizer is None:
        return None
    return [type(trainer.optimizer).__qualname__, trainer.optimizer.state_dict()]


def _describe(value: Any, depth: int = 4) -> Any:
    """Describe a value in JSON: data as it is, code by its source, objects by their attributes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, list | tuple | set | frozenset):
        items = [_describe(item, depth - 1) for item in value]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    if isinstance(value, dict):
        return {str(key): _describe(item, depth - 1) for key, item in value.items()}
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [
            value.__qualname__,
            _source(value),
            _describe([value.__defaults__, value.__kwdefaults__, cells], depth - 1),
        ]
    if isinstance(value, types.MethodType):
        return _describe(value.__func__, depth)
    if isinstance(value, type):
        return _describe_class(value)
    if isinstance(value, functools.partial):
        return _describe([value.func, value.args, value.keywords], depth)
    if hasattr(value, "tolist"):  # arrays and tensors
        return [type(value).__qualname__, str(getattr(value, "dtype", None)), value.tolist()]
    if hasattr(value, "state_dict"):  # a model held by a callback
        return type(value).__qualname__
    if hasattr(value, "backend_tokenizer"):
        return _tokenizer_state(value)
    name = _describe_class(type(value))
    # What a callback has written down is a result of training, not a setting of it.
    attributes = {k: v for k, v in getattr(value, "__dict__", {}).items() if k != "records"}
    return [name, _describe(attributes, depth - 1) if attributes else _plain_text(value)]


def _plain_text(value: Any) -> str | None:
    """The text of a value such as a path or a dtype, unless it shows a memory address."""
    text = str(value)
    return None if " at 0x" in text else text


def _describe_class(kind: type) -> Any:
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
            members[key] = _describe(member, 2)
    return [name, members, [_describe_class(base) for base in kind.__bases__]]


def _source(function: types.FunctionType) -> Any:
    try:
        return inspect.getsource(function)
    except OSError:  # typed at a prompt: there is only the compiled code
        return _code(function.__code__)


def _code(code: types.CodeType) -> Any:
    constants = [
        _code(constant) if isinstance(constant, types.CodeType) else _describe(constant)
        for constant in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]


# --- The store ---------------------------------------------------------------------------------


def _store(store: str | Path | None) -> Path:
    chosen = store or os.environ.get("SFT_RUNS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "pyproject.toml").is_file() or (folder / "_config.yml").is_file():
            return folder / ".runs"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sft_utils" / "runs"


@contextlib.contextmanager
def _turn(entry: Path) -> Iterator[bool]:
    """Wait until no other process computes this run; tell whether the store can be written.

    The lock is the system's: it goes with the process that holds it, however that ends.
    """
    from filelock import FileLock

    lock = FileLock(entry.parent / ".locks" / entry.name)
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:  # the run is not kept either, and `_keep` says why
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _keep(trainer: Trainer, entry: Path, result: dict[str, Any]) -> bool:
    """Write a run to the store, whole or not at all. Returns whether it is there.

    The files are written to a folder of another name, which then takes the entry's name in one
    step. If another process was first, its entry stands.
    """
    from safetensors.torch import save_model

    draft: Path | None = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=entry.parent))
        model: Any = trainer.model
        save_model(model, str(draft / "weights.safetensors"))
        trainer.state.save_to_json(str(draft / "state.json"))
        (draft / "result.json").write_text(json.dumps(result), encoding="utf-8")
        manifest = {name: _file_hash(draft / name) for name in _FILES}
        (draft / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        with contextlib.suppress(OSError):
            os.replace(draft, entry)
        return (entry / "manifest.json").is_file()
    except OSError as error:
        warnings.warn(f"The run could not be kept in {entry.parent}: {error}", stacklevel=3)
        return False
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _recall(trainer: Trainer, entry: Path, key: str) -> Run | None:
    """Put a kept run into the trainer, or return None if there is none that is whole."""
    from safetensors.torch import load_model
    from transformers import TrainerState

    if not entry.is_dir():
        return None
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        damaged = [name for name in _FILES if manifest[name] != _file_hash(entry / name)]
        if damaged:
            raise ValueError(f"{', '.join(damaged)} changed since it was written")
        result = json.loads((entry / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"The kept run {entry} is damaged ({error}). It is thrown away and computed again.",
            stacklevel=3,
        )
        _discard(entry)
        return None
    model: Any = trainer.model
    load_model(model, str(entry / "weights.safetensors"))
    trainer.state = TrainerState.load_from_json(str(entry / "state.json"))
    _restore_records(trainer, result["records"])
    history = trainer.state.log_history
    return Run(key, True, result["seconds"], history, result["records"], entry)


def _discard(entry: Path) -> None:
    """Remove an entry in one step as others see it: it loses its name first."""
    grave = entry.with_name(f".damaged-{entry.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        os.replace(entry, grave)
    shutil.rmtree(grave, ignore_errors=True)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recorders(trainer: Trainer) -> dict[str, Any]:
    """The callbacks that keep a list ``records``, by class name; a second of a class is name-2."""
    found: dict[str, Any] = {}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(getattr(callback, "records", None), list):
            name, number = type(callback).__name__, 2
            while name in found:
                name, number = f"{type(callback).__name__}-{number}", number + 1
            found[name] = callback
    return found


def _restore_records(trainer: Trainer, records: dict[str, Any]) -> None:
    for name, callback in _recorders(trainer).items():
        callback.records[:] = records[name]


@contextlib.contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Start from ``seed``, and put every global random state back afterwards.

    Otherwise a page's later draws would depend on whether this run was computed or recalled.
    """
    import random

    import numpy as np

    from sft_utils.environment import seed_everything, torch_random_state

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch_random_state():
            seed_everything(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
