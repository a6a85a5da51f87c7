"""A fine-tuning is a value: computed once from what the trainer holds, then kept.

Pages build a trainer with TRL and call ``train(trainer)`` where a script would call
``trainer.train()``. The store is a memo: deleting it costs time, never correctness. Explained in
chapter 07.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import draft_folder, file_hash, remove, write_whole
from ..results import note_run
from .fingerprints import digest, fingerprint, recorders_of, weights_hash

if TYPE_CHECKING:
    from transformers import Trainer

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

    A run that was stopped, or killed, goes on from its last whole checkpoint. They are made where
    the trainer's ``save_strategy`` says and at least every five minutes, and wait in the store,
    under the fingerprint and ``.partial``, until the run is finished. Of two processes that want
    the same run one computes it, and the other waits and takes it. Explained in chapter 25.

    ``store`` defaults to the environment variable ``SFT_RUNS``, then to ``.runs`` at the root of
    the book, then to the user's cache. An entry is kept whole or not at all, and a damaged one is
    thrown away and computed again, with a warning. So is what is no folder, such as a link. A store
    that cannot be written costs a warning, not the run. Explained in chapter 07.
    """
    if trainer.args.world_size > 1:
        raise RuntimeError("runs.train keeps runs of one process; call trainer.train() instead.")
    model: Any = trainer.model
    key = fingerprint(trainer)
    entry = store_folder(store) / key
    partial = entry.with_name(f"{key}.partial")
    with _turn(entry) as writable:
        run = _recall(trainer, entry, key)
        if run is None:
            run = _compute(trainer, entry, key, partial if writable else None)
        if run.path is not None:
            _discard(partial)
    model.eval()
    model.zero_grad()
    _TRAINED[weights_hash(model)] = {"run": key, "seeds": (trainer.args.seed,)}
    note_run(key, live=True)
    return run


def _compute(trainer: Trainer, entry: Path, key: str, partial: Path | None) -> Run:
    from .checkpoints import last_whole_checkpoint, train_resumably

    if partial and (partial.is_symlink() or not last_whole_checkpoint(partial)):
        _discard(partial)  # nothing to go on from, and in the way of new checkpoints
    with _own_random_state(trainer.args.seed):
        seconds = train_resumably(trainer, partial)
    recorders = recorders_of(trainer)
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
    weights = weights_hash(model)
    return _TRAINED.get(weights, {"run": f"weights {weights[:16]}", "seeds": ()})


def remember(rests_on: Any, compute: Callable[[], Any], store: str | Path | None = None) -> Any:
    """Return what ``compute()`` gives, or what it gave before where it rested on the same.

    For answers that several pages score: a value that JSON can hold, which comes back as JSON has
    it. ``rests_on`` must name all that decides it. As with `train`, of two processes one computes,
    the store is a memo, and an entry that is damaged is computed again.
    """
    key = digest(rests_on)
    entry = store_folder(store) / f"{key}.json"
    with _turn(entry):
        try:
            if os.path.lexists(entry):
                kept = json.loads(entry.read_text(encoding="utf-8"))
                if digest(kept["value"]) != kept["sum"]:
                    raise ValueError("it changed since it was written")
                return kept["value"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{entry} is damaged ({error}) and computed again.", stacklevel=2)
            _discard(entry)
        value = json.loads(json.dumps(compute()))
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_whole(entry, json.dumps({"sum": digest(value), "value": value}))
        except OSError as error:
            warnings.warn(f"Answers could not be kept in {entry.parent}: {error}", stacklevel=2)
        return value


# --- The store ---------------------------------------------------------------------------------


def store_folder(store: str | Path | None = None) -> Path:
    """The folder of the store: ``store``, ``SFT_RUNS``, or ``.runs`` of the project, or a cache."""
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
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    try:
        with draft_folder(entry.parent) as draft:
            model: Any = trainer.model
            save_model(model, str(draft / "weights.safetensors"))
            trainer.state.save_to_json(str(draft / "state.json"))
            (draft / "result.json").write_text(json.dumps(result), encoding="utf-8")
            manifest = {name: file_hash(draft / name) for name in _FILES}
            (draft / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
            try:
                os.replace(draft, entry)
            except OSError:
                if _damage(entry) is not None:  # not that of another process
                    raise
        return True
    except (OSError, SafetensorError) as error:  # the second where the disk is full
        warnings.warn(f"The run could not be kept in {entry.parent}: {error}", stacklevel=3)
        return False


def _damage(entry: Path) -> str | None:
    """What is wrong with an entry; None if it is as it was written."""
    if entry.is_symlink() or not entry.is_dir():
        return "it is no folder"
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        changed = [name for name in _FILES if manifest[name] != file_hash(entry / name)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return f"{', '.join(changed)} changed since it was written" if changed else None


def _recall(trainer: Trainer, entry: Path, key: str) -> Run | None:
    """Put a kept run into the trainer, or return None if there is none that is whole."""
    from safetensors.torch import load_model
    from transformers import TrainerState

    if not os.path.lexists(entry):
        return None
    if (damage := _damage(entry)) is not None:
        warnings.warn(
            f"The kept run {entry} is damaged ({damage}). It is thrown away and computed again.",
            stacklevel=3,
        )
        _discard(entry)
        return None
    result = json.loads((entry / "result.json").read_text(encoding="utf-8"))
    model: Any = trainer.model
    load_model(model, str(entry / "weights.safetensors"))
    trainer.state = TrainerState.load_from_json(str(entry / "state.json"))
    _restore_records(trainer, result["records"])
    history = trainer.state.log_history
    return Run(key, True, result["seconds"], history, result["records"], entry)


def _discard(entry: Path) -> None:
    """Remove an entry, whatever it is, in one step as others see it: it loses its name first."""
    grave = entry.with_name(f".damaged-{entry.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        os.replace(entry, grave)
        remove(grave)


def _restore_records(trainer: Trainer, records: dict[str, Any]) -> None:
    for name, callback in recorders_of(trainer).items():
        callback.records[:] = records[name]


@contextlib.contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Start from ``seed``, and put every global random state back afterwards.

    Otherwise a page's later draws would depend on whether this run was computed or recalled.
    """
    import random

    import numpy as np

    from ..environment import seed_everything, torch_random_state

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch_random_state():
            seed_everything(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
