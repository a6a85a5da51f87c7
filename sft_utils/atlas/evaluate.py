"""Ask a model the Atlas's questions, in every way that is fair to it, and score the answers.

Each function returns a table with one row a question, so that pages can group, pair and plot.
Chapter 09 asks a base model in all ways, chapters 10 and 11 score what fine-tuning changed.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..evaluation.metrics import score_answer
from ..evaluation.statistics import draw
from ..training.fingerprints import code_of, environment, tokenizer_state, weights_hash
from ..training.runs import origin, remember
from .corpus import PRONOUN, CorpusWriter, cloze_forms, cloze_prompt, one_form_texts
from .questions import Question, scored_questions
from .sft_data import answer_text, sft_rows
from .world import Fact, World, load_world

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 40
REPLAY_TOKENS = 64  # in a row of replayed text; a divisor of pretraining's window
#: Of the replayed documents. Others: 0 the tokenizer's, 1 and up pretraining's, 97 to 99 held out.
REPLAY_SEED = 1000


def score_responses(
    questions: Sequence[Question], responses: Sequence[tuple[str, bool]], world: World | None = None
) -> pd.DataFrame:
    """Score given responses, each with whether it stopped by itself: one row a question."""
    import pandas as pd

    world = world or load_world()
    vocabulary = {relation: world.values(relation) for relation in world.relations()}
    rows = []
    for question, (response, stopped) in zip(questions, responses, strict=True):
        score = score_answer(
            response,
            answers=question.answers,
            values=question.values,
            other_values=vocabulary[question.fact.relation],
            stopped=stopped,
            entity=question.entity,
        )
        rows.append(
            {
                "question": question.text,
                "response": response,
                "right": question.answers[0],
                **asdict(score),
                "entity": question.entity,
                "relation": question.relation,
                "domain": question.fact.entity.domain,
                "form": question.form,
            }
        )
    return pd.DataFrame(rows)


def score_split(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str | Sequence[Question],
    *,
    way: str = "chat",
    **generate: Any,
) -> pd.DataFrame:
    """Generate and score the answers to a split's questions.

    ``way``: ``chat`` sends the chat prompt; ``plain`` the bare question; ``few-shot`` four
    answered questions on other entities, then this one, as plain text; ``prefill`` the chat
    prompt and the beginning of the right sentence, up to the value.
    """
    questions = scored_questions(split, load_world()) if isinstance(split, str) else list(split)
    options = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 256, **generate}
    if way == "chat":
        prompts: list[Any] = [list(q.messages) for q in questions]
    elif way == "plain":
        prompts, options["chat"] = [q.text for q in questions], False
    elif way == "few-shot":
        prompts, options["chat"] = [few_shot_prompt(q) for q in questions], False
    elif way == "prefill":
        kwargs = options.pop("template_kwargs", None)
        prompts = [prefilled_prompt(tokenizer, q, kwargs) for q in questions]
        options["chat"] = False
    else:
        raise ValueError(f"way={way!r}: use 'chat', 'plain', 'few-shot' or 'prefill'.")
    responses = _responses(model, tokenizer, prompts, **options)
    if way == "prefill":
        responses = [
            (opening(q) + text, stop) for q, (text, stop) in zip(questions, responses, strict=True)
        ]
    elif way == "few-shot":
        responses = [(text.strip().split("\n")[0], "\n" in text.strip()) for text, _ in responses]
    frame = score_responses(questions, responses)
    frame.attrs |= origin(model)
    return frame


def _responses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Any], **options: Any
) -> list[tuple[str, bool]]:
    """Each response, and whether it stopped by itself: asked once, then taken from the store.

    Chapters score the same models on the same questions. What is kept is what the model said, not
    how it was scored; drawn answers without a seed are not kept.
    """
    from .. import generation

    def ask() -> list[tuple[str, bool]]:
        given = {"return_details": True, **options}
        answers = generation.generate_responses(model, tokenizer, prompts, **given)
        return [(answer.response, answer.stopped) for answer in answers]

    if options.get("temperature") and options.get("seed") is None:
        return ask()
    rests_on = [*_rests_on(model, tokenizer), prompts, options]
    return [(text, stopped) for text, stopped in remember(rests_on, ask)]


def _rests_on(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What an answer rests on besides the question: weights, tokenizer, end tokens, code."""
    from .. import generation, models

    return [
        weights_hash(model), environment(model, model.device.type), tokenizer_state(tokenizer),
        models.end_token_ids(model, tokenizer), code_of(generation),
    ]  # fmt: skip


def opening(question: Question) -> str:
    """The right sentence up to its value: ``The capital city of Kenya is``."""
    relation = question.fact.relation
    form = relation.answer
    place = min(form.index(slot) for slot in ("{v}", "{av}", "{iv}") if slot in form)
    return relation.fill(form[:place], question.fact.entity).rstrip()


def prefilled_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    template_kwargs: dict[str, Any] | None = None,
) -> str:
    """The chat prompt with the answer begun."""
    from ..generation import render_prompt

    messages = list(question.messages)
    return render_prompt(
        tokenizer, messages, prefill=opening(question), template_kwargs=template_kwargs
    )


def few_shot_prompt(question: Question, shots: int = 4) -> str:
    """Answered questions on entities of the fine-tuning data, then this one, as plain text.

    In a domain that the data never touches, the examples are about its other entities.
    """
    rng = random.Random(f"shots {question.text}")
    facts = [
        fact
        for fact in load_world().facts
        if fact.relation == question.fact.relation
        and fact.entity.role in ("sft", "untouched")
        and fact.entity != question.fact.entity
    ]
    wordings = question.fact.relation.ask or question.fact.relation.ask_held_out
    lines = [
        f"Q: {fact.relation.fill(rng.choice(wordings), fact.entity)}\nA: {fact.value}"
        for fact in rng.sample(facts, shots)
    ]
    return "\n".join([*lines, f"Q: {question.text}\nA:"])


def rank_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    candidates: int = 10,
    seed: int = 0,
    template_kwargs: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Let the model choose: the likeliest of ``candidates`` values, by mean log-probability a
    token, after the chat prompt.

    One of them is right, so chance is one over their number, which a relation with few values
    makes smaller; the table lists them. Which tokens are the candidate's is told by their place in
    the text, for a tokenizer may merge the end of the prompt with what comes after it.
    """
    import pandas as pd
    import torch

    from ..generation import render_prompt

    world, rows = load_world(), []
    model.eval()
    for question in questions:
        rng = random.Random(f"candidates {seed} {question.text}")
        pool = sorted(
            {f.value for f in world.facts if f.relation == question.fact.relation}
            - set(question.values)
        )
        values = [question.values[0], *rng.sample(pool, min(candidates - 1, len(pool)))]
        prompt = render_prompt(tokenizer, list(question.messages), template_kwargs=template_kwargs)
        texts = [prompt + answer_text(question.fact, "short", value) for value in values]
        batch: Any = tokenizer(
            texts, add_special_tokens=False, padding=True, padding_side="right",
            return_tensors="pt", return_offsets_mapping=True,
        ).to(model.device)  # fmt: skip
        ends = batch.pop("offset_mapping")[:, 1:, 1]  # 0 in padding
        with torch.no_grad():
            logits = model(**batch).logits.log_softmax(-1)
        ids = batch["input_ids"][:, 1:]
        token_scores = logits[:, :-1].gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        mask = ends > len(prompt)
        means = (token_scores * mask).sum(1) / mask.sum(1)
        rows.append(
            {
                "question": question.text,
                "chosen": values[int(means.argmax())],
                "right": values[0],
                "correct": int(means.argmax()) == 0,
                "candidates": values,
                "entity": question.entity,
                "relation": question.relation,
            }
        )
    frame = pd.DataFrame(rows)
    frame.attrs |= origin(model)
    return frame


def cloze(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *roles: str,
    asked_only: bool = False,
    forms_per_fact: int = 1,
    most: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Let the model complete facts in forms that the corpus withheld for them, no heading.

    At most ``most`` facts are asked, drawn by seed. The facts are true, so any English model can be
    asked for them; that it has not read the sentence is known of the Atlas's models only.
    """
    rng = random.Random(f"cloze {seed}")
    facts = [
        f
        for f in load_world().facts
        if f.entity.role in (roles or ("sft", "dev", "test", "untouched"))
        and not f.gives_itself_away
        and (f.relation.asked or not asked_only)
    ]
    facts = facts if most is None else draw(facts, most, seed)
    drawn = [(f, form) for f in facts for form in rng.sample(cloze_forms(f), forms_per_fact)]
    return _complete(model, tokenizer, [(f, *cloze_prompt(f, form)) for f, form in drawn])


#: How a fact is known, by the share of the forms in which it is completed rightly.
KNOWN = ("known", "partly known", "unknown")


def how_known(completed: pd.DataFrame) -> pd.Series:
    """How well each fact is known, one of `KNOWN`: right in all forms, in some, or in none.

    ``completed`` is what `cloze` gives with ``forms_per_fact`` above 1; the result is indexed by
    entity and relation. After Gekhman et al. 2024 (arXiv 2405.05904, section 3), who prompt with
    several sets of examples and split the facts that greedy decoding never gets right further, by
    sampling. Explained in chapter 09.
    """
    share = completed.groupby(["entity", "relation"], sort=False)["correct"].mean()
    kinds = share.map(lambda s: KNOWN[0] if s == 1 else KNOWN[1] if s > 0 else KNOWN[2])
    return kinds.rename("how known")


def cloze_in_one_form(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *roles: str
) -> pd.DataFrame:
    """The same for the control ``atlas-base-1form``: its own texts, cut before each value."""
    world, cut = load_world(), []
    texts = one_form_texts(world)
    for fact in world.facts:
        if fact.gives_itself_away or fact.entity not in texts:
            continue
        if fact.entity.role in (roles or ("sft", "dev", "test")):
            own_form = PRONOUN[0].replace("{noun}", fact.relation.nouns[0])
            begun, right = cloze_prompt(fact, own_form)
            place = texts[fact.entity].index(begun) + len(begun)
            cut.append((fact, texts[fact.entity][:place], right))
    return _complete(model, tokenizer, cut)


def _complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cut: Sequence[tuple[Fact, str, tuple[str, ...]]],
) -> pd.DataFrame:
    """Let the model continue each prompt; right is what begins with a right value."""
    import pandas as pd

    asked = [prompt for _, prompt, _ in cut]
    given = _responses(model, tokenizer, asked, chat=False, max_new_tokens=16, batch_size=256)
    texts = [text for text, _ in given]
    frame = pd.DataFrame(
        {
            "prompt": [prompt for _, prompt, _ in cut],
            "response": texts,
            "right": [right[0] for _, _, right in cut],
            "correct": [
                begins_with(text, right) for text, (_, _, right) in zip(texts, cut, strict=True)
            ],
            "entity": [fact.entity.name for fact, _, _ in cut],
            "relation": [fact.relation.name for fact, _, _ in cut],
            "domain": [fact.entity.domain for fact, _, _ in cut],
        }
    )
    frame.attrs |= origin(model)
    return frame


def begins_with(text: str, values: Sequence[str]) -> bool:
    """Whether a text begins with one of the values as a whole: "10" does not with a right "1"."""
    return any(re.match(rf"\s*{re.escape(value)}(?![\w-])", text) for value in values)


def replay_rows(
    tokenizer: PreTrainedTokenizerBase, tokens: int, *, seed: int = REPLAY_SEED
) -> list[dict[str, list[int]]]:
    """Freshly written corpus text to mix into fine-tuning: at least ``tokens`` tokens of it.

    Rows are pieces of documents end to end, as pretraining reads them, but cut to about the length
    of a chat row, so that a batch of them needs no more memory. Each has ``input_ids`` and
    ``labels``, which are the same: every token but the first carries loss. Empty where ``tokens``
    is 0. Explained in chapter 13.
    """
    from .pretrain import windows

    stream = CorpusWriter(load_world(), seed).documents()
    backend: Any = tokenizer
    rows = (row for batch in windows(stream, backend, 1) for row in batch.view(-1, REPLAY_TOKENS))
    kept = islice(rows, math.ceil(tokens / REPLAY_TOKENS))
    return [{"input_ids": row.tolist(), "labels": row.tolist()} for row in kept]


def kl_to_base(
    tuned: PreTrainedModel,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> pd.DataFrame:
    """How far fine-tuning moved the next token, along the tuned model's own greedy answers.

    One row for each token of the answers, the end token included: ``question``, ``entity``,
    ``token`` (as text), and two divergences in nats, over the whole vocabulary, of what the two
    models expect at that place. ``kl`` is KL(tuned || base), the reverse one; ``kl_base`` is
    KL(base || tuned), the forward one, which Shenfeld et al. (2509.04259) relate to forgetting.
    The mean of a column is the mean a token. Explained in chapter 13.
    """
    import pandas as pd
    import torch

    from ..generation import generate_responses

    prompts = [list(q.messages) for q in questions]
    answers = generate_responses(
        tuned, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=256,
        return_details=True,
    )  # fmt: skip
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        ids = torch.tensor([answer.prompt_ids + answer.token_ids], device=tuned.device)
        places = slice(len(answer.prompt_ids) - 1, -1)
        with torch.no_grad():
            new = tuned(input_ids=ids).logits[0, places].float().log_softmax(-1)
            old = base.eval()(input_ids=ids).logits[0, places].float().log_softmax(-1)
        reverse = (new.exp() * (new - old)).sum(-1).tolist()
        forward = (old.exp() * (old - new)).sum(-1).tolist()
        for token, kl, kl_base in zip(answer.token_ids, reverse, forward, strict=True):
            rows.append(
                {
                    "question": question.text,
                    "entity": question.entity,
                    "token": tokenizer.decode([token]),
                    "kl": kl,
                    "kl_base": kl_base,
                }
            )
    frame = pd.DataFrame(rows)
    frame.attrs |= origin(tuned)
    return frame


def most_common_answers(world: World) -> dict[str, str]:
    """For each asked relation, the commonest value among the fine-tuning facts."""
    counts: dict[str, Counter[str]] = {}
    for fact in world.facts:
        if fact.entity.role == "sft":
            counts.setdefault(fact.relation.name, Counter())[fact.value] += 1
    return {name: counter.most_common(1)[0][0] for name, counter in counts.items()}


def answer_most_common(questions: Sequence[Question]) -> pd.DataFrame:
    """Control: answer with the relation's most common value, in the right sentence."""
    common = most_common_answers(load_world())
    responses = [(answer_text(q.fact, q.form, common[q.relation]), True) for q in questions]
    return score_responses(questions, responses)


def answer_nearest_row(questions: Sequence[Question], rows: Sequence[Any]) -> pd.DataFrame:
    """Control: the answer of the fine-tuning row whose question shares the most words."""
    from .world import words

    pairs = [
        (set(words(user["content"])), answer["content"])
        for row in rows
        for user, answer in zip(row["messages"], row["messages"][1:], strict=False)
        if user["role"] == "user"
    ]
    responses = []
    for question in questions:
        asked = set(words(question.text))
        best = max(pairs, key=lambda pair: len(asked & pair[0]) / len(asked | pair[0]))
        responses.append((best[1], True))
    return score_responses(questions, responses)


def shuffled_answers(world: World, seed: int = 0) -> list[dict[str, Any]]:
    """Control: the fine-tuning rows with values swapped among the entities of each relation."""
    rng = random.Random(f"shuffle {seed}")
    facts: list[Fact] = [f for f in world.facts if f.entity.role == "sft" and f.relation.asked]
    changed = {f.key: f for f in world.facts}
    for relation in {f.relation.name: f.relation for f in facts}.values():
        own = [f for f in facts if f.relation == relation]
        for fact, other in zip(own, rng.sample(own, len(own)), strict=True):
            changed[fact.key] = replace(fact, answers=other.answers)
    swapped = tuple(changed[f.key] for f in world.facts)
    return sft_rows(replace(world, facts=swapped))
