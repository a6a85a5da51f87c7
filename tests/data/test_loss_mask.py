"""Which tokens the assistant wrote: by markers, by TRL's version of a template, or by the rule."""

import copy
import re
from itertools import groupby
from pathlib import Path

import pytest
import trl
from conftest import (
    CORPUS,
    byte_level_bpe,
    conversation,
    make_model,
    make_tokenizer,
    quick_config,
)
from datasets import Dataset
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from trl import SFTTrainer

from sft_utils import chat
from sft_utils.chat import ChatTemplateError, conversation_ids, rendered
from sft_utils.data.checks import check_rows
from sft_utils.data.loss_mask import (
    dropped_turns,
    loss_mask,
    loss_tokens,
    own_template,
    sequence_lengths,
    with_markers,
)
from sft_utils.data.readers import DataError
from sft_utils.evaluation.likelihood import likelihood
from sft_utils.generation import generate_responses, render_prompt
from sft_utils.models import TEMPLATES

KENYA = conversation("Which is the capital of Kenya?", "It is Nairobi.")["messages"]
THREE = conversation("Hi", "It is 1.", "Hi again", "It is 2.", "Bye", "It is 3.")["messages"]
BRIEF = {"role": "system", "content": "Be brief."}
CHATML = (TEMPLATES / "chatml.jinja").read_text()
UNMARKED = re.sub(r"\{%- (end)?generation -%\}", "", CHATML)


def tokenizer_for(template, **settings):
    """A byte-level tokenizer for which the marks in a template are special tokens."""
    kinds = (r"<\|[^|<>\s]+\|?>", r"<[^|<>\s]+\|>", r"<｜[^｜<>\s]+｜>", r"<(?:start|end)_of_\w+>")
    marks = {"<s>", "</s>", *re.findall("|".join(kinds), template)} - {"<|think|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(CORPUS, 330, ["<pad>", *sorted(marks)]),
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | settings,
        chat_template=template,
    )


def learned(tokens, other=()):
    """The runs of text that carry loss, and not in ``other``."""
    flags = [t.carries_loss for t in tokens]
    flags = (
        [a and not b.carries_loss for a, b in zip(flags, other, strict=True)] if other else flags
    )
    runs = groupby(zip(flags, tokens, strict=True), key=lambda pair: pair[0])
    return ["".join(t.text for _, t in run) for carries, run in runs if carries]


def outcome(tokenizer, messages):
    """The tokens of a conversation, or why there are none."""
    try:
        return loss_tokens(tokenizer, messages)
    except DataError as error:
        return str(error)


# --- The rule against TRL's versions with markers -----------------------------------------------

FOLDER = Path(trl.__file__).parent / "chat_templates"
LATER = r"turn \d is written differently once another message follows"
OPENED = r"is asked with '.*<think>\\n'|is asked with '.*<think>'"
NO_END = "no end token after the answer of turn 1"
PARTS = "does not write 'Zyzzyva', turn 1, as given|refuses this conversation"  # content in parts
# What TRL's version learns besides, or why the rule refuses: with one turn, and with more.
BESIDE = {
    "cohere cohere2 llama3": (set(), set()),
    "gemma gemma3 diffusion_gemma lfm2 lfm2_v2 qwen2_5 qwen2_5_vl qwen3_vl qwen3_instruct_2507": (
        {"\n"},
        {"\n"},
    ),
    "phi3 phi3_5": ({"\n</s>"}, {"\n", "\n</s>"}),
    "muse_glimmer": ({"<|start|>assistant"}, {"<|start|>assistant"}),
    "qwen3_8": ({"<think>\n", "\n"}, {"<think>\n", "\n"}),
    "gptoss": ({"<|start|>assistant"}, LATER),
    "qwen3": ({"\n"}, LATER),
    "qwen3_5_think qwen3_6": ({"<think>\n", "\n"}, LATER),
    "qwen3_5_nothink": ({"<think>\n\n</think>\n\n", "\n"}, LATER),
    "deepseek_r1_distill deepseekv3 nemotron_3_nano nemotron_3_super nemotron_3_ultra "
    "nemotron_3_5_lightning": (OPENED, OPENED),
    "glm4moe": (NO_END, NO_END),
    "idefics3 smolvlm llava_next": (PARTS, PARTS),
}
EXPECTED = {name: beside for names, beside in BESIDE.items() for name in names.split()}


@pytest.mark.parametrize("family", sorted(p.stem[:-9] for p in FOLDER.glob("*_training.jinja")))
def test_the_rule_and_trls_version(family):
    template = (FOLDER / f"{family}.jinja").read_text("utf8")
    known, unknown = tokenizer_for(template), tokenizer_for(template + "{# of my own #}")
    assert loss_mask(known).source == "TRL's version with markers"
    for length, system in [(n, s) for n in (2, 4, 6) for s in ([], [BRIEF])]:
        messages = [*system, *THREE[:length]]
        beside = EXPECTED[family][length > 2]
        by_trl, by_rule = outcome(known, messages), outcome(unknown, messages)
        if family == "gemma" and system:
            beside = r"refuses this conversation \(roles: system, .*System role not supported"
            assert re.search(beside, by_trl)
        if isinstance(beside, str):
            assert re.search(beside, by_rule), by_rule
            continue
        assert loss_mask(unknown).source == "the rule"
        assert [token.id for token in by_trl] == [token.id for token in by_rule]
        assert {*learned(by_trl, by_rule)} == beside and not learned(by_rule, by_trl)


def test_the_rule_and_markers(qwen, tmp_path):
    """The same labels in the trainer, too, and prompts as they were."""
    rows = Dataset.from_list([{"messages": m} for m in (KENYA, THREE, [BRIEF, *KENYA])])
    trained = {}
    for template in (CHATML, UNMARKED):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        given = with_markers(tokenizer, rows, None)
        assert (given is tokenizer) == (template is CHATML)
        config = quick_config(tmp_path)
        made = SFTTrainer(copy.deepcopy(qwen), config, train_dataset=rows, processing_class=given)
        found = trained[template] = made.train_dataset.to_list()
        for row, messages in zip(found, rows["messages"], strict=True):
            tokens = loss_tokens(tokenizer, messages)
            assert row["input_ids"] == [t.id for t in tokens] == conversation_ids(given, messages)
            assert row["labels"] == [t.id if t.carries_loss else -100 for t in tokens]
        assert own_template(given.chat_template).strip() == template.strip()
        for turns in ([BRIEF, KENYA[0]], THREE[:5]):
            assert render_prompt(given, turns) == render_prompt(tokenizer, turns)
    assert trained[CHATML] == trained[UNMARKED]


# Templates without markers, in the style of models that many have, and what is learned.
LLAMA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + "
    "' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role']"
    " + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}\n"
)
ZEPHYR = (
    "{% for m in messages %}\n{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}{% endif %}\n{% endfor %}"
)
VICUNA = (
    "{% macro turn(who, m) %}{{ who + ': ' + m['content'] }}{% endmacro %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ turn('USER', m) }}{% else %}{{ turn(' ASSISTANT', m) }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
ALPACA = (
    "{% for it in [text, prompt, answer, end, message, conversation, loop] if it is defined %}"
    "{{ raise_exception('a name that is not of the template') }}{% endfor %}"
    "{% if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] | trim }}"
    "{{ eos_token if m['role'] == 'assistant' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
STYLES = {
    "SmolLM2": (SMOLLM, "{}<|im_end|>"),
    "Zephyr": (ZEPHYR, "\n{}</s>"),
    "Llama-2": (LLAMA, " {} </s>"),
    "Vicuna": (VICUNA, " {}</s>"),
    "Alpaca": (ALPACA, "{}</s>"),
    "ChatML": (UNMARKED, "{}<|im_end|>"),
}


@pytest.mark.parametrize("style", STYLES)
def test_styles_of_templates(style):
    template, answer = STYLES[style]
    tokenizer = tokenizer_for(template)
    assert loss_mask(tokenizer).source == "the rule"
    for messages in (KENYA, THREE):
        tokens = loss_tokens(tokenizer, messages)
        assert "".join(token.text for token in tokens) == rendered(tokenizer, messages)
        assert learned(tokens) == [answer.format(m["content"]) for m in messages[1::2]]


REFUSED = {
    "ignores the prompt": (
        UNMARKED.partition("{%- if add_generation_prompt")[0],
        KENYA,
        r"ignores add_generation_prompt, and writes '<\|im_start\|>assistant\\n' before the answer",
    ),
    "writes no end": ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", KENYA, NO_END),
    "changes the answer": (
        UNMARKED.replace("message['content'] +", "message['content'] | replace('.', '!') +"),
        KENYA,
        r"does not write 'It is Nairobi\.', turn 1, as given",
    ),
    "cuts an earlier answer": (
        UNMARKED.replace(
            "message['content'] +",
            "(message['content'] if loop.last else message['content'][:4]) +",
        ),
        THREE,
        LATER,
    ),
    "begins to think": (
        UNMARKED.replace("assistant\\n' -", "assistant\\n<think>\\n' -"),
        KENYA,
        r"is asked with '.*<think>\\n' and written in another way.*enable_thinking = false",
    ),
    "opens with a space": (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        KENYA,
        "the token ' It' holds the end of the prompt and the beginning of the answer, turn 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_rule_refuses(case):
    template, messages, problem = REFUSED[case]
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    assert re.search(problem, outcome(tokenizer, messages))
    rows = [{"messages": conversation("Hi", "zyz")["messages"]}] * 2 + [{"messages": messages}]
    with pytest.raises(DataError, match=problem) as caught:
        with_markers(tokenizer, rows)
    assert str(caught.value).startswith(("The chat template", f"row 2 ({messages[0]['content']!r}"))


def test_markers_around_nothing(chat_tokenizer):
    chat_tokenizer.chat_template = CHATML.replace("{%- endgeneration -%}", "").replace(
        "{%- generation -%}", "{%- generation -%}{%- endgeneration -%}"
    )
    with pytest.raises(DataError, match="^row 0 .*nothing between its markers, so no token"):
        with_markers(chat_tokenizer, [{"messages": KENYA}])


# --- What a template does to a row ----------------------------------------------------------------

THOUGHT = conversation("Which is it?", "<think>Peru, so</think>Lima.")["messages"]
THINKER = UNMARKED.replace(
    "message['content'] + '<|im_end|>'", "message['content'].split('</think>')[-1] + '<|im_end|>'"
).replace("assistant\\n' -", "assistant\\n' + ('' if enable_thinking else '<think></think>') -")
NO_SYSTEM = "{%- set messages = messages[1:] if messages[0]['role'] == 'system' else messages -%}"


def test_text_that_a_template_drops():
    rows = [{"messages": m} for m in (KENYA, THOUGHT, [BRIEF, *THOUGHT], [BRIEF, *KENYA])]
    tokenizer = make_tokenizer()
    for template, dropped in (
        (CHATML, {}),
        (THINKER, {"assistant": 2}),
        (NO_SYSTEM + UNMARKED, {"system": 2}),
        (CHATML.replace("['content'] +", "['content'].replace('>', '>\\n') +"), {}),  # white space
    ):
        tokenizer.chat_template = template
        assert dropped_turns(rows, tokenizer, {"enable_thinking": True}) == dropped
    tokenizer.chat_template = THINKER
    assert learned(loss_tokens(tokenizer, THOUGHT, {"enable_thinking": True})) == [
        "Lima.<|im_end|>"
    ]


def test_template_kwargs_are_the_same_in_rows_in_training_and_in_prompts(qwen, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ style }}" + CHATML
    kwargs = {"style": "It is "}
    rows = Dataset.from_list([{"messages": KENYA, "chat_template_kwargs": kwargs}])
    config = quick_config(tmp_path)
    made = SFTTrainer(
        qwen, config, train_dataset=rows, processing_class=with_markers(tokenizer, rows)
    )
    ids = [token.id for token in loss_tokens(tokenizer, KENYA, kwargs)]
    assert made.train_dataset[0]["input_ids"] == ids == conversation_ids(tokenizer, KENYA, kwargs)
    assert len(ids) == sequence_lengths(rows, tokenizer, kwargs)[0]
    check_rows(rows, tokenizer, len(ids), kwargs)
    with pytest.raises(DataError, match="tokens, more than max_length"):
        check_rows(rows, tokenizer, len(ids) - 1, kwargs)
    prompt = render_prompt(tokenizer, KENYA[:1], template_kwargs=kwargs)
    assert tokenizer.decode(ids).startswith(prompt) and prompt.startswith("It is <|im_start|>")
    assert len(conversation_ids(tokenizer, KENYA)) < len(ids)


HOSTILE = {
    "refuses a role": (
        "{{ raise_exception('no system here') }}",
        "no system here",
    ),
    "refuses a tool": ("{{ messages[0]['name']['x'] }}", "'dict object' has no attribute 'name'"),
    "adds": ("{{ 1 + messages[0]['content'] }}", "unsupported operand"),
    "counts": ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "writes without end": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages[0]['content'] * 99 }}"
        "{% endfor %}{% endfor %}",
        "it writes more than 10,000 characters",
    ),
    "writes at once": ("{{ 'x' * 30000000 }}", "it writes more than 10,000 characters"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
    "is no template": ("{% for %}", "Expected an expression"),
}


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_template_that_fails_is_a_problem_of_the_row(case, marked, monkeypatch):
    monkeypatch.setattr(chat, "LONGEST", 10_000)
    bad, reason = HOSTILE[case]
    tokenizer = make_tokenizer()
    only = "{% if messages[0]['role'] == 'system' %}" + bad + "{% endif %}"
    tokenizer.chat_template = only + (CHATML if marked else UNMARKED)
    messages = [BRIEF, *KENYA]
    rows = Dataset.from_list([{"messages": KENYA}, {"messages": messages}])
    why = rf"refuses this conversation \(roles: system, user(, assistant)?\): .*{re.escape(reason)}"
    if case == "is no template":
        why = reason
    with pytest.raises(ChatTemplateError, match=why):
        render_prompt(tokenizer, messages[:2])
    for row, check in (
        ("", lambda: loss_tokens(tokenizer, messages)),
        ("row 1: ", lambda: sequence_lengths(rows, tokenizer)),
        ("row 1: ", lambda: check_rows(rows, tokenizer, 500)),
        ("row 1 .*", lambda: with_markers(tokenizer, rows)),
    ):
        if case == "is no template":
            row = ""
        with pytest.raises(DataError, match=f"{row}.*{why}"):
            check()
    assert ImmutableSandboxedEnvironment.concat == "".join  # as before


# --- The texts of tokens --------------------------------------------------------------------------

TEXT = "It is  naïve: 北京, 🙂 \u0301x, ﬁn."


def pieces(model, **parts):
    """A tokenizer of pieces as SentencePiece makes them, with the template of Llama-2."""
    backend = Tokenizer(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<unk>", chat_template=LLAMA,
    )  # fmt: skip


LETTERS = [*"▁abcdefghijklmnopqrstuvwxyzHIWKN[]/S T.?,:", "▁I", "is"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def bpe(**parts):
    vocabulary = ["<unk>", "<s>", "</s>", *BYTES, *(c for c in LETTERS if c != " ")]
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    merges = [("▁", "I"), ("i", "s")]
    return pieces(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True), **parts)


def unigram(**parts):
    scores = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((p, -2.0) for p in LETTERS)]
    return pieces(models.Unigram(scores, unk_id=0, byte_fallback=False), **parts)


def metaspace(scheme="first"):
    return pre_tokenizers.Metaspace(prepend_scheme=scheme)


LLAMAS = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
KINDS = {
    "byte-level": lambda: tokenizer_for(LLAMA),
    "Llama-2": lambda: bpe(normalizer=normalizers.Sequence(LLAMAS)),
    "Metaspace": lambda: bpe(pre_tokenizer=metaspace()),
    "always prepended": lambda: bpe(pre_tokenizer=metaspace("always")),
    "Unigram": lambda: unigram(pre_tokenizer=metaspace()),
    "Unigram, NFKC": lambda: unigram(normalizer=normalizers.NFKC(), pre_tokenizer=metaspace()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_texts_of_tokens_join_to_the_text(kind):
    tokenizer = KINDS[kind]()
    messages = conversation("Hi?", TEXT, "Why?", "It is.")["messages"]
    tokens = loss_tokens(tokenizer, messages)
    assert "".join(token.text for token in tokens) == rendered(tokenizer, messages)
    assert [token.id for token in tokens] == conversation_ids(tokenizer, messages)
    assert learned(tokens) == [f" {TEXT} </s>", " It is. </s>"]
    if "Unigram" not in kind:  # a character of three tokens stands in the first
        [place] = [number for number, token in enumerate(tokens) if token.text == "北"]
        assert [token.text for token in tokens[place + 1 : place + 4]] == ["", "", "京"]


# --- The begin-of-text token ----------------------------------------------------------------------


def test_one_begin_of_text_everywhere(tmp_path):
    """Also with a tokenizer that adds one to any text, as those of Llama and Gemma do."""
    tokenizer = tokenizer_for(LLAMA)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    assert tokenizer("Hi")["input_ids"][0] == bos
    model = make_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    rows = Dataset.from_list([{"messages": KENYA}])
    made = SFTTrainer(
        model, quick_config(tmp_path), train_dataset=rows,
        processing_class=with_markers(tokenizer, rows),
    )  # fmt: skip
    [answer] = generate_responses(
        model, tokenizer, [KENYA[0]["content"]], max_new_tokens=1, return_details=True
    )
    ids = conversation_ids(tokenizer, KENYA)
    assert made.train_dataset[0]["input_ids"] == ids
    assert ids[: len(answer.prompt_ids)] == answer.prompt_ids
    assert [ids.count(bos), answer.prompt_ids.count(bos)] == [1, 1]
    text = " It is Nairobi. "
    plain = tokenizer(answer.prompt + text, add_special_tokens=False)["input_ids"]
    found = likelihood(model, tokenizer, answer.prompt, text)
    assert len(found.losses) == len(plain) - len(answer.prompt_ids)
