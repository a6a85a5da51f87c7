"""An exported model where models are run: a ``Modelfile`` for Ollama, and commands for servers.

`sft_utils.export.bundle.take_away` writes them.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chat import ChatTemplateError, Messages, rendered
from ..models import context_of, end_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTEXT = 4096  # tokens that Ollama reserves at most; a larger context costs memory

# Contents that no template writes by itself, in the order of a conversation.
_SYSTEM, _ASKED, _ANSWERED, _MORE = (f"Zyzzyva{n}" for n in range(4))

Render = Callable[[Messages, bool], str]


class NotRepeatable(ValueError):
    """A chat template that Ollama's language cannot repeat; the message says why."""


@dataclass(frozen=True)
class Pieces:
    """What a chat template writes around the contents of a conversation.

    ``alone`` goes before a conversation without a system message; ``system`` and the others are
    what stands before and after the content of that turn; ``opening`` begins the answer.
    """

    alone: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str

    def render(self, messages: Messages) -> str:
        """A conversation as these pieces write it, with the beginning of the next answer."""
        first = messages[0]
        system = first["content"] if first["role"] == "system" else None
        if system is not None and self.system is None:
            raise NotRepeatable("the chat template takes no system message")
        head = self.alone if system is None else f"{system}".join(self.system or ())
        turns = "".join(
            turn["content"].join(self.user if turn["role"] == "user" else self.assistant)
            for turn in messages[system is not None :]
        )
        return head + turns + self.opening


def template_pieces(render: Render) -> Pieces:
    """The pieces of a chat template, found by rendering, and tried on other conversations.

    ``render`` takes messages and whether the next answer is opened. Raises `NotRepeatable` where a
    template does more than to write each turn between two fixed texts.
    """
    asked, answered, more = _turns(_ASKED, _ANSWERED, _MORE)
    try:
        alone, between, before_more, _ = _cut(render([asked, answered, more], False), 3)
        _, after_asked = _cut(render([asked], True), 1)
    except ChatTemplateError as error:
        raise NotRepeatable(
            f"the chat template refuses a conversation ({error.__cause__})"
        ) from error
    # After a question stands what ends it, and then what opens an answer, given or not.
    end = os.path.commonprefix([between, after_asked])
    opening = os.path.commonprefix([alone[::-1], before_more[::-1]])[::-1]
    user, assistant = (opening, end), (between[len(end) :], before_more.removesuffix(opening))
    system = None
    instruction = {"role": "system", "content": _SYSTEM}
    try:
        head, after_system, _ = _cut(render([instruction, asked], False), 2)
        if after_system.endswith(opening):
            system = (head, after_system.removesuffix(opening))
    except (ChatTemplateError, NotRepeatable):  # this template takes no system message
        system = None
    pieces = Pieces(alone.removesuffix(opening), system, user, assistant, after_asked[len(end) :])
    # White space around a content is left out: many templates trim it, and Ollama cannot.
    conversation = _turns("First  one?", "No {{ it }}\n\nis not.", "Why?", "So.", "And then?")
    for number, turns in itertools.product((1, 3, 5), ([], [instruction] if system else [])):
        tried = [*turns, *conversation[:number]]
        if pieces.render(tried) != render(tried, True):
            raise NotRepeatable(
                f"the chat template writes a conversation of {len(tried)} turns otherwise than "
                "turn after turn, each between two fixed texts"
            )
    return pieces


def modelfile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The ``Modelfile`` with which Ollama asks a model as it was trained.

    Template and end tokens are those of ``tokenizer`` and ``model``, ``system`` is the system
    message of the prompts, and answers are greedy, as those of the pages are. The tokens that
    `end_token_ids` finds stop an answer. Syntax and parameters: the Modelfile reference of
    Ollama (docs/modelfile.mdx of its repository).

    Raises `NotRepeatable` for a template that Ollama's language cannot repeat.
    """
    bos = str(tokenizer.bos_token)
    adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]

    def render(messages: Messages, opened: bool) -> str:
        text = rendered(tokenizer, messages, opened=opened, template_kwargs=template_kwargs)
        # Ollama writes the first token itself where the tokenizer does.
        return text.removeprefix(bos) if adds_bos else text

    def literal(text: str) -> str:
        return text.replace("{{", '{{ "{{" }}')

    def turn(around: tuple[str, str], content: str) -> str:
        return f"{literal(around[0])}{{{{ {content} }}}}{literal(around[1])}"

    pieces = template_pieces(render)
    head = literal(pieces.alone)
    if pieces.system:
        said, otherwise = turn(pieces.system, ".System"), f"{{{{ else }}}}{head}" if head else ""
        head = f"{{{{ if .System }}}}{said}{otherwise}{{{{ end }}}}"
    template = (
        f'{head}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}'
        f'{turn(pieces.user, ".Content")}{{{{ else if eq .Role "assistant" }}}}'
        f"{turn(pieces.assistant, '.Content')}{{{{ end }}}}{{{{ end }}}}{literal(pieces.opening)}"
    )
    ends = [tokenizer.decode([token]) for token in end_token_ids(model, tokenizer)]
    context = min(context_of(model), CONTEXT)
    lines = [
        "# ollama create NAME -f Modelfile, then: ollama run NAME",
        "# Where Ollama does not take a folder of this architecture, make a GGUF file of it first,",
        "#   python convert_hf_to_gguf.py model --outfile model.gguf    (llama.cpp)",
        "# and write FROM ./model.gguf in place of the next line.",
        "FROM ./model",
        f"TEMPLATE {_quoted(template)}",
        *([] if system is None else [f"SYSTEM {_quoted(system)}"]),
        *(f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in ends),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {context}",
    ]
    return "\n".join(lines) + "\n"


def serving_commands(name: str, repeatable: bool) -> list[str]:
    """Commands that serve the folder ``model``, or take it to the Hub as ``name``.

    vLLM: docs.vllm.ai, "OpenAI-Compatible Server". transformers: its page "Serve CLI".
    """
    return [
        "transformers serve ./model          # pip install 'transformers[serving]'",
        "vllm serve ./model                  # pip install vllm; on a GPU",
        *(["ollama create my-model -f Modelfile"] if repeatable else []),
        f"hf upload {name} ./model            # with a token, from `hf auth login`",
    ]


def _quoted(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise NotRepeatable('a text of a Modelfile can neither hold """ nor end with "')
    return f'"""{text}"""'


# --- Texts -------------------------------------------------------------------------------------


def _turns(*contents: str) -> list[dict[str, str]]:
    roles = itertools.cycle(("user", "assistant"))
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def _cut(text: str, contents: int) -> list[str]:
    """What stands before, between and after the contents, which each stand there once."""
    found = [probe for probe in (_SYSTEM, _ASKED, _ANSWERED, _MORE) if probe in text]
    if len(found) != contents or any(text.count(probe) != 1 for probe in found):
        raise NotRepeatable("the chat template does not write each content once, as it is")
    parts = []
    for probe in found:
        before, _, text = text.partition(probe)
        parts.append(before)
    return [*parts, text]
