"""Importing the package costs nothing, and every exported name is there."""

import sys

import pytest
from conftest import ROOT, run_alone

import sft_utils

HEAVY = {"torch", "transformers", "trl", "datasets", "pandas", "numpy", "scipy", "statsmodels",
         "matplotlib", "IPython", "onnx", "onnxruntime"}  # fmt: skip


LIGHT = ("models", "generation", "data.rows", "profiles", "environment", "training.runs",
         "results", "evaluation.metrics", "evaluation.statistics", "experiment",
         "export.onnx_model")  # fmt: skip


@pytest.mark.parametrize("modules", ["sft_utils", ", ".join(f"sft_utils.{m}" for m in LIGHT)])
def test_import_loads_nothing_heavy(modules):
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    assert run_alone(sys.executable, "-c", code, cwd=ROOT).strip() == ""


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
