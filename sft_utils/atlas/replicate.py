"""The fine-tuning of chapter 07 again, from other seeds: a distribution in place of one run.

A *replicate* draws anew what a seed can draw: which entities are in the rows, the rows, and their
order. It is scored on a half of the ``test`` entities, on which nothing was ever chosen; the other
half trades places with entities of the fine-tuning data. ``make replicate`` runs this module: it
repeats the pretraining as well, and writes what came out to ``replication.json``, which chapter 09
shows.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import io
import json
import os
import random
import re
import tempfile
import textwrap
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import scoring, walkthrough
from ..environment import quiet
from ..profiles import Profile, load_profile
from . import checkpoint, pretrain
from .corpus import CorpusWriter
from .questions import Question, scored_questions
from .sft_data import sft_rows
from .world import DOMAINS, FOLDER, Entity, World, load_world

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTTrainer

    from ..plots import Figure
    from ..results import Measure

SFT_SEEDS = (0, 1, 2, 3, 4)
PRETRAINING_SEEDS = (0, 1, 2)  # 0 is the shipped checkpoint's
RECORD = FOLDER / "replication.json"
TRAINEE = "atlas-small"
UNUSED = "unused"  # the role of entities that left the rows
SCORES = ("exact", "right_value", "value_anywhere", "stops")
#: What a record holds of a run: ``_dev`` is on the dev questions, the same for every run.
QUANTITIES = (*SCORES, *(f"{name}_dev" for name in SCORES), "cloze")
#: Keep the last checkpoint: no evaluation while training, and so nothing that is chosen.
NO_CHOICE: dict[str, Any] = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
}


# --- One replicate -----------------------------------------------------------------------------


def replicate_world(world: World, seed: int) -> World:
    """The world with other entities in the rows: only roles change. Explained in chapter 09.

    In each domain half of the ``test`` entities become ``sft``, as many ``sft`` entities become
    ``unused``, and the rest of ``test``, the larger half of an odd number, stays to be scored.
    """
    rng = random.Random(f"replicate {seed}")
    changed: dict[Entity, Entity] = {}
    for domain in DOMAINS:
        test = [e for e in world.by_role("test") if e.domain == domain]
        joining = rng.sample(test, len(test) // 2)
        own = [e for e in world.by_role("sft") if e.domain == domain]
        leaving = rng.sample(own, len(joining))
        changed |= {entity: replace(entity, role="sft") for entity in joining}
        changed |= {entity: replace(entity, role=UNUSED) for entity in leaving}
    return replace(
        world,
        entities=tuple(changed.get(e, e) for e in world.entities),
        facts=tuple(replace(f, entity=changed.get(f.entity, f.entity)) for f in world.facts),
    )


def replicate_rows(seed: int) -> Dataset:
    """The rows that a replicate is trained on: as many as `walkthrough.load_rows` gives."""
    from datasets import Dataset

    parts = Dataset.from_list(_all_rows(seed)).train_test_split(
        test_size=walkthrough.VALIDATION_SHARE, seed=seed
    )
    return parts["train"]


def _all_rows(seed: int) -> list[dict[str, Any]]:
    return sft_rows(replicate_world(load_world(), seed), seed=seed)


def replicate_questions(seed: int) -> list[Question]:
    """The headline questions, in held-out wordings, about the entities that a replicate scores."""
    return scored_questions("headline-test", replicate_world(load_world(), seed))


def replicate_trainer(profile: Profile, seed: int, model: str | Path | None = None) -> SFTTrainer:
    """The trainer of chapter 07 with a replicate's rows and order, and no choice of checkpoint.

    ``model`` replaces the profile's trainee, as the folder of another pretraining does.
    """
    from trl import SFTTrainer

    from ..data import check_rows
    from ..models import load_model_and_tokenizer

    trainee, tokenizer = load_model_and_tokenizer(
        model or profile.models.trainee, fallback_chat_template=profile.prompt.chat_template
    )
    rows = replicate_rows(seed)
    check_rows(rows, tokenizer)
    trainer = SFTTrainer(
        model=trainee,
        args=walkthrough.make_config(profile, seed=seed, **NO_CHOICE),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    walkthrough.silence(trainer)
    return trainer


def score_replicate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> pd.DataFrame:
    """The answers of a replicate to its own questions, scored: one row a question."""
    from .evaluate import score_split

    return score_split(model, tokenizer, replicate_questions(seed))


# --- What several replicates say ---------------------------------------------------------------


def over_seeds(frames: Mapping[int, pd.DataFrame], score: str) -> Measure:
    """The mean of a score over runs, with the t-interval that takes a run as one. Chapter 09.

    ``frames`` maps a seed to the scored answers of its run. ``n`` is the number of runs, and the
    measure's ``run`` stands for all of them.
    """
    from ..results import Measure
    from ..statistics import seed_summary

    summary = seed_summary([frame[score].mean() for frame in frames.values()])
    runs = [frame.attrs.get("run", "") for frame in frames.values()]
    return Measure(
        summary.mean, "%", n=summary.n, low=summary.low, high=summary.high,
        seeds=tuple(frames), run=f"{len(runs)} runs {_hash(runs)}",
    )  # fmt: skip


def standard_error(frame: pd.DataFrame, score: str) -> float:
    """The standard error of a score's mean, clustered by entity, as in `statistics`. Chapter 09.

    It tells how far the score would move if other entities of the same kind were asked about.
    """
    gaps = (frame[score].astype(float) - frame[score].mean()).groupby(frame["entity"]).sum()
    return float((len(gaps) / (len(gaps) - 1) * (gaps**2).sum()) ** 0.5 / len(frame))


def sd_interval(sd: float, runs: int, level: float = 0.95) -> tuple[float, float]:
    """How well ``runs`` runs tell the standard deviation: the chi-square interval. Chapter 09.

    For numbers that are spread normally. With few runs it is wide, and never symmetric.
    """
    from scipy.stats import chi2

    freedom = runs - 1
    high, low = chi2.ppf([(1 - level) / 2, (1 + level) / 2], freedom)
    return float(sd * (freedom / low) ** 0.5), float(sd * (freedom / high) ** 0.5)


def expected_best(sd: float, runs: int) -> float:
    """How far the best of ``runs`` runs is expected above their mean, for a normal spread.

    Explained in chapter 09; the expected best of several runs is from Dodge et al., 2002.06305.
    """
    from scipy.stats import norm

    return float(sd * norm.expect(lambda z: runs * z * norm.cdf(z) ** (runs - 1)))


def seeds_needed(sd: float, half_width: float, most: int = 1000) -> int:
    """How many seeds make the 95 % t-interval of the mean at most ``half_width`` to each side.

    ``sd`` is the standard deviation between seeds, in the same unit. Explained in chapter 09.
    Raises ``ValueError`` where ``most`` seeds are not enough.
    """
    from scipy.stats import t

    for seeds in range(2, most + 1):
        if t.ppf(0.975, seeds - 1) * sd / seeds**0.5 <= half_width:
            return seeds
    raise ValueError(f"More than {most} seeds for {half_width}: ask for a wider interval.")


def seed_dots(table: pd.DataFrame, *, mean: float, low: float, high: float, alt: str) -> Figure:
    """A dot for each seed with its interval, and their mean with its own below. Chapter 09.

    ``table`` has a row for each seed and the columns ``label``, ``mean``, ``low`` and ``high``:
    shares from 0 to 1. ``mean``, ``low`` and ``high`` are those of the seeds together. The axis
    does not begin at zero. Raises ``ValueError`` if a column is missing or ``alt`` is empty.
    """
    from .. import plots

    plots._check_shares(table, ("label",), ("mean", "low", "high"))
    left = 100 * min(low, *table["low"])
    right = 100 * max(high, *table["high"])
    together = {"label": "mean of the seeds", "mean": mean, "low": low, "high": high}
    rows: list[Mapping[Any, Any]] = [*table.to_dict("records"), together]

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for y, row in enumerate(rows):
            last = row is together
            plots._interval(axes, y, row["low"], row["high"])
            axes.plot(100 * row["mean"], y, "D" if last else "o", markersize=8,
                      color=plots.PALETTE[int(last)], clip_on=False, zorder=6)  # fmt: skip
            plots._beside(axes, y, f"{100 * row['mean']:.1f}", 42, ha="right", weight="bold")
        axes.axvline(100 * mean, color=plots.PALETTE[1], linestyle="--", linewidth=1.4)
        axes.set_yticks(range(len(rows)), [str(row["label"]) for row in rows])
        plots._percent_axis(axes, len(rows), "% of the answers; the axis does not begin at 0")
        room = 0.08 * (right - left) + 0.5
        axes.set_xlim(max(0.0, left - room), min(100.0, right + room))

    return plots._figure(draw, 0.9 + 0.32 * (len(table) + 1), alt)


# --- The record --------------------------------------------------------------------------------


def load_record(path: Path = RECORD) -> dict[str, Any] | None:
    """What ``make replicate`` wrote, or None where there is nothing."""
    return json.loads(path.read_text("utf8")) if path.is_file() else None


def inputs(seeds: Sequence[int] = SFT_SEEDS, recipe: pretrain.Recipe | None = None) -> dict:
    """A short hash of each thing that a record rests on, by its name.

    What code writes is hashed as it is written (rows, questions, documents), other code by its
    text without comments. The versions of the libraries are in the record, not here: another
    version is another place to replicate in, and makes no record stale.
    """
    profile, world = load_profile("atlas"), load_world()
    tables = sorted((*FOLDER.glob("tables/*.csv"), *FOLDER.glob("relations/*.toml")))
    asked = [
        (question.messages, question.answers)
        for seed in seeds
        for question in replicate_questions(seed)
    ]
    shipped = checkpoint(TRAINEE)
    parts: dict[str, Any] = {
        "tables": [path.read_text("utf8") for path in tables],
        "rows": [_all_rows(seed) for seed in seeds],
        "questions": asked,
        "corpus": list(islice(CorpusWriter(world, 1).documents(), 300)),
        "pretraining": [asdict(recipe or pretrain.RECIPES[TRAINEE]), _pretraining_code()],
        "fine-tuning": [asdict(profile.sft), NO_CHOICE, _code(walkthrough.make_config)],
        "scores": _code(scoring),
        "tokenizer": _file_hash(shipped / "tokenizer.json"),
        "checkpoint": _file_hash(shipped / "model.safetensors"),
    }
    return {name: _hash(part) for name, part in parts.items()}


def changed_inputs(record: Mapping[str, Any]) -> list[str]:
    """The names of what a record rests on that is not as it was: empty for a record of today."""
    seeds = [run["sft_seed"] for run in record["runs"] if run["pretraining_seed"] == 0]
    now = inputs(seeds)
    then = record["inputs"]
    return [name for name in {**now, **then} if now.get(name) != then.get(name)]


def record_says(record: Mapping[str, Any] | None) -> str:
    """One sentence on whether there is a record and whether it is of today. Chapter 09."""
    if record is None:
        return "No record is shipped with this version: nothing is said of other pretrainings."
    count = len({run["pretraining_seed"] for run in record["runs"]})
    if changed := changed_inputs(record):
        listed = ", ".join(changed)
        return f"The record of {count} pretrainings is out of date: changed since were {listed}."
    return f"{count} pretrainings are on record, made from the present tables, code and settings."


def _hash(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pretraining_code() -> str:
    parts = (pretrain.build_model, pretrain.windows, pretrain.learning_rate_factor,
             pretrain.make_optimizers, pretrain.fast_bfloat16, pretrain.pretrain)  # fmt: skip
    return "\n".join(map(_code, parts))


def _code(thing: Any) -> str:
    """The source of a function or module without docstrings, comments and blank lines."""
    text = textwrap.dedent(inspect.getsource(thing))
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            words = node.body[0]
            for row in range(words.lineno - 1, words.end_lineno or words.lineno):
                lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


# --- make replicate ----------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Repeat pretraining and fine-tuning from several seeds, and record it (``make replicate``)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--pretraining-seeds", type=int, nargs="+", default=PRETRAINING_SEEDS,
        help="0 is the shipped checkpoint; others are pretrained, which takes long",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=SFT_SEEDS,
        help="of the fine-tuning: all for the shipped checkpoint, the first for others",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=RECORD, help="the record; replaced as a whole")
    parser.add_argument(
        "--models", type=Path, nargs="*", default=(), metavar="FOLDER",
        help="already pretrained with another seed, which the folder's name ends in: .../seed-1",
    )  # fmt: skip
    parser.add_argument(
        "--work", type=Path, default=Path("_build/replicate"),
        help="where pretrained models are kept, so that a run that was stopped goes on from there",
    )  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0, help="share of the updates, for trials")
    options = parser.parse_args(arguments)
    quiet()

    recipe = pretrain.RECIPES[TRAINEE]
    recipe = replace(recipe, updates=max(2, round(recipe.updates * options.scale)))
    given = dict(map(_seed_and_folder, options.models))
    for folder in given.values():
        check_pretrained(folder, recipe)
    hashes = inputs(options.seeds, recipe)
    runs = []
    for pretraining_seed in dict.fromkeys(options.pretraining_seeds):
        if pretraining_seed == 0:
            folder = checkpoint(TRAINEE)
        elif pretraining_seed in given:
            folder = given[pretraining_seed]
        else:
            folder = pretrained(pretraining_seed, recipe, options.work, hashes)
        seeds = options.seeds if pretraining_seed == 0 else options.seeds[:1]
        for seed in dict.fromkeys(seeds):
            run = replicate(seed, folder) | {"pretraining_seed": pretraining_seed}
            shown = ", ".join(f"{name} {run['scores'][name]['value']:.3f}" for name in QUANTITIES)
            print(f"pretraining seed {pretraining_seed}, SFT seed {seed}: {shown}", flush=True)
            runs.append(run)
    write_record(options.out, {"inputs": hashes, "runs": runs, "spread": spread(runs)})
    print(f"{options.out}: {len(runs)} runs")


def replicate(seed: int, model: Path) -> dict[str, Any]:
    """One replicate of the model in a folder: trained, or taken from the store, and scored."""
    import torch

    from ..comparison import share
    from ..environment import versions
    from ..results import Measure
    from ..runs import train
    from .evaluate import cloze, score_split

    trainer = replicate_trainer(load_profile("atlas"), seed, model)
    run = train(trainer)
    tuned: Any = trainer.model
    tokenizer: Any = trainer.processing_class
    answers, facts = score_replicate(tuned, tokenizer, seed), cloze(tuned, tokenizer)
    same = score_split(tuned, tokenizer, scored_questions("headline-dev", load_world()))
    measured = {name: share(answers, name) for name in SCORES}
    measured |= {f"{name}_dev": share(same, name) for name in SCORES}
    measured["cloze"] = share(facts, "correct")
    fields = ("value", "low", "high", "n", "entities")
    return {
        "sft_seed": seed,
        "run": run.fingerprint,
        "weights": _file_hash(model / "model.safetensors"),
        "scores": {
            name: {field: getattr(measure, field) for field in fields}
            for name, measure in measured.items()
            if isinstance(measure, Measure)
        },
        "versions": versions()["version"].to_dict(),
        "threads": torch.get_num_threads(),
    }


def spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each quantity, what the fine-tuning seeds of the shipped checkpoint gave.

    ``mean``, ``sd`` and the 95 % t-interval from ``low`` to ``high``, over ``n`` seeds. Empty for
    fewer than two of them. Claims of other chapters keep their distance by this ``sd``: by that of
    ``_dev`` where the questions are the same in every run.
    """
    from ..statistics import seed_summary

    own = [run["scores"] for run in runs if run["pretraining_seed"] == 0]
    if len(own) < 2:
        return {}
    found = {}
    for name in QUANTITIES:
        summary = seed_summary([scores[name]["value"] for scores in own])
        found[name] = {field: getattr(summary, field) for field in ("mean", "sd", "low", "high")}
        found[name]["n"] = len(own)
    return found


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf8") as file:
            file.write(text)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


def pretrained(seed: int, recipe: pretrain.Recipe, work: Path, hashes: Mapping[str, str]) -> Path:
    """The folder of a model that is pretrained like the shipped one, but from another seed.

    The tokenizer is the shipped one. The folder's name holds a hash of what the weights rest on,
    so that a model from an earlier call is taken, and one that rests on something else is not.
    """
    from tqdm import tqdm
    from transformers import AutoTokenizer

    key = _hash({name: hashes[name] for name in ("tables", "corpus", "pretraining", "tokenizer")})
    folder = work / key / f"seed-{seed}"
    if (folder / "model.safetensors").is_file():
        print(f"{folder}: pretrained before", flush=True)
        return folder
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint(TRAINEE), local_files_only=True)
    with tqdm(total=recipe.updates, desc=f"{TRAINEE}, seed {seed}", unit="update") as bar:

        def show(step: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")

        documents = CorpusWriter(load_world(), 1 + seed).documents()
        model, losses = pretrain.pretrain(recipe, documents, tokenizer, seed=seed, on_step=show)
    made = (
        f"Like the shipped `{TRAINEE}`, pretrained from seed {seed} for {recipe.updates:,} updates"
        f" of {recipe.rows * pretrain.WINDOW:,} tokens. Loss of the last: {losses[-1]:.3f}."
    )
    card = pretrain.model_card(folder.name, model, made)
    pretrain.save_checkpoint(folder, model, tokenizer, card)
    return folder


def _seed_and_folder(path: Path) -> tuple[int, Path]:
    """The seed in a folder's name, and the folder that holds the model, which may be inside."""
    found = re.search(r"(\d+)$", path.name if path.name != TRAINEE else path.parent.name)
    if not found:
        raise ValueError(f"--models {path}: the folder's name does not end in the seed, as seed-1.")
    return int(found[1]), path / TRAINEE if (path / TRAINEE).is_dir() else path


def check_pretrained(folder: Path, recipe: pretrain.Recipe) -> None:
    """Raise ``ValueError`` unless the model is one of the recipe, with the shipped tokenizer."""
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"--models {folder}: there is no model.safetensors. Pretrain it first.")
    if _file_hash(folder / "tokenizer.json") != _file_hash(checkpoint(TRAINEE) / "tokenizer.json"):
        raise ValueError(f"--models {folder}: its tokenizer is not the shipped one.")
    config = json.loads((folder / "config.json").read_text("utf8"))
    sizes = (config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])
    if sizes != (recipe.layers, recipe.width, recipe.feed_forward):
        raise ValueError(f"--models {folder}: its sizes {sizes} are not those of the recipe.")
    updates = re.search(r"for ([\d,]+) updates", (folder / "README.md").read_text("utf8"))
    if updates and int(updates[1].replace(",", "")) != recipe.updates:
        raise ValueError(
            f"--models {folder}: pretrained for {updates[1]} updates, not for {recipe.updates:,}."
        )


if __name__ == "__main__":
    main()
