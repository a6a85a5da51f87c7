"""Files for accelerate: each is what accelerate itself makes of it, and a wrong key is noticed."""

import itertools
import os
import re
import shlex
import subprocess
import sys
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


def the_command():
    """The words after ``trl sft`` of the command that chapter 25 gives for eight GPUs."""
    page = (ROOT / "book" / "25-machines.md").read_text("utf8")
    [command] = re.findall(r"^trl sft .*?(?=\n```)", page, re.MULTILINE | re.DOTALL)
    return shlex.split(command.replace("\\\n", " "))[2:]


def test_the_command_for_eight_gpus_starts_what_it_says(tmp_path, monkeypatch):
    """What `trl sft` hands to accelerate, and what the run is told, though run.yaml says other."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from trl.cli.accelerate_config import resolve_accelerate_config_argument
    from trl.scripts.sft import make_parser

    (tmp_path / "run.yaml").write_text(
        "model_name_or_path: start\nuse_cpu: true\nbf16: false\nactivation_checkpointing: false\n"
        "per_device_train_batch_size: 16\nnum_processes: 1\noutput_dir: out-trl\n"
        "save_only_model: true\n"
    )
    monkeypatch.chdir(tmp_path)
    # Without a GPU bfloat16 is refused, and with the profile's own arithmetic the rest is the same.
    words = ["false" if last == "--bf16" else word
             for last, word in itertools.pairwise(["", *the_command()])]  # fmt: skip
    *_, run, model, _, from_file, from_line = make_parser().parse_args_and_config(
        words, return_remaining_strings=True, separate_remaining_strings=True
    )
    assert (run.use_cpu, run.per_device_train_batch_size) == (False, 2)
    assert run.save_only_model is False
    assert model.model_name_or_path == "start"
    launch = resolve_accelerate_config_argument(from_file + from_line)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*launch, "sft.py"]))
    assert (args.num_processes, args.use_fsdp, args.fsdp_version) == (8, True, 2)
    assert args.mixed_precision == "bf16"


#: What each of the eight processes does first, in one process on a processor that is called a GPU.
INITIALIZE = """
import sys
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser

parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig))
script, config, model, _ = parser.parse_args_and_config(return_remaining_strings=True)
config.device
dist.init_process_group("gloo", rank=0, world_size=1)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
rows = load_dataset(script.dataset_name)
trainer = SFTTrainer(model.model_name_or_path, config, train_dataset=rows["train"],
                     eval_dataset=rows["train"])
print("FSDP", trainer.accelerator.state.fsdp_plugin.fsdp_version, config.bf16)
"""


@pytest.mark.weekly
def test_the_exported_folder_passes_the_trainer_under_fsdp(tmp_path):
    """With the settings that the walk-through's run has, and the command's."""
    from datasets import Dataset
    from lookalikes import rows
    from trl import SFTTrainer

    from sft_utils import experiment, load_profile
    from sft_utils.export.trl_script import write_run

    profile = load_profile("atlas")
    model, tokenizer = experiment.load_trainee(profile)
    data, folder = Dataset.from_list(rows()), tmp_path / "run"
    trainer = SFTTrainer(model, experiment.make_config(profile), train_dataset=data,
                         eval_dataset=data, processing_class=tokenizer)  # fmt: skip
    write_run(trainer, folder, start=profile.models.trainee, train_rows=data, validation_rows=data)
    (folder / "initialize.py").write_text(INITIALIZE)
    (tmp_path / "fsdp2.yaml").write_text(machine_file("FSDP2", bf16=True))
    variables, _ = check_machine_file(tmp_path / "fsdp2.yaml")
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "HF_HUB_OFFLINE": "1"}
    variables |= {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    here = {"--accelerate_config", "fsdp2", "--num_processes", "8", "--use_cpu", "false"}
    words = [word for word in the_command() if word not in here - {"false"}]
    words.remove("false")  # that of --use_cpu

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "initialize.py", *arguments], cwd=folder, text=True,
            env=os.environ | variables, capture_output=True,
        )  # fmt: skip

    done = run(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "FSDP 2 True" in done.stdout
    refused = run("--config", "run.yaml", "--bf16", "true")
    assert "save_only_model" in refused.stderr  # what the command is there to avoid
