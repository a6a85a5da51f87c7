"""The fine-tuning of the walk-through, built the same way wherever a page needs it.

Chapter 06 explains the configuration, chapter 07 builds the trainer in the open, shows this
source and trains; chapters 08 to 13 call `walkthrough_trainer` and take the run from the store.
All arguments are named here, on plain `SFTConfig` and `SFTTrainer`.
"""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .data.checks import check_rows
from .data.duplicates import same_text
from .data.loss_mask import with_markers
from .data.readers import DataError
from .data.rows import load_sft_dataset
from .models import load_model_and_tokenizer
from .profiles import PARTS, SEED, Profile, ProfileError, sft_arguments
from .training import runs

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig, SFTTrainer

#: Keep the last checkpoint: no evaluation while training, and so nothing that is chosen.
NO_CHOICE: dict[str, Any] = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
}
VALIDATION_SHARE = 0.05  # of the rows: training does not see them


def load_part(profile: Profile, part: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a profile that plays a part, in float32, and its tokenizer.

    ``part`` is ``"base"``, ``"reference"``, ``"trainee"`` or ``"control"``. Revision, chat
    template and stop tokens are those of the profile. What loading does stands in
    `models.load_model_and_tokenizer`.

    Raises `ProfileError` if nothing plays the part, and `ModelLoadError`.
    """
    source = getattr(profile.models, part)
    if source is None:
        raise ProfileError(
            f"The profile {profile.name} names no {part}. Write {part} = ... in its table [models]."
        )
    return load_model_and_tokenizer(
        source,
        chat_template=profile.prompt.chat_template,
        chat_template_from=profile.prompt.chat_template_from,
        fallback_chat_template=profile.prompt.fallback_chat_template,
        stop_tokens=profile.prompt.stop_tokens,
        revision=getattr(profile.models, f"{part}_revision", None),
    )


def load_parts(
    profile: Profile, *parts: str
) -> dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """Those of the parts that the profile names, each a model and its tokenizer, by `load_part`.

    ``parts`` are some of `profiles.PARTS`, in the order in which the dict has them; without any,
    all.
    """
    named = [part for part in parts or PARTS if getattr(profile.models, part)]
    return {part: load_part(profile, part) for part in named}


def load_trainee(profile: Profile) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that chapter 07 trains, in float32, and its tokenizer with a chat template."""
    return load_part(profile, "trainee")


def load_rows(profile: Profile) -> tuple[Dataset, Dataset]:
    """The rows to train on and the validation rows, split by a fixed seed.

    Rows that ask a question which the profile holds out are in neither, whatever their case and
    white space. The profile's ``template_kwargs`` stand in each row as ``chat_template_kwargs``,
    where TRL looks for them. Raises `DataError`.
    """
    from .environment import CPU_MODE

    data = profile.data
    rows = data.rows if CPU_MODE else None
    dataset = load_sft_dataset(
        data.source,
        split=data.split,
        rows=None if profile.held_out else rows,
        revision=data.revision,
        columns=data.columns,
    )
    if profile.held_out:
        held = {same_text(question.text) for question in profile.questions}
        kept = [
            number
            for number, messages in enumerate(dataset["messages"])
            if held.isdisjoint(same_text(t["content"]) for t in messages if t["role"] == "user")
        ]
        dataset = dataset.select(kept[:rows])
    if len(dataset) < 2:
        raise DataError(
            f"{data.source!r} leaves {len(dataset)} rows, and two are the least: one to train on "
            "and one for validation. Add rows, or hold out fewer questions."
        )
    kwargs = profile.prompt.template_kwargs
    if kwargs:
        dataset = dataset.add_column("chat_template_kwargs", [kwargs] * len(dataset))
    parts = dataset.train_test_split(test_size=VALIDATION_SHARE, seed=SEED)
    return parts["train"], parts["test"]


def lora_config(profile: Profile) -> LoraConfig | None:
    """The adapter that is trained in place of the model's own weights, or None. Chapter 06."""
    if profile.lora is None:
        return None
    from peft import LoraConfig

    targets = profile.lora.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=profile.lora.r,
        lora_alpha=profile.lora.lora_alpha,
        lora_dropout=profile.lora.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )


def with_lora(profile: Profile, model: PreTrainedModel) -> PreTrainedModel:
    """The model with the profile's adapter in it, or as it is if the profile has none."""
    config = lora_config(profile)
    if config is None:
        return model
    from peft import get_peft_model

    adapted: Any = get_peft_model(model, config)
    return adapted


def make_config(profile: Profile, output_dir: str | None = None, **changes: Any) -> SFTConfig:
    """The configuration of chapter 06, every argument that matters by name.

    The profile's ``[sft.arguments]`` replace or add arguments of `SFTConfig`, and ``changes`` do
    so after them; without either, the lowest validation loss chooses the checkpoint. Checkpoints go
    to ``output_dir``, or to a temporary folder that lives as long as this process. Raises
    `ProfileError` for an argument that `SFTConfig` does not know.
    """
    from trl import SFTConfig

    from .environment import CPU_MODE, arithmetic

    sft = profile.sft
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
        # Where, and in what numbers; the weights are float32 in any case.
        "use_cpu": CPU_MODE,
        "bf16": arithmetic().bf16,
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
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
    }
    arguments |= sft_arguments(profile) | changes
    return SFTConfig(output_dir=output_dir or scratch_folder(), **arguments)


def scratch_folder() -> str:
    """A temporary folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="sft-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def walkthrough_trainer(
    profile: Profile,
    start: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    rows: tuple[Dataset, Dataset] | None = None,
    **changes: Any,
) -> SFTTrainer:
    """The trainer of chapter 07: the profile's trainee, its rows, its configuration.

    ``start`` is what `load_trainee` gave, where a page has it already: a copy of it is trained.
    ``rows`` and ``changes`` of the configuration are for a rehearsal on a few rows.
    """
    from trl import SFTTrainer

    model, tokenizer = copy.deepcopy(start) if start else load_trainee(profile)
    train_rows, validation_rows = rows or load_rows(profile)
    check_rows(train_rows, tokenizer)  # no text may hold a special token
    trainer = SFTTrainer(
        model=model,
        args=make_config(profile, **changes),
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        processing_class=with_markers(tokenizer, train_rows, validation_rows),
        peft_config=lora_config(profile),
    )
    silence(trainer)
    return trainer


def answering_models(
    profile: Profile,
) -> Iterator[tuple[str, PreTrainedModel, PreTrainedTokenizerBase]]:
    """The models that chapter 26 asks, one after another: base, reference, then the one trained.

    Triples of part, model and tokenizer. A profile without a reference gives two. The last is
    that of `walkthrough_trainer`, taken from the store or trained.
    """
    for part in ("base", "reference"):
        if getattr(profile.models, part):
            yield part, *load_part(profile, part)
    trainer: Any = walkthrough_trainer(profile)
    runs.train(trainer)
    yield "trained", trainer.model, trainer.processing_class


def silence(trainer: SFTTrainer) -> None:
    """Keep the trainer from printing its log as a stack of dicts: pages show it as a table."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
