"""Questions about held-out entities, asked while a model is trained on the Atlas's rows.

Their exact answers are a judge beside the validation loss. Explained in chapter 10.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..evaluation.metrics import SCORES, clustered_interval
from ..profiles import SEED
from . import evaluate
from .questions import Question, scored_questions
from .world import load_world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEV_QUESTIONS = 120  # asked at every evaluation, to choose the checkpoint


def dev_questions() -> list[Question]:
    """A seeded sample of the Atlas's dev questions: held-out entities in held-out wordings."""
    questions = scored_questions("headline-dev", load_world())
    return random.Random(SEED).sample(questions, min(DEV_QUESTIONS, len(questions)))


class DevAccuracy(TrainerCallback):
    """Scores the dev questions at each evaluation.

    It adds ``eval_dev_exact`` to the metrics, by which a trainer may choose, and keeps
    ``records``: epoch and step, the four scores, the interval of the exact answers from ``low`` to
    ``high``, ``n``, ``eval_loss`` (nats a token) and the seconds that asking took. What it asks is
    an attribute: a fingerprint sees it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._questions, self._tokenizer = dev_questions(), tokenizer
        self.asked = [(question.text, *question.answers) for question in self._questions]
        self.records: list[dict[str, float]] = []

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any
    ) -> None:
        start = time.perf_counter()
        answers = evaluate.score_split(given["model"], self._tokenizer, self._questions)
        scores = {name: float(answers[name].mean()) for name in SCORES}
        low, high = clustered_interval(answers["exact"].tolist(), answers["entity"].tolist())
        metrics["eval_dev_exact"] = scores["exact"]
        self.records.append(
            {"epoch": state.epoch or 0.0, "step": state.global_step}
            | scores
            | {"low": low, "high": high, "n": len(answers), "eval_loss": metrics["eval_loss"]}
            | {"seconds": time.perf_counter() - start}
        )
