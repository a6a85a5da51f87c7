"""What a profile would do, told before anything is trained: ``check`` of the package.

``python -m sft_utils check mine.toml`` reads the models' configs and the rows, and runs
a few passes of the model that would be trained. It writes nothing; what it must read of a model
or data set on the Hub goes to the Hub's cache, as in a build, but no weights do.
"""

from __future__ import annotations

import argparse
import collections
import math
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.checks import check_rows
from .data.loss_mask import dropped_turns, loss_mask, loss_tokens, with_markers
from .data.readers import DataError
from .data.rows import read_sft_dataset
from .environment import describe_device, quiet
from .estimates import Lengths, answering_step, duration, measured_rate, page_times, work
from .evaluation.questions import SCORERS
from .experiment import load_rows, load_trainee, lora_config, make_config
from .generation import ChatTemplateError, render_prompt
from .hub import ModelLoadError, fetch, load_error
from .models import (
    add_stop_tokens,
    check_end_tokens,
    check_folder,
    check_vocabulary,
    end_token_ids,
    resolve,
    set_template,
)
from .profiles import PARTS, SEED, Profile, ProfileError, load_profile
from .redaction import redact_text
from .training.runs import store_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

LOOKED_AT = 1000  # rows that are tokenized; of more, a sample is drawn by seed
HALF = {"weight_bytes": 4 + 2, "activation_bytes": 2}  # bf16=True over float32 weights
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as safetensors has them
PROBLEMS = (ProfileError, ModelLoadError, DataError, ChatTemplateError)


@dataclass
class Report:
    """The lines that were said, and how many of them are problems."""

    say: Callable[[str], None] = print
    problems: int = 0

    def line(self, name: str, text: str) -> None:
        """Say one thing, and nothing secret. A text of several lines is said under one name."""
        for part in redact_text(text).strip().split("\n"):
            self.say(f"{name:<10} {part.strip()}".rstrip())
            name = ""

    def problem(self, error: object) -> None:
        """Say what stands in the way of a build."""
        self.problems += 1
        self.line("PROBLEM", str(error))


@dataclass(frozen=True)
class Found:
    """A model as far as its files tell, without reading its weights."""

    shape: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    place: str
    template: str
    has_weights: bool


def check_profile(name: str | Path | None = None, say: Callable[[str], None] = print) -> bool:
    """Say what a profile would do, a line each, and return whether it can.

    ``name`` is that of `load_profile`. Nothing is trained and nothing is written.
    """
    report = Report(say)
    try:
        profile = load_profile(name)
    except PROBLEMS as error:
        report.problem(error)
        return False
    report.line("profile", f"{profile.name}, {len(profile.questions)} questions{_drawn(profile)}")
    answered = sum(bool(question.answer) for question in profile.questions)
    scorers = ", ".join(profile.scoring.scorers or SCORERS)
    report.line("scorers", f"{scorers}; {answered} questions have an answer to compare with")
    found = dict(_models(profile, report))
    config = _config(profile, report)
    rows = _rows(profile, report)
    if config and rows and "trainee" in found:
        _training(profile, config, found["trainee"], *rows, report)
    count = f"{report.problems} problem{'s' * (report.problems != 1)}"
    report.line("result", f"{count}: a build would fail" if report.problems else "can be built")
    return not report.problems


def _drawn(profile: Profile) -> str:
    return ", drawn from the data and kept out of training" if profile.held_out else ""


# --- Models ------------------------------------------------------------------------------------


def _models(profile: Profile, report: Report) -> Iterator[tuple[str, Found]]:
    for part in PARTS:
        source = getattr(profile.models, part)
        if source is None:
            report.line(part, "none: what needs one is left out")
            continue
        try:
            found = _find(profile, source, getattr(profile.models, f"{part}_revision", None))
            _render_questions(profile, found.tokenizer)
        except PROBLEMS as error:
            report.problem(f"{part}: {error}")
            continue
        count = f"{found.shape.num_parameters():,} parameters"
        report.line(part, f"{source}: {count}, {found.dtype}, {found.place}; {found.template}")
        yield part, found


def _find(profile: Profile, source: str, revision: str | None) -> Found:
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer

    from .training.memory import shape_only

    resolved, prompt = resolve(source), profile.prompt
    folder, local = Path(resolved), Path(resolved).is_dir()
    if local:
        check_folder(folder, revision)
    else:
        folder = fetch(source, revision, weights=False)
    files = sorted(folder.glob("*.safetensors"))
    try:
        shape = shape_only(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        kinds: collections.Counter[str] = collections.Counter()
        for file in files:
            with safe_open(file, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118, it is no mapping
                    part = weights.get_slice(key)
                    kinds[part.get_dtype()] += math.prod(part.get_shape())
    except Exception as error:
        raise load_error(source, True, True, error) from error
    check_vocabulary(source, shape, tokenizer)
    origin = set_template(
        source,
        tokenizer,
        prompt.chat_template,
        prompt.fallback_chat_template,
        prompt.chat_template_from,
    )
    add_stop_tokens(source, shape, tokenizer, prompt.stop_tokens)
    check_end_tokens(source, shape, tokenizer)
    stored = kinds.most_common(1)[0][0] if kinds else str(shape.config.dtype).removeprefix("torch.")
    if local:
        shipped = not Path(source).expanduser().is_dir()
        place = "shipped with the package" if shipped else "in a folder"
    else:
        place = "in the Hub's cache" if files else "on the Hub, its weights not downloaded yet"
    template = f"chat template of {origin}" if origin else "chat template of its own"
    return Found(shape, tokenizer, DTYPES.get(stored, stored), place, template, bool(files))


def _render_questions(profile: Profile, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise where the model's template cannot write a question as the pages ask it."""
    for question in profile.questions:
        turns = question.conversation(profile.prompt.system)
        render_prompt(tokenizer, turns, template_kwargs=profile.prompt.template_kwargs)


# --- Settings and rows -------------------------------------------------------------------------


def _config(profile: Profile, report: Report) -> SFTConfig | None:
    try:
        return make_config(profile, output_dir="unused")  # only a trainer would make it
    except (ValueError, TypeError) as error:  # a ProfileError is one; SFTConfig raises both
        report.problem(f"settings: {error}")
        return None


def _rows(profile: Profile, report: Report) -> tuple[Dataset, Dataset] | None:
    """The rows of the data set that are used, as they come, and of them those to train on."""
    data = profile.data
    try:
        reading = read_sft_dataset(
            data.source, split=data.split, revision=data.revision, columns=data.columns
        )
        whole = reading.dataset
        training, validation = load_rows(profile)
    except DataError as error:
        report.problem(f"data: refused\n{error}")
        return None
    kept = len(training) + len(validation)
    why = [f"{profile.held_out} questions are held out"] * bool(profile.held_out)
    why += [f"rows = {data.rows} on this machine"] * (data.rows == kept < len(whole))
    left = f", {len(whole) - kept:,} left out ({', '.join(why)})" if why else ""
    report.line("data", f"{data.source}: {len(whole):,} rows{left}, none refused")
    report.line("read as", reading.read_as)
    report.line("not used", reading.not_used)
    report.line("rows", f"{len(training):,} to train on, {len(validation):,} for validation")
    return (whole if profile.held_out else whole.select(range(kept))), training


# --- The training ------------------------------------------------------------------------------


def _training(
    profile: Profile,
    config: SFTConfig,
    found: Found,
    used: Dataset,
    rows: Dataset,
    report: Report,
) -> None:
    """What depends on the trainee: its weights are read if they are here and fit."""
    machine = describe_device()["memory_gib"] * 2**30
    real = found.has_weights and 4 * found.shape.num_parameters() < machine
    try:
        model, tokenizer = load_trainee(profile) if real else (found.shape, found.tokenizer)
        ends = [str(tokenizer.decode([token])) for token in end_token_ids(model, tokenizer)]
        report.line("stops", "an answer ends at " + ", ".join(map(repr, ends)))
        check_rows(used, tokenizer)  # a special token in a text
        _template(profile, tokenizer, used, report)
        lengths = _lengths(model, tokenizer, config, rows, report)
        model = _with_lora(profile, model, report)
    except (*PROBLEMS, ValueError) as error:  # peft raises the last for modules that are not there
        report.problem(error)
        return
    updates, tokens = work(config, lengths)
    report.line(
        "updates",
        f"{updates:,} of {config.train_batch_size * config.gradient_accumulation_steps} rows each, "
        f"in {config.num_train_epochs:g} epochs"
        if config.max_steps < 0
        else f"{updates:,}",
    )
    fits = _memory(config, model, lengths, machine, report)
    seconds, told = _time(config, model, lengths, tokens, measure=real and fits)
    report.line("time", told)
    if real and fits:
        step = answering_step(model, tokenizer, profile)
        times = page_times(profile, training=seconds, updates=updates, step=step)
        pages = ", ".join(f"{page} {duration(most)}" for page, most in times.items())
        report.line(
            "pages",
            f"{pages}, if no answer ends before its limit; loading, and evaluation while it "
            "trains, come on top; the other pages take seconds",
        )
    _disk(config, model, report)


def _template(
    profile: Profile, tokenizer: PreTrainedTokenizerBase, used: Dataset, report: Report
) -> None:
    """Say from what the loss mask is known and what the template drops; every row is tried."""
    kwargs = profile.prompt.template_kwargs
    with_markers(tokenizer, [{**row, "chat_template_kwargs": kwargs} for row in used])
    report.line(
        "mask", f"the assistant's tokens are known from {loss_mask(tokenizer, kwargs).source}"
    )
    for role, rows in dropped_turns(used, tokenizer, kwargs).items():
        report.line(
            "", f"in {rows:,} of {len(used):,} rows, the template drops text of the {role}'s turns"
        )


def _lengths(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: SFTConfig,
    rows: Dataset,
    report: Report,
) -> Lengths:
    """Tokenize rows as the trainer does, and say how long they are and what they teach."""
    numbers = random.Random(SEED).sample(range(len(rows)), min(LOOKED_AT, len(rows)))
    limit = config.max_length or sys.maxsize
    ends = set(end_token_ids(model, tokenizer))
    full: list[int] = []
    kept: list[int] = []
    learned, shown, stops = 0, "", False
    for asked in rows.select(sorted(numbers)):
        row = loss_tokens(tokenizer, asked["messages"], asked.get("chat_template_kwargs"))
        full.append(len(row))
        taught = [t.id for t in row[:limit] if t.carries_loss or not config.assistant_only_loss]
        if taught:
            kept.append(len(row[:limit]))
            learned += len(taught)
            shown = shown or str(tokenizer.decode(taught))
            stops = stops or not ends.isdisjoint(taught)
    if not kept:
        raise DataError(
            f"No row has anything left to learn: the shortest has {min(full):,} tokens, and "
            f"max_length is {config.max_length}. Raise max_length."
        )
    over, dropped = sum(length > limit for length in full), len(full) - len(kept)
    looked = " looked at" if len(full) < len(rows) else ""
    report.line(
        "lengths",
        f"median {statistics.median_high(full):,} tokens, longest {max(full):,}; {over:,} of "
        f"{len(full):,} rows{looked} are over max_length = {config.max_length} and lose their end"
        + (f"; {dropped:,} have nothing left to learn and are dropped" if dropped else ""),
    )
    report.line("loss", f"on {learned:,} of {sum(kept):,} tokens ({learned / sum(kept):.0%})")
    report.line("", f"the first row to teach something teaches {shown[:200]!r}")
    if not stops:
        report.problem(
            "loss: no token that ends an answer carries loss, so the model will not learn to stop. "
            "Let the template write it inside {% generation %}, or raise max_length."
        )
    return Lengths(kept, round(len(rows) * len(kept) / len(full)))


def _with_lora(profile: Profile, model: PreTrainedModel, report: Report) -> PreTrainedModel:
    config = lora_config(profile)
    if config is None:
        return model
    from peft import get_peft_model

    adapted: Any = get_peft_model(model, config)
    trained = _trained(adapted)
    share = 100 * trained / sum(weight.numel() for weight in adapted.parameters())
    report.line("lora", f"{trained:,} parameters are trained, {share:.2g} % of all")
    return adapted


def _trained(model: PreTrainedModel) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _memory(
    config: SFTConfig, model: PreTrainedModel, lengths: Lengths, machine: float, report: Report
) -> bool:
    """Say the estimate of chapter 06; return whether it fits, True where there is none."""
    from .training.memory import estimate_memory

    gpu = config.device.type == "cuda"
    rows, width = config.train_batch_size, max(lengths.tokens)
    try:
        parts = estimate_memory(
            model,
            rows * width,
            activation_checkpointing=bool(config.activation_checkpointing),
            trained=_trained(model),
            gpu=gpu,
            **HALF if config.bf16 else {},
        )
    except AttributeError as error:
        report.line("memory", f"no estimate for {type(model).__name__}: {error}")
        return True
    needed = sum(parts.values())
    report.line(
        "memory",
        f"about {_size(needed)}, estimated for {rows} rows of {width:,} tokens; this "
        f"machine has {_size(machine)}",
    )
    if needed > machine:
        report.problem(
            "memory: more than this machine has. Lower per_device_train_batch_size (and raise "
            "gradient_accumulation_steps), set activation_checkpointing, or add [lora]."
        )
    return needed <= machine


def _time(
    config: SFTConfig, model: PreTrainedModel, lengths: Lengths, tokens: float, *, measure: bool
) -> tuple[float, str]:
    """The seconds of the training, and a line about them."""
    if measure:
        rate = measured_rate(config, model, lengths)
        how = f"{rate:,.0f} tokens a second, measured in passes of the trainee on this machine"
    else:
        rate = _product_rate(config) / (6 * sum(weight.numel() for weight in model.parameters()))
        how = (
            f"{rate:,.0f} tokens a second: 6 operations a parameter and token, at the rate of a "
            "matrix product measured on this machine, so at least that long"
        )
    seconds = tokens / rate
    return seconds, (
        f"about {duration(seconds)} for {tokens:,.0f} tokens, {how}; evaluation comes on top"
    )


def _product_rate(config: SFTConfig, size: int = 1024) -> float:
    """Operations a second of a product of two square matrices."""
    import torch

    matrix = torch.ones(size, size, device=config.device)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        taken.append(time.perf_counter() - start)
    return 2 * size**3 / min(taken)


def _disk(config: SFTConfig, model: PreTrainedModel, report: Report) -> None:
    """Say what is written while training, and what is kept of a run in float32."""
    size = 4 * sum(weight.numel() for weight in model.parameters())
    saved = 3 * 4 * _trained(model)  # Adam's two averages beside the weights
    count = 2 + bool(config.load_best_model_at_end)  # the newest, the best, and one under way
    count = 0 if config.save_strategy == "no" else count
    store = store_folder()
    free = shutil.disk_usage(next(p for p in (store, *store.parents) if p.exists())).free
    report.line(
        "disk",
        f"{_size(count * saved)} for {count} checkpoints while it trains, {_size(size)} for the "
        f"kept run; {_size(free)} are free",
    )
    if count * saved + size > free:
        report.problem("disk: more than is free. Make room, or set SFT_RUNS to a larger disk.")


def _size(count: float) -> str:
    power = min(3, int(math.log(max(1, count), 1000)))
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"


def main(arguments: list[str] | None = None) -> int:
    """``check mine.toml``: 0 if the profile can be built, 1 if something stands in the way."""
    parser = argparse.ArgumentParser(prog="python -m sft_utils")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="say what a build would do, without training")
    check.add_argument("profile", nargs="?", help="a name or a TOML file; else SFT_PROFILE decides")
    options = parser.parse_args(arguments)
    quiet()
    return 0 if check_profile(options.profile) else 1
