"""Which tokens of a conversation carry loss, and how long rows are. Chapter 05."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..chat import (
    PROBE,
    ChatTemplateError,
    Messages,
    bounded,
    conversation_ids,
    end_of_turn_id,
    has_generation_markers,
    rendered,
    special_tokens,
)
from ..wording import short
from .checks import problems_of
from .readers import DataError

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# A template without markers inside one that has some: what the assistant writes is what stands
# between the prompt that it is given and the end of its turn. Names that the template within it
# could see begin with _.
_OPEN = "{%- macro _own(messages, add_generation_prompt) %}\n"
_CLOSE = """{%+ endmacro -%}
{%- if add_generation_prompt -%}
    {{- _own(messages, true) -}}
{%- else -%}
    {%- set _whole = _own(messages, false) -%}
    {%- set _seen = namespace(until=0) -%}
    {%- for message in messages -%}
        {%- if message['role'] == 'assistant' -%}
            {%- set prompt = _own(messages[:loop.index0], true) -%}
            {%- set answered = _own(messages[:loop.index], false) -%}
            {%- set answer = message['content'].split('</think>') | last | trim -%}
            {%- set end = answered.find(END, answered.rfind(answer)) + END | length -%}
            {%- if not _whole.startswith(answered[:end]) or not answered.startswith(prompt) -%}
                {{- raise_exception('a turn is written otherwise when another follows') -}}
            {%- endif -%}
            {{- _whole[_seen.until:prompt | length] -}}
            {%- generation -%}
            {{- _whole[prompt | length:end] -}}
            {%- endgeneration -%}
            {%- set _seen.until = end -%}
        {%- endif -%}
    {%- endfor -%}
    {{- _whole[_seen.until:] -}}
{%- endif -%}
"""

_ADD_MARKERS = (
    "put {% generation %} and {% endgeneration %} around what the assistant writes, its end token "
    "included, in a template of your own; templates/chatml.jinja in this package shows how."
)

_LATER = "turn {} is written differently once another message follows. Train on single turns."


class LossToken(NamedTuple):
    """One token of a rendered conversation. The texts of all its tokens join to its text.

    A token that holds a further part of a character has the text "".
    """

    text: str
    id: int
    carries_loss: bool


class LossMask(NamedTuple):
    """A chat template that marks what the assistant writes, and where the markers are from.

    They are the template's own, or those of the version that TRL has of it, or follow from a rule:
    loss falls on what the model must write when it is given the prompt, its end token included.
    """

    template: str
    source: Literal["its own markers", "TRL's version with markers", "the rule"]


class _Unknown(Exception):
    """Why the mask of a conversation is not known."""


def loss_mask(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None
) -> LossMask:
    """How it is known which tokens the assistant wrote: as training knows it, too. Chapter 05.

    Raises `DataError` if there is no chat template, or one without markers that TRL does not know
    and for which the rule fails already on a short conversation.
    """
    template, name = tokenizer.chat_template, tokenizer.name_or_path or "this model"
    if not template:
        raise DataError(f"The tokenizer of {name!r} has no chat template. Set one first.")
    if not tokenizer.is_fast:
        raise DataError(
            f"The tokenizer of {name!r} does not tell where in a text its tokens stand. Use a fast "
            "one, with a tokenizer.json."
        )
    if has_generation_markers(template):
        return LossMask(template, "its own markers")
    from trl.chat_template_utils import get_training_chat_template

    try:
        with bounded():
            known = get_training_chat_template(tokenizer)
    except Exception:  # TRL does not know it; or it fails on the tool calls that TRL tries first
        known = None
    if known:
        return LossMask(known, "TRL's version with markers")
    probe = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
    try:
        [(_, _, end)] = _turns_by_rule(tokenizer, probe, template_kwargs)
    except ChatTemplateError as error:
        raise DataError(str(error)) from error
    except _Unknown as error:
        raise DataError(
            f"The chat template of {name!r} has no {{% generation %}} markers, and which tokens "
            f"are the assistant's does not follow from it either: {error} Or {_ADD_MARKERS}"
        ) from error
    end = json.dumps(end, ensure_ascii=False)
    template = template[:-1] if template.endswith("\n") else template  # as Jinja drops it
    return LossMask(_OPEN + template + _CLOSE.replace("END", end), "the rule")


def own_template(template: str) -> str:
    """The chat template in one that was made by the rule, without its last line break."""
    if not template.startswith(_OPEN):
        return template
    return template.removeprefix(_OPEN).partition(_CLOSE.partition("END")[0])[0]


def with_markers(
    tokenizer: PreTrainedTokenizerBase, *parts: Iterable[Mapping[str, Any]] | None
) -> PreTrainedTokenizerBase:
    """The tokenizer to train with, by which `SFTTrainer` finds the mask of `loss_mask`. Chapter 07.

    It is the tokenizer itself if its template has markers, or TRL has them, and otherwise a copy
    whose template was given some. ``parts`` are the data sets, each row of which is tried.

    Raises `DataError` where `loss_mask` does, and for rows that the template refuses or whose mask
    is not known.
    """
    rows = [row for part in parts for row in part or ()]
    mask = loss_mask(tokenizer, rows[0].get("chat_template_kwargs") if rows else None)

    def problem(row: Mapping[str, Any]) -> str | None:
        place, messages = f" ({short(row['messages'][0]['content'])}): ", row["messages"]
        try:
            _, encoded = _encode(tokenizer, mask, messages, row.get("chat_template_kwargs"))
        except (_Unknown, ChatTemplateError) as error:
            return f"{place}{error}"
        if 1 in encoded["assistant_masks"]:
            return None
        return f"{place}the template has nothing between its markers, so no token carries loss."

    problems = problems_of((partial(problem, row) for row in rows), lambda row: f"row {row}")
    if problems:
        raise DataError(problems)
    if mask.source == "the rule":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = mask.template
    return tokenizer


def loss_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[LossToken]:
    """Return each token of a conversation and whether loss falls on it with assistant-only loss.

    What carries loss is what stands between ``{% generation %}`` and ``{% endgeneration %}`` in the
    template of `loss_mask`. Explained in chapter 05.

    Raises `DataError` where `loss_mask` does, if the template refuses the conversation, and if the
    mask of this conversation does not follow from it.
    """
    mask = loss_mask(tokenizer, template_kwargs)
    try:
        text, encoded = _encode(tokenizer, mask, messages, template_kwargs)
    except (_Unknown, ChatTemplateError) as error:
        raise DataError(str(error)) from error
    # What no token covers goes to the next one, and the rest to the last.
    ends = [*itertools.accumulate((end for _, end in encoded["offset_mapping"]), max)]
    ends[-1:] = [len(text)]
    return [
        LossToken(text[start:end], token, bool(carries))
        for start, end, token, carries in zip(
            [0, *ends], ends, encoded["input_ids"], encoded["assistant_masks"], strict=False
        )
    ]


def _encode(
    tokenizer: Any, mask: LossMask, messages: Messages, kwargs: Mapping[str, Any] | None
) -> tuple[str, Any]:
    """The text of a conversation, and its ids, offsets and mask."""
    turns = _turns_by_rule(tokenizer, messages, kwargs) if mask.source == "the rule" else []
    text = rendered(
        tokenizer, messages, template_kwargs=kwargs, chat_template=mask.template
    )  # raises what the next line must not
    encoded: Any = tokenizer.apply_chat_template(
        messages,
        chat_template=mask.template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
        **(kwargs or {}),
    )
    marked = [place for place, carries in enumerate(encoded["assistant_masks"]) if carries]
    if turns and marked != [place for start, stop, _ in turns for place in range(start, stop)]:
        raise _Unknown("the tokenizer does not tell which of its tokens the answers are.")
    return text, encoded


def _turns_by_rule(
    tokenizer: Any, messages: Messages, kwargs: Mapping[str, Any] | None
) -> list[tuple[int, int, str]]:
    """The tokens of each of the assistant's turns, from and until, and the text that ends it.

    A turn is what the model must write when it is given the prompt: it begins where the prompt
    ends and goes through the first special tokens after the answer.
    """

    def write(turns: Messages, *, opened: bool = False) -> tuple[str, Any]:
        text = rendered(tokenizer, turns, opened=opened, template_kwargs=kwargs)
        return text, tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )

    ends = {end_of_turn_id(tokenizer), tokenizer.eos_token_id}
    special = ends | {*tokenizer.convert_tokens_to_ids(special_tokens(tokenizer))}
    whole, all_tokens = write(messages)
    found = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, before = write(messages[:turn], opened=True)
        unopened = rendered(tokenizer, messages[:turn], template_kwargs=kwargs)
        text, tokens = write(messages[: turn + 1])
        ids, start = tokens["input_ids"], len(before["input_ids"])
        if not text.startswith(os.path.commonprefix([prompt, unopened])):
            raise _Unknown(_LATER.format(turn - 1))
        if not text.startswith(prompt):
            raise _Unknown(
                f"turn {turn} is asked with {short(prompt[-20:])} and written in another way: "
                "the model stands there after the prompt, and the template begins the answer "
                "otherwise. Set enable_thinking = false in template_kwargs, if the template has it."
            )
        answer = message["content"].rpartition("</think>")[2].strip()
        place = text.rfind(answer, len(prompt))
        if place < 0:
            raise _Unknown(f"the template does not write {short(answer)}, turn {turn}, as given.")
        if prompt == unopened and text[len(prompt) : place].strip():
            raise _Unknown(
                f"the template ignores add_generation_prompt, and writes "
                f"{short(text[len(prompt) : place])} before the answer of turn {turn}."
            )
        behind = [
            (number, *span)
            for number, span in enumerate(tokens["offset_mapping"])
            if span[0] >= place + len(answer) and ids[number] in special
        ]
        if not behind or ids[behind[0][0]] not in ends:
            raise _Unknown(
                f"the template writes no end token after the answer of turn {turn}, so the model "
                "would never learn to stop."
            )
        last, first_char, last_char = behind[0]
        for number, begins, until in behind[1:]:
            if number == last + 1 and begins == last_char:
                last, last_char = number, until
        if not whole.startswith(text[:last_char]):
            raise _Unknown(_LATER.format(turn))
        for of, through in ((before, start), (all_tokens, last + 1)):
            for number in range(through):
                if of["input_ids"][number] != ids[number]:
                    raise _Unknown(
                        f"the token {tokenizer.decode([ids[number]])!r} holds the end of the "
                        f"prompt and the beginning of the answer, turn {turn}."
                    )
        found.append((start, last + 1, text[first_char:last_char]))
    return found


def dropped_turns(
    dataset: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Counter[str]:
    """In how many rows the chat template leaves out text of a turn, by the role of the turn.

    Templates cut a thought before ``</think>``, or pass over a system turn. White space does not
    count, and neither do a tool's turns, which templates rewrite. Chapter 05. Raises `DataError`
    where `loss_mask` does, and `ChatTemplateError`.
    """
    template = own_template(loss_mask(tokenizer, template_kwargs).template)
    found: Counter[str] = Counter()
    for row in dataset:
        text = rendered(
            tokenizer, row["messages"], template_kwargs=template_kwargs, chat_template=template
        )
        text = "".join(text.split())
        found.update(
            {
                turn["role"]
                for turn in row["messages"]
                if turn["role"] != "tool" and "".join(turn["content"].split()) not in text
            }
        )
    return found


def sequence_lengths(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: dict[str, Any] | None = None,
) -> pd.Series:
    """Return the tokens of every rendered row, counted, by row. Explained in chapter 05.

    Raises `DataError` for a row that the chat template refuses.
    """
    import pandas as pd

    lengths = []
    for row, messages in enumerate(dataset["messages"]):
        try:
            lengths.append(len(conversation_ids(tokenizer, messages, template_kwargs)))
        except ChatTemplateError as error:
            raise DataError(f"row {row}: {error}") from error
    return pd.Series(lengths, name="tokens").rename_axis("row")
