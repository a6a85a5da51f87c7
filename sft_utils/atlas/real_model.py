"""The experiment of the walk-through on a real model, SmolLM2-135M-Instruct, measured.

The model is an *instruct* model, read from 4-bit weights, and no base model: it was fine-tuned by
others before. It is fine-tuned once more, on a few hundred rows of the Atlas's kind or on a hundred
instructions of another kind, in full or with a LoRA adapter. What takes long is recorded:
``make runs`` installs the model and runs this module. Explained in chapter 14.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import experiment
from ..environment import quiet, seed_everything
from ..evaluation import metrics
from ..evaluation.questions import contains
from ..evaluation.statistics import draw
from ..generation import generate_responses
from ..profiles import Lora, Profile, load_profile
from ..training import records
from ..training.fingerprints import weights_hash
from . import evaluate
from .corpus import cloze_forms, cloze_prompt
from .questions import Question, scored_questions
from .world import load_world

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..training.records import Recorded
    from ..training.trainer import LabelOnlyTrainer

PROFILE = "smollm2"
REAL = "SFT_REAL"  # set to 1, a page makes one run again
FILE_SUM = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # SHA-256 of the GGUF
INSTRUCTIONS = Path(__file__).parent / "hundred_instructions.jsonl"  # Alpaca's columns, our own
EVERYDAY = Path(__file__).parent / "everyday_questions.jsonl"  # asked, never trained on
SEEDS = (0, 1, 2)
#: Tried on the dev questions with seed 0; the best of each method is repeated from the other seeds.
RATES = {"full": (3e-5, 1e-4, 3e-4), "lora": (3e-4, 1e-3, 3e-3)}
LORA = Lora(r=16, lora_alpha=32)
ANSWER_TOKENS = 128  # so that a model that can stop does
QUESTIONS = {"dev": 60, "test": 200}
FORMS = 7  # sentences in which a model is let complete a fact


def questions(half: str) -> list[Question]:
    """Questions of the headline split of ``dev`` or ``test``, drawn by seed, in a fixed order."""
    return draw(scored_questions(f"headline-{half}", load_world()), QUESTIONS[half], 0)


def rows(profile: Profile, kind: str, seed: int) -> Dataset:
    """The rows to train on: of the Atlas, as many as the profile says, or the instructions."""
    from ..data.rows import load_sft_dataset

    if kind == "instructions":
        return load_sft_dataset(INSTRUCTIONS).shuffle(seed=seed)
    return load_sft_dataset(profile.data.source, rows=profile.data.rows, seed=seed)


@dataclasses.dataclass(frozen=True)
class Run:
    """One fine-tuning: ``method`` full or lora, ``kind`` of rows, learning rate and seed.

    ``template`` is the file of a chat template in place of the model's own.
    """

    method: str
    rate: float
    seed: int = 0
    kind: str = "atlas"
    template: str | None = None

    @property
    def trains(self) -> bool:
        """Whether it is a training: without a method, the model is measured as it is."""
        return self.method != "none"

    @property
    def name(self) -> str:
        template = "" if self.template is None else f"-{Path(self.template).stem}"
        return f"real-{self.kind}-{self.method}{template}-{self.rate:g}-{self.seed}"


BOOKS_TEMPLATE = "chatml.jinja"
BEFORE = [Run("none", 0), Run("none", 0, template=BOOKS_TEMPLATE)]
TRIED = [Run(method, rate) for method, rates in RATES.items() for rate in rates]


def settings(run: Run, **sft: Any) -> Profile:
    """The profile of a run: the walk-through's, with the run's rate and method, and ``sft``."""
    shipped = load_profile(PROFILE)
    return dataclasses.replace(
        shipped,
        sft=dataclasses.replace(shipped.sft, learning_rate=run.rate, **sft),
        lora=LORA if run.method == "lora" else None,
        prompt=dataclasses.replace(shipped.prompt, chat_template=run.template),
    )


def trainer_of(run: Run, **sft: Any) -> LabelOnlyTrainer:
    """The trainer of a run, with the cheaper step of `LabelOnlyTrainer`, not yet trained."""
    from ..data.checks import check_rows
    from ..data.loss_mask import with_markers
    from ..training.trainer import LabelOnlyTrainer

    profile = settings(run, **sft)
    seed_everything(run.seed)  # an adapter begins at random
    model, tokenizer = experiment.load_trainee(profile)
    data = rows(profile, run.kind, run.seed)
    check_rows(data, tokenizer, profile.sft.max_length)
    trainer = LabelOnlyTrainer(
        model=model,
        args=experiment.make_config(profile, seed=run.seed, **experiment.NO_CHOICE),
        train_dataset=data,
        processing_class=with_markers(tokenizer, data),
        peft_config=experiment.lora_config(profile),
    )
    experiment.silence(trainer)
    return trainer


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Answers to dev and test questions, scored, and more of what the model knows.

    ``dev`` and ``test`` have a row a question. ``facts`` has a row for each fact that the test
    questions ask for: in how many of `FORMS` sentences, cut before the value, the model completes
    it rightly. ``everyday`` has a row for each question of `EVERYDAY`.
    """
    found: dict[str, Any] = {}
    for half in QUESTIONS:
        frame = evaluate.score_split(
            model, tokenizer, questions(half), max_new_tokens=ANSWER_TOKENS, batch_size=50
        )
        columns = ["question", "response", "right", *metrics.SCORES, "entity", "relation"]
        found[half] = frame[columns]
    found["facts"] = completed(model, tokenizer, questions("test"))
    found["everyday"] = everyday(model, tokenizer)
    return found


def completed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question]
) -> pd.DataFrame:
    """The facts that questions ask for, as sentences that the model completes, without a chat."""
    import pandas as pd

    facts = {(q.entity, q.relation): q.fact for q in asked}
    prompts = [cloze_prompt(f, form) for f in facts.values() for form in cloze_forms(f)[:FORMS]]
    of_fact = [pair for pair, f in facts.items() for _ in cloze_forms(f)[:FORMS]]
    said = generate_responses(
        model, tokenizer, [begun for begun, _ in prompts], chat=False, max_new_tokens=16,
        batch_size=100,
    )  # fmt: skip
    frame = pd.DataFrame(of_fact, columns=["entity", "relation"])
    frame["right"] = [
        evaluate.begins_with(text, right) for text, (_, right) in zip(said, prompts, strict=True)
    ]
    found = frame.groupby(["entity", "relation"], sort=False)["right"]
    return found.agg(right="sum", forms="size").reset_index()


def everyday(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """Questions of another kind, which no row asks: what is said, and whether it is right."""
    import pandas as pd

    asked = [json.loads(line) for line in EVERYDAY.read_text("utf8").splitlines()]
    said = generate_responses(
        model, tokenizer, [one["text"] for one in asked], max_new_tokens=ANSWER_TOKENS,
        batch_size=50, return_details=True,
    )  # fmt: skip
    return pd.DataFrame(
        {
            "question": one["text"],
            "response": answer.response,
            "right": any(contains(answer.response.lower(), a.lower()) for a in one["answers"]),
            "stops": answer.stopped,
            "tokens": len(answer.token_ids),
        }
        for one, answer in zip(asked, said, strict=True)
    )


def recipe(run: Run) -> dict[str, str]:
    """The recipe of a run's record, which can be told without the model: see `records`."""
    from ..training.trainer import LabelOnlyTrainer

    profile = settings(run)
    how: list[Any] = [profile.sft, profile.prompt]
    if profile.lora:
        how.append(profile.lora)
    return records.hashed({
        "start": FILE_SUM,
        "rows": rows(profile, run.kind, run.seed)["messages"][:] if run.trains else [],
        "arguments": [run.method, run.seed, *(dataclasses.asdict(part) for part in how)],
        "trainer": records.code(trainer_of, LabelOnlyTrainer),
        "measure": records.code(measure, completed, everyday),
        "everyday": EVERYDAY.read_text("utf8"),
        "asked": [
            ANSWER_TOKENS, *([q.messages, q.answers] for half in QUESTIONS for q in questions(half))
        ],
        "completed": [
            cloze_prompt(q.fact, form)
            for q in questions("test")
            for form in cloze_forms(q.fact)[:FORMS]
        ],
        "how": records.code(metrics, evaluate.score_responses, evaluate.begins_with, contains),
    })  # fmt: skip


def is_live() -> bool:
    """Whether a page makes a run of the real model again: `make book REAL=1` asks for it."""
    return os.environ.get(REAL) == "1"


def result(run: Run, *, live: bool = False) -> Recorded:
    """What a run gave: from its record, or made now if it is ``live`` (see `records.LIVE` too).

    Raises `records.RecordError` for a record that is missing or stale.
    """

    def make() -> tuple[dict[str, Any], dict[str, Any]]:
        if not run.trains:
            model, tokenizer = experiment.load_trainee(settings(run))
            return measure(model, tokenizer), {"run": weights_hash(model)[:16], "seeds": []}
        trainer: Any = trainer_of(run)
        return records.train_and_measure(
            trainer, lambda tuned: measure(tuned, trainer.processing_class)
        )

    return _taken(run.name, recipe(run), make, live)


def _taken(name: str, recipe: dict[str, str], make: Callable[[], Any], live: bool) -> Recorded:
    """From a record, unless it is ``live``: a build that records all does not make these again."""
    if not live:
        return records.load(name, recipe)
    return records.kept_or_made(name, recipe, make, live=True)


MEMORY = "real-memory"
MEMORY_UPDATES = 3  # of the longest rows
TOGETHER = 8  # rows an update


def peak_memory(*, live: bool = False) -> Recorded:
    """The most memory of a process that only fine-tunes: a row a method and ``batch``.

    An update is of `TOGETHER` rows, ``batch`` of them in one pass. In MB: ``loaded`` is the most
    until model and libraries are there, ``trained`` until the last update.
    """

    def make() -> tuple[dict[str, Any], dict[str, Any]]:
        import pandas as pd

        experiment.load_trainee(settings(TRIED[0]))  # so that no process converts the file
        rows = []
        for method in RATES:
            for batch in (TOGETHER, 1):
                child = [sys.executable, "-m", f"{__package__}.real_model", "--memory"]
                told = subprocess.run(
                    [*child, method, str(batch)], check=True, stdout=subprocess.PIPE, text=True
                ).stdout.splitlines()[-1]
                rows.append({"method": method, "batch": batch, **json.loads(told)})
        return {"memory": pd.DataFrame(rows)}, {"run": FILE_SUM[:16], "seeds": []}

    runs = [recipe(Run(method, rates[0])) for method, rates in RATES.items()]
    made_from = records.hashed({
        "runs": runs,
        "updates": [TOGETHER, MEMORY_UPDATES],
        "measure": records.code(_print_memory, _peak_mb),
    })  # fmt: skip
    return _taken(MEMORY, made_from, make, live)


def _print_memory(method: str, batch: int) -> None:
    trainer: Any = trainer_of(
        Run(method, RATES[method][0]),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=TOGETHER // batch,
    )
    loaded = _peak_mb()
    rows = trainer.train_dataset
    longest = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
    trainer.train_dataset = rows.select(longest[: TOGETHER * MEMORY_UPDATES])
    trainer.args.max_steps = MEMORY_UPDATES
    trainer.train()
    print(json.dumps({"loaded": loaded, "trained": _peak_mb()}))


def _peak_mb() -> float:
    """The most memory that this process has had, in MB."""
    if sys.platform == "linux":  # where `ru_maxrss` begins at what the parent had
        told = Path("/proc/self/status").read_text()
        return int(told.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts in bytes


def best_rate(method: str) -> float:
    """The learning rate with the most right values on the dev questions, of those tried."""
    tried = [run for run in TRIED if run.method == method]
    return max(tried, key=lambda run: result(run).results["dev"]["right_value"].mean()).rate


def repeated() -> list[Run]:
    """The runs from other seeds, at each method's best rate, and on the instructions."""
    best = {method: best_rate(method) for method in RATES}
    return [
        *(Run(method, rate, seed) for method, rate in best.items() for seed in SEEDS),
        *(Run("full", best["full"], seed, kind="instructions") for seed in SEEDS),
        Run("full", best["full"], template=BOOKS_TEMPLATE),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Fine-tune and measure the real model, and record what came out (a part of ``make runs``)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--memory", nargs=2, metavar=("METHOD", "BATCH"), help="only tell the memory of a run"
    )
    wanted = parser.parse_args(arguments)
    quiet()
    if wanted.memory:
        method, batch = wanted.memory
        _print_memory(method, int(batch))
        return
    os.environ[records.LIVE] = "all"
    print(peak_memory(live=True).results["memory"].to_string(), flush=True)
    for run in (*BEFORE, *TRIED):
        _tell(run)
    for run in repeated():
        if run not in TRIED:
            _tell(run)


def _tell(run: Run) -> None:
    found = result(run, live=True).results
    print(run.name, found["test"][list(metrics.SCORES)].mean().round(3).to_dict(), flush=True)


if __name__ == "__main__":
    main()
