"""Trains tiny models in processes that are killed with SIGKILL, and goes on in others.

    python killed_runs.py FOLDER

Imports torch once, builds the trainers, and forks for every part of every run. What became of the
runs is written to ``FOLDER/found.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from conftest import chat_rows, make_model, make_tokenizer, quick_config
from datasets import Dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from trl import SFTTrainer

from sft_utils import quiet
from sft_utils.training import checkpoints, runs

ROWS = 10  # 5 batches an epoch, 10 updates in all
UPDATES, SAVES = 10, 3  # saved after 3, 6, 9 and 10; logged after 2, 4, …


def rows(first: int = 0, count: int = ROWS) -> Dataset:
    return chat_rows(
        ("What is the capital " * (1 + i % 3) + f"{i}?", f"It is {i * 7 % 10}.")
        for i in range(first, first + count)
    )


class Recorder(TrainerCallback):
    """Writes down what was judged, and scores it so that the best is an early one."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **given: Any) -> None:
        metrics["eval_score"] = -abs(state.global_step - 6.0) if state.global_step else -99.0
        self.records.append({"step": state.global_step, "loss": metrics["eval_loss"]})


class Steps(TrainerCallback):
    """Counts the updates of this process, and can end it after one of them."""

    def __init__(self) -> None:
        self.made = 0
        self._last = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.made += 1
        if state.global_step == self._last:
            kill()


def kill(*given: Any, **named: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def build(folder: Path, adapter: LoraConfig | None = None, **changes: Any) -> SFTTrainer:
    settings = {
        "num_train_epochs": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2,
        "learning_rate": 1e-2, "train_sampling_strategy": "group_by_length", "logging_steps": 2,
        "eval_strategy": "steps", "eval_steps": SAVES, "eval_on_start": True,
        "save_strategy": "steps", "save_steps": SAVES, "save_total_limit": 1,
        "save_only_model": True, "load_best_model_at_end": True, "greater_is_better": True,
        "metric_for_best_model": "score", "report_to": "none",
    }  # fmt: skip
    trainer = SFTTrainer(
        make_model("qwen3", attention_dropout=0.2, tie_word_embeddings=True),
        quick_config(folder / "out", **settings | changes),
        train_dataset=rows(),
        eval_dataset=rows(100, count=4),
        processing_class=make_tokenizer(chat=True),
        callbacks=[Recorder(), EarlyStoppingCallback(9)],
        peft_config=adapter,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def state_of(trainer: SFTTrainer) -> dict[str, Any]:
    """All that must not depend on how often a run was stopped."""
    digest = hashlib.sha256()
    for name, tensor in trainer.model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    timings = ("runtime", "per_second")
    return {
        "weights": digest.hexdigest(),
        "log": [
            {k: v for k, v in entry.items() if not k.endswith(timings)}
            for entry in trainer.state.log_history
        ],
        "best": trainer.state.best_global_step,
        "step": trainer.state.global_step,
        "random": torch.get_rng_state().sum().item(),
        "dropped": trainer.model.training,
    }


class Fork:
    """Work in a process of its own, which has all that this one has imported and built."""

    def __init__(self, work: Callable[[], Any]) -> None:
        reading, writing = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            status = 1
            try:
                os.close(reading)
                with os.fdopen(writing, "w") as file:
                    json.dump(work(), file)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writing)
        self._result = os.fdopen(reading)

    def end(self) -> tuple[int, Any]:
        """Wait; return how it ended (a signal is negative) and the result."""
        with self._result as file:
            text = file.read()
        _, status = os.waitpid(self._process, 0)
        return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def part(trainer: SFTTrainer, store: Path, spoil: Callable[[SFTTrainer, Steps], None] | None):
    """One part of a run: until it is killed, or to the end."""

    def work() -> dict[str, Any]:
        steps = Steps()
        key = runs.fingerprint(trainer)
        resumed = checkpoints.last_whole_checkpoint(store / f"{key}.partial")
        before = 0.0
        if resumed:
            before = json.loads((resumed / "progress_0.json").read_text())["seconds"]
        fingerprint = runs.fingerprint
        runs.fingerprint = lambda given: key  # with the callback below it would be another
        trainer.add_callback(steps)
        if spoil is not None:
            spoil(trainer, steps)
        run = runs.train(trainer, store)
        runs.fingerprint = fingerprint
        left = sorted(path.name for path in store.iterdir() if path.name != ".locks")
        return state_of(trainer) | {
            "records": run.records,
            "made": steps.made,
            "seconds": run.seconds,
            "runtime": run.log_history[-1]["train_runtime"],
            "before": before,
            "resumed": resumed and resumed.name,
            "left": [name.replace(key, "run") for name in left],
        }

    return Fork(work).end()


# --- Where it is killed ------------------------------------------------------------------------


def after_update(number: int) -> Callable[[SFTTrainer, Steps], None]:
    def spoil(trainer: SFTTrainer, steps: Steps) -> None:
        steps._last = number

    return spoil


def by_the_clock(number: int) -> Callable[[SFTTrainer, Steps], None]:
    """As in a run so long that every update comes later than a checkpoint may."""

    def spoil(trainer: SFTTrainer, steps: Steps) -> None:
        checkpoints.EVERY = 0.0
        steps._last = number

    return spoil


def within_optimizer(trainer: SFTTrainer, steps: Steps) -> None:
    save = torch.save

    def spoiled(state: Any, file: Any, *given: Any) -> None:
        save(state, file, *given)
        if "checkpoint-9" in str(file) and "optimizer" in str(file):
            os.truncate(file, Path(file).stat().st_size // 2)
            kill()

    torch.save = spoiled


def on_call(module: Any, name: str, number: int, before: Callable[..., Any] = lambda *_: None):
    """Dies at a call of a function, instead of making it."""

    def spoil(trainer: SFTTrainer, steps: Steps) -> None:
        original, calls = getattr(module, name), []

        def spoiled(*given: Any, **named: Any) -> Any:
            calls.append(given)
            if len(calls) == number:
                before(*given, **named)
                kill()
            return original(*given, **named)

        setattr(module, name, spoiled)

    return spoil


def own(module: str, *call: Any) -> Callable[[SFTTrainer, Steps], None]:
    """A module for the package alone, so that only its own calls are counted."""

    def spoil(trainer: SFTTrainer, steps: Steps) -> None:
        alone = SimpleNamespace(**vars(getattr(checkpoints, module)))
        setattr(checkpoints, module, alone)
        on_call(alone, *call)(trainer, steps)

    return spoil


def lose_optimizer(folder: Path, *_: Any) -> None:
    Path(folder, "optimizer.pt").unlink()


SECOND_EPOCH = "in the second epoch, between lines of the log"
#: What ends each part of a run but the last, and from which checkpoint the next part goes on.
KILLED = {
    SECOND_EPOCH: [(after_update(10), "checkpoint-9")],
    "again and again": [
        (after_update(2), None),
        (after_update(4), "checkpoint-3"),
        (after_update(8), "checkpoint-6"),
    ],
    "the weights saved, not the optimizer": [
        (on_call(SFTTrainer, "save_model", 3, SFTTrainer.save_model), "checkpoint-6")
    ],
    "the optimizer half saved": [(within_optimizer, "checkpoint-6")],
    "all files saved, no manifest": [(on_call(checkpoints, "mark_whole", 3), "checkpoint-6")],
    "the manifest written, not in place": [(own("os", "replace", 3), "checkpoint-6")],
    "the manifest in place, the old one there": [
        (on_call(checkpoints, "_prune", 4), "checkpoint-9")
    ],
    "the old checkpoint half removed": [
        (own("shutil", "rmtree", 1, lose_optimizer), "checkpoint-6")
    ],
    "the last checkpoint saved": [(on_call(runs, "_keep", 1), "checkpoint-10")],
    "the run kept, the checkpoints there": [
        (on_call(runs, "_keep", 1, runs._keep), "checkpoint-10")
    ],
}
#: By name the run, and what ends its parts.
CASES = {
    **{where: ("by length", parts) for where, parts in KILLED.items()},
    **{
        f"{SECOND_EPOCH}, {order}": (order, KILLED[SECOND_EPOCH])
        for order in ("at random", "of an adapter")
    },
    **{
        f"by the clock, {order}": (order, [(by_the_clock(8), "checkpoint-7")])
        for order in ("saved never", "saved by epoch")
    },
}


# --- Several at once ---------------------------------------------------------------------------


def two_at_once(trainer: SFTTrainer, store: Path) -> list[tuple[int, Any]]:
    """The second asks for the run while the first computes it."""
    under_way, asked = os.pipe(), os.pipe()

    class Waits(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 1:
                os.write(under_way[1], b".")
                os.read(asked[0], 1)

    key = runs.fingerprint(trainer)

    def first() -> Any:
        runs.fingerprint = lambda given: key
        trainer.add_callback(Waits())
        return runs.train(trainer, store).reused, state_of(trainer)

    def second() -> Any:
        runs.fingerprint = lambda given: key
        os.read(under_way[0], 1)
        os.write(asked[1], b".")
        return runs.train(trainer, store).reused, state_of(trainer)

    return [work.end() for work in [Fork(first), Fork(second)]]


def of_two_processes(folder: Path, spoil: Callable[..., None] | None) -> list[tuple[int, Any]]:
    """One run of two processes, as torchrun starts them; the first one is spoiled.

    They find each other by a file: a port that is free now may be taken when they bind it.
    """
    file = f"{tempfile.mkdtemp(dir=folder.parent)}/meet"

    def work(rank: int) -> Any:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank),
                       "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
        store = torch.distributed.FileStore(file, 2)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
        trainer, steps = build(folder), Steps()
        trainer.add_callback(steps)
        if spoil is not None and rank == 0:
            spoil(trainer, steps)
        resumed = checkpoints.last_whole_checkpoint(folder)
        checkpoints.train_resumably(trainer, folder)
        found = {"made": steps.made, "resumed": resumed and resumed.name}
        return state_of(trainer) | found

    return [part.end() for part in [Fork(partial(work, rank)) for rank in range(2)]]


def main(folder: Path) -> None:
    quiet()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    # First: once a trainer is built, its process is one alone.
    killed = on_call(checkpoints, "mark_whole", 2)
    for name, spoil in (("never", None), ("killed", killed), ("killed", None)):
        ended = of_two_processes(folder / f"two processes, {name}", spoil)
        found.setdefault(f"two processes, {name}", []).append(ended)

    trainers = {
        "by length": build(folder),
        "at random": build(folder, train_sampling_strategy="random", gradient_accumulation_steps=2,
                           per_device_train_batch_size=1),
        "of an adapter": build(folder, LoraConfig(r=4, lora_dropout=0.2)),
        "saved never": build(folder, save_strategy="no", load_best_model_at_end=False),
        "saved by epoch": build(folder, save_strategy="epoch", eval_strategy="epoch"),
    }  # fmt: skip
    for order, trainer in trainers.items():
        found[f"never, {order}"] = [part(trainer, folder / f"never {order}", None)]
    for name, (order, parts) in CASES.items():
        store = folder / name
        spoils = [spoil for spoil, _ in parts]
        found[name] = [part(trainers[order], store, spoil) for spoil in [*spoils, None]]
    found["at once"] = two_at_once(trainers["by length"], folder / "at once")
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
