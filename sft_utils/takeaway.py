"""Take a fine-tuning away: what repeats it with TRL alone, and the model with its card.

`take_away` writes one folder that needs nothing of this package::

    run.yaml              for `trl sft --config run.yaml`
    train.py              the same run as a script
    chat_template.jinja   how the conversations were written
    data/                 the rows: train.jsonl, validation.jsonl
    start/                the model that training began from, if it was a folder
    model/                the trained model, and README.md, its card

Explained in chapter 07.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models import end_of_turn_id, end_token_ids, resolve
from .results import MISSING, Measure
from .runs import NO_EFFECT

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

# Set from other arguments, or named in the files in another way.
_LEFT_OUT = NO_EFFECT | {
    "do_eval", "do_train", "gradient_checkpointing", "model_init_kwargs", "chat_template_path",
    "pad_token",
}  # fmt: skip
# What TRL settles by the machine where it is not given: always written.
_SETTLED = ("bf16", "use_cpu", "activation_checkpointing")
_MODEL_FILES = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "README.md", "LICENSE*")
_LORA = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
}
_WIDTH = 88


def take_away(
    trainer: SFTTrainer,
    folder: str | Path,
    *,
    name: str,
    start: str | Path,
    data: str,
    train_rows: Dataset,
    validation_rows: Dataset | None,
    results: Mapping[str, Measure],
    limits: Sequence[str],
    before: Mapping[str, Measure] | None = None,
    revision: str | None = None,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Path:
    """Write all that is needed to repeat and to use a fine-tuning, and return the folder.

    ``trainer`` has been trained. ``name`` is the model's, with or without its owner on the Hub.
    ``start`` names the model that training began from, as `load_model_and_tokenizer` takes it,
    and ``revision`` its version on the Hub; if it is a folder, its files are copied. ``data``
    names where the rows come from; ``train_rows`` and ``validation_rows`` (None if there are
    none) are those that the trainer was given. ``results`` are the scores of the card by what
    they measure, ``before`` any of the same for the model that training began from, and
    ``limits`` sentences on what the model is not good for or was not tried on.
    ``system`` and ``template_kwargs`` are those of its prompts, for the card's example.

    The folder is written whole or not at all. Raises ``FileExistsError`` if it is there already,
    ``TypeError`` for a score that is no `Measure`, and ``ValueError`` if the trainer has not been
    trained, has parts that `run.yaml` cannot name, or was given other rows. Explained in
    chapter 07.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists():
        raise FileExistsError(f"{folder} is there already. Give another folder, or remove it.")
    _check_trainer(trainer, train_rows, validation_rows)
    card = model_card(
        trainer, name=name, start=start, data=data, results=results, limits=limits,
        rows=(len(train_rows), len(validation_rows or ())),
        before=before, system=system, template_kwargs=template_kwargs,
    )  # fmt: skip
    run_arguments(trainer)  # fails here if it fails

    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        whole = draft / "whole"
        write_run(
            trainer, whole, start=start, train_rows=train_rows,
            validation_rows=validation_rows, revision=revision,
        )  # fmt: skip
        save_model(trainer, whole / "model")
        (whole / "model" / "README.md").write_text(card, encoding="utf-8")
        os.rename(whole, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


# --- The run -----------------------------------------------------------------------------------


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
    chapter 11. Raises ``ValueError`` where `run_arguments` does.
    """
    folder = Path(folder)
    texts = {
        "run.yaml": run_yaml(trainer, start, revision),
        "train.py": train_script(trainer, start, revision),
        "chat_template.jinja": _tokenizer(trainer).chat_template,
    }
    (folder / "data").mkdir(parents=True)
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8", newline="\n")
    for split, rows in (("train", train_rows), ("validation", validation_rows)):
        if rows is not None:
            write_rows(rows, folder / "data" / f"{split}.jsonl")
    if Path(resolve(start)).is_dir():
        _copy_model(Path(resolve(start)), folder / "start")


def run_arguments(trainer: SFTTrainer) -> dict[str, Any]:
    """Return the arguments of `SFTConfig` in which the run differs from the defaults.

    They are plain values. Places, what is only shown, and tokens of access are left out.
    ``eos_token`` is the token by which the chat template ends a turn, so that the saved model
    stops there. A metric that TRL does not compute by itself is replaced by the validation loss.

    Raises ``ValueError`` for an argument that is no plain value. Explained in chapter 07.
    """
    from trl import SFTConfig

    args: Any = trainer.args
    # Made by the same class, so that what it derives from other arguments is derived here too.
    settled = {"use_cpu": args.use_cpu, "bf16": False, "activation_checkpointing": False}
    defaults: Any = SFTConfig(output_dir="unused", **settled)
    found = {}
    for field in dataclasses.fields(SFTConfig):
        value = getattr(args, field.name)
        default = field.default if field.name in _SETTLED else getattr(defaults, field.name)
        if field.name not in _LEFT_OUT and value != default:
            found[field.name] = _plain(field.name, value)
    if _own_metric(args):
        found |= {"metric_for_best_model": "loss", "greater_is_better": False}
    turn_end = _turn_end(_tokenizer(trainer))
    if turn_end is not None:
        found.setdefault("eos_token", turn_end)
    return found


def run_yaml(trainer: SFTTrainer, start: str | Path, revision: str | None = None) -> str:
    """Return the text of ``run.yaml``, which ``trl sft --config run.yaml`` reads.

    Its keys are those of TRL's ``ScriptArguments``, ``SFTConfig`` and ``ModelConfig``. Explained
    in chapter 07.
    """
    what: dict[str, Any] = {"model_name_or_path": _start_name(start)}
    if revision is not None:
        what["model_revision"] = revision
    what |= {"dtype": _dtype(trainer), "chat_template_path": "chat_template.jinja"}
    what |= {"dataset_name": "data", "dataset_train_split": "train"}
    if trainer.eval_dataset is not None:
        what["dataset_test_split"] = "validation"
    groups = {"What is trained, and on what.": what}
    lora = _lora_arguments(trainer)
    if lora:
        groups["The adapter."] = {"use_peft": True} | lora
    groups |= _grouped(run_arguments(trainer))
    groups["Where it goes, and in how many processes."] = {
        "output_dir": "out-trl",
        "num_processes": 1,
    }
    lines = [
        "# To repeat this fine-tuning, in this folder: trl sft --config run.yaml",
        f"# Written for {_versions('trl', 'transformers', 'datasets')}.",
        *(f"# {note}" for note in _notes(trainer)),
    ]
    for title, arguments in groups.items():
        lines += ["", f"# {title}"]
        lines += [_yaml_line(name, value) for name, value in arguments.items()]
    return "\n".join(lines) + "\n"


def train_script(trainer: SFTTrainer, start: str | Path, revision: str | None = None) -> str:
    """Return the text of ``train.py``, which makes the same run as ``run.yaml``, step by step.

    It imports transformers, TRL and datasets, and nothing of this package. Explained in
    chapter 07.
    """
    source = _code(_start_name(start)) + (f", revision={_code(revision)}" if revision else "")
    lora = _lora_arguments(trainer)
    names = ["SFTConfig", "SFTTrainer"]
    if lora:
        names += ["ModelConfig", "get_peft_config"]
    config = ['    output_dir="out-script",']
    for title, arguments in _grouped(run_arguments(trainer)).items():
        config += [f"    # {title}", *_filled(arguments)]
    given = {"model": "model", "args": "config", "train_dataset": 'rows["train"]'}
    if trainer.eval_dataset is not None:
        given["eval_dataset"] = 'rows["validation"]'
    given["processing_class"] = "tokenizer"
    adapter = []
    if lora:
        adapter = ["adapter = ModelConfig(", "    use_peft=True,", *_filled(lora), ")"]
        given["peft_config"] = "get_peft_config(adapter)"
    lines = [
        '"""Repeats this fine-tuning, as `trl sft --config run.yaml` does. Run it in this folder.',
        "",
        f"Written for {_versions('trl', 'transformers', 'datasets')}.",
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
        f'model = AutoModelForCausalLM.from_pretrained({source}, dtype="{_dtype(trainer)}")',
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
    """Write a data set to ``path``, one JSON object a line. Explained in chapter 07."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows.with_format(None):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# --- The model ---------------------------------------------------------------------------------


def save_model(trainer: SFTTrainer, folder: Path) -> None:
    """Write the trained model as plain transformers loads it; the trainer stays as it is.

    Weights are in safetensors, an adapter is merged into them, and the chat template lies beside
    the tokenizer. The generation config names every token that ends an answer, the one of the
    template among them, so that ``generate`` stops there. Explained in chapter 07.
    """
    model: Any = trainer.model
    tokenizer = _tokenizer(trainer)
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    generation = copy.deepcopy(model.generation_config)
    generation.eos_token_id = end_token_ids(model, tokenizer)
    generation.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def model_card(
    trainer: SFTTrainer,
    *,
    name: str,
    start: str | Path,
    data: str,
    results: Mapping[str, Measure],
    limits: Sequence[str],
    rows: tuple[int, int],
    before: Mapping[str, Measure] | None = None,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Return the model's ``README.md``: how to use it, data, training, scores, limits.

    ``rows`` counts those for training and those for validation; the other arguments are those of
    `take_away`. No number is typed: each comes from the trainer or from a `Measure`, and the head
    is what the Hub reads. Raises ``TypeError`` and ``ValueError`` as `take_away` does. Explained
    in chapter 07.
    """
    from huggingface_hub import EvalResult, ModelCardData

    before = before or {}
    _check_card(name, results, limits, before)
    source, started = _shown(data), _shown(str(start))
    head = ModelCardData(
        model_name=name,
        # The Hub makes links of these two, so only what is there is named.
        base_model=None if Path(resolve(start)).is_dir() else str(start),
        datasets=[data] if source == data and re.fullmatch(r"[\w.-]+/[\w.-]+", data) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["trl", "sft"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=source,
                dataset_name=source,
                metric_type=re.sub(r"\W+", "_", what.lower()).strip("_"),
                metric_name=what,
                metric_value=_with_interval(measure),
            )
            for what, measure in results.items()
        ],
    )
    args, state = trainer.args, trainer.state
    model: Any = trainer.model
    kept = f"The weights are those after the last of {state.global_step:,} updates."
    if args.load_best_model_at_end:
        kept = (
            f"The weights are those after update {state.best_global_step:,} of "
            f"{state.global_step:,}, chosen by `{args.metric_for_best_model}`."
        )
    settings = run_arguments(trainer) | _lora_arguments(trainer)
    if _own_metric(args):
        settings["metric_for_best_model"] = args.metric_for_best_model
        settings["greater_is_better"] = args.greater_is_better
    runs = sorted({measure.run for measure in results.values() if measure.run})
    lines = [
        "---",
        head.to_yaml(),
        "---",
        "",
        f"# {name}",
        "",
        f"`{started}` after supervised fine-tuning: {model.num_parameters():,} parameters, "
        f"{_dtype(trainer)}.",
        "",
        "## Use",
        "",
        "```python",
        *_example(name, system, template_kwargs or {}),
        "```",
        "",
        "## Data",
        "",
        f"`{source}`: {rows[0]:,} conversations to train on, {rows[1]:,} for validation.",
        "",
        "## Training",
        "",
        kept,
        f"Trained by `{type(trainer).__name__}` of {_versions('trl', 'transformers', 'torch')}, on "
        f"{args.device.type}, with these arguments where they differ from the defaults:",
        "",
        "```yaml",
        *(_yaml_line(key, value) for key, value in settings.items()),
        "```",
        "",
        "## Scores",
        "",
        "| score | value | 95 % interval | n | before training |",
        "|---|---|---|---|---|",
        *(_score_line(what, measure, before.get(what)) for what, measure in results.items()),
        "",
        *(f"Fingerprint of the run or of the weights: `{run}`.\n" for run in runs),
        "## Limits",
        "",
        *(f"- {sentence}" for sentence in limits),
        f"- One run, with seed {args.seed}: another seed gives other weights and other scores.",
        "- The licenses of the starting model and of the data hold for this model too.",
    ]
    return "\n".join(lines) + "\n"


def _example(name: str, system: str | None, template_kwargs: Mapping[str, Any]) -> list[str]:
    """Code that asks the model as it was asked here; the template knows where an answer begins."""
    turns = {"system": system} if system is not None else {}
    turns |= {"user": "..."}
    options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'source = "{name}"  # on the Hub, or the path of this folder',
        "tokenizer = AutoTokenizer.from_pretrained(source)",
        "model = AutoModelForCausalLM.from_pretrained(source)",
        "messages = [",
        *(f'    {{"role": "{role}", "content": {_code(text)}}},' for role, text in turns.items()),
        "]",
        "prompt = tokenizer.apply_chat_template(",
        "    messages,",
        *_filled(options | dict(template_kwargs)),
        ")",
        "answer = model.generate(**prompt, max_new_tokens=256, do_sample=False)",
        'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], '
        "skip_special_tokens=True))",
    ]


def _score_line(what: str, measure: Measure, before: Measure | None) -> str:
    cells = (what, repr(measure), measure.interval or MISSING, measure.n or MISSING,
             _with_interval(before) if before else MISSING)  # fmt: skip
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _with_interval(measure: Measure) -> str:
    interval = f" (95 % interval: {measure.interval})" if measure.interval else ""
    return f"{measure!r}{interval}"


def _shown(source: str) -> str:
    """A name as it is, a path by its last part: where it lay is nobody's business."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() else source


# --- Checks ------------------------------------------------------------------------------------


def _check_trainer(trainer: Any, train_rows: Any, validation_rows: Any) -> None:
    if not trainer.state.global_step:
        raise ValueError("The trainer has made no update. Train first, then take the model away.")
    if not isinstance(_tokenizer(trainer).chat_template, str):
        raise ValueError("The tokenizer has no chat template, or several. Give it one.")
    for what, part, plain in (
        ("the trainer", trainer, type(trainer).__module__.startswith("trl.")),
        ("data_collator", trainer.data_collator, _is_trls(trainer.data_collator)),
        ("compute_loss_func", trainer.compute_loss_func, trainer.compute_loss_func is None),
        ("formatting_func", trainer._formatting_func, trainer._formatting_func is None),
    ):
        if not plain:
            kind = getattr(part, "__qualname__", type(part).__qualname__)
            raise ValueError(
                f"`trl sft` cannot make this run: {what} is your own, {kind}. "
                "Keep the script that defines it."
            )
    for split, rows, trained in (
        ("train", train_rows, trainer.train_dataset),
        ("validation", validation_rows, trainer.eval_dataset),
    ):
        if isinstance(trained, dict):
            raise ValueError(
                f"The trainer has several evaluation sets ({', '.join(trained)}); `trl sft` takes "
                "one. Train with one."
            )
        if (rows is None) != (trained is None) or not _covers(rows, trained, trainer.args):
            raise ValueError(
                f"{split}_rows are not the rows that the trainer was given. Pass the same data "
                "set, in the same order, before tokenizing."
            )


def _is_trls(part: Any) -> bool:
    return type(part).__module__.startswith("trl.")


def _covers(rows: Any, trained: Any, args: Any) -> bool:
    """Whether ``trained`` was made from ``rows``, without those that no loss falls on.

    Rows that TRL has shuffled or packed cannot be recognized.
    """
    if trained is None or args.shuffle_dataset or "messages" not in trained.column_names:
        return True
    given = iter(rows["messages"] if "messages" in rows.column_names else ())
    return all(messages in given for messages in trained["messages"])


def _check_card(
    name: str,
    results: Mapping[str, Measure],
    limits: Sequence[str],
    before: Mapping[str, Measure],
) -> None:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"name {name!r}: give a name for the Hub, 'model' or 'owner/model'.")
    for which, scores in (("results", results), ("before", before)):
        for what, measure in scores.items():
            if not isinstance(measure, Measure):
                raise TypeError(
                    f"{which}[{what!r}] is {measure!r}. Give a Measure, with n and its interval."
                )
            if what not in results:
                raise ValueError(
                    f"before[{what!r}] has no partner in results, which has: {', '.join(results)}. "
                    "Give both the same name."
                )
    if not results or not limits or isinstance(limits, str):
        raise ValueError(
            "A card needs scores and limits: give `results` with one Measure at least, and "
            "`limits` as a list of one sentence at least."
        )


# --- Small parts -------------------------------------------------------------------------------


def _tokenizer(trainer: Any) -> Any:
    return trainer.processing_class


def _turn_end(tokenizer: Any) -> str | None:
    """The token that ends a turn, unless calling it the end token changes how rows are written."""
    turn_end = end_of_turn_id(tokenizer)
    if turn_end is None:
        return None
    if turn_end != tokenizer.eos_token_id and "eos_token" in tokenizer.chat_template:
        return None
    return tokenizer.convert_ids_to_tokens(turn_end)


def _own_metric(args: Any) -> bool:
    """Whether the checkpoint was chosen by something that only a callback computed."""
    return args.metric_for_best_model not in (None, "loss", "eval_loss")


def _notes(trainer: Any) -> list[str]:
    if not _own_metric(trainer.args):
        return []
    return [
        f"The checkpoint was chosen by {trainer.args.metric_for_best_model}, which TRL alone does "
        "not compute:",
        "here the validation loss chooses. The losses are the same, the kept weights need not be.",
    ]


def _start_name(start: str | Path) -> str:
    return "start" if Path(resolve(start)).is_dir() else str(start)


def _copy_model(source: Path, target: Path) -> None:
    """Copy the files of a model; checkpoints and pickles that lie beside them stay."""
    target.mkdir()
    for path in sorted({path for pattern in _MODEL_FILES for path in source.glob(pattern)}):
        shutil.copy(path, target / path.name)


def _dtype(trainer: Any) -> str:
    return str(trainer.model.dtype).removeprefix("torch.")


def _lora_arguments(trainer: Any) -> dict[str, Any]:
    """The settings of an adapter, under the names of TRL's ``ModelConfig``; empty without one."""
    adapters = getattr(trainer.model, "peft_config", None)
    if not adapters:
        return {}
    (adapter,) = adapters.values()
    found = {name: getattr(adapter, of) for name, of in _LORA.items()}
    return {k: sorted(v) if isinstance(v, set) else v for k, v in found.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(
            f"{name}={value!r} is no plain value, so that run.yaml cannot hold it. "
            "Keep the script that makes it."
        ) from error


def _grouped(arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    groups = {
        title: {name: arguments[name] for name in names if name in arguments}
        for title, names in GROUPS.items()
    }
    known = {name for names in GROUPS.values() for name in names}
    groups[_FURTHER] = {name: value for name, value in arguments.items() if name not in known}
    return {title: group for title, group in groups.items() if group}


def _yaml_line(name: str, value: Any) -> str:
    import yaml

    if isinstance(value, list | dict):
        text = yaml.safe_dump(
            value, default_flow_style=True, allow_unicode=True, width=float("inf")
        )
        return f"{name}: {text.strip()}"
    text = yaml.safe_dump({name: value}, allow_unicode=True, width=float("inf"))
    return text.rstrip("\n")


def _filled(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Arguments of a call, as many to a line as fit."""
    line = "   "
    for name, value in arguments.items():
        item = f" {name}={_code(value)},"
        if line.strip() and len(line + item) > _WIDTH:
            yield line
            line = "   "
        line += item
    yield line


def _code(value: Any) -> str:
    """A plain value as Python source, a string in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _versions(*packages: str) -> str:
    from importlib.metadata import version

    return ", ".join(f"{package} {version(package)}" for package in packages)
