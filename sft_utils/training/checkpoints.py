"""Checkpoints that a killed run can go on from.

Transformers writes a checkpoint file by file into its final place, so a process that is killed
meanwhile leaves a folder that looks like a checkpoint. Here a checkpoint counts once its
*manifest*, which is written last and in one step, names every file with its sum. Explained in
chapter 25.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import TrainerCallback

from ..files import file_hash
from .fingerprints import recorders_of

if TYPE_CHECKING:
    from transformers import Trainer

MANIFEST = "manifest.json"
EVERY = 300.0  # seconds of training from a checkpoint to the next, at most
EPOCH = "epoch-start"  # the state of the random generators from which an epoch draws its order
#: What the trainers of transformers and TRL have counted since the log's last line, and before.
_COUNTED = ("_total_loss_scalar", "_globalstep_last_logged", "_total_train_tokens")


def last_whole_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest checkpoint in ``folder`` that is as it was written, or None.

    Whole is a checkpoint that `mark_whole` has finished, with every file as it was then; and where
    the best checkpoint so far is another, that one must be whole too, for the end of the run
    loads it. Takes the time to read all files. Explained in chapter 25.
    """
    for checkpoint in reversed(_checkpoints(Path(folder))):
        manifest = _read_manifest(checkpoint)
        if manifest is None:
            continue
        best = manifest["best"]
        if best in (None, checkpoint.name) or _read_manifest(checkpoint.with_name(best)):
            return checkpoint
    return None


def mark_whole(checkpoint: Path, best: str | None = None) -> None:
    """Declare a checkpoint whole: write its manifest, of sizes and SHA-256 sums, in one step.

    ``best`` names the folder beside it that holds the best checkpoint so far. Every file is on
    the disk before the manifest is, so that a power failure cannot turn the two around.
    """
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name.lstrip(".") != MANIFEST:
            files[path.relative_to(checkpoint).as_posix()] = _size_and_sum(path, to_disk=True)
    draft = checkpoint / f".{MANIFEST}"
    with draft.open("w", encoding="utf-8") as file:
        json.dump({"best": best, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, checkpoint / MANIFEST)
    with contextlib.suppress(OSError):  # Windows cannot open a folder
        folder = os.open(checkpoint, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class WholeCheckpoints(TrainerCallback):
    """Seals every checkpoint, and removes the one before only then.

    Where the settings save none for `EVERY` seconds it asks for one more. None of these is taken
    for the best, since the model is not evaluated there, so that the result stays the same.

    Beside the trainer's own files it keeps what transformers forgets, so that the log of a
    resumed run is that of a run which was never stopped: the sums since the last line of the log,
    TRL's counts of tokens, the ``records`` of callbacks, the state from which the epoch drew its
    order, and the seconds so far. Kept are the newest checkpoint and the best.

    Where one process cannot write a checkpoint, as on a full disk, its run goes on with the
    arguments ``own``: what is still saved goes there, and cannot be resumed from.

    Of several processes each keeps its own part, and the first one marks it; they need one file
    system. Raises ``ValueError`` where the arguments would leave out the optimizer, or remove
    checkpoints themselves. Explained in chapter 25.
    """

    def __init__(
        self, trainer: Trainer, resumed: Path | None = None, own: dict[str, Any] | None = None
    ) -> None:
        args = trainer.args
        if args.save_only_model or args.save_total_limit is not None:
            raise ValueError(
                f"save_only_model={args.save_only_model} and save_total_limit="
                f"{args.save_total_limit}: no run could go on from such checkpoints at every "
                "moment. Set them to False and None."
            )
        self.trainer: Any = trainer
        self.resumed, self.own, self.lost = resumed, own, False
        self.progress = f"progress_{args.process_index}.json"
        self.before = 0.0
        self.start = self.saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        """What the run has taken, without what was computed between a checkpoint and the kill."""
        return self.before + time.perf_counter() - self.start

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.resumed is None:
            return
        import torch

        kept = json.loads((self.resumed / self.progress).read_text(encoding="utf-8"))
        self.before = kept["seconds"]
        self.trainer._tr_loss = torch.tensor(kept["loss"], device=args.device)
        for name, value in kept["counted"].items():
            setattr(self.trainer, name, value)
        self.trainer._initial_global_step = 0  # the last line of the log is about the whole run
        for name, values in kept["metrics"].items():
            self.trainer._metrics["train"][name].extend(values)
        for name, recorder in recorders_of(self.trainer).items():
            recorder.records[:] = kept["records"][name]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.resumed is not None:
            between = float(state.epoch).is_integer()  # the order of the next is not drawn yet
            self.trainer._load_rng_state(str(self.resumed if between else self.resumed / EPOCH))
            self.resumed = None
        folder = Path(args.output_dir, EPOCH)

        def save() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            self.trainer._save_rng_state(str(folder))

        self.written(save)

    def written(self, save: Callable[[], None]) -> bool:
        """Whether a part of a checkpoint was written. After the first that was not, none is."""
        if self.lost:
            return False
        try:
            save()
        except (OSError, RuntimeError, SafetensorError) as error:  # the libraries' own for a disk
            if self.own is None or self.trainer.args.world_size > 1:
                raise
            folder = self.trainer.args.output_dir
            warnings.warn(
                f"No checkpoint could be written in {folder}: {error}. The run goes on, and if it "
                "is stopped, it begins anew. Make room on that disk.",
                stacklevel=2,
            )
            vars(self.trainer.args).update(self.own)
            self.lost = True
        return not self.lost

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        # Of several processes each has its own clock, and all save together or not at all. At the
        # end of an epoch the settings may evaluate, or save once more.
        late = time.perf_counter() - self.saved > EVERY and args.world_size == 1 and not self.lost
        if late and not (control.should_evaluate or float(state.epoch).is_integer()):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.written(lambda: self._seal(args, state))

    def _seal(self, args: Any, state: Any) -> None:
        folder = Path(args.output_dir)
        checkpoint = folder / f"checkpoint-{state.global_step}"
        progress = {
            "seconds": self.seconds,
            "loss": self.trainer._tr_loss.item(),
            "counted": {n: vars(self.trainer)[n] for n in _COUNTED if n in vars(self.trainer)},
            "metrics": getattr(self.trainer, "_metrics", {}).get("train", {}),
            "records": {name: found.records for name, found in recorders_of(self.trainer).items()},
        }
        (checkpoint / self.progress).write_text(json.dumps(progress), encoding="utf-8")
        (checkpoint / EPOCH).mkdir(exist_ok=True)
        own = "rng_state.pth" if args.world_size == 1 else f"rng_state_{args.process_index}.pth"
        shutil.copy(folder / EPOCH / own, checkpoint / EPOCH / own)
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            # A pickle of the arguments, a token of access among them, that nothing reads again.
            (checkpoint / "training_args.bin").unlink(missing_ok=True)
            best = state.best_model_checkpoint and Path(state.best_model_checkpoint).name
            mark_whole(checkpoint, best)
            _prune(folder, {checkpoint.name, best})
        self.saved = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Make the speeds in the log's last line those of the whole run."""
        last = state.log_history[-1]
        part = last["train_runtime"]
        last["train_runtime"] = part + self.before
        for name in ("train_samples_per_second", "train_steps_per_second"):
            last[name] *= part / last["train_runtime"]


def train_resumably(trainer: Trainer, folder: Path | None) -> float:
    """Call ``trainer.train()``, from the last whole checkpoint in ``folder`` if there is one.

    Checkpoints go to ``folder``, at the moments that the trainer's arguments name and at least
    every five minutes (`EVERY`), with all that is needed to go on. Returns the seconds that the
    training took, in all its parts.

    Without a folder it is trained from the start. The folder must belong to this very run: see
    `fingerprints.fingerprint`. Explained in chapter 25.
    """
    if folder is None:
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start
    last = last_whole_checkpoint(folder)
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        manifest = last and _read_manifest(last)
        _prune(folder, {last.name, manifest["best"]} if last and manifest else set())
    changes = {
        "output_dir": str(folder),
        "save_only_model": False,
        "save_total_limit": None,  # the trainer would remove the old one before the new is whole
        "eval_on_start": trainer.args.eval_on_start and last is None,
        "restore_callback_states_from_checkpoint": True,
    }
    own = {name: getattr(trainer.args, name) for name in changes if name != "eval_on_start"}
    with _changed(trainer.args, changes):
        keeper = WholeCheckpoints(trainer, last, own)
        patched: Any = trainer
        save = patched._save_checkpoint

        def save_here_or_there(*given: Any) -> None:
            if not keeper.written(lambda: save(*given)):
                save(*given)

        patched._save_checkpoint = save_here_or_there
        trainer.add_callback(keeper)
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            trainer.remove_callback(keeper)
            patched._save_checkpoint = save
            if not _checkpoints(folder):  # it failed, or ended, before the first
                shutil.rmtree(folder, ignore_errors=True)
    return keeper.seconds


def _checkpoints(folder: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, by their number of updates."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def _read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest of a whole checkpoint; None if it is not whole."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            if _size_and_sum(checkpoint / name) != expected:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if "best" in manifest else None


def _size_and_sum(path: Path, *, to_disk: bool = False) -> list[Any]:
    with open(path, "r+b") if to_disk else open(path, "rb") as file:
        if to_disk:
            os.fsync(file.fileno())
        return [path.stat().st_size, file_hash(path)]


def _prune(folder: Path, keep: set[str | None]) -> None:
    """Remove all other checkpoints, each one's manifest first: half a checkpoint is none."""
    for checkpoint in _checkpoints(folder):
        if checkpoint.name not in keep:
            (checkpoint / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)


@contextlib.contextmanager
def _changed(args: Any, changes: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(args, name) for name in changes}
    try:
        vars(args).update(changes)
        yield
    finally:
        vars(args).update(before)
