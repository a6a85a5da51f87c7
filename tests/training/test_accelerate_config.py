"""Files for accelerate: each is what accelerate itself makes of it, and a wrong key is noticed."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from sft_utils.training.accelerate_config import (
    FILES,
    MachineFileError,
    check_machine_file,
    machine_file,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes the file of a strategy, changed as asked for."""

    def write(strategy, bf16=False, **changes):
        settings = yaml.safe_load(machine_file(strategy, bf16=bf16))
        for key, value in changes.items():
            table, _, name = key.rpartition("__")
            (settings[table] if table else settings)[name] = value
        path = tmp_path / f"{strategy}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


@pytest.mark.parametrize("strategy", FILES)
def test_accelerate_makes_the_strategy_of_each_file(write, strategy):
    before = dict(os.environ)
    variables, plugin = check_machine_file(write(strategy))
    assert variables["ACCELERATE_MIXED_PRECISION"] == "no"
    if strategy == "FSDP2":
        assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
        assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
        assert variables["ACCELERATE_USE_FSDP"] == "true"
    else:
        assert plugin.zero_stage == int(strategy[-1])
        assert plugin.deepspeed_config["zero_optimization"]["stage"] == plugin.zero_stage
        assert variables["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert dict(os.environ) == before


def test_the_arithmetic_is_that_of_the_run(write):
    variables, _ = check_machine_file(write("FSDP2", bf16=True))
    assert variables["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize(
    "strategy, change, message",
    [
        ("FSDP2", {"mixed_precison": "no"}, r"unknown keys \(\['mixed_precison'\]\)"),
        (
            "FSDP2",
            {"fsdp_config__fsdp_ofload_params": True},
            "fsdp_ofload_params is no setting of accelerate. Did you mean fsdp_offload_params?",
        ),
        ("FSDP2", {"fsdp_config__fsdp_auto_wrap_policy": "BY_LAYER"}, "BY_LAYER"),
        ("FSDP2", {"distributed_type": "MULTI_GPU"}, "distributed_type is MULTI_GPU"),
        ("ZeRO-2", {"deepspeed_config__zero_stag": 2}, "zero_stag is no setting .* zero_stage"),
    ],
)
def test_a_wrong_key_or_value_is_an_error_that_names_it(write, strategy, change, message):
    path = write(strategy, **change)
    with pytest.raises(MachineFileError, match=message) as error:
        check_machine_file(path)
    assert str(path) in str(error.value)


def test_the_command_of_chapter_11_starts_what_it_says(tmp_path, monkeypatch):
    """What `trl sft` hands to accelerate, and what the run is told, though run.yaml says other."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from trl.cli.accelerate_config import resolve_accelerate_config_argument
    from trl.scripts.sft import make_parser

    page = (ROOT / "book" / "25-machines.md").read_text("utf8")
    [command] = re.findall(r"^trl sft .*?(?=\n```)", page, re.MULTILINE | re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))[2:]
    (tmp_path / "fsdp2.yaml").write_text(machine_file("FSDP2"))
    (tmp_path / "run.yaml").write_text(
        "model_name_or_path: start\nuse_cpu: true\nbf16: false\nactivation_checkpointing: false\n"
        "per_device_train_batch_size: 16\nnum_processes: 1\noutput_dir: out-trl\n"
    )
    monkeypatch.chdir(tmp_path)
    *_, run, model, _, from_file, from_line = make_parser().parse_args_and_config(
        words, return_remaining_strings=True, separate_remaining_strings=True
    )
    assert (run.use_cpu, run.per_device_train_batch_size) == (False, 2)
    assert model.model_name_or_path == "start"
    launch = resolve_accelerate_config_argument(from_file + from_line)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*launch, "sft.py"]))
    assert (args.num_processes, args.use_fsdp, args.fsdp_version) == (8, True, 2)
