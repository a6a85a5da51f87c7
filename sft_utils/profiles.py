"""Profiles: which model plays which part, on which data, with which settings.

``SFT_PROFILE`` names the profile of a build: ``atlas`` (the default) and ``hub`` are shipped in
``profile_files``; the path of a TOML file makes the pages a report of your own fine-tuning.
Explained in chapter 01.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROFILE_FILES = Path(__file__).parent / "profile_files"


class ProfileError(ValueError):
    """A profile is unknown or badly written. The message says what is, and what would do."""


@dataclass(frozen=True)
class Models:
    """Names of the models, as `sft_utils.load_model_and_tokenizer` takes them."""

    base: str
    reference: str
    trainee: str
    control: str | None = None


@dataclass(frozen=True)
class Data:
    """The data set, as `sft_utils.load_sft_dataset` takes it; ``rows`` counts on a CPU only."""

    source: str
    split: str = "train"
    rows: int | None = None


@dataclass(frozen=True)
class Prompt:
    """How a conversation is written. ``chat_template`` is for models that have none."""

    system: str | None = None
    chat_template: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationSettings:
    """How long an answer may get, in tokens."""

    max_new_tokens: int = 64


@dataclass(frozen=True)
class SFT:
    """Arguments for `trl.SFTConfig`, under the names that it gives them."""

    learning_rate: float
    num_train_epochs: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int = 1
    logging_steps: int = 10
    max_length: int | None = 1024
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0.0
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class Question:
    """A question asked before and after; ``answer`` is the right value where there is one."""

    text: str
    answer: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class Profile:
    """A profile, table by table as its TOML file has it; `load_profile` makes one."""

    name: str
    models: Models
    data: Data
    prompt: Prompt
    generation: GenerationSettings
    sft: SFT
    questions: tuple[Question, ...]


def load_profile(name: str | Path | None = None) -> Profile:
    """Read a profile: a shipped one by name, or a TOML file by path.

    Without ``name``, the environment variable ``SFT_PROFILE`` decides, then ``"atlas"``. A
    relative path is looked for in the working directory and in those above it. Explained in
    chapter 01. Raises `ProfileError`.
    """
    name = str(name or os.environ.get("SFT_PROFILE") or "atlas")
    path = _find(name)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"The profile {path.name} is not valid TOML: {error}.") from error
    tables.setdefault("prompt", {})
    tables.setdefault("generation", {})
    profile: Profile = _build(Profile, {"name": path.stem, **tables}, path.name)
    if not profile.questions:
        raise ProfileError(f"{path.name}: `questions` is empty. Write one [[questions]] at least.")
    return _with_template_path(profile, path)


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


def _with_template_path(profile: Profile, path: Path) -> Profile:
    """A template beside the profile goes by its full path; the others are shipped in templates/."""
    from sft_utils.models import TEMPLATES

    template = profile.prompt.chat_template
    if template is None:
        return profile
    beside = path.parent / Path(template).expanduser()
    if beside.is_file():
        prompt = dataclasses.replace(profile.prompt, chat_template=str(beside))
        return dataclasses.replace(profile, prompt=prompt)
    if not (TEMPLATES / template).is_file():
        raise ProfileError(
            f"{path.name}: there is no chat template {template!r}, neither beside the profile nor "
            f"in sft_utils/templates."
        )
    return profile


def _build(kind: type, value: Any, where: str) -> Any:
    """Turn a value from TOML into ``kind``, a field's type or a dataclass, or raise."""
    if kind is Any:
        return value
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):  # "X | None": TOML has no null, so it is an X
        return _build(options[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _build_table(kind, value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ProfileError(f"{where} must be a list of tables, not {value!r}.")
        return tuple(_build(options[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    kind = typing.get_origin(kind) or kind
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ProfileError(f"{where} must be of type {kind.__name__}, not {value!r}.")
    return value


def _build_table(kind: type, table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise ProfileError(f"{where} must be a table, not {table!r}.")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(table) - set(fields))
    if unknown:
        raise ProfileError(f"{where}: unknown {', '.join(unknown)}. Known: {', '.join(fields)}.")
    missing = [
        name
        for name, f in fields.items()
        if name not in table
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ProfileError(f"{where}: {', '.join(missing)} is missing.")
    return kind(**{k: _build(hints[k], v, f"{where}: {k}") for k, v in table.items()})
