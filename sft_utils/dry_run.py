"""What a profile would do, told before anything is trained: ``check`` of the package.

``python -m sft_utils check mine.toml`` reads the models' configs and the rows, and rehearses the
training in small (`rehearsal`). It leaves nothing behind; what it must read of a model or data set
on the Hub goes to the Hub's cache, as in a build, but no weights do.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import gguf_models
from .data.checks import check_rows
from .data.loss_mask import dropped_turns, loss_mask, with_markers
from .data.readers import DataError
from .data.rows import read_sft_dataset
from .environment import describe_device, quiet
from .estimates import (
    LOOKED_AT,
    Lengths,
    Looked,
    answering_step,
    disk_needs,
    duration,
    look,
    measured_rate,
    memory_needs,
    page_times,
    product_rate,
    size,
    trained,
    work,
)
from .evaluation.held_out import held_out_answers
from .evaluation.questions import SCORERS
from .evaluation.statistics import draw
from .experiment import load_rows, load_trainee, make_config, with_lora
from .generation import render_prompt
from .hub import explained, fetch
from .models import (
    add_stop_tokens,
    check_end_tokens,
    check_fit,
    check_vocabulary,
    context_of,
    end_token_ids,
    resolve,
    set_template,
    settle_sampling,
)
from .profiles import PARTS, PROFILE_FILES, Profile, ProfileError, find_profile, load_profile
from .report import Report
from .saved_models import check_files, check_folder, check_numbers, stored_weights
from .wording import short

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

    Speaker = tuple[PreTrainedModel, PreTrainedTokenizerBase]

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as safetensors has them


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

    ``name`` is that of `load_profile`. Nothing is trained but on a few rows, once, and nothing
    that is written stays.
    """
    report = Report(say)
    with report.attempt():
        _check(name, report)
    count = f"{report.problems} problem{'s' * (report.problems != 1)}"
    report.line("result", f"{count}: a build would fail" if report.problems else "can be built")
    return not report.problems


def _check(name: str | Path | None, report: Report) -> None:
    from .rehearsal import faults

    path = find_profile(name)
    report.folder = path.parent
    profile = load_profile(name)
    drawn = ", drawn from the data and kept out of training" if profile.held_out else ""
    whose = "shipped with the package" if path.parent == PROFILE_FILES else f"the file {path}"
    report.line("profile", f"{profile.name}, {len(profile.questions)} questions{drawn}; {whose}")
    answered = sum(bool(question.answer) for question in profile.questions)
    scorers = ", ".join(profile.scoring.scorers or SCORERS)
    report.line("scorers", f"{scorers}; {answered} questions have an answer to compare with")
    found = dict(_models(profile, report))
    sound, problems = faults(profile, lambda p: make_config(p, output_dir="unused"))
    for problem in problems:
        report.problem(problem)
    rows = _rows(profile, report)
    if sound and rows and "trainee" in found:
        # What is deprecated is no problem, and what is one was told of the models.
        with report.attempt(), warnings.catch_warnings(action="ignore"):
            _training(sound, found, *rows, report)


# --- Models ------------------------------------------------------------------------------------


def _models(profile: Profile, report: Report) -> Iterator[tuple[str, Found]]:
    for part in PARTS:
        source = getattr(profile.models, part)
        if source is None:
            report.line(part, "none: what needs one is left out")
            continue
        with report.attempt(part):
            found = _find(profile, source, getattr(profile.models, f"{part}_revision", None))
            _ask(profile, found)
            count = f"{found.shape.num_parameters():,} parameters"
            report.line(part, f"{source}: {count}, {found.dtype}, {found.place}; {found.template}")
            yield part, found


def _find(profile: Profile, source: str, revision: str | None) -> Found:
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from .training.memory import shape_only

    resolved, prompt = resolve(source), profile.prompt
    folder, local = Path(resolved), Path(resolved).is_dir()
    if local:
        check_folder(folder, revision)
    else:
        folder = fetch(source, revision, weights=False)
        check_files(folder)
    files = sorted(folder.glob("*.safetensors"))
    with explained(source):
        shape = shape_only(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        if (folder / "generation_config.json").is_file():
            shape.generation_config = GenerationConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        kinds: collections.Counter[str] = collections.Counter()
        for file in files:
            with safe_open(file, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118, it is no mapping
                    part = weights.get_slice(key)
                    kinds[part.get_dtype()] += math.prod(part.get_shape())
    if local:  # what the Hub's cache has of weights need not be whole yet
        check_fit(source, folder)
    check_numbers(source, stored_weights(files))
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
    settle_sampling(shape.generation_config)
    stored = kinds.most_common(1)[0][0] if kinds else str(shape.config.dtype).removeprefix("torch.")
    if gguf_models.find(source):
        place = "from a GGUF file"
    elif local:
        shipped = not Path(source).expanduser().is_dir()
        place = "shipped with the package" if shipped else "in a folder"
    else:
        place = "in the Hub's cache" if files else "on the Hub, its weights not downloaded yet"
    template = f"chat template of {origin}" if origin else "chat template of its own"
    return Found(shape, tokenizer, DTYPES.get(stored, stored), place, template, bool(files))


def _ask(profile: Profile, found: Found) -> None:
    """Raise where the model's template cannot write a question, or the model not read it."""
    limit, room = profile.generation.max_new_tokens, context_of(found.shape)
    for question in draw(profile.questions, LOOKED_AT):
        turns = question.conversation(profile.prompt.system)
        prompt = render_prompt(
            found.tokenizer, turns, template_kwargs=profile.prompt.template_kwargs
        )
        count = len(found.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if count + limit > room:
            raise ProfileError(
                f"the question {short(question.text)} is a prompt of {count:,} tokens; with "
                f"max_new_tokens = {limit:,} that is more than the model's context of {room:,}. "
                "Shorten the question, or lower max_new_tokens in [generation]."
            )


# --- Rows --------------------------------------------------------------------------------------


def _rows(profile: Profile, report: Report) -> tuple[Dataset, Dataset, Dataset] | None:
    """The rows that are used, as they come, and of them those for training and validation."""
    data = profile.data
    try:
        reading = read_sft_dataset(
            data.source, split=data.split, revision=data.revision, columns=data.columns
        )
        whole = reading.dataset
        training, validation = load_rows(profile)
    except Exception as error:
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
    return (whole if profile.held_out else whole.select(range(kept))), training, validation


def _lengths(
    found: Found, config: SFTConfig, training: Dataset, validation: Dataset, report: Report
) -> tuple[Looked, Looked]:
    """Say how long rows are and what they teach. Raises `DataError` where nothing is left."""
    ends, limit = set(end_token_ids(found.shape, found.tokenizer)), config.max_length
    looked = [look(found.tokenizer, ends, config, rows) for rows in (training, validation)]
    for what, part in zip(("", "validation "), looked, strict=True):
        if not part.kept:
            raise DataError(
                f"No {what}row has anything left to learn: the shortest has {min(part.full):,} "
                f"tokens, and max_length is {limit}. Raise max_length."
            )
        room = context_of(found.shape)
        long = sum(length > room for length in part.kept.values())
        if long:
            report.problem(
                f"data: {long:,} of {len(part.full):,} {what}rows have more tokens than the "
                f"model's context of {room:,}, the longest {max(part.full):,}. Set "
                f"max_length = {room} in [sft], where they lose their end, or shorten them."
            )
    learn, judge = looked
    over, dropped = sum(n > (limit or sys.maxsize) for n in learn.full), _dropped(learn)
    sampled = " looked at" if len(learn.full) < len(training) else ""
    report.line(
        "lengths",
        f"median {statistics.median_high(learn.full):,} tokens, longest {max(learn.full):,}; "
        f"{over:,} of {len(learn.full):,} rows{sampled} are over max_length = {limit} and lose "
        "their end" + (f"; {dropped:,} have nothing left to learn and are dropped" * bool(dropped)),
    )
    if _dropped(judge):
        report.line("", f"{_dropped(judge):,} of {len(judge.full):,} validation rows as well")
    total = sum(learn.kept.values())
    report.line("loss", f"on {learn.learned:,} of {total:,} tokens ({learn.learned / total:.0%})")
    report.line("", f"the first row to teach something teaches {learn.shown[:200]!r}")
    if not learn.stops:
        report.problem(
            "loss: no token that ends an answer carries loss, so the model will not learn to stop. "
            "Let the template write it inside {% generation %}, or raise max_length."
        )
    return learn, judge


def _dropped(looked: Looked) -> int:
    return len(looked.full) - len(looked.kept)


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


def _held_out(
    profile: Profile, found: dict[str, Found], validation: Dataset, report: Report
) -> None:
    """Draw the answers that chapters 04 and 08 score, and say what they leave out."""
    pages = {"04": ("base", "reference"), "08": ("trainee", "reference")}
    for page, parts in pages.items():
        if page == "04" and profile.models.reference is None:
            continue
        said = io.StringIO()
        with report.attempt(f"held-out answers of chapter {page}"):
            speakers = [(found[p].shape, found[p].tokenizer) for p in parts if p in found]
            with contextlib.redirect_stdout(said):
                held_out_answers(profile, validation, *speakers)
        if said.getvalue():
            report.line("held out", f"chapter {page}: {said.getvalue()}")


# --- The training ------------------------------------------------------------------------------


def _training(
    profile: Profile,
    parts: dict[str, Found],
    used: Dataset,
    training: Dataset,
    validation: Dataset,
    report: Report,
) -> None:
    """What depends on the trainee: its weights are read if they are here and fit."""
    from .rehearsal import adapted, faults

    found, config = parts["trainee"], make_config(profile, output_dir="unused")
    ends = [str(found.tokenizer.decode([t])) for t in end_token_ids(found.shape, found.tokenizer)]
    report.line("stops", "an answer ends at " + ", ".join(map(repr, ends)))
    check_rows(used, found.tokenizer)  # a special token in a text
    _template(profile, found.tokenizer, used, report)
    learn, judge = _lengths(found, config, training, validation, report)
    _held_out(profile, parts, validation, report)
    sound, problems = faults(profile, lambda p: adapted(p, found.shape))
    for problem in problems:
        report.problem(problem)
    if sound is None or problems:
        return
    shape = adapted(profile, found.shape)
    if profile.lora is not None:
        share = 100 * trained(shape) / sum(weight.numel() for weight in shape.parameters())
        report.line("lora", f"{trained(shape):,} parameters are trained, {share:.2g} % of all")
    share = len(training) / len(learn.full)
    lengths = Lengths(list(learn.kept.values()), round(share * len(learn.kept)))
    updates, tokens = work(config, lengths)
    report.line(
        "updates",
        f"{updates:,} of {config.train_batch_size * config.gradient_accumulation_steps} rows each, "
        f"in {config.num_train_epochs:g} epochs"
        if config.max_steps < 0
        else f"{updates:,}",
    )
    machine = describe_device()["memory_gib"] * 2**30
    needed, told = memory_needs(config, shape, lengths)
    report.line("memory", f"{told}; this machine has {size(machine)}")
    if needed > machine:
        report.problem(
            "memory: more than this machine has. Lower per_device_train_batch_size (and raise "
            "gradient_accumulation_steps), set activation_checkpointing, or add [lora]."
        )
    here = found.has_weights and max(needed, 4 * found.shape.num_parameters()) < machine
    start = load_trainee(profile) if here else None
    few = (_few(training, learn), _few(validation, judge))
    _rehearse(profile, found, start, few, updates, report)
    _needs(profile, config, shape, start, (lengths, updates, tokens), report)


def _few(rows: Dataset, looked: Looked, most: int = 4) -> Dataset:
    """The shortest rows that have something to learn."""
    return rows.select(sorted(looked.kept, key=lambda number: looked.kept[number])[:most])


def _rehearse(
    profile: Profile,
    found: Found,
    start: Speaker | None,
    rows: tuple[Dataset, Dataset],
    updates: int,
    report: Report,
) -> None:
    """First with a tiny model, where the setting to blame is soon found, then with the trainee."""
    from .rehearsal import faults, for_stand_in, rehearse, stand_in

    tokenizer = start[1] if start else found.tokenizer
    small = stand_in(found.shape, tokenizer), tokenizer
    _, problems = faults(for_stand_in(profile), lambda p: rehearse(p, small, rows, updates))
    for problem in problems:
        report.problem(problem)
    if problems:
        return
    if start:
        with report.attempt("trainee: one update on a few rows"):
            rehearse(profile, start, rows, updates)
    whom = "the trainee" if start else "a tiny model in place of the trainee"
    report.line("rehearsal", f"one update of {whom}, an evaluation, a checkpoint and the export")


def _needs(
    profile: Profile,
    config: SFTConfig,
    shape: PreTrainedModel,
    start: Speaker | None,
    plan: tuple[Lengths, int, float],
    report: Report,
) -> None:
    """Say what the training takes: time, page by page where it was measured, and disk."""
    lengths, updates, tokens = plan
    if start is None:
        rate = product_rate(config) / (6 * sum(weight.numel() for weight in shape.parameters()))
        how = (
            "6 operations a parameter and token, at the rate of a matrix product measured on this "
            "machine, so at least that long"
        )
    else:
        step = answering_step(*start, profile)
        rate = measured_rate(config, with_lora(profile, start[0]), lengths)
        how = "measured in passes of the trainee on this machine"
    seconds = tokens / rate
    report.line(
        "time",
        f"about {duration(seconds)} for {tokens:,.0f} tokens, {rate:,.0f} tokens a second: {how}; "
        "evaluation comes on top",
    )
    if start is not None:
        times = page_times(profile, training=seconds, updates=updates, step=step)
        pages = ", ".join(f"{page} {duration(most)}" for page, most in times.items())
        report.line(
            "pages",
            f"{pages}, if no answer ends before its limit; loading, and evaluation while it "
            "trains, come on top; the other pages take seconds",
        )
    for place, needed, free, told, remedy in disk_needs(config, shape, seconds):
        report.line("disk", f"{told}; {size(free)} are free in {place}")
        if needed > free:
            report.problem(f"disk: {size(needed)} in {place} are more than is free. {remedy}")


def main(arguments: list[str] | None = None) -> int:
    """``check mine.toml``: 0 if the profile can be built, 1 if something stands in the way."""
    parser = argparse.ArgumentParser(prog="python -m sft_utils")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="say what a build would do, without training")
    check.add_argument("profile", nargs="?", help="a name or a TOML file; else SFT_PROFILE decides")
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal need not know every character
        sys.stdout.reconfigure(errors="backslashreplace")
    quiet()
    return 0 if check_profile(options.profile) else 1
