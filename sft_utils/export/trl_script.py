"""A fine-tuning as files that repeat it with TRL alone: ``run.yaml`` and ``train.py``.

Explained in chapter 07.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.loss_mask import own_template
from ..models import resolve
from ..training.arguments import (
    dtype_of,
    lora_arguments,
    own_metric,
    run_arguments,
    tokenizer_of,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTTrainer

#: The arguments by what they decide, as the files show them; all others come last.
GROUPS = {
    "How much data, in what steps.": (
        "num_train_epochs", "max_steps", "per_device_train_batch_size",
        "per_device_eval_batch_size", "gradient_accumulation_steps", "train_sampling_strategy",
        "seed", "data_seed",
    ),
    "How far each step goes.": (
        "optim", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
        "weight_decay", "max_grad_norm",
    ),
    "What carries loss, and how long a row may be.": (
        "assistant_only_loss", "completion_only_loss", "max_length", "packing",
        "packing_strategy", "eos_token",
    ),
    "Where, and in what numbers. On another machine, choose both anew.": (
        "use_cpu", "bf16", "fp16", "activation_checkpointing",
    ),
    "What is written down, and which checkpoint is kept.": (
        "logging_steps", "eval_strategy", "eval_steps", "eval_on_start", "save_strategy",
        "save_steps", "save_total_limit", "save_only_model", "load_best_model_at_end",
        "metric_for_best_model", "greater_is_better",
    ),
}  # fmt: skip
_FURTHER = "Further arguments."
_MODEL_FILES = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "README.md", "LICENSE*")
_WIDTH = 88


def write_run(
    trainer: SFTTrainer,
    folder: str | Path,
    *,
    start: str | Path,
    train_rows: Dataset,
    validation_rows: Dataset | None = None,
    revision: str | None = None,
) -> None:
    """Write what repeats a run into a folder: all of `take_away` but the model.

    The trainer need not have been trained; the other arguments are those of `take_away`. Used in
    chapter 25. Raises ``ValueError`` where `run_arguments` does.
    """
    folder = Path(folder)
    texts = {
        "run.yaml": run_yaml(trainer, start, revision),
        "train.py": train_script(trainer, start, revision),
        "chat_template.jinja": tokenizer_of(trainer).chat_template,
    }
    (folder / "data").mkdir(parents=True)
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8", newline="\n")
    for split, rows in (("train", train_rows), ("validation", validation_rows)):
        if rows is not None:
            write_rows(rows, folder / "data" / f"{split}.jsonl")
    if Path(resolve(start)).is_dir():
        _copy_model(Path(resolve(start)), folder / "start")


def run_yaml(trainer: SFTTrainer, start: str | Path, revision: str | None = None) -> str:
    """Return the text of ``run.yaml``, which ``trl sft --config run.yaml`` reads.

    Its keys are those of TRL's ``ScriptArguments``, ``SFTConfig`` and ``ModelConfig``.
    """
    what: dict[str, Any] = {"model_name_or_path": start_name(start)}
    if revision is not None:
        what["model_revision"] = revision
    what |= {"dtype": dtype_of(trainer), "chat_template_path": "chat_template.jinja"}
    what |= {"dataset_name": "data", "dataset_train_split": "train"}
    if trainer.eval_dataset is not None:
        what["dataset_test_split"] = "validation"
    groups = {"What is trained, and on what.": what}
    lora = lora_arguments(trainer)
    if lora:
        groups["The adapter."] = {"use_peft": True} | lora
    groups |= _grouped(run_arguments(trainer))
    groups["Where it goes, and in how many processes."] = {
        "output_dir": "out-trl",
        "num_processes": 1,
    }
    lines = [
        "# To repeat this fine-tuning, in this folder: trl sft --config run.yaml",
        f"# Written for {versions_of(*_packages(trainer))}.",
        *(f"# {note}" for note in _notes(trainer)),
    ]
    for title, arguments in groups.items():
        lines += ["", f"# {title}"]
        lines += [yaml_line(name, value) for name, value in arguments.items()]
    return "\n".join(lines) + "\n"


def train_script(trainer: SFTTrainer, start: str | Path, revision: str | None = None) -> str:
    """Return the text of ``train.py``, which makes the same run as ``run.yaml``, step by step.

    It imports transformers, TRL and datasets, and nothing of this package.
    """
    source = code(start_name(start)) + (f", revision={code(revision)}" if revision else "")
    lora = lora_arguments(trainer)
    names = ["SFTConfig", "SFTTrainer"]
    if lora:
        names += ["ModelConfig", "get_peft_config"]
    config = ['    output_dir="out-script",']
    for title, arguments in _grouped(run_arguments(trainer)).items():
        config += [f"    # {title}", *filled(arguments)]
    given = {"model": "model", "args": "config", "train_dataset": 'rows["train"]'}
    if trainer.eval_dataset is not None:
        given["eval_dataset"] = 'rows["validation"]'
    given["processing_class"] = "tokenizer"
    adapter = []
    if lora:
        adapter = ["adapter = ModelConfig(", "    use_peft=True,", *filled(lora), ")"]
        given["peft_config"] = "get_peft_config(adapter)"
    lines = [
        '"""Repeats this fine-tuning, as `trl sft --config run.yaml` does. Run it in this folder.',
        "",
        f"Written for {versions_of(*_packages(trainer))}.",
        *_notes(trainer),
        '"""',
        "",
        "from pathlib import Path",
        "",
        "from datasets import load_dataset",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"from trl import {', '.join(sorted(names, key=str.lower))}",
        "",
        'rows = load_dataset("data")',
        f'model = AutoModelForCausalLM.from_pretrained({source}, dtype="{dtype_of(trainer)}")',
        f"tokenizer = AutoTokenizer.from_pretrained({source})",
        'tokenizer.chat_template = Path("chat_template.jinja").read_text(encoding="utf-8")',
        *adapter,
        "",
        "config = SFTConfig(",
        *config,
        ")",
        "trainer = SFTTrainer(",
        *(f"    {key}={value}," for key, value in given.items()),
        ")",
        "trainer.train()",
        "trainer.save_model()",
        "trainer.save_state()  # the log: log_history in out-script/trainer_state.json",
    ]
    return "\n".join(lines) + "\n"


def write_rows(rows: Dataset, path: Path) -> None:
    """Write a data set to ``path``, one JSON object a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows.with_format(None):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _packages(trainer: Any) -> list[str]:
    return ["trl", "transformers", "datasets", *["peft"] * bool(lora_arguments(trainer))]


def _notes(trainer: Any) -> list[str]:
    template = tokenizer_of(trainer).chat_template
    notes = []
    if own_template(template) != template:
        notes.append("chat_template.jinja was given markers of what the assistant writes, for TRL.")
    if not own_metric(trainer.args):
        return notes
    return [
        *notes,
        f"The checkpoint was chosen by {trainer.args.metric_for_best_model}, which TRL alone does "
        "not compute:",
        "here the validation loss chooses. The losses are the same, the kept weights need not be.",
    ]


def start_name(start: str | Path) -> str:
    """How the files name the model that training began from."""
    return "start" if Path(resolve(start)).is_dir() else str(start)


def _copy_model(source: Path, target: Path) -> None:
    """Copy the files of a model; checkpoints and pickles that lie beside them stay."""
    target.mkdir()
    for path in sorted({path for pattern in _MODEL_FILES for path in source.glob(pattern)}):
        shutil.copy(path, target / path.name)


def _grouped(arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    groups = {
        title: {name: arguments[name] for name in names if name in arguments}
        for title, names in GROUPS.items()
    }
    known = {name for names in GROUPS.values() for name in names}
    groups[_FURTHER] = {name: value for name, value in arguments.items() if name not in known}
    return {title: group for title, group in groups.items() if group}


def yaml_line(name: str, value: Any) -> str:
    """A setting as a line of YAML."""
    import yaml

    if isinstance(value, list | dict):
        text = yaml.safe_dump(
            value, default_flow_style=True, allow_unicode=True, width=float("inf")
        )
        return f"{name}: {text.strip()}"
    text = yaml.safe_dump({name: value}, allow_unicode=True, width=float("inf"))
    return text.rstrip("\n")


def filled(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Arguments of a call, as many to a line as fit."""
    line = "   "
    for name, value in arguments.items():
        item = f" {name}={code(value)},"
        if line.strip() and len(line + item) > _WIDTH:
            yield line
            line = "   "
        line += item
    yield line


def code(value: Any) -> str:
    """A plain value as Python source, a string in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def versions_of(*packages: str) -> str:
    """Packages with their versions, as text."""
    from importlib.metadata import version

    return ", ".join(f"{package} {version(package)}" for package in packages)
