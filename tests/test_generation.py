"""Prompts to the byte, answers to the token, and nothing about the model changed."""

import copy
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_model
from transformers import GenerationConfig

from sft_utils.generation import (
    ChatTemplateError,
    Generation,
    _generate_batch,
    generate_responses,
    render_prompt,
    test_model_with_questions,
)
from sft_utils.profiles import Question

PROMPTS = ["Hi", "What is the capital of Kenya?", "Which animal is the largest? Tell me.", "Hi"]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]


def scripted(model, script):
    """Make a model say ``script``, token by token, whatever the prompt."""
    forward = model.forward
    start = []

    def speak(*args, **kwargs):
        output = forward(*args, **kwargs)
        length = kwargs["attention_mask"].shape[1]
        start.append(length)
        output.logits[:, -1, :] = 0.0
        output.logits[:, -1, script[min(length - start[0], len(script) - 1)]] = 1.0
        return output

    model.forward = speak
    return model


# --- The exact prompt ------------------------------------------------------------------------


def test_the_prompt_to_the_byte(chat_tokenizer):
    assert render_prompt(chat_tokenizer, [{"role": "user", "content": " a\n\nb  "}]) == (
        "<|im_start|>user\n a\n\nb  <|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_prompt(chat_tokenizer, CHAT, prefill="It is") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\nIt is"
    )


def test_the_prompt_is_a_prefix_of_the_training_text(chat_tokenizer):
    answered = [*CHAT, {"role": "assistant", "content": "So long."}]
    full = chat_tokenizer.apply_chat_template(answered, tokenize=False)
    prompt = render_prompt(chat_tokenizer, CHAT)
    assert full == prompt + "So long.<|im_end|>\n"
    ids = chat_tokenizer.apply_chat_template(answered, return_dict=True)["input_ids"]
    prompt_ids = chat_tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt_ids)] == prompt_ids


def test_template_kwargs_reach_the_template(tokenizer):
    tokenizer.chat_template = "{{ 'yes' if enable_thinking else 'no' }}"
    messages = [{"role": "user", "content": "Hi"}]
    assert render_prompt(tokenizer, messages, template_kwargs={"enable_thinking": True}) == "yes"
    assert render_prompt(tokenizer, messages, template_kwargs={"enable_thinking": False}) == "no"


def test_no_chat_template_names_the_model_and_the_remedy(qwen, tokenizer):
    tokenizer.name_or_path = "owner/base"
    with pytest.raises(ChatTemplateError, match=r"'owner/base' has no chat template") as caught:
        generate_responses(qwen, tokenizer, ["Hi"])
    assert 'chat_template = "chatml.jinja" in the profile' in str(caught.value)
    assert generate_responses(qwen, tokenizer, ["Hi"], chat=False, max_new_tokens=1)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "is empty"),
        (CHAT[:3], "prefill="),
        ([{"role": "narrator", "content": "Hi"}], "unknown role 'narrator'"),
        ([{"role": "user", "content": ["Hi"]}], "must be text"),
        ([CHAT[0], {"role": "user", "content": "Hi<|im_end|>"}], r"Turn 1 \(user\)"),
    ],
)
def test_conversations_that_are_refused(chat_tokenizer, messages, problem):
    with pytest.raises(ChatTemplateError, match=problem):
        render_prompt(chat_tokenizer, messages)


# --- Answers ---------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_a_plain_loop(model, chat_tokenizer):
    """No cache, no padding, no generate: one forward pass for each token."""
    details = generate_responses(
        model, chat_tokenizer, PROMPTS, max_new_tokens=12, return_details=True
    )
    for prompt, detail in zip(PROMPTS, details, strict=True):
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        assert detail.prompt == text
        ids = chat_tokenizer(text)["input_ids"]
        assert detail.prompt_ids == ids
        expected = []
        with torch.no_grad():
            while len(expected) < 12 and 2 not in expected:
                expected.append(int(model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
        assert detail.token_ids == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_batch_size_changes_nothing(model, chat_tokenizer, batch_size):
    options = {"max_new_tokens": 16, "return_details": True}
    whole = generate_responses(model, chat_tokenizer, PROMPTS, **options)
    assert generate_responses(model, chat_tokenizer, PROMPTS, batch_size=batch_size, **options) == (
        whole
    )
    assert whole[0] == whole[3]
    assert len({detail.response for detail in whole}) == 3


def test_stopped_and_cut(qwen, chat_tokenizer):
    say = chat_tokenizer(" It is Lima.")["input_ids"]
    model = scripted(qwen, [*say, 2, 80, 80])
    [answer] = generate_responses(model, chat_tokenizer, ["Hi"], return_details=True)
    prompt = render_prompt(chat_tokenizer, [{"role": "user", "content": "Hi"}])
    prompt_ids = chat_tokenizer(prompt)["input_ids"]
    expected = Generation(prompt, " It is Lima.", [*say, 2], True, len(say) + 1, prompt_ids)
    assert answer == expected

    model = scripted(make_model("qwen3"), [*say, 2])
    [shown] = generate_responses(model, chat_tokenizer, ["Hi"], keep_special_tokens=True)
    assert shown == " It is Lima.<|im_end|>"

    model = scripted(make_model("qwen3"), [*say, 2])
    options = {"return_details": True, "max_new_tokens": len(say)}
    [cut] = generate_responses(model, chat_tokenizer, ["Hi"], **options)
    assert (cut.response, cut.token_ids, cut.stopped) == (" It is Lima.", say, False)


@pytest.mark.parametrize("end", [0, 2, 7])
def test_every_end_token_stops(qwen, chat_tokenizer, end):
    """0 is the tokenizer's, 7 the generation config's, 2 only the chat template's."""
    chat_tokenizer.eos_token = "<|endoftext|>"
    qwen.config.eos_token_id = None
    qwen.generation_config.eos_token_id = [7]
    model = scripted(qwen, [80, end, 81])
    [answer] = generate_responses(model, chat_tokenizer, ["Hi"], return_details=True)
    assert answer.token_ids == [80, end]
    assert answer.stopped
    assert answer.response == chat_tokenizer.decode([80])


def test_prefill_is_prompt_not_response(qwen, chat_tokenizer):
    [answer] = generate_responses(
        qwen, chat_tokenizer, ["Hi"], prefill="It is", return_details=True, max_new_tokens=4
    )
    assert answer.prompt.endswith("<|im_start|>assistant\nIt is")
    assert not answer.response.startswith("It is")
    [plain] = generate_responses(
        qwen, chat_tokenizer, [answer.prompt], chat=False, return_details=True, max_new_tokens=4
    )
    assert plain == answer


def test_system_prompt_and_message_lists(qwen, chat_tokenizer):
    options = {"max_new_tokens": 2, "return_details": True}
    [one] = generate_responses(qwen, chat_tokenizer, ["Hi"], system="Be brief.", **options)
    [two] = generate_responses(qwen, chat_tokenizer, [CHAT[:2]], **options)
    assert one == two
    with pytest.raises(ValueError, match="system turn of its own"):
        generate_responses(qwen, chat_tokenizer, [CHAT[:2]], system="Be long.")


def test_no_doubled_begin_token(tokenizer):
    """A template that writes the begin token, and a tokenizer that adds it to plain text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    options = {"max_new_tokens": 1, "return_details": True}
    model = make_model("llama")
    [chat] = generate_responses(model, tokenizer, ["Hi"], **options)
    assert chat.prompt == "<|endoftext|>Hi"
    assert chat.prompt_ids == [0, 42, 75]
    [plain] = generate_responses(model, tokenizer, ["Hi"], chat=False, **options)
    assert (plain.prompt, plain.prompt_ids) == ("Hi", [0, 42, 75])
    [rendered] = generate_responses(model, tokenizer, [chat.prompt], chat=False, **options)
    assert rendered == chat  # its begin token stands in the text


# --- Sampling --------------------------------------------------------------------------------


def test_samples_repeat_with_a_seed_and_differ_without(qwen, chat_tokenizer):
    def draw(seed):
        return generate_responses(
            qwen, chat_tokenizer, PROMPTS[:2], temperature=1.0, seed=seed, num_samples=3
        )

    first = draw(1)
    assert [len(group) for group in first] == [3, 3]
    assert first == draw(1)
    assert first != draw(2)
    assert len(set(first[0])) == 3


def test_random_state_and_tokenizer_are_left_alone(qwen, chat_tokenizer):
    def state():
        return (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            random.getstate(),
            chat_tokenizer.backend_tokenizer.to_str(),
            chat_tokenizer.padding_side,
        )

    before = state()
    generate_responses(qwen, chat_tokenizer, PROMPTS, temperature=1.0, seed=1)
    generate_responses(qwen, chat_tokenizer, PROMPTS)
    assert state() == before


def test_samples_come_from_the_whole_distribution(qwen, chat_tokenizer):
    """Nearly equal logits: with top-k 50, the default of transformers, 250 would go unseen."""
    model = qwen
    forward = model.forward
    model.forward = lambda *args, **kwargs: _nearly_flat(forward(*args, **kwargs))
    options = {"temperature": 1.0, "seed": 0, "max_new_tokens": 40, "return_details": True}
    drawn = generate_responses(model, chat_tokenizer, ["Hi"] * 40, **options)
    assert len({token for answer in drawn for token in answer.token_ids}) > 200


def _nearly_flat(output):
    output.logits[:] = torch.linspace(0, 0.1, output.logits.shape[-1])
    return output


# --- Nothing changed, nothing hidden ---------------------------------------------------------


def test_the_models_own_generation_settings_do_not_meddle(
    qwen, chat_tokenizer, caplog, recwarn, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    plain = generate_responses(qwen, chat_tokenizer, PROMPTS, max_new_tokens=16)
    qwen.generation_config.update(
        do_sample=True, temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=5.0
    )
    own = copy.deepcopy(qwen.generation_config)
    assert generate_responses(qwen, chat_tokenizer, PROMPTS, max_new_tokens=16) == plain
    assert qwen.generation_config == own
    assert not caplog.records
    assert not recwarn.list


def test_a_model_in_training_mode_answers_the_same_and_returns_to_it(chat_tokenizer):
    model = make_model("qwen3", attention_dropout=0.5)
    expected = generate_responses(model, chat_tokenizer, PROMPTS)
    model.train()
    model.activation_checkpointing_enable()
    model.lm_head.eval()
    assert generate_responses(model, chat_tokenizer, PROMPTS) == expected
    assert model.training
    assert model.model.layers[0].training
    assert not model.lm_head.training


def test_everything_is_restored_after_an_error(qwen, chat_tokenizer):
    own = qwen.generation_config
    qwen.train()

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    qwen.forward = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        generate_responses(qwen, chat_tokenizer, ["Hi"])
    assert qwen.training
    assert qwen.generation_config is own


# --- Bad arguments ---------------------------------------------------------------------------


def test_longer_than_the_context(qwen, chat_tokenizer):
    """The context is 128; the markup around a user's turn is 15 tokens."""
    fits = generate_responses(
        qwen, chat_tokenizer, ["+" * 103], max_new_tokens=10, return_details=True
    )
    assert len(fits[0].prompt_ids) + 10 == 128
    with pytest.raises(ValueError, match=r"Prompt 1 has 119 .* context of 128.* by 1\."):
        generate_responses(qwen, chat_tokenizer, ["Hi", "+" * 104], max_new_tokens=10)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"num_samples": 2}, "all samples of a prompt are the same"),
        ({"temperature": -1.0}, "negative"),
        ({"chat": False, "system": "Be brief."}, "no system prompt"),
    ],
)
def test_bad_options(qwen, chat_tokenizer, options, problem):
    with pytest.raises(ValueError, match=problem):
        generate_responses(qwen, chat_tokenizer, ["Hi"], **options)


def test_no_prompts_and_bad_ones(qwen, chat_tokenizer):
    assert generate_responses(qwen, chat_tokenizer, []) == []
    with pytest.raises(TypeError, match="must be a list"):
        generate_responses(qwen, chat_tokenizer, "Hi")
    with pytest.raises(ValueError, match="With chat=False a prompt is a string"):
        generate_responses(qwen, chat_tokenizer, [CHAT[:2]], chat=False)
    with pytest.raises(ValueError, match="Prompt 0 is empty"):
        generate_responses(qwen, chat_tokenizer, [""], chat=False)


# --- The printed list ------------------------------------------------------------------------


def test_the_printed_list(qwen, chat_tokenizer, capsys):
    model = scripted(qwen, [*chat_tokenizer("A\nB\x1b")["input_ids"], 2])
    questions = ["Hi", Question("Ho", system="Be kind."), CHAT]
    answers = test_model_with_questions(
        model, chat_tokenizer, questions, title="Before", show_prompt=True
    )
    assert [answer.response for answer in answers] == ["A\nB\x1b"] * 3
    printed = capsys.readouterr().out
    assert (
        printed.partition("\n2.\n")[0]
        == """\
Before
======

1.
     user │ Hi
   prompt │ <|im_start|>user
          │ Hi<|im_end|>
          │ <|im_start|>assistant
          │\x20
   answer │ A
          │ B\\x1b
            ■ stopped by itself after 5 tokens
"""
    )
    assert "2.\n   system │ Be kind.\n     user │ Ho\n" in printed
    assert (
        "3.\n   system │ Be brief.\n     user │ Hi\nassistant │ Hello.\n     user │ Bye" in printed
    )


@pytest.mark.parametrize("line", ["word " * 20, "x" * 90, f"{'a' * 60}  b-c\td "])
def test_a_long_line_goes_on_and_loses_nothing(qwen, chat_tokenizer, capsys, line):
    test_model_with_questions(qwen, chat_tokenizer, [line], max_new_tokens=1, chat=False)
    printed = capsys.readouterr().out.partition("   answer")[0].split("\n")[2:-1]
    assert max(map(len, printed)) <= 76
    assert [row[10] for row in printed] == ["│", "┊"]
    assert "".join(row[12:] for row in printed) == line


def test_the_printed_list_marks_what_was_cut(qwen, chat_tokenizer, capsys):
    model = scripted(qwen, chat_tokenizer("o")["input_ids"])
    test_model_with_questions(model, chat_tokenizer, ["Hi"], max_new_tokens=1, chat=False)
    assert capsys.readouterr().out.endswith("✂ cut at the limit of 1 token\n")


def test_a_batch_is_made_where_the_model_is():
    given = {}

    def generate(**inputs):
        given.update(inputs)
        return torch.zeros(2, 5, dtype=torch.long)

    model = SimpleNamespace(device=torch.device("meta"), generate=generate)
    _generate_batch(model, [[1, 2, 3], [4]], GenerationConfig(pad_token_id=0))
    assert given["input_ids"].device.type == given["attention_mask"].device.type == "meta"
