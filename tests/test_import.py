"""Importing the package costs nothing, and every exported name is there."""

import subprocess
import sys

import pytest

import sft_utils

HEAVY = {"torch", "transformers", "trl", "datasets", "pandas", "numpy", "scipy", "statsmodels",
         "matplotlib", "IPython"}  # fmt: skip


@pytest.mark.parametrize(
    "modules",
    [
        "sft_utils",
        "sft_utils.models, sft_utils.generation, sft_utils.data, sft_utils.profiles, "
        "sft_utils.environment, sft_utils.runs, sft_utils.results, sft_utils.scoring, "
        "sft_utils.statistics",
    ],
)
def test_import_loads_nothing_heavy(modules):
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == ""


@pytest.mark.parametrize("name", sorted(sft_utils._EXPORTS))
def test_every_export_exists(name):
    found = getattr(sft_utils, name)
    home = f"sft_utils.{sft_utils._EXPORTS[name]}"
    assert name == "CPU_MODE" or found.__module__ == home


def test_dir_lists_the_exports():
    assert set(sft_utils.__all__) <= set(dir(sft_utils))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nothing_here'"):
        _ = sft_utils.nothing_here
