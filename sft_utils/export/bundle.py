"""Take a fine-tuning away: what repeats it with TRL alone, and the model with its card.

`take_away` writes one folder that needs nothing of this package::

    run.yaml              for `trl sft --config run.yaml`
    train.py              the same run as a script
    chat_template.jinja   how the conversations were written
    data/                 the rows: train.jsonl, validation.jsonl
    start/                the model that training began from, if it was a folder
    model/                the trained model, and README.md, its card
    adapter/              what was trained, where that was a LoRA adapter; `model` has it merged
    Modelfile             for Ollama, where its language can repeat the chat template

Explained in chapter 07.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.loss_mask import own_template
from ..files import draft_folder
from ..models import end_token_ids, resolve
from ..results import Measure
from ..training.arguments import run_arguments, tokenizer_of
from .model_card import model_card
from .serving import NotRepeatable, modelfile
from .trl_script import write_run

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTTrainer


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
    model: Any = trainer.model
    tokenizer = tokenizer_of(trainer)
    try:
        ollama = modelfile(model, tokenizer, system=system, template_kwargs=template_kwargs)
    except NotRepeatable as error:
        ollama, why_not = None, str(error)
    card = model_card(
        trainer, name=name, start=start, data=data, results=results, limits=limits,
        rows=(len(train_rows), len(validation_rows or ())),
        before=before, system=system, template_kwargs=template_kwargs,
        no_modelfile=None if ollama else why_not,
    )  # fmt: skip
    run_arguments(trainer)  # fails here if it fails

    with draft_folder(folder.parent) as draft:
        whole = draft / "whole"
        write_run(
            trainer, whole, start=start, train_rows=train_rows,
            validation_rows=validation_rows, revision=revision,
        )  # fmt: skip
        save_model(trainer, whole / "model")
        (whole / "model" / "README.md").write_text(card, encoding="utf-8")
        if hasattr(model, "peft_config"):
            save_adapter(model, whole / "adapter", start)
        if ollama:
            (whole / "Modelfile").write_text(ollama, encoding="utf-8")
        os.rename(whole, folder)
    return folder


# --- The model ---------------------------------------------------------------------------------


def save_model(trainer: SFTTrainer, folder: Path) -> None:
    """Write the trained model as plain transformers loads it; the trainer stays as it is.

    Weights are in safetensors, an adapter is merged into them, and the chat template lies beside
    the tokenizer. The generation config names every token that ends an answer, the one of the
    template among them, so that ``generate`` stops there.
    """
    model: Any = trainer.model
    tokenizer = tokenizer_of(trainer)
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    generation = copy.deepcopy(model.generation_config)
    generation.eos_token_id = end_token_ids(model, tokenizer)
    generation.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    generation.save_pretrained(folder)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = own_template(tokenizer.chat_template)  # markers were for training
    tokenizer.save_pretrained(folder)


def save_adapter(model: Any, folder: Path, start: str | Path) -> None:
    """Write a LoRA adapter by itself; ``start`` names the model that it belongs to.

    A start that is a folder lies beside the adapter, as ``start``, where `take_away` copies it.
    """
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card, with nothing filled in
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = "start" if Path(resolve(start)).is_dir() else str(start)
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


# --- Checks ------------------------------------------------------------------------------------


def _check_trainer(trainer: Any, train_rows: Any, validation_rows: Any) -> None:
    if not trainer.state.global_step:
        raise ValueError("The trainer has made no update. Train first, then take the model away.")
    if not isinstance(tokenizer_of(trainer).chat_template, str):
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
