"""Where the code runs: seeds, versions, the device, and a quiet output. Explained in chapter 01."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

_PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate", "tokenizers", "sft_utils")


def __getattr__(name: str) -> Any:
    # Computed on demand: it needs torch, which importing this module should not.
    if name == "CPU_MODE":
        return best_device() == "cpu"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def best_device() -> str:
    """Return ``"cuda"``, ``"mps"`` or ``"cpu"``: the fastest kind of device here.

    ``CPU_MODE`` of this module is True when it is ``"cpu"``: what ``SFTConfig(use_cpu=...)`` wants.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class Arithmetic(NamedTuple):
    """The numbers that a training step computes in, and a sentence why."""

    bf16: bool
    reason: str


def arithmetic() -> Arithmetic:
    """Return what ``SFTConfig(bf16=...)`` should be on this machine. Explained in chapter 06."""
    import torch

    device, native = best_device(), None
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu":
        flags = torch.cpu.get_capabilities()
        native = any(on is True and name.endswith("bf16") for name, on in flags.items())
    return choose_arithmetic(device, native)


def choose_arithmetic(device: str, native: bool | None) -> Arithmetic:
    """Decide whether to compute in bfloat16 (``bf16=True``), over weights that stay float32.

    ``device`` is that of `best_device`. ``native`` says whether the hardware multiplies bfloat16
    itself, None where PyTorch cannot tell.
    """
    if device == "cuda" and native:
        return Arithmetic(True, "This GPU multiplies bfloat16 itself, which is faster.")
    if device == "cuda":
        return Arithmetic(False, "This GPU has no bfloat16 of its own, so it computes in float32.")
    if device == "mps":
        return Arithmetic(
            False,
            "Some Apple GPUs only imitate bfloat16, and PyTorch does not tell which: float32.",
        )
    if native:
        return Arithmetic(
            False,
            "This processor multiplies bfloat16 itself, but others do not: float32 gives nearly "
            "the same results on all.",
        )
    return Arithmetic(
        False, "This processor has no bfloat16 of its own, and imitating it would be slow: float32."
    )


def seed_everything(seed: int) -> None:
    """Seed the random number generators of Python, NumPy and torch (every device)."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def torch_random_state() -> Iterator[None]:
    """Put torch's random state back after the block, on every device that it seeds."""
    import torch

    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    # Named, because torch warns where there are several.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


def versions() -> pd.DataFrame:
    """Return a table of Python and the packages that do the work, with their versions."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import pandas as pd

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return pd.DataFrame({"version": found}).rename_axis("package")


def describe_device() -> dict[str, Any]:
    """Return the device's kind, its name, memory in GiB, and the threads that torch uses."""
    import platform

    import psutil  # type: ignore[import-untyped]
    import torch

    kind = best_device()
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name, memory = properties.name, properties.total_memory
    else:
        name = _processor_name() or platform.machine()
        memory = psutil.virtual_memory().total
    return {
        "device": kind,
        "name": name,
        "memory_gib": round(memory / 2**30, 1),
        "threads": torch.get_num_threads(),
    }


def quiet() -> None:
    """Turn off progress bars, log lines below errors, and usage reports to the Hub.

    In a page that was built once, a progress bar is a hundred lines of noise.
    """
    import warnings

    # A notebook without ipywidgets is told so by tqdm on import, for bars that are off anyway.
    warnings.filterwarnings("ignore", message="IProgress not found")
    # PEFT asks a model by a name that transformers is about to drop.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

    import datasets
    import transformers
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    constants.HF_HUB_DISABLE_TELEMETRY = True


def _processor_name() -> str | None:
    import platform
    from pathlib import Path

    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None
