"""The fine-tuning of the walk-through again, from other seeds: a distribution in place of one run.

A *replicate* draws anew what a seed can draw: which entities are in the rows, the rows, and their
order. It is scored on a half of the ``test`` entities, on which nothing was ever chosen; the other
half trades places with entities of the fine-tuning data. ``make runs`` runs this module: it repeats
the pretraining as well, and records what came out. Explained in chapter 12.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import experiment
from ..environment import quiet
from ..evaluation import metrics
from ..profiles import Profile, load_profile
from ..training import records
from ..training.fingerprints import digest
from . import pretrain
from .corpus import CorpusWriter
from .questions import Question, scored_questions
from .sft_data import sft_rows
from .shipped import MODELS
from .world import DOMAINS, FOLDER, Entity, World, load_world

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..results import Measure
    from ..training.records import Recorded
    from ..training.trainer import LabelOnlyTrainer

SFT_SEEDS = (0, 1, 2, 3, 4)
PRETRAINING_SEEDS = (0, 1, 2)  # 0 is the shipped checkpoint's
TRAINEE = "atlas-small"
UNUSED = "unused"  # the role of entities that left the rows
SCORES = ("exact", "right_value", "value_anywhere", "stops")


# --- One replicate -----------------------------------------------------------------------------


def replicate_world(world: World, seed: int) -> World:
    """The world with other entities in the rows: only roles change. Explained in chapter 12.

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
    """The rows that a replicate is trained on: as many as `experiment.load_rows` gives."""
    from datasets import Dataset

    parts = Dataset.from_list(_all_rows(seed)).train_test_split(
        test_size=experiment.VALIDATION_SHARE, seed=seed
    )
    return parts["train"]


def _all_rows(seed: int) -> list[dict[str, Any]]:
    return sft_rows(replicate_world(load_world(), seed), seed=seed)


def replicate_questions(seed: int) -> list[Question]:
    """The headline questions, in held-out wordings, about the entities that a replicate scores."""
    return scored_questions("headline-test", replicate_world(load_world(), seed))


def replicate_trainer(
    profile: Profile, seed: int, start: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> LabelOnlyTrainer:
    """The walk-through's run with a replicate's rows and order, and no choice of checkpoint.

    The step is the cheaper one of `LabelOnlyTrainer`. A copy of ``start``, a model and its
    tokenizer, is trained. Chapter 12.
    """
    from ..data.checks import check_rows
    from ..training.trainer import LabelOnlyTrainer

    trainee, tokenizer = copy.deepcopy(start)
    rows = replicate_rows(seed)
    check_rows(rows, tokenizer)
    trainer = LabelOnlyTrainer(
        model=trainee,
        args=experiment.make_config(profile, seed=seed, **experiment.NO_CHOICE),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    experiment.silence(trainer)
    return trainer


def score_replicate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> pd.DataFrame:
    """The answers of a replicate to its own questions, scored: one row a question."""
    from .evaluate import score_split

    return score_split(model, tokenizer, replicate_questions(seed))


# --- What several replicates say ---------------------------------------------------------------


def over_seeds(frames: Mapping[int, pd.DataFrame], score: str) -> Measure:
    """The mean of a score over runs, with the t-interval that takes a run as one. Chapter 12.

    ``frames`` maps a seed to the scored answers of its run. ``n`` is the number of runs, and the
    measure's ``run`` stands for all of them.
    """
    from ..evaluation.comparison import mean_of_seeds

    mean = mean_of_seeds({seed: frame[score].mean() for seed, frame in frames.items()})
    runs = [frame.attrs.get("run", "") for frame in frames.values()]
    return replace(mean, run=f"{len(runs)} runs {digest(runs)[:16]}")


def sd_interval(sd: float, runs: int, level: float = 0.95) -> tuple[float, float]:
    """How well ``runs`` runs tell the standard deviation: the chi-square interval. Chapter 12.

    For numbers that are spread normally. With few runs it is wide, and never symmetric.
    """
    from scipy.stats import chi2

    freedom = runs - 1
    high, low = chi2.ppf([(1 - level) / 2, (1 + level) / 2], freedom)
    return float(sd * (freedom / low) ** 0.5), float(sd * (freedom / high) ** 0.5)


def expected_best(sd: float, runs: int) -> float:
    """How far the best of ``runs`` runs is expected above their mean, for a normal spread.

    Explained in chapter 12; the expected best of several runs is from Dodge et al., 2002.06305.
    """
    from scipy.stats import norm

    return float(sd * norm.expect(lambda z: runs * z * norm.cdf(z) ** (runs - 1)))


def seeds_needed(sd: float, half_width: float, most: int = 1000) -> int:
    """How many seeds make the 95 % t-interval of the mean at most ``half_width`` to each side.

    ``sd`` is the standard deviation between seeds, in the same unit. Explained in chapter 12.
    Raises ``ValueError`` where ``most`` seeds are not enough.
    """
    from scipy.stats import t

    for seeds in range(2, most + 1):
        if t.ppf(0.975, seeds - 1) * sd / seeds**0.5 <= half_width:
            return seeds
    raise ValueError(f"More than {most} seeds for {half_width}: ask for a wider interval.")


# --- Other pretrainings ------------------------------------------------------------------------


def pretrainings(
    profile: Profile, start: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> dict[int, Recorded]:
    """What fine-tuning with seed 0 makes of each pretraining: live for the shipped one, seed 0.

    ``start`` is the shipped trainee and its tokenizer, and ``profile`` says how it is trained.
    The results are three tables: ``answers`` to the replicate's own questions, the same to the
    ``dev`` questions, and ``facts`` completed. Raises `RecordError`. Chapter 12.
    """
    trainer = replicate_trainer(profile, 0, start)  # all have its rows and arguments
    given = {seed: _measured(trainer, seed) for seed in PRETRAINING_SEEDS}
    found = {
        seed: records.load(f"pretraining-{seed}", records.recipe_of(trainer, measure, **parts))
        for seed, (measure, parts) in given.items()
        if seed != 0
    }
    measure, parts = given[0]
    return {0: records.recorded("pretraining-0", trainer, measure, live=True, **parts)} | found


def _measured(trainer: Any, seed: int) -> tuple[Callable[[Any], dict[str, Any]], dict[str, Any]]:
    """What is measured of a pretraining, and the parts of the recipe of its record."""
    from . import evaluate

    tokenizer = trainer.processing_class
    dev = scored_questions("headline-dev", load_world())

    def measure(tuned: Any) -> dict[str, Any]:
        columns = ["question", "response", *SCORES, "entity"]
        facts = evaluate.cloze(tuned, tokenizer)
        return {
            "answers": score_replicate(tuned, tokenizer, 0)[columns],
            "dev": evaluate.score_split(tuned, tokenizer, dev)[columns],
            "facts": facts[["prompt", "response", "correct", "entity"]],
        }

    return measure, {
        "start": pretraining_rests_on(seed),
        "asked": [[q.messages, q.answers] for q in (*replicate_questions(0), *dev)],
        "how": records.code(metrics, evaluate.score_responses, evaluate.cloze),
    }


def pretraining_rests_on(seed: int, recipe: pretrain.Recipe | None = None) -> dict[str, Any]:
    """All that decides a pretraining: tables, documents as they are written, sizes and code."""
    tables = sorted((*FOLDER.glob("tables/*.csv"), *FOLDER.glob("relations/*.toml")))
    written = CorpusWriter(load_world(), 1 + seed).documents()
    tokenizer = MODELS[TRAINEE] / "tokenizer.json"
    return {
        "seed": seed,
        "tables": [path.read_text("utf8") for path in tables],
        "documents": list(islice(written, 300)),
        "tokenizer": tokenizer.read_text("utf8"),
        "sizes": asdict(recipe or pretrain.RECIPES[TRAINEE]),
        "code": records.code(pretrain.build_model, pretrain.windows,
                             pretrain.learning_rate_factor, pretrain.make_optimizers,
                             pretrain.fast_bfloat16, pretrain.pretrain),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Pretrain from other seeds, fine-tune each model, and record it (a part of ``make runs``)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=PRETRAINING_SEEDS[1:])
    parser.add_argument(
        "--work", type=Path, default=Path("_build/pretrained"),
        help="where pretrained models are kept, so that a run that was stopped goes on from there",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    from ..models import load_model_and_tokenizer

    quiet()
    profile = load_profile("atlas")
    os.environ[records.LIVE] = "all"
    for seed in options.seeds:
        folder = pretrained(seed, pretrain.RECIPES[TRAINEE], options.work)
        start = load_model_and_tokenizer(
            folder, fallback_chat_template=profile.prompt.fallback_chat_template
        )
        trainer = replicate_trainer(profile, 0, start)
        measure, parts = _measured(trainer, seed)
        run = records.recorded(f"pretraining-{seed}", trainer, measure, **parts)
        print(f"{run.name}: exact {run.results['answers']['exact'].mean():.3f}", flush=True)


def pretrained(seed: int, recipe: pretrain.Recipe, work: Path) -> Path:
    """The folder of a model that is pretrained like the shipped one, but from another seed.

    The tokenizer is the shipped one. The folder's name holds a hash of what the weights rest on,
    so that a model from an earlier call is taken, and one that rests on something else is not.
    """
    from tqdm import tqdm
    from transformers import AutoTokenizer

    folder = work / digest(pretraining_rests_on(seed, recipe))[:16] / f"seed-{seed}"
    if (folder / "model.safetensors").is_file():
        print(f"{folder}: pretrained before", flush=True)
        return folder
    tokenizer: Any = AutoTokenizer.from_pretrained(MODELS[TRAINEE], local_files_only=True)
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


if __name__ == "__main__":
    main()
