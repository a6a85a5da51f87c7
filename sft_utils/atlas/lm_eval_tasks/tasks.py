"""What the ``.yaml`` files here name: the questions, the prompts and the scores of the tasks.

Only ``lm_eval`` imports this module; it comes with ``pip install 'sft-utils[eval]'``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from ...evaluation.metrics import score_answer
from ..corpus import cloze_forms, cloze_prompt
from ..questions import scored_questions
from ..world import load_world


class AtlasTask(ConfigurableTask):
    """A task whose questions are made by the package. Nothing is downloaded."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        self.dataset = {"test": Dataset.from_list(self.rows(**(dataset_kwargs or {})))}

    def rows(self, **options: Any) -> list[dict[str, Any]]:
        """The questions. ``options`` are the ``dataset_kwargs`` of the ``.yaml`` file."""
        raise NotImplementedError

    def build_all_requests(self, **options: Any) -> None:
        if options.get("system_instruction"):
            raise ValueError(
                f"{self.task_name} is asked as the book asks it, with the system messages of its "
                "own questions only: leave out --system_instruction."
            )
        super().build_all_requests(**options)


class ChatTask(AtlasTask):
    """A split, asked in chat: the turns of each question go through the chat template.

    ``lm_eval`` returns the text of an answer, not whether the model ended it. So each question is
    asked twice, the second time with room for one token less. Greedy decoding gives the same
    tokens both times. If the two texts are the same, the last token that the first had room for
    was never needed or was the end itself: the model stopped. If they differ, it was cut. One case
    escapes: a last token that is no end and adds no text, such as other markup, counts as a stop.
    """

    def rows(self, **options: Any) -> list[dict[str, Any]]:
        return [
            {
                "question": question.text,
                "messages": list(question.messages),
                "right": question.answers[0],
                "answers": question.answers,
                "values": question.values,
                "entity": question.entity,
                "relation": question.relation,
                "domain": question.fact.entity.domain,
            }
            for question in scored_questions(options["split"], load_world())
        ]

    def build_all_requests(
        self, *, chat_template: Callable[..., str] | None = None, **options: Any
    ) -> None:
        if chat_template is None:
            raise ValueError(
                f"{self.task_name} is asked in chat: add --apply_chat_template. "
                "Only atlas_cloze needs no chat template."
            )
        settings = self.config.generation_kwargs or {}
        if settings.get("do_sample") or settings.get("temperature"):
            raise ValueError(
                f"{self.task_name} is answered greedily: leave do_sample and temperature out of "
                "--gen_kwargs. With sampling, whether an answer stopped cannot be told."
            )
        self._check_limit(getattr(chat_template, "__self__", None))
        super().build_all_requests(chat_template=chat_template, **options)

    def _check_limit(self, judge: Any) -> None:
        """Raise if a local model's own settings would replace the room for an answer.

        In transformers the ``max_new_tokens`` of a checkpoint beats the ``max_length`` that
        ``lm_eval`` asks for.
        """
        own = getattr(getattr(judge, "model", None), "generation_config", None)
        length = getattr(own, "max_new_tokens", None)
        if length is not None:
            raise ValueError(
                f"The checkpoint's generation_config.json sets max_new_tokens to {length}. "
                "transformers would cut every answer there, not where lm_eval asks, and whether an "
                "answer stopped could not be told. Take that line out of the file."
            )

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int = 0, **options: Any) -> str:
        return str(options["chat_template"](doc["messages"]))

    def construct_requests(self, doc: dict[str, Any], ctx: str, **options: Any) -> list[Instance]:
        settings = deepcopy(self.config.generation_kwargs or {})
        room = int(settings["max_gen_toks"])
        return [
            Instance(
                request_type="generate_until",
                doc=doc,
                arguments=(ctx, {**settings, "max_gen_toks": tokens}),
                idx=number,
                metadata=options["metadata"],
            )
            for number, tokens in enumerate((room, room - 1))
        ]


class ClozeTask(AtlasTask):
    """Facts to complete, as plain text: the prompts of `sft_utils.atlas.evaluate.cloze`."""

    def rows(self, **options: Any) -> list[dict[str, Any]]:
        rng = random.Random("cloze 0")
        facts = [
            fact
            for fact in load_world().facts
            if fact.entity.role != "absent" and not fact.gives_itself_away
        ]
        drawn = [(fact, rng.sample(cloze_forms(fact), 1)[0]) for fact in facts]
        cut = [(fact, *cloze_prompt(fact, form)) for fact, form in drawn]
        return [
            {
                "prompt": prompt,
                "right": right[0],
                "answers": right,
                "entity": fact.entity.name,
                "relation": fact.relation.name,
                "domain": fact.entity.domain,
            }
            for fact, prompt, right in cut
        ]

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int = 0, **_: Any) -> str:
        return str(doc["prompt"])  # a chat template, if given, is for the other tasks


def score_chat(doc: dict[str, Any], responses: Sequence[str]) -> dict[str, float]:
    """The four scores of one answer, given with all its room and with one token less."""
    response, shorter = responses
    score = score_answer(
        response,
        answers=doc["answers"],
        values=doc["values"],
        other_values=_vocabulary()[doc["domain"], doc["relation"]],
        stopped=response == shorter,
        entity=doc["entity"],
    )
    return {name: float(value) for name, value in asdict(score).items()}


def score_cloze(doc: dict[str, Any], responses: Sequence[str]) -> dict[str, float]:
    """1 if the text goes on with a right value, as a whole: "10" is no "1"."""
    [text] = responses
    return {
        "correct": float(
            any(re.match(rf"\s*{re.escape(value)}(?![\w-])", text) for value in doc["answers"])
        )
    }


@cache
def _vocabulary() -> dict[tuple[str, str], set[str]]:
    world = load_world()
    return {(r.domain, r.name): world.values(r) for r in world.relations()}
