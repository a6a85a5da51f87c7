"""A fine-tuning in small: a few rows, one update, and all that comes after it.

What would stop a build late, at its first checkpoint, at its end or at its export, stops here
before anything is trained; and which setting is to blame is found by leaving out one after another.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from .environment import torch_random_state
from .estimates import trained
from .experiment import silence, walkthrough_trainer, with_lora
from .export.bundle import take_away
from .generation import generate_responses
from .models import end_token_ids
from .profiles import Profile, ProfileError
from .redaction import redact
from .results import Measure
from .training import runs
from .wording import cut, short

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PREFIX = "sft-check-"


class OneUpdate(TrainerCallback):
    """Ends a run after its first update, with all that its settings may do at any."""

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        control.should_log = control.should_training_stop = True
        control.should_evaluate = args.eval_strategy != "no"
        control.should_save = args.save_strategy != "no"


def rehearse(
    profile: Profile,
    start: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    rows: tuple[Dataset, Dataset],
    updates: int,
) -> None:
    """Do with a few rows what the training does with all: train, evaluate, export, ask.

    ``start`` is a model and its tokenizer, which stay as they are; ``rows`` are some to train on
    and some for validation; ``updates`` are those of the whole run, of which one is made. What is
    written goes to a temporary folder, and with it. Raises whatever a build would raise.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations import get_reporting_integration_callbacks

    with tempfile.TemporaryDirectory(prefix=_PREFIX) as place:
        trainer = walkthrough_trainer(
            profile,
            start,
            rows,
            output_dir=f"{place}/out",
            max_steps=updates,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=2,
            disable_tqdm=True,
        )
        silence(trainer)
        for kind in get_reporting_integration_callbacks(trainer.args.report_to):
            trainer.remove_callback(kind)  # it is installed; nothing is sent
        trainer.add_callback(OneUpdate())
        _loss(trainer, "before anything is trained: the weights are damaged.")
        runs.train(trainer, Path(place, "runs"))
        after = _loss(trainer, "after one update: lower learning_rate.")
        folder = take_away(
            trainer,
            Path(place, "taken"),
            name="rehearsal",
            start=profile.models.trainee,
            data=profile.data.source,
            train_rows=rows[0],
            validation_rows=rows[1],
            results={"loss": Measure(after, "nats")},
            limits=["One update was made."],
            system=profile.prompt.system,
            template_kwargs=profile.prompt.template_kwargs,
        )
        exported = AutoModelForCausalLM.from_pretrained(folder / "model")
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        question = profile.questions[0].conversation(profile.prompt.system)
        generate_responses(
            exported,
            tokenizer,
            [question],
            max_new_tokens=1,
            template_kwargs=profile.prompt.template_kwargs,
        )


def _loss(trainer: Any, when: str) -> float:
    loss = trainer.evaluate()["eval_loss"]
    if not math.isfinite(loss):
        raise ValueError(f"the loss is no number {when}")
    return loss


def stand_in(shape: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A Llama of a few weights that knows the same tokens, and ends an answer by the same.

    In it the settings of a training can be tried in a moment, whatever the size of the model.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    embeddings: Any = shape.get_input_embeddings()
    config = LlamaConfig(
        vocab_size=embeddings.weight.shape[0],
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_token_ids(shape, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch_random_state():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    model.generation_config = copy.deepcopy(shape.generation_config)
    return model


def for_stand_in(profile: Profile) -> Profile:
    """The profile with an adapter that fits every model: the modules have other names in one."""
    if profile.lora is None:
        return profile
    return dataclasses.replace(
        profile, lora=dataclasses.replace(profile.lora, target_modules="all-linear")
    )


def adapted(profile: Profile, shape: PreTrainedModel) -> PreTrainedModel:
    """The shape of a model with the profile's adapter in it; the shape given stays as it is.

    Raises ``ValueError`` for an adapter that is larger than the model, and what PEFT raises.
    """
    if profile.lora is None:
        return shape
    found, most = with_lora(profile, copy.deepcopy(shape)), shape.num_parameters()
    if trained(found) > most:
        raise ValueError(
            f"r = {profile.lora.r:,} makes an adapter of {trained(found):,} parameters, for a "
            f"model of {most:,}. Lower r."
        )
    return found


# --- Which setting is to blame -----------------------------------------------------------------


def faults(profile: Profile, trial: Callable[[Profile], Any]) -> tuple[Profile | None, list[str]]:
    """What is wrong with a profile's settings, by ``trial``, which raises where something is.

    One setting after another is left out: the one without which the trial goes on, or stops for
    another reason, is to blame. Returns the profile without them, with which the trial goes to its
    end, and a sentence on each; or None where no single setting is to blame.
    """
    found: list[str] = []
    while (error := _error(profile, trial)) is not None:
        for place, simpler in _without_one(profile):
            other = _error(simpler, trial)
            if other is None or reason_of(other) != reason_of(error):
                found.append(_told(place, error))
                profile = simpler
                break
        else:
            return None, [*found, f"training: {reason_of(error)}"]
    return profile, found


def _error(profile: Profile, trial: Callable[[Profile], Any]) -> Exception | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            trial(profile)
    except Exception as error:
        return error
    return None


def _told(place: str, error: Exception) -> str:
    """A message of the package is whole; one of a library gets its place and a remedy."""
    if isinstance(error, ProfileError):
        return str(error)
    reason = reason_of(error)
    stop = "" if reason.endswith((".", "!", "?")) else "."
    return f"{place}: {reason}{stop} Change it or leave it out."


def reason_of(error: Exception) -> str:
    """What an exception of a library says, in a line, without what differs from try to try."""
    text = re.sub(rf"\S*{_PREFIX}\w+/?", "", " ".join(str(error).split()))
    kind = "" if isinstance(error, ValueError | ImportError) else f"{type(error).__name__}: "
    return cut(kind + re.sub(r"0x[0-9a-f]{6,}", "0x", text), 400)


def _without_one(profile: Profile) -> Iterator[tuple[str, Profile]]:
    """Each setting that can be left out, as a message names it, and the profile without it."""
    sft: Any = profile.sft
    tables: dict[str, Any] = {"sft": profile.sft, "lora": profile.lora}
    for key, value in sft.arguments.items():
        rest = {name: given for name, given in sft.arguments.items() if name != key}
        simpler = dataclasses.replace(sft, arguments=rest)
        yield _named("sft: arguments", key, value), dataclasses.replace(profile, sft=simpler)
    for where, table in tables.items():
        for field in dataclasses.fields(table) if table is not None else ():
            value, usual = getattr(table, field.name), field.default
            if usual is not dataclasses.MISSING and value != usual:
                changed: Any = dataclasses.replace(table, **{field.name: usual})
                yield (
                    _named(where, field.name, value),
                    dataclasses.replace(profile, **{where: changed}),
                )
    if profile.lora is not None:
        yield "lora", dataclasses.replace(profile, lora=None)


def _named(where: str, key: str, value: Any) -> str:
    return f"{where}: {key} = {short(redact(value, key))}"
