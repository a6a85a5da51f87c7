"""Chat templates: the text they make, tokens that only they may write, the end of a turn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .wording import cut, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]

# A word that no template and no end-of-turn text contains.
PROBE = "Zyzzyva"

LONGEST = 10_000_000  # characters that a template may write: far above any context


class ChatTemplateError(ValueError):
    """A conversation cannot be written as a prompt or a row. The message says what to do."""


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    *,
    opened: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
) -> str:
    """The text of a conversation as a chat template writes it.

    With ``opened`` it ends where the assistant is to answer. ``template_kwargs`` are variables of
    the template, and ``chat_template`` is one in place of the tokenizer's own.

    Raises `ChatTemplateError` if the template refuses the conversation, fails, or writes more than
    `LONGEST` characters.
    """
    try:
        with bounded():
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=chat_template,
                tokenize=False,
                add_generation_prompt=opened,
                **(template_kwargs or {}),
            )
    except Exception as error:  # a template is a program, and may fail in any way
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise ChatTemplateError(
            f"The chat template of {tokenizer.name_or_path or 'this model'!r} refuses this "
            f"conversation (roles: {cut(roles, 60)}): {cut(str(error)) or type(error).__name__}. "
            "Change the conversation, or name another template."
        ) from error
    return str(text)


@contextmanager
def bounded() -> Iterator[None]:
    """Stop a chat template that writes without end. One that computes so is not stopped."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment as Environment

    before = vars(Environment).get("concat")

    def joined(parts: Iterable[str]) -> str:
        found, size = [], 0
        for part in parts:
            found.append(part)
            size += len(part)
            if size > LONGEST:
                raise ValueError(f"it writes more than {LONGEST:,} characters")
        return "".join(found)

    Environment.concat = staticmethod(joined)
    try:
        yield
    finally:
        if before is None:
            del Environment.concat
        else:
            Environment.concat = before


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the text of every token that the tokenizer calls special; see `markup_tokens`."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens))


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template writes after an assistant's answer, if it is one token."""
    if not tokenizer.chat_template:
        return None
    conversation = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": PROBE},
    ]
    try:
        text = rendered(tokenizer, conversation)
    except ChatTemplateError:  # a template may refuse any conversation it likes
        return None
    _, _, after = text.rpartition(PROBE)
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def markup_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return text and id of every token that is markup: as text, it would be read as that.

    These are the special tokens, and the added tokens with which the chat template opens or ends a
    turn, since not every tokenizer calls these special. Other added tokens are text for which the
    vocabulary has a place, such as ``<think>`` in the answers of Qwen3.
    """
    found = set(special_tokens(tokenizer))
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    plain = {token for token in added - found if re.search(r"[^\w\s]", token)}
    if plain and tokenizer.chat_template:
        found |= _turn_tokens(tokenizer, found | plain)
    ids: Any = tokenizer.convert_tokens_to_ids(sorted(found))
    return dict(zip(sorted(found), ids, strict=True))


def _turn_tokens(tokenizer: Any, tokens: set[str]) -> set[str]:
    """Those of ``tokens`` that stand around the turns of a rendered conversation."""
    user, assistant = ({"role": role, "content": PROBE} for role in ("user", "assistant"))

    def first(text: str) -> set[str]:
        places = {token: text.find(token) for token in tokens if token in text}
        return {min(places, key=lambda token: (places[token], -len(token)))} if places else set()

    try:
        asked, prompt, answered = (
            rendered(tokenizer, turns, opened=opened)
            for turns, opened in (([user], False), ([user], True), ([user, assistant], False))
        )
    except ChatTemplateError:  # a template may refuse any conversation it likes
        return set()
    opening, ending = prompt.removeprefix(asked), answered.rpartition(PROBE)[2]
    return {token for token in tokens if token in asked} | first(opening) | first(ending)


def text_problems(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    markup: Mapping[str, int] | None = None,
) -> list[str | None]:
    """Say of each text why it cannot be the content of a turn; None where it can.

    A text may hold no token of ``markup`` (`markup_tokens`, if not given), neither as it is nor
    among the ids that the tokenizer makes of it: some normalize a text first, and then full-width
    letters spell a special token too. Nor may it hold half a character.
    """
    markup = markup_tokens(tokenizer) if markup is None else markup
    by_id = {number: token for token, number in markup.items()}
    # An unknown character is no markup, unless one token plays several parts.
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        by_id.pop(tokenizer.unk_token_id, None)
    halves = [half_character(text) for text in texts]
    whole = [text if half is None else "" for text, half in zip(texts, halves, strict=True)]
    problems = []
    for text, half, ids in zip(texts, halves, ids_of(tokenizer, whole), strict=True):
        written = next((token for token in markup if token in text), None)
        read = next((by_id[number] for number in ids if number in by_id), None)
        if half or not (written or read):
            problems.append(half)
            continue
        how = "contains" if written else "becomes, once the tokenizer has normalized it,"
        problems.append(
            f"{how} {written or read!r}, a special token of the tokenizer, in "
            f"{short(text)}. Remove it: the model would read it as markup."
        )
    return problems


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text by itself; no warning that it is longer than some model's context."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def half_character(text: str) -> str | None:
    """Why a text cannot be written down, or None. JSON can spell one half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"contains {text[error.start]!r}, half a character that cannot be written in UTF-8, "
            f"in {short(text)}. Remove it, or make the file again from its source."
        )
    return None


def has_generation_markers(template: str) -> bool:
    """Whether a chat template marks what the assistant wrote."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """The ids of a rendered conversation. Raises `ChatTemplateError`; see `rendered`."""
    return ids_of(tokenizer, [rendered(tokenizer, messages, template_kwargs=template_kwargs)])[0]
