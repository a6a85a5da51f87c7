"""Profiles: which model plays which part, on which data, with which settings.

``SFT_PROFILE`` names the profile of a build: ``atlas`` (the default) and ``hub`` are shipped in
``profile_files``; the path of a TOML file makes the pages a report of your own fine-tuning.
``python -m sft_utils check mine.toml`` says what it would do. Explained in chapter 01.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
import os
import random
import runpy
import sys
import tomllib
import typing
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, StrictBool, TypeAdapter, ValidationError

from .data.readers import DataError, read_rows
from .redaction import is_secret, redact
from .wording import short

PROFILE_FILES = Path(__file__).parent / "profile_files"
SEED = 0  # draws held-out questions and validation rows, and is that of the training
PARTS = ("base", "reference", "trainee", "control")
BOOKS_OWN = "atlas"  # the profile whose models and data the package ships
#: Whether more of a metric is better, by the last word of its name.
METRICS = {"loss": False, "perplexity": False, "accuracy": True, "exact": True, "f1": True}
#: Arguments of `trl.SFTConfig` that a profile cannot set, and why.
REFUSED = {
    "output_dir": "output_dir is chosen by the pages. Leave it out.",
    "resume_from_checkpoint": "resume_from_checkpoint is chosen by the store of runs. Leave it "
    "out: a run that was stopped goes on by itself.",
    "push_to_hub": "push_to_hub is true, and a build sends nothing anywhere. Leave it out, and "
    "upload the folder that chapter 07 exports: hf upload NAME FOLDER.",
    "gradient_checkpointing": "write activation_checkpointing in [sft] itself.",  # its new name
}
_SEED = (0, 2**32 - 1, "from 0 to 4294967295")
_COUNT = (1, 2**31 - 1, "from 1 to 2147483647")
_STEPS = (sys.float_info.min, 2**31 - 1, "above 0, at most 2147483647")
_SIZE = (0, sys.float_info.max, "0 or more")
#: What numbers they may be, from and to, where TRL does not say it or says it in a traceback.
RANGES = {
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    **dict.fromkeys(("max_steps", "per_device_eval_batch_size", "save_total_limit"), _COUNT),
    **dict.fromkeys(("eval_steps", "save_steps"), _STEPS),
    **dict.fromkeys(("max_grad_norm", "weight_decay", "eval_delay"), _SIZE),
}
_FINITE = (-sys.float_info.max, sys.float_info.max, "a finite number")


def _beside(name: str, info: Any) -> str:
    """The full path of what lies in the profile's folder, ``info.context``; others as they are."""
    path = Path(info.context, os.path.expanduser(name))
    return str(path) if name and os.path.exists(path) else name


def _template(name: str) -> str:
    """The name of a template that is there."""
    from .models import TEMPLATES

    if name and not (os.path.isfile(name) or os.path.isfile(TEMPLATES / name)):
        raise ValueError(f"no chat template {name!r} beside the profile or in sft_utils/templates.")
    return name


def _some(text: str) -> str:
    """A text that has something in it."""
    if not text.strip():
        raise ValueError(f"{text!r} asks nothing. Fill it or drop the question.")
    return text


def _variables(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Variables of a chat template, none of which is an argument of what renders it."""
    from transformers import PreTrainedTokenizerBase

    taken = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters}
    for name in kwargs:
        if name in {*taken, "messages"} - {"documents"}:
            raise ValueError(
                f"{name} is no variable of a template: it is set where a template is used. Leave "
                "it out."
            )
    return kwargs


# A model, a data set or a file.
Name = Annotated[str, AfterValidator(_beside)]
# `strict`: neither "8" nor true is a number.
Count = Annotated[int, Field(strict=True, gt=0, lt=2**31)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1)]


class ProfileError(ValueError):
    """A profile is unknown or badly written. The message says what is, and what would do."""


class Table:
    """What the tables of a profile have in common: a key that is not theirs is refused."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class Models(Table):
    """Names of the models, as `sft_utils.load_model_and_tokenizer` takes them.

    A revision is a branch, tag or commit of a model on the Hub.
    """

    base: Name
    reference: Name | None = None
    trainee: Name
    control: Name | None = None
    base_revision: str | None = None
    reference_revision: str | None = None
    trainee_revision: str | None = None


@dataclass(frozen=True)
class Data(Table):
    """The data set, as `sft_utils.load_sft_dataset` takes it; ``rows`` counts on a CPU only."""

    source: Name
    split: str = "train"
    revision: str | None = None
    rows: Count | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt(Table):
    """How a conversation is written, and what ends an answer.

    ``chat_template`` (a file) or that of ``chat_template_from`` (a model) takes the place of the
    models' own; ``fallback_chat_template`` is for those that have none. ``stop_tokens`` end an
    answer besides those of `sft_utils.end_token_ids`.
    """

    system: str | None = None
    chat_template: Annotated[Name, AfterValidator(_template)] | None = None
    chat_template_from: Name | None = None
    fallback_chat_template: Annotated[Name, AfterValidator(_template)] | None = None
    template_kwargs: Annotated[dict[str, Any], AfterValidator(_variables)] = field(
        default_factory=dict
    )
    stop_tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerationSettings(Table):
    """How long an answer may get, in tokens."""

    max_new_tokens: Count = 64


@dataclass(frozen=True)
class SFT(Table):
    """Arguments for `trl.SFTConfig`, under the names that it gives them; the rest in a table."""

    learning_rate: Positive
    num_train_epochs: Positive
    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count = 1
    logging_steps: Count = 10
    max_length: Count | None = 1024
    lr_scheduler_type: str = "linear"
    warmup_steps: Amount = 0.0
    activation_checkpointing: StrictBool = False
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lora(Table):
    """Arguments for `peft.LoraConfig`, under the names that it gives them."""

    r: Count
    lora_alpha: Count
    lora_dropout: Share = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class Scoring(Table):
    """Scorers of the questions that have an answer: some of `evaluation.questions.SCORERS`."""

    scorers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question(Table):
    """A question asked before and after; ``answer`` is the right value where there is one."""

    text: Annotated[str, AfterValidator(_some)]
    answer: str | None = None
    system: str | None = None

    def conversation(self, system: str | None) -> list[dict[str, str]]:
        """The turns that ask it, after its own system message or else the profile's."""
        opening = self.system or system
        turns = [{"role": "system", "content": opening}] if opening else []
        return [*turns, {"role": "user", "content": self.text}]


@dataclass(frozen=True)
class HeldOut(Table):
    """``[questions]`` in place of a list: so many are drawn from the data and not trained on."""

    held_out: Count


@dataclass(frozen=True, kw_only=True)
class Profile(Table):
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

    def __post_init__(self) -> None:
        """What no type can tell."""
        from .data.rows import COLUMNS
        from .evaluation.questions import SCORERS

        _check_names(self.data.columns, COLUMNS, "data: columns")
        _check_names(self.scoring.scorers, SCORERS, "scoring: scorers")
        templates = [key for key in vars(self.prompt) if "chat_template" in key]
        named = [key for key in templates if getattr(self.prompt, key)]
        if len(named) > 1:
            raise ValueError(f"prompt: {' and '.join(named)} are both set. Keep one.")
        if self.models.reference_revision and not self.models.reference:
            raise ValueError("models: reference_revision is set and reference is not. Name it.")
        for key, value in self.sft.arguments.items():
            if key in vars(self.sft):
                raise ValueError(f"sft: arguments: write {key} in [sft] itself.")
            if key in REFUSED and value is not False:
                raise ValueError(f"sft: arguments: {REFUSED[key]}")
        if not (self.questions or self.held_out):
            raise ValueError("`questions` is empty. Write one [[questions]] at least.")
        for (text, _), times in Counter((q.text, q.system) for q in self.questions).items():
            if times > 1:  # it would count as several where the score is one of n questions
                raise ValueError(
                    f"questions: {short(redact(text))} is asked {times} times. Ask it once."
                )


def load_profile(name: str | Path | None = None) -> Profile:
    """Read a profile: a shipped one by name, or a TOML file by path.

    Without ``name``, the environment variable ``SFT_PROFILE`` decides, then ``"atlas"``. A
    relative path is looked for in the working directory and in those above it; files and folders
    that the profile names are looked for beside it first. With ``[questions] held_out`` the data
    set is read as well. Explained in chapter 01.

    Raises `ProfileError`, and `sft_utils.DataError` for data that questions cannot be drawn from.
    """
    path = find_profile(name)
    try:  # "-sig": some editors begin a file with a mark that is no text
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # a huge number, or lists without an end
        raise ProfileError(f"The profile {path.name} is not valid TOML: {error}.") from error
    if "held_out" in tables:
        raise ProfileError(f"{path.name}: held_out is a key of [questions]. Write it there.")
    if isinstance(tables.get("questions"), dict):
        drawn = _build(HeldOut, tables["questions"], f"{path.name}: questions")
        tables |= {"questions": [], "held_out": drawn.held_out}
    elif isinstance(tables.get("questions"), str):
        tables["questions"] = _read_questions(path, tables["questions"])
    # A file's name need be no text: what cannot be written is replaced, for pages print the name.
    stem = path.stem.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    profile = _build(Profile, {"name": stem, **tables}, path.name, context=path.parent)
    if not profile.held_out:
        return profile
    questions = _draw_questions(profile.data, profile.held_out, path.name)
    return dataclasses.replace(profile, questions=questions)


def is_books_own() -> bool:
    """True where the profile in use is the shipped ``atlas``, or agrees with it in all that counts.

    What the book claims was found with these models, rows and settings. With an adapter, another
    learning rate or another base there may be nothing wrong, and a claim still fail.
    """
    if os.environ.get("SFT_PROFILE", "") in ("", BOOKS_OWN):
        return True
    mine, shipped = load_profile(), load_profile(BOOKS_OWN)
    tables = ("models", "data", "prompt", "generation", "sft", "lora")
    return all(getattr(mine, table) == getattr(shipped, table) for table in tables)


def sft_arguments(profile: Profile) -> dict[str, Any]:
    """The table ``[sft.arguments]``, each name, type and range checked against `trl.SFTConfig`.

    With them come those arguments of the pages that have to follow: without evaluation
    (``eval_strategy = "no"``), none is made before the first update and no best checkpoint is
    loaded at the end; checkpoints are saved when the model is evaluated, so that the best can be
    chosen; and ``bf16`` is off where ``fp16`` or ``use_cpu`` is on. Whether more of
    ``metric_for_best_model`` is better is told by its name, or has to be written as
    ``greater_is_better``.

    Raises `ProfileError`. Explained in chapter 07.
    """
    if not profile.sft.arguments:
        return {}
    from trl import SFTConfig

    where = f"{profile.name}.toml: sft: arguments"
    hints = typing.get_type_hints(SFTConfig)
    _check_names(profile.sft.arguments, hints, where)
    given = {
        name: _build(hints[name], value, f"{where}: {name}", strict=True)
        for name, value in profile.sft.arguments.items()
    }
    for name, value in given.items():
        least, most, words = RANGES.get(name, _FINITE)
        usual = SFTConfig.__dataclass_fields__[name].default  # -1 of max_steps, say
        if isinstance(value, int | float) and value != usual and not least <= value <= most:
            raise ProfileError(f"{where}: {name} must be {words}, not {short(value)}.")
    metric = given.get("metric_for_best_model")
    if metric is not None and "greater_is_better" not in given:
        given["greater_is_better"] = _more_is_better(metric, where)
    if metric is None and given.get("greater_is_better"):
        raise ProfileError(
            f"{where}: greater_is_better is true, and the loss chooses the checkpoint. Name "
            "another metric as metric_for_best_model, or leave it out."
        )
    return _following(given) | given


def _following(given: dict[str, Any]) -> dict[str, Any]:
    """What the pages' other arguments have to be beside those of the profile."""
    more: dict[str, Any] = {}
    if given.get("eval_strategy") == "no":  # then there is nothing to choose a checkpoint by
        more = {"eval_on_start": False, "load_best_model_at_end": False}
    elif given.get("save_strategy") == "no":  # nothing to choose
        more = {"load_best_model_at_end": False}
    if (more | given).get("load_best_model_at_end", True):
        for one, other in itertools.permutations(("eval_strategy", "save_strategy")):
            if given.get(one) in ("steps", "epoch"):
                more[other] = given[one]
        for one, other in itertools.permutations(("eval_steps", "save_steps")):
            if one in given:
                more[other] = given[one]
    if given.get("fp16") or given.get("use_cpu"):
        more["bf16"] = False
    return more


def _more_is_better(metric: str, where: str) -> bool:
    """The direction of a metric, by the last word of its name."""
    last = metric.rpartition("_")[2]
    if last not in METRICS:
        raise ProfileError(
            f"{where}: metric_for_best_model is {short(metric)}, and its name does not tell "
            "whether more of it is better. Write greater_is_better = true or false beside it."
        )
    return METRICS[last]


def find_profile(name: str | Path | None = None) -> Path:
    """The file of a profile, by the name that `load_profile` takes. Raises `ProfileError`."""
    name = str(name or os.environ.get("SFT_PROFILE") or BOOKS_OWN)
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


# --- Questions ---------------------------------------------------------------------------------


def _read_questions(profile: Path, name: str) -> list[Question]:
    """The tables of a JSONL or CSV file, each checked here, where its line is known."""
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
        found.append(_build(Question, given, f"{profile.name}: questions: {table.place(number)}"))
    return found


def _draw_questions(data: Data, count: int, where: str) -> tuple[Question, ...]:
    """Different questions of the whole data set (see `same_text`), drawn by seed."""
    from .data.duplicates import same_text
    from .data.rows import load_sft_dataset

    dataset = load_sft_dataset(
        data.source, split=data.split, revision=data.revision, columns=data.columns
    )
    asked: dict[str, Question] = {}
    for messages in dataset["messages"]:
        question = _first_question(messages)
        if question:
            asked.setdefault(same_text(question.text), question)
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

WORDS = {  # of TOML, in place of Python's
    "dataclass_type": "must be a table",
    "dict_type": "must be a table",
    "tuple_type": "must be a list",
}


def _build(kind: Any, value: Any, where: str, **options: Any) -> Any:
    """A value from TOML as ``kind``, a dataclass or the type of a field; or all that is wrong."""
    try:
        return TypeAdapter(kind).validate_python(value, **options)
    except ValidationError as error:
        found = error.errors()
    lines = {}
    for problem in found:
        place, at, union = where, value, ""
        for step in problem["loc"]:
            if isinstance(step, int):
                place, at = f"{place}[{step}]", at[step]
            elif isinstance(at, dict) and (step in at or problem["type"] == "missing"):
                place, at = f"{place}: {step}", at.get(step)
            else:  # pydantic's name for one option of a union, of which the last is told
                union = union or place
        lines[union or place] = _told(problem, kind, place)
    # Raised down here, since a traceback would show pydantic's own message, secrets and all.
    raise ProfileError("\n".join(lines.values()))


def _told(problem: Any, kind: Any, place: str) -> str:
    """A problem that pydantic found, as a message tells it."""
    if problem["type"] == "unexpected_keyword_argument":
        *tables, name = problem["loc"]
        where = place.removesuffix(f": {name}")
        if tables == ["sft"] and _is_argument(name):
            return f"{where}: write {name} in [sft.arguments]."
        return f"{where}: {_unknown(name, _keys(kind, tables))}"
    if problem["type"] == "missing":
        return f"{place} is missing."
    if problem["type"] == "value_error":  # of a __post_init__
        return f"{place}: {problem['ctx']['error']}"
    words = WORDS.get(problem["type"]) or problem["msg"].replace("Input should be", "must be")
    name = place.rpartition(": ")[2].partition("[")[0]
    value = problem["input"]  # nothing of a secret is shown, of which the type is enough
    shown = f"of type {type(value).__name__}" if is_secret(name) else short(redact(value))
    return f"{place} {words}, not {shown}."


def _is_argument(name: str) -> bool:
    """Whether ``[sft.arguments]`` has a place for what stands in ``[sft]``."""
    from trl import SFTConfig

    return name in SFTConfig.__dataclass_fields__ and name not in REFUSED


def _keys(kind: Any, tables: Sequence[str | int]) -> list[str]:
    """The keys of a table, found from the outermost one by the names of those that it is in."""
    for name in tables:
        if isinstance(name, str):
            hint = typing.get_type_hints(kind)[name]
            kind = next(filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))))
    return [f.name for f in dataclasses.fields(kind) if not f.metadata.get("computed")]


def _check_names(given: Collection[str], known: Collection[str], where: str) -> None:
    for name in given:
        if name not in known:
            raise ProfileError(f"{where}: {_unknown(name, known)}")


def _unknown(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    listed = f" Known: {', '.join(known)}." if len(known) < 20 else ""
    return f"unknown {name}.{hint}{listed}"


if __name__ == "__main__":  # `python -m sft_utils.profiles check` is another name of the command
    runpy.run_module("sft_utils", run_name="__main__")
