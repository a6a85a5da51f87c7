"""Profiles: which model plays which part, on which data, with which settings.

``SFT_PROFILE`` names the profile of a build: ``atlas`` (the default) and ``hub`` are shipped in
``profile_files``; the path of a TOML file makes the pages a report of your own fine-tuning.
``python -m sft_utils.profiles check mine.toml`` says what it would do. Explained in chapter 01.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import os
import random
import tomllib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .redaction import is_secret, redact

PROFILE_FILES = Path(__file__).parent / "profile_files"
SEED = 0  # draws held-out questions and validation rows, and is that of the training
PARTS = ("base", "reference", "trainee", "control")


class ProfileError(ValueError):
    """A profile is unknown or badly written. The message says what is, and what would do."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """Names of the models, as `sft_utils.load_model_and_tokenizer` takes them.

    A revision is a branch, tag or commit of a model on the Hub.
    """

    base: str
    reference: str | None = None
    trainee: str
    control: str | None = None
    base_revision: str | None = None
    reference_revision: str | None = None
    trainee_revision: str | None = None


@dataclass(frozen=True)
class Data:
    """The data set, as `sft_utils.load_sft_dataset` takes it; ``rows`` counts on a CPU only."""

    source: str
    split: str = "train"
    revision: str | None = None
    rows: int | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """How a conversation is written, and what ends an answer.

    ``chat_template`` (a file) and ``chat_template_from`` (a model that has one) are for models
    that have none. ``stop_tokens`` end an answer besides those of `sft_utils.end_token_ids`.
    """

    system: str | None = None
    chat_template: str | None = None
    chat_template_from: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    stop_tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerationSettings:
    """How long an answer may get, in tokens."""

    max_new_tokens: int = 64


@dataclass(frozen=True)
class SFT:
    """Arguments for `trl.SFTConfig`, under the names that it gives them; the rest in a table."""

    learning_rate: float
    num_train_epochs: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int = 1
    logging_steps: int = 10
    max_length: int | None = 1024
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0.0
    activation_checkpointing: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lora:
    """Arguments for `peft.LoraConfig`, under the names that it gives them."""

    r: int
    lora_alpha: int
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class Scoring:
    """Scorers of the questions that have an answer: `sft_utils.scorers.SCORERS`, or some of it."""

    scorers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question asked before and after; ``answer`` is the right value where there is one."""

    text: str
    answer: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class HeldOut:
    """``[questions]`` in place of a list: so many are drawn from the data and not trained on."""

    held_out: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A profile, table by table as its TOML file has it; `load_profile` makes one.

    ``questions`` are the questions themselves, wherever they came from. ``held_out`` of them
    were drawn from the data set: none, or all.
    """

    name: str
    models: Models
    data: Data
    prompt: Prompt = field(default_factory=Prompt)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    sft: SFT
    lora: Lora | None = None
    scoring: Scoring = field(default_factory=Scoring)
    questions: tuple[Question, ...]
    held_out: int = field(default=0, metadata={"computed": True})  # no key of the file


def load_profile(name: str | Path | None = None) -> Profile:
    """Read a profile: a shipped one by name, or a TOML file by path.

    Without ``name``, the environment variable ``SFT_PROFILE`` decides, then ``"atlas"``. A
    relative path is looked for in the working directory and in those above it; files and folders
    that the profile names are looked for beside it first. With ``[questions] held_out`` the data
    set is read as well. Explained in chapter 01.

    Raises `ProfileError`, and `sft_utils.DataError` for data that questions cannot be drawn from.
    """
    name = str(name or os.environ.get("SFT_PROFILE") or "atlas")
    path = _find(name)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"The profile {path.name} is not valid TOML: {error}.") from error
    held_out = 0
    if isinstance(tables.get("questions"), dict):
        where = f"{path.name}: questions"
        held_out = _build(HeldOut, tables["questions"], where).held_out
        tables["questions"] = []
        if held_out < 1:
            raise ProfileError(f"{where}: held_out is {held_out}. Hold out one row at least.")
    elif isinstance(tables.get("questions"), str):
        tables["questions"] = _read_questions(path, tables["questions"])
    # A file's name need be no text: what cannot be written is replaced, for pages print the name.
    stem = path.stem.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    profile: Profile = _build(Profile, {"name": stem, **tables}, path.name)
    _check(profile, path, held_out)
    profile = _with_paths(profile, path)
    if not held_out:
        return profile
    questions = _draw_questions(profile.data, held_out, path.name)
    return dataclasses.replace(profile, questions=questions, held_out=held_out)


def sft_arguments(profile: Profile) -> dict[str, Any]:
    """The table ``[sft.arguments]``, each name and type checked against `trl.SFTConfig`.

    Without evaluation, ``eval_strategy = "no"``, none is made before the first update either, and
    no best checkpoint is loaded at the end.

    Raises `ProfileError`. Explained in chapter 06.
    """
    if not profile.sft.arguments:
        return {}
    from trl import SFTConfig

    where = f"{profile.name}.toml: sft: arguments"
    given = _build_values(SFTConfig, profile.sft.arguments, where)
    if given.get("eval_strategy") == "no":  # then there is nothing to choose a checkpoint by
        return {"eval_on_start": False, "load_best_model_at_end": False, **given}
    return given


def _find(name: str) -> Path:
    shipped = PROFILE_FILES / f"{name}.toml"
    if shipped.is_file() and shipped.parent == PROFILE_FILES:
        return shipped
    if name.endswith(".toml"):
        for folder in (Path.cwd(), *Path.cwd().parents):
            path = folder / Path(name).expanduser()
            if path.is_file():
                return path
    known = ", ".join(sorted(path.stem for path in PROFILE_FILES.glob("*.toml")))
    raise ProfileError(
        f"There is no profile {name!r}. Known ones: {known}. To write one, copy "
        f"sft_utils/profile_files/atlas.toml, change it, and set SFT_PROFILE to the path of your "
        "file, which must end in .toml."
    )


def _check(profile: Profile, path: Path, held_out: int) -> None:
    """What no type can tell."""
    from sft_utils.data import COLUMNS
    from sft_utils.scorers import SCORERS

    models, data, prompt, sft = profile.models, profile.data, profile.prompt, profile.sft
    if not (profile.questions or held_out):
        raise ProfileError(f"{path.name}: `questions` is empty. Write one [[questions]] at least.")
    _check_names(data.columns, COLUMNS, f"{path.name}: data: columns")
    _check_names(profile.scoring.scorers, SCORERS, f"{path.name}: scoring: scorers")
    if prompt.chat_template and prompt.chat_template_from:
        raise ProfileError(
            f"{path.name}: prompt: chat_template and chat_template_from are both set. Keep one."
        )
    if models.reference_revision and not models.reference:
        raise ProfileError(
            f"{path.name}: models: reference_revision is set and reference is not. Name the model."
        )
    named = {f.name for f in dataclasses.fields(SFT)}
    for key in sft.arguments:
        if key in named:
            raise ProfileError(f"{path.name}: sft: arguments: write {key} in [sft] itself.")
        if key == "output_dir":
            raise ProfileError(
                f"{path.name}: sft: arguments: output_dir is chosen by the pages. Leave it out."
            )


def _with_paths(profile: Profile, path: Path) -> Profile:
    """What lies beside the profile goes by its full path; other names stay as they are."""
    from sft_utils.models import TEMPLATES

    def full(name: str | None) -> Any:
        beside = path.parent / Path(name or "").expanduser()
        return str(beside) if name and beside.exists() else name

    template = full(profile.prompt.chat_template)
    if template and not (Path(template).is_file() or (TEMPLATES / template).is_file()):
        raise ProfileError(
            f"{path.name}: there is no chat template {template!r}, neither beside the profile nor "
            f"in sft_utils/templates."
        )
    names = {part: full(getattr(profile.models, part)) for part in PARTS}
    return dataclasses.replace(
        profile,
        models=dataclasses.replace(profile.models, **names),
        data=dataclasses.replace(profile.data, source=full(profile.data.source)),
        prompt=dataclasses.replace(
            profile.prompt,
            chat_template=template,
            chat_template_from=full(profile.prompt.chat_template_from),
        ),
    )


# --- Questions ---------------------------------------------------------------------------------


def _read_questions(profile: Path, name: str) -> list[dict[str, Any]]:
    """The tables of a JSONL or CSV file, each checked here, where its line is known."""
    from sft_utils.sources import DataError, read_rows

    path = next(
        (p for p in (profile.parent / Path(name).expanduser(), Path(name)) if p.is_file()), None
    )
    if path is None:
        raise ProfileError(
            f"{profile.name}: questions: there is no file {name!r} beside the profile. Give the "
            "path of a .jsonl or .csv file, or write [[questions]] tables."
        )
    try:
        table = read_rows(path)
    except DataError as error:
        raise ProfileError(f"{profile.name}: questions: {error}") from error
    found = []
    for number, row in enumerate(table.rows):
        given = {k: v for k, v in row.items() if v} if isinstance(row, dict) else row
        _build(Question, given, f"{profile.name}: questions: {table.place(number)}")
        found.append(given)
    return found


def _draw_questions(data: Data, count: int, where: str) -> tuple[Question, ...]:
    """Different questions of the whole data set, drawn by seed."""
    from sft_utils.data import load_sft_dataset

    dataset = load_sft_dataset(
        data.source, split=data.split, revision=data.revision, columns=data.columns
    )
    asked: dict[str, Question] = {}
    for messages in dataset["messages"]:
        question = _first_question(messages)
        if question:
            asked.setdefault(question.text, question)
    if count >= len(asked):
        raise ProfileError(
            f"{where}: questions: held_out is {count}, and the data set has {len(asked)} different "
            "questions. Hold out fewer: what is held out is not trained on."
        )
    return tuple(random.Random(SEED).sample(list(asked.values()), count))


def _first_question(messages: Sequence[Mapping[str, Any]]) -> Question | None:
    """The first user turn with the system message before it and the answer to it."""
    system = None
    for turn, following in itertools.pairwise(messages):
        if turn["role"] == "system":
            system = turn["content"]
        if turn["role"] == "user":
            answered = following["role"] == "assistant"
            return Question(turn["content"], following["content"], system) if answered else None
    return None


# --- From TOML to dataclasses ------------------------------------------------------------------


def _build(kind: Any, value: Any, where: str) -> Any:
    """Turn a value from TOML into ``kind``, a field's type or a dataclass, or raise."""
    if kind is Any:
        return value
    origin, options = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        *others, last = [option for option in options if option is not types.NoneType]
        for option in others:
            with contextlib.suppress(ProfileError):
                return _build(option, value, where)
        return _build(last, value, where)
    if dataclasses.is_dataclass(kind):
        return _build_table(kind, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list):
            what = "tables" if dataclasses.is_dataclass(options[0]) else "values"
            raise ProfileError(f"{where} must be a list of {what}, not {_quoted(value, where)}.")
        return tuple(_build(options[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is float and type(value) is int:
        return float(value)
    if type(value) is not origin:
        name = getattr(origin, "__name__", str(origin))
        raise ProfileError(f"{where} must be of type {name}, not {_quoted(value, where)}.")
    if origin is dict and options:
        return {key: _build(options[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is list and options:
        return [_build(options[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def _build_table(kind: type, table: Any, where: str) -> Any:
    values = _build_values(kind, table, where)
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in table
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ProfileError(f"{where}: {', '.join(missing)} is missing.")
    return kind(**values)


def _build_values(kind: type, table: Any, where: str) -> dict[str, Any]:
    """The values of a table, each of the type that the dataclass ``kind`` gives its name."""
    if not isinstance(table, dict):
        raise ProfileError(f"{where} must be a table, not {_quoted(table, where)}.")
    fields = [f.name for f in dataclasses.fields(kind) if not f.metadata.get("computed")]
    _check_names(table, fields, where)
    hints = typing.get_type_hints(kind)
    return {name: _build(hints[name], value, f"{where}: {name}") for name, value in table.items()}


def _quoted(value: Any, where: str) -> str:
    """A wrong value as a message shows it: nothing of a secret, of which the type is enough."""
    name = where.rpartition(": ")[2].partition("[")[0]
    return f"of type {type(value).__name__}" if is_secret(name) else repr(redact(value))


def _check_names(given: Collection[str], known: Collection[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            listed = f" Known: {', '.join(known)}." if len(known) < 20 else ""
            raise ProfileError(f"{where}: unknown {name}.{hint}{listed}")


if __name__ == "__main__":
    from sft_utils.profile_check import main

    raise SystemExit(main())
