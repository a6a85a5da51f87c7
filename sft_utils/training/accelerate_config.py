"""Files that tell `accelerate` to split a run over several GPUs, checked without any.

The files are TRL's, with the arithmetic of the run in them. Explained in chapter 25.
"""

from __future__ import annotations

import difflib
import os
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

#: The files of TRL, by the strategy that each asks for; `training.memory` estimates them.
FILES = {"ZeRO-1": "zero1", "ZeRO-2": "zero2", "ZeRO-3": "zero3", "FSDP2": "fsdp2"}


class MachineFileError(ValueError):
    """A file for accelerate has a key or a value that it does not know."""


def machine_file(strategy: str, *, bf16: bool = False) -> str:
    """Return TRL's file for a strategy, a key of `FILES`, as YAML.

    ``bf16`` is that of the run's `SFTConfig`: where the two differ, accelerate's file wins, and
    nothing is said. Explained in chapter 25.
    """
    import yaml

    file = resources.files("trl.accelerate_configs") / f"{FILES[strategy]}.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings["mixed_precision"] = "bf16" if bf16 else "no"
    return yaml.safe_dump(settings)


def check_machine_file(
    path: str | Path,
) -> tuple[dict[str, str], FullyShardedDataParallelPlugin | DeepSpeedPlugin]:
    """Return what accelerate makes of a file for FSDP or DeepSpeed: variables, and its plugin.

    Goes the way of ``accelerate launch`` up to the start of the processes: accelerate's parsers
    read the file, its launcher turns it into environment variables, and from these the plugin is
    made that each process would have. Neither GPUs nor DeepSpeed are needed.

    Raises `MachineFileError` for a key or a value that is not known; in the tables of FSDP and of
    DeepSpeed accelerate itself would pass a wrong key over. Explained in chapter 25.
    """
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    # Port 0: whichever is free.
    command = ["--config_file", str(path), "--main_process_port", "0", "script.py"]
    parser = launch_command_parser()
    groups = {group.title: group._group_actions for group in parser._action_groups}
    try:
        config: Any = load_config_from_file(str(path))
        for table, title in (
            (config.fsdp_config, "FSDP Arguments"),
            (config.deepspeed_config, "DeepSpeed Arguments"),
        ):
            known = {action.dest for action in groups[title]}
            for key in table:
                if key not in known:
                    near = difflib.get_close_matches(key, known, 1)
                    hint = f" Did you mean {near[0]}?" if near else ""
                    raise ValueError(f"{key} is no setting of accelerate.{hint}")
        args: Any = parser.parse_args(command)
        args, defaults, _ = _validate_launch_command(args)
        if not (args.use_fsdp or args.use_deepspeed):
            raise ValueError(f"distributed_type is {config.distributed_type.value}.")
        fields = [*defaults.deepspeed_config, "mixed_precision"]
        args.deepspeed_fields_from_accelerate_config = ",".join(fields)
        if args.use_deepspeed:
            variables, plugin = prepare_deepspeed_cmd_env(args)[1], DeepSpeedPlugin
        else:
            variables, plugin = prepare_multi_gpu_env(args), FullyShardedDataParallelPlugin
        new = {name: value for name, value in variables.items() if os.environ.get(name) != value}
        with _environment(new):
            return new, plugin()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise MachineFileError(f"{path}: {error}") from error


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    try:
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
