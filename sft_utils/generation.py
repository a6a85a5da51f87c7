"""Ask a model and get its answers: the exact prompt in, the exact response out.

Explained in chapter 02.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .chat import ChatTemplateError, Messages, rendered, text_problems
from .environment import torch_random_state
from .models import context_of, end_token_ids

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Generation:
    """One answer of a model, with everything that led to it.

    ``token_ids`` are the generated tokens, the end token included if there was one; ``response``
    is their text without it. ``stopped`` is True if the model ended by itself, False if it was
    cut at ``max_new_tokens``.
    """

    prompt: str
    response: str
    token_ids: list[int]
    stopped: bool
    num_tokens: int
    prompt_ids: list[int]


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    *,
    prefill: str | None = None,
    template_kwargs: dict[str, Any] | None = None,
) -> str:
    """Return the exact prompt: the conversation, then the opening of the assistant's turn.

    ``prefill`` is appended as it is, as the beginning of the answer. ``template_kwargs`` go to
    the chat template, for instance ``{"enable_thinking": False}``. Explained in chapter 02.

    Raises `ChatTemplateError` if the tokenizer has no chat template, if the template refuses the
    conversation, if the last turn is the assistant's, or if a turn would be read as one of the
    tokenizer's special tokens, which could forge a turn (see `sft_utils.chat.text_problems`).
    """
    name = tokenizer.name_or_path or "this model"
    if not tokenizer.chat_template:
        raise ChatTemplateError(
            f"The tokenizer of {name!r} has no chat template, so a conversation cannot be written "
            'as a prompt. Name one: chat_template = "chatml.jinja" in the profile, or '
            'load_model_and_tokenizer(..., chat_template="chatml.jinja"). '
            "To send plain text, use chat=False."
        )
    if not messages or messages[-1]["role"] == "assistant":
        raise ChatTemplateError(
            "A prompt must end with a turn for the assistant to answer; this one "
            + ("is empty." if not messages else "ends with the assistant's. Use prefill= for that.")
        )
    contents = [str(message.get("content")) for message in messages]
    for turn, problem in enumerate(text_problems(tokenizer, contents)):
        if problem:
            raise ChatTemplateError(f"Turn {turn} ({messages[turn]['role']}) {problem}")
    text = rendered(tokenizer, messages, opened=True, template_kwargs=template_kwargs)
    return text + (prefill or "")


def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages],
    *,
    system: str | None = None,
    max_new_tokens: int = 64,
    template_kwargs: dict[str, Any] | None = None,
    prefill: str | None = None,
    chat: bool = True,
    keep_special_tokens: bool = False,
    temperature: float = 0.0,
    seed: int | None = None,
    num_samples: int = 1,
    batch_size: int = 64,
    return_details: bool = False,
) -> list[Any]:
    """Answer every prompt, in order. Explained in chapter 02.

    A prompt is a string, sent as one user turn, or a list of messages. With ``chat=False`` it is
    a string that the model continues as it is, markup included; the tokenizer puts its
    begin-of-text token before it, unless the string begins with that. ``prefill`` begins the answer
    for the model; the response leaves it out.

    ``temperature=0`` is greedy: always the likeliest token, whatever the model's own generation
    settings say, and in float32 the same answers for any ``batch_size``. Above 0, tokens are drawn
    from the full distribution; with ``seed`` the draw repeats, and the global random state is left
    as it was. ``num_samples`` above 1 gives a list of that many answers for each prompt.

    Generation stops at every token of `end_token_ids`. The model is in evaluation mode meanwhile
    and returns to the mode it was in. Returns strings, or `Generation`s with ``return_details``.

    Raises `ChatTemplateError` (see `render_prompt`) and `ValueError` for other bad arguments, such
    as prompts that do not fit the model's context with ``max_new_tokens`` to come.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list; for a single one write [prompt].")
    if max_new_tokens < 1 or num_samples < 1 or batch_size < 1:
        raise ValueError("max_new_tokens, num_samples and batch_size must be at least 1.")
    if temperature < 0 or (num_samples > 1 and temperature == 0):
        raise ValueError(
            f"temperature={temperature} with num_samples={num_samples}: a temperature cannot be "
            "negative, and at 0 all samples of a prompt are the same. Use temperature=1.0, say."
        )
    texts = [
        render_prompt(
            tokenizer,
            _messages(prompt, system),
            prefill=prefill,
            template_kwargs=template_kwargs,
        )
        if chat
        else _plain(prompt, system) + (prefill or "")
        for prompt in prompts
    ]
    # A chat template writes the begin-of-text token itself; adding it again would double it.
    written = tuple(filter(None, [tokenizer.bos_token]))
    encoded = [
        tokenizer(text, add_special_tokens=not (chat or text.startswith(written)))["input_ids"]
        for text in texts
    ]
    _check_lengths(model, encoded, max_new_tokens)

    ends = end_token_ids(model, tokenizer)
    config = _generation_config(tokenizer, ends, max_new_tokens, temperature, num_samples)
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    answers: list[list[Generation]] = [[] for _ in texts]
    with _prepared(model, config), _local_seed(seed):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = _generate_batch(model, [encoded[i] for i in batch], config)
            for row, ids in enumerate(rows):
                i = batch[row // num_samples]
                answers[i].append(
                    _read(tokenizer, texts[i], encoded[i], ids, set(ends), keep_special_tokens)
                )

    results: list[list[Any]] = [
        group if return_details else [answer.response for answer in group] for group in answers
    ]
    return results if num_samples > 1 else [group[0] for group in results]


def _check_lengths(model: PreTrainedModel, encoded: list[list[int]], max_new_tokens: int) -> None:
    limit = context_of(model)
    for i, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"Prompt {i} is empty: there is no token to continue from.")
        if len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"Prompt {i} has {len(ids)} tokens; with max_new_tokens={max_new_tokens} that is "
                f"more than the model's context of {limit}. Shorten the prompt or lower "
                f"max_new_tokens by {len(ids) + max_new_tokens - limit}."
            )


def _generation_config(
    tokenizer: PreTrainedTokenizerBase,
    ends: list[int],
    max_new_tokens: int,
    temperature: float,
    num_samples: int,
) -> GenerationConfig:
    from transformers import GenerationConfig

    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_return_sequences=num_samples,
        eos_token_id=ends or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        use_cache=True,
        **(sampling if temperature > 0 else {"do_sample": False}),
    )


def _generate_batch(
    model: PreTrainedModel, encoded: list[list[int]], config: GenerationConfig
) -> list[list[int]]:
    """Continue every row, padded on the left so that all of them end where the answers begin.

    Returns the new tokens of each sample, ``num_return_sequences`` rows for each prompt.
    """
    import torch

    width = max(map(len, encoded))
    ids = torch.full((len(encoded), width), config.pad_token_id, device=model.device)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(encoded):
        ids[row, width - len(tokens) :] = torch.tensor(tokens, device=model.device)
        mask[row, width - len(tokens) :] = 1
    # Typed as Any: transformers declares `generate` on a mixin that mypy cannot follow.
    generator: Any = model
    output = generator.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return output[:, width:].tolist()


def _read(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    prompt_ids: list[int],
    ids: list[int],
    ends: set[int],
    keep_special_tokens: bool,
) -> Generation:
    """Cut the padding behind the end token and decode."""
    length = next((place for place, token in enumerate(ids) if token in ends), None)
    stopped = length is not None
    ids = ids[: length + 1] if length is not None else ids
    # The end token goes by hand: not every tokenizer calls its end of turn special.
    shown = ids[:-1] if stopped and not keep_special_tokens else ids
    response = tokenizer.decode(
        shown,
        skip_special_tokens=not keep_special_tokens,
        clean_up_tokenization_spaces=False,
    )
    return Generation(prompt, str(response), ids, stopped, len(ids), prompt_ids)


@contextlib.contextmanager
def _prepared(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Evaluation mode, and no generation setting but ours; both put back afterwards.

    A model left in training mode drops its cache under activation checkpointing and generates
    wrong text. And what a passed config leaves open, ``generate`` fills in from the model's own,
    a repetition penalty for instance.
    """
    modes = [(module, module.training) for module in model.modules()]
    own_config = model.generation_config
    model.eval()
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own_config
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _local_seed(seed: int | None) -> Iterator[None]:
    """Seed torch for the block alone; with no seed, draw from the global state."""
    import torch

    if seed is None:
        yield
        return
    with torch_random_state():
        torch.manual_seed(seed)
        yield


def test_model_with_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Any],
    *,
    title: str | None = None,
    show_prompt: bool = False,
    **generate: Any,
) -> list[Generation]:
    """Ask every question and print the whole list: question, answer, and how the answer ended.

    A question is a string, a list of messages, or a `sft_utils.profiles.Question`. With
    ``show_prompt`` the exact prompt is printed too. A line that is too long for a page goes on
    behind ``┊``; behind ``│`` begins a new one. Other keywords go to `generate_responses`.
    Explained in chapter 02.
    """
    system = generate.pop("system", None)
    prompts = [_as_prompt(question, system, generate.get("chat", True)) for question in questions]
    generations = generate_responses(model, tokenizer, prompts, return_details=True, **generate)
    if title:
        print(f"{title}\n{'=' * len(title)}")
    for number, (prompt, generation) in enumerate(zip(prompts, generations, strict=True), 1):
        print(f"\n{number}.")
        turns = prompt if isinstance(prompt, list) else [{"role": "text", "content": prompt}]
        for turn in turns:
            _print_block(turn["role"], turn["content"])
        if show_prompt:
            _print_block("prompt", generation.prompt)
        _print_block("answer", generation.response)
        count = f"{generation.num_tokens} token{'s' * (generation.num_tokens != 1)}"
        ending = "■ stopped by itself after" if generation.stopped else "✂ cut at the limit of"
        print(f"            {ending} {count}")
    return generations


# The name is the course's; pytest would take it for a test.
test_model_with_questions.__test__ = False  # type: ignore[attr-defined]


def _as_prompt(question: Any, system: str | None, chat: bool) -> str | Messages:
    """The messages of a question, or its text; its own system prompt goes before the shared."""
    own = getattr(question, "system", None)
    prompt = getattr(question, "text", question)
    return _messages(prompt, own or system) if chat else _plain(prompt, own or system)


# Control characters would move the cursor or color the page: they are shown as escapes.
_VISIBLE = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}


#: Breaks a line after a space, where it has one, and takes nothing away.
_WRAP = textwrap.TextWrapper(
    64, drop_whitespace=False, replace_whitespace=False, expand_tabs=False, break_on_hyphens=False
)


def _print_block(label: str, text: str) -> None:
    for line in text.translate(_VISIBLE).split("\n"):
        for mark, part in zip("│" + "┊" * len(line), _WRAP.wrap(line) or [""], strict=False):
            print(f"{label:>9} {mark} {part}")
            label = ""


def _messages(prompt: str | Messages, system: str | None) -> Messages:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system is None:
        return messages
    if messages and messages[0]["role"] == "system":
        raise ValueError("A prompt has a system turn of its own, and system= was given as well.")
    return [{"role": "system", "content": system}, *messages]


def _plain(prompt: str | Messages, system: str | None) -> str:
    if not isinstance(prompt, str) or system is not None:
        raise ValueError("With chat=False a prompt is a string, and there is no system prompt.")
    return prompt
