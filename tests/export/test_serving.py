"""A Modelfile asks as the chat template does, or says why it cannot."""

from __future__ import annotations

import pytest

from sft_utils import load_model_and_tokenizer
from sft_utils.export.serving import NotRepeatable, modelfile, template_pieces

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (  # no system turn; the question's end opens the answer
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}{{ raise_exception('no') }}"
    "{% endif %}{% endfor %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    + CHATML
)


@pytest.fixture(scope="module")
def loaded():
    return load_model_and_tokenizer("atlas-sft", device="cpu")


def with_template(loaded, template):
    model, tokenizer = loaded
    tokenizer.chat_template = template
    return model, tokenizer


def test_the_modelfile_of_chatml(loaded):
    text = modelfile(*with_template(loaded, CHATML), system="Be brief.")
    assert text.partition("\nFROM")[2] == (
        ' ./model\nTEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n'
        '{{ end }}{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}'
        '<|im_end|>\n<|im_start|>assistant\n{{ else if eq .Role "assistant" }}{{ .Content }}'
        '<|im_end|>\n{{ end }}{{ end }}"""\nSYSTEM """Be brief."""\n'
        'PARAMETER stop "<|endoftext|>"\nPARAMETER stop "<|im_end|>"\n'
        "PARAMETER temperature 0\nPARAMETER num_ctx 512\n"
    )


@pytest.mark.parametrize(
    ("template", "part"),
    [
        (
            INST,
            '[INST] {{ .Content }} [/INST]{{ else if eq .Role "assistant" }} {{ .Content }}</s>',
        ),
        (DEFAULT, "{{ else }}<|im_start|>system\nYou help."),
        (
            CHATML + "{# #}{{ '' if messages else '' }}{{ 'a{{b' if add_generation_prompt }}",
            'a{{ "{{" }}b',
        ),
    ],
    ids=["no system turn", "a default system message", "braces"],
)
def test_what_a_template_writes_stands_in_the_modelfile(loaded, template, part):
    assert part in modelfile(*with_template(loaded, template))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("m.content | trim", "m.content | upper"), "does not write each content"),
        (CHATML.replace("{{ m.role }}", "{{ m.role }} {{ loop.index }}"), "of 4 turns otherwise"),
        ("{{ raise_exception('never') }}", r"refuses a conversation \(never\)"),
        (CHATML.replace("<|im_end|>", '"""'), 'can neither hold """ nor'),
    ],
)
def test_what_cannot_be_repeated_is_refused(loaded, template, reason):
    with pytest.raises(NotRepeatable, match=reason):
        modelfile(*with_template(loaded, template))


def test_a_system_turn_where_there_is_none():
    pieces = template_pieces(lambda turns, opened: "".join(f"[{t['content']}]" for t in turns))
    with_none = template_pieces(
        lambda turns, opened: "|".join(t["content"] for t in turns if t["role"] != "system")
    )
    asked = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert pieces.render(asked) == "[S][U]"
    with pytest.raises(NotRepeatable, match="no system"):
        with_none.render(asked)
