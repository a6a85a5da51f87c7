"""The fine-tuning of the walk-through, built the same way wherever a page needs it.

Chapter 06 explains the configuration, chapter 07 builds the trainer in the open, shows this
source and trains; the index and chapter 08 call `walkthrough_trainer` and take the run from the
store. All arguments are named here, on plain `SFTConfig` and `SFTTrainer`.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .data import check_rows, load_sft_dataset
from .models import load_model_and_tokenizer
from .profiles import Profile

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig, SFTTrainer

    from .plots import Figure

SEED = 0
VALIDATION_SHARE = 0.05  # of the rows: training does not see them
DEV_QUESTIONS = 120  # asked at every evaluation, to choose the checkpoint


def has_dev_questions(profile: Profile) -> bool:
    """True where the data set is the Atlas's, whose dev questions can choose a checkpoint."""
    return profile.data.source == "atlas-sft-data"


def load_trainee(profile: Profile) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that chapter 07 trains, in float32, and its tokenizer with a chat template."""
    return load_model_and_tokenizer(
        profile.models.trainee, fallback_chat_template=profile.prompt.chat_template
    )


def load_rows(profile: Profile) -> tuple[Dataset, Dataset]:
    """The rows to train on and the validation rows, split by a fixed seed."""
    from .environment import CPU_MODE

    rows = profile.data.rows if CPU_MODE else None
    dataset = load_sft_dataset(profile.data.source, split=profile.data.split, rows=rows)
    parts = dataset.train_test_split(test_size=VALIDATION_SHARE, seed=SEED)
    return parts["train"], parts["test"]


def make_config(profile: Profile, output_dir: str | None = None, **changes: Any) -> SFTConfig:
    """The configuration of chapter 06, every argument that matters by name.

    ``changes`` replace or add arguments of `SFTConfig`. Checkpoints go to ``output_dir``, or to a
    temporary folder that lives as long as this process.
    """
    from trl import SFTConfig

    from .environment import CPU_MODE

    sft, choose_on_dev = profile.sft, has_dev_questions(profile)
    arguments: dict[str, Any] = {
        # How much data, in what steps.
        "num_train_epochs": sft.num_train_epochs,
        "per_device_train_batch_size": sft.per_device_train_batch_size,
        "per_device_eval_batch_size": sft.per_device_train_batch_size,
        "gradient_accumulation_steps": sft.gradient_accumulation_steps,
        "train_sampling_strategy": "group_by_length",  # little padding
        # How far each step goes.
        "learning_rate": sft.learning_rate,
        "lr_scheduler_type": sft.lr_scheduler_type,
        "warmup_steps": sft.warmup_steps,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        # What carries loss, and how long a row may be.
        "assistant_only_loss": True,
        "max_length": sft.max_length,
        "packing": False,
        # Arithmetic: float32 throughout; on the processor where there is no accelerator.
        "use_cpu": CPU_MODE,
        "bf16": False,
        "activation_checkpointing": sft.activation_checkpointing,
        # What is written down, and which checkpoint is kept.
        "logging_steps": sft.logging_steps,
        "eval_strategy": "steps",
        "eval_steps": 0.2,  # of the run
        "eval_on_start": True,
        "save_strategy": "steps",
        "save_steps": 0.2,
        "save_total_limit": 1,
        "save_only_model": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "dev_exact" if choose_on_dev else "loss",
        "greater_is_better": choose_on_dev,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
    }
    return SFTConfig(output_dir=output_dir or scratch_folder(), **arguments | changes)


def scratch_folder() -> str:
    """A temporary folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="sft-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def walkthrough_trainer(profile: Profile) -> SFTTrainer:
    """The trainer of chapter 07: the profile's trainee, its rows, its configuration."""
    from trl import SFTTrainer

    model, tokenizer = load_trainee(profile)
    train_rows, validation_rows = load_rows(profile)
    check_rows(train_rows, tokenizer)  # no text may hold a special token
    trainer = SFTTrainer(
        model=model,
        args=make_config(profile),
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        processing_class=tokenizer,
        callbacks=dev_callbacks(profile, tokenizer),
    )
    silence(trainer)
    return trainer


def dev_callbacks(profile: Profile, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """A callback that asks dev questions at each evaluation; none where there are no questions.

    It adds ``eval_dev_exact`` to the metrics, which is what the trainer chooses by, and keeps
    ``records``: epoch and step, the four scores, the interval of the exact answers from ``low`` to
    ``high``, ``n``, ``eval_loss`` (nats a token) and the seconds that asking took.
    """
    if not has_dev_questions(profile):
        return []
    from transformers import TrainerCallback

    from .atlas.evaluate import score_split
    from .scoring import SCORES, clustered_interval

    questions = dev_questions()

    class DevAccuracy(TrainerCallback):
        """Scores the dev questions. What it asks is an attribute: a fingerprint sees it."""

        def __init__(self) -> None:
            self.asked = [(question.text, *question.answers) for question in questions]
            self.records: list[dict[str, float]] = []

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any
        ) -> None:
            start = time.perf_counter()
            answers = score_split(given["model"], tokenizer, questions)
            scores = {name: float(answers[name].mean()) for name in SCORES}
            low, high = clustered_interval(answers["exact"].tolist(), answers["entity"].tolist())
            metrics["eval_dev_exact"] = scores["exact"]
            self.records.append(
                {"epoch": state.epoch or 0.0, "step": state.global_step}
                | scores
                | {"low": low, "high": high, "n": len(answers), "eval_loss": metrics["eval_loss"]}
                | {"seconds": time.perf_counter() - start}
            )

    return [DevAccuracy()]


def dev_questions() -> list[Any]:
    """A seeded sample of the Atlas's dev questions: held-out entities in held-out wordings."""
    from .atlas.questions import scored_questions
    from .atlas.world import load_world

    questions = scored_questions("headline-dev", load_world())
    return random.Random(SEED).sample(questions, min(DEV_QUESTIONS, len(questions)))


def silence(trainer: SFTTrainer) -> None:
    """Keep the trainer from printing its log as a stack of dicts: pages show it as a table."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


Line = Sequence[tuple[float, float]]


def curves(panels: Mapping[str, Mapping[str, Line]], *, xlabel: str, alt: str) -> Figure:
    """Panels one above the other over the same x: title -> name of the line -> points (x, y).

    Used in chapters 06 and 07.
    """
    from . import plots

    styles = [("-", "o"), ("--", "s"), (":", "^"), ("-.", "D")]

    def draw(canvas: Any) -> None:
        below = canvas.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (title, lines) in zip(below, panels.items(), strict=True):
            for i, points in enumerate(lines.values()):
                plots._line(axes, list(points), plots.PALETTE[i], *styles[i])  # type: ignore[arg-type]
            plots._end_labels(axes, {name: list(points) for name, points in lines.items()})  # type: ignore[arg-type]
            axes.set_title(title)
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
            plots._grid(axes, "y")
        below[-1].set_xlabel(xlabel)

    return plots._figure(draw, 0.6 + 1.7 * len(panels), alt)
