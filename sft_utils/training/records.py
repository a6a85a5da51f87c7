"""Recorded runs: results that take too long to compute in a build, in small files.

A figure made from many runs would keep a build for an hour. So its runs are *recorded*: what came
out, question by question, the log of the training, the versions, the machine and the date. A
record also holds the *recipe*, a hash of each thing that decides the result in principle: rows,
start weights, arguments, code; not versions, threads or processor. A record whose recipe is not
that of today is refused. And one run of each figure of chapters 12 and 13 is made *live* at each
build and compared with its own record; of chapter 14 one is where ``make book REAL=1`` asks for
it. ``make runs`` makes all records again. Explained in chapter 13.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import os
import textwrap
import time
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_whole
from ..results import note_run
from .fingerprints import digest, tokenizer_state, weights_hash
from .runs import train

if TYPE_CHECKING:
    import pandas as pd
    from transformers import Trainer

FOLDER = Path(__file__).parents[1] / "atlas" / "recorded_runs"
#: Which run of each figure is live: a number, counted around, or "all", which records them.
LIVE = "SFT_LIVE"
#: What a machine decides, not the recipe.
_BY_MACHINE = {"use_cpu", "bf16", "fp16", "tf32", "torch_compile"}


class RecordError(RuntimeError):
    """A record is missing, or rests on something that has changed since."""


@dataclass(frozen=True)
class Recorded:
    """One run of a figure: its results by name, and where they come from.

    ``results`` holds data frames, lists and numbers. ``live`` tells whether they were computed
    now; ``about`` has the fingerprint of the ``run``, its ``seeds``, ``seconds``, the ``log``,
    and of a record the ``versions``, ``machine`` and ``date``. ``record`` is the record of a live
    run, None if it was written just now.
    """

    name: str
    live: bool
    results: dict[str, Any]
    about: dict[str, Any]
    record: Recorded | None = None

    @property
    def says(self) -> str:
        """Where the results come from, for a table: ``live``, or the date of the record."""
        return "live" if self.live else f"recorded {self.about['date']}"

    @property
    def origin(self) -> dict[str, Any]:
        """The run and its seeds, for the measures that rest on it: see `runs.origin`."""
        run = self.about["run"] if self.live else f"recorded {self.about['run']}"
        return {"run": run, "seeds": tuple(self.about["seeds"])}


def recorded(
    name: str,
    trainer: Trainer,
    measure: Callable[[Any], dict[str, Any]],
    *,
    live: bool = False,
    folder: Path | None = None,
    **parts: Any,
) -> Recorded:
    """Take a run's results from its record; train and measure a ``live`` one now.

    ``measure`` takes the trained model and returns the ``results`` of `Recorded`; ``parts`` are
    those of `recipe_of`. With ``SFT_LIVE=all`` every run is made now, and its record written.
    Raises `RecordError` for a record that is missing or stale, that of a live run too.
    """

    recipe = recipe_of(trainer, measure, **parts)
    return kept_or_made(
        name, recipe, lambda: train_and_measure(trainer, measure), live=live, folder=folder
    )


def train_and_measure(
    trainer: Trainer, measure: Callable[[Any], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train and measure: the ``results`` of `Recorded`, and what is told ``about`` the run."""
    run = train(trainer)
    about = {"run": run.fingerprint, "seeds": [trainer.args.seed], "seconds": run.seconds}
    return measure(trainer.model), about | {"log": run.log_history}


def kept_or_made(
    name: str,
    recipe: Mapping[str, str],
    make: Callable[[], tuple[dict[str, Any], dict[str, Any]]],
    *,
    live: bool = False,
    folder: Path | None = None,
) -> Recorded:
    """The same for what need be no training: ``make`` returns ``results`` and ``about``."""
    everything = os.environ.get(LIVE) == "all"
    if not (live or everything):
        return load(name, recipe, folder)
    kept = None if everything else _read(name, recipe, folder)
    results, about = make()
    if everything:
        _write((folder or FOLDER) / f"{name}.json", recipe, results, about)
    return Recorded(name, True, results, about, kept)


def load(name: str, recipe: Mapping[str, str], folder: Path | None = None) -> Recorded:
    """Take a run's results from its record, whose recipe must be ``recipe``; see `recorded`."""
    kept = _read(name, recipe, folder)
    if kept.about["seeds"]:  # without, nothing was trained
        note_run(kept.about["run"], live=False)
    return kept


def _read(name: str, recipe: Mapping[str, str], folder: Path | None) -> Recorded:
    path = (folder or FOLDER) / f"{name}.json"
    if not path.is_file():
        raise RecordError(f"There is no record {path.name}: `make runs` writes it.")
    try:
        kept = json.loads(path.read_text("utf8"))
        about, then = dict(kept["about"]), dict(kept["recipe"])
        results = {key: _unpacked(value, about) for key, value in kept["results"].items()}
        date = about["date"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"The record {path.name} is damaged ({type(error).__name__}: {error}). "
            f"`git restore {path.name}` in {path.parent.name} brings it back, and `make runs` "
            "makes it again."
        ) from error
    changed = [part for part in {**then, **recipe} if then.get(part) != recipe.get(part)]
    if changed:
        raise RecordError(
            f"The record {path.name} is of {date}, and changed since: {', '.join(changed)}. "
            "`make runs` makes it again."
        )
    return Recorded(name, False, results, about)


def live_ones(names: Sequence[str]) -> set[str]:
    """Which runs of a figure are live in this build: one, or all with ``SFT_LIVE=all``.

    ``SFT_LIVE`` may be a number, by which the weekly checks take another run each time.
    """
    which = os.environ.get(LIVE) or "0"
    if which == "all":
        return set(names)
    if not which.isdecimal():
        raise ValueError(f"{LIVE}={which!r}: give a number, or all.")
    return {names[int(which) % len(names)]}


def recipe_of(
    trainer: Trainer, measure: Callable[[Any], dict[str, Any]], **parts: Any
) -> dict[str, str]:
    """A hash of each thing that decides a run's results in principle, by its name.

    ``parts`` add others, such as the questions that ``measure`` asks, or replace them.
    """
    from .arguments import run_arguments

    rows: Any = trainer.train_dataset
    given: Any = trainer
    found = {
        "start": weights_hash(trainer.model),
        "rows": [rows[name][:] for name in ("input_ids", "labels") if name in rows.column_names],
        "tokenizer": tokenizer_state(trainer.processing_class),
        "arguments": {k: v for k, v in run_arguments(given).items() if k not in _BY_MACHINE},
        "trainer": code(type(trainer)),
        "measure": code(measure),
        **parts,
    }
    return hashed(found)


def hashed(parts: Mapping[str, Any]) -> dict[str, str]:
    """The hash of each part of a recipe, by its name."""
    return {name: digest(value)[:16] for name, value in parts.items()}


def code(*things: Any) -> list[str]:
    """Functions, classes or modules as text, without docstrings, comments, imports, blank lines.

    Where something is imported from does not decide what comes out. Of another package only the
    name, for its version is no part of a recipe.
    """
    return [_text_of(thing) for thing in things]


def apart(run: Recorded) -> pd.DataFrame:
    """How far a live run is from its record: the mean of each column of numbers, both ways."""
    import pandas as pd

    if run.record is None:
        raise ValueError(f"{run.name} has no record beside it: it was not made live.")
    rows = {}
    for name, value in run.results.items():
        other = run.record.results[name]
        if isinstance(value, pd.DataFrame):
            for column in value.select_dtypes(["bool", "number"]):
                rows[f"{name}: {column}"] = (value[column].mean(), other[column].mean())
        elif isinstance(value, list):
            rows[name] = (sum(value) / len(value), sum(other) / len(other))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["live", "recorded"])
    return table.assign(difference=table["live"] - table["recorded"])


# --- Texts and files ---------------------------------------------------------------------------


def _text_of(thing: Any) -> str:
    module = thing.__name__ if inspect.ismodule(thing) else thing.__module__
    if module.partition(".")[0] not in (__package__.partition(".")[0], "__main__"):
        return f"{module}.{getattr(thing, '__qualname__', '')}"
    text = textwrap.dedent(inspect.getsource(thing))
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        left_out: ast.stmt | None = node if isinstance(node, ast.Import | ast.ImportFrom) else None
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            left_out = node.body[0]
        if left_out:
            for row in range(left_out.lineno - 1, left_out.end_lineno or left_out.lineno):
                lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _write(path: Path, recipe: Mapping[str, str], results: dict, about: dict) -> None:
    from ..environment import describe_device, versions

    about = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_device()["name"],
        "versions": versions()["version"].to_dict(),
        **about,
    }
    packed = [f"{_json(name)}: {_json(_packed(value))}" for name, value in results.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(
        path,
        f'{{"recipe": {_json(recipe)},\n"about": {_json(about)},\n"results": {{\n'
        + ",\n".join(packed) + "\n}}\n",
    )  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _packed(value: Any) -> Any:
    """Plain data, and a data frame as its columns; numbers to six decimals."""
    if hasattr(value, "columns"):
        return {"columns": {name: _packed(value[name].tolist()) for name in value.columns}}
    if isinstance(value, list):
        return [_packed(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def _unpacked(value: Any, about: Mapping[str, Any]) -> Any:
    if not isinstance(value, dict) or "columns" not in value:
        return value
    import pandas as pd

    frame = pd.DataFrame(value["columns"])
    frame.attrs |= {"run": f"recorded {about['run']}", "seeds": tuple(about["seeds"])}
    return frame
