"""What is secret in a profile reaches `SFTConfig`, and nothing that is shown, written or raised."""

import dataclasses
import io
import re
import traceback
from contextlib import redirect_stdout

import pytest
import torch
from conftest import PROFILE, chat_rows, code_cells, make_model, quick_config, write_tiny
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from sft_utils import CPU_MODE, ProfileError, experiment, load_profile
from sft_utils.dry_run import check_profile
from sft_utils.export.trl_script import run_yaml
from sft_utils.redaction import HIDDEN, is_secret, redact, redact_text, without_secrets
from sft_utils.training import fingerprints, runs
from sft_utils.training.arguments import run_arguments

SECRET = "not-to-be-seen"
BY_FORM = "hf_" + "aB3" * 11
ARGUMENTS = f"""
hub_token = "{SECRET}-1"
run_name = "{BY_FORM}"
model_init_kwargs = {{ token = "{SECRET}-2", attn_implementation = "eager" }}
dataset_kwargs = {{ loader = {{ api_key = "{SECRET}-3" }}, skip_prepare_dataset = false }}
optim_args = "api_key={SECRET}-4, factor=2"
weight_decay = 0.125
"""


@pytest.fixture
def profile(tmp_path):
    """Writes a profile with further arguments, and returns its path."""
    chat_rows([("a", "b")] * 30).to_json(tmp_path / "rows.jsonl")
    write_tiny(tmp_path / "tiny")

    def write(arguments=ARGUMENTS):
        (tmp_path / "mine.toml").write_text(f"{PROFILE}[sft.arguments]\n{arguments}")
        return tmp_path / "mine.toml"

    return write


def shows_nothing(text):
    return SECRET not in text and BY_FORM not in text


# --- What is secret ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["hub_token", "push_to_hub_token", "token", "HF_TOKEN", "use_auth_token", "password",
     "db_password", "client-secret", "wandb_api_key", "apikey", "aws_secret_access_key",
     "private_key", "Authorization", "credentials", "passphrase", "db_pwd", "proxy_auth",
     "account_key", "session_cookie"],
)  # fmt: skip
def test_a_secret_is_known_by_its_name(name):
    assert is_secret(name)
    assert redact({name: SECRET}) == {name: HIDDEN} and without_secrets({name: SECRET}) == {}
    assert redact(SECRET, name) == redact([SECRET], name) == HIDDEN
    assert [redact(value, name) for value in (None, True)] == [None, True]


def test_of_todays_sftconfig_only_the_token_of_access_is_secret():
    assert {field.name for field in dataclasses.fields(SFTConfig) if is_secret(field.name)} == {
        "hub_token"
    }


@pytest.mark.parametrize(
    "name", ["eos_token", "pad_token", "bos_token", "stop_tokens", "max_new_tokens", "tokenizer"]
)
def test_a_token_of_text_is_none(name):
    assert redact({name: "<|im_end|>"}) == {name: "<|im_end|>"}


def test_a_secret_is_found_at_any_depth_and_the_rest_stays():
    value = {"a": [{"token": SECRET, "n": 1}], "b": (f'{{"hub_token": "{SECRET}"}}', None)}
    hidden = {"a": [{"token": HIDDEN, "n": 1}], "b": (f'{{"hub_token": "{HIDDEN}"}}', None)}
    assert redact(value) == hidden
    assert without_secrets(value)["a"] == [{"n": 1}]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{{'hub_token': '{SECRET}', 'a': 1}}", f"{{'hub_token': '{HIDDEN}', 'a': 1}}"),
        (f"hub_token={SECRET}, a=1", f"hub_token={HIDDEN}, a=1"),
        (f"hub_token: {SECRET}\na: 1", f"hub_token: {HIDDEN}\na: 1"),
        (f"lr=1, api_key = '{SECRET} {SECRET}'", f"lr=1, api_key = '{HIDDEN}'"),
        (f"password={SECRET}", f"password={HIDDEN}"),
        (f'"Authorization": "Bearer {SECRET}"', f'"Authorization": "{HIDDEN}"'),
        (f"Invalid token {BY_FORM}!", f"Invalid token {HIDDEN}!"),
        (f"https://me:{SECRET}@host/rows.jsonl", f"https://{HIDDEN}@host/rows.jsonl"),
    ],
)
def test_a_text_that_tells_a_secret(text, shown):
    assert redact_text(text) == shown == redact_text(shown)


@pytest.mark.parametrize(
    "text",
    ["eos_token='<|im_end|>'", "hub_token=None", "The secret: be kind.", "a token: a piece",
     "hf-internal-testing/tiny-random-LlamaForCausalLM", "1 token = 4 letters",
     "https://huggingface.co/a@b", "max_new_tokens=64"],
)  # fmt: skip
def test_a_text_that_tells_none_stays(text):
    assert redact_text(text) == text


# --- Where a profile's arguments go --------------------------------------------------------------


def test_a_secret_reaches_the_configuration(profile):
    config = experiment.make_config(load_profile(profile()))
    assert config.hub_token == f"{SECRET}-1"
    assert config.model_init_kwargs["token"] == f"{SECRET}-2"
    assert config.dataset_kwargs["loader"] == {"api_key": f"{SECRET}-3"}


@pytest.mark.parametrize(
    ("page", "marks"),
    [
        ("01-setup.md", ["asdict(profile)"]),
        ("06-config.md", ["default = SFTConfig(", 'print("SFTConfig(")']),
    ],
)
def test_a_page_prints_the_arguments_without_what_is_secret(profile, page, marks):
    mine = load_profile(profile())
    names = {"profile": mine, "config": experiment.make_config(mine), "CPU_MODE": CPU_MODE}
    names |= {"SFTConfig": SFTConfig, "fields": dataclasses.fields, "glue": lambda *_: None}
    printed = io.StringIO()
    with redirect_stdout(printed):
        for cell in code_cells(page):
            if any(mark in cell for mark in marks):
                exec(cell, names)
    text = printed.getvalue()
    assert shows_nothing(text), text
    assert "0.125" in text and "eager" in text
    assert text.count(HIDDEN) == 5


def test_the_check_says_nothing_secret(profile):
    lines = []
    check_profile(profile(), say=lines.append)
    assert shows_nothing("\n".join(lines))
    check_profile(profile(ARGUMENTS + "eval_steps = 'x'"), say=lines.append)
    assert shows_nothing("\n".join(lines)) and any("eval_steps" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (f'hub_token = ["{SECRET}"]', "hub_token must be a valid string, not of type list"),
        (f'packing = {{ token = "{SECRET}" }}', "not {'token': '<hidden>'}"),
        (f'packing = "{BY_FORM}"', "packing must be a valid boolean, not '<hidden>'"),
    ],
)
def test_an_error_quotes_no_secret(profile, arguments, problem):
    lines = []
    assert not check_profile(profile(arguments), say=lines.append)
    assert any(problem in line for line in lines) and shows_nothing("\n".join(lines))
    with pytest.raises(ProfileError, match=re.escape(problem)) as caught:
        experiment.make_config(load_profile(profile(arguments)))
    assert shows_nothing("".join(traceback.format_exception(caught.value)))


def test_arguments_that_are_no_table(profile, tmp_path):
    text = PROFILE.replace("[sft]", f'[sft]\narguments = ["hub_token={SECRET}"]')
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ProfileError, match="arguments must be a table") as caught:
        load_profile(tmp_path / "mine.toml")
    assert shows_nothing(str(caught.value))


# --- What a run writes ---------------------------------------------------------------------------


class Stops(TrainerCallback):
    def on_step_begin(self, args, state, control, **given):
        if state.global_step == 2:
            raise KeyboardInterrupt


@pytest.fixture
def trainer(tmp_path, chat_tokenizer):
    config = quick_config(
        tmp_path / "out", max_steps=3, save_strategy="steps", save_steps=1, hub_token=f"{SECRET}-1"
    )
    rows = chat_rows((f"a{i}", "b") for i in range(24))
    return SFTTrainer(
        make_model("llama"), config, train_dataset=rows, processing_class=chat_tokenizer
    )


def test_no_checkpoint_that_waits_in_the_store_holds_a_secret(trainer, tmp_path):
    trainer.add_callback(Stops())
    with pytest.raises(KeyboardInterrupt):
        runs.train(trainer, tmp_path / "runs")
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    assert [str(path) for path in files if SECRET.encode() in path.read_bytes()] == []


def test_files_that_repeat_a_run_and_its_fingerprint_leave_secrets_out(trainer):
    before = fingerprints.fingerprint(trainer)
    trainer.args.dataset_kwargs = {"loader": {"api_key": SECRET}, "skip_prepare_dataset": False}
    assert run_arguments(trainer)["dataset_kwargs"] == {"loader": {}, "skip_prepare_dataset": False}
    assert shows_nothing(run_yaml(trainer, "atlas-small"))
    with_key = fingerprints.fingerprint(trainer)
    trainer.args.dataset_kwargs["loader"]["api_key"] = trainer.args.hub_token = "renewed"
    assert fingerprints.fingerprint(trainer) == with_key != before
    trainer.args.lr_scheduler_kwargs = {"token": SECRET, "f": torch.sin}
    with pytest.raises(ValueError, match="is no plain value") as caught:
        run_arguments(trainer)
    assert shows_nothing(str(caught.value))
