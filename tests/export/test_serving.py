"""A Modelfile asks as the chat template does, or says why it cannot."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from sft_utils import generate_responses, load_model_and_tokenizer, resolve
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


@pytest.mark.weekly
def test_transformers_serves_the_folder_as_it_is():
    """The command of the card; the answer is the one that the pages get."""
    asked = [{"role": "user", "content": "What is the capital of Kenya?"}]
    model, tokenizer = load_model_and_tokenizer("atlas-sft", device="cpu")
    [expected] = generate_responses(model, tokenizer, [asked], max_new_tokens=40)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = resolve("atlas-sft")
    server = subprocess.Popen(
        [Path(sys.executable).with_name("transformers"), "serve", folder, "--port", str(port),
         "--device", "cpu"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    body = {"model": folder, "messages": asked, "temperature": 0, "max_tokens": 40}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        while server.poll() is None:
            try:
                answer = json.load(urllib.request.urlopen(request))
                break
            except urllib.error.URLError as error:
                assert isinstance(error.reason, ConnectionRefusedError), error
                time.sleep(0.5)
        assert server.poll() is None, "the server ended"
    finally:
        server.kill()
        server.wait()
    [choice] = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
