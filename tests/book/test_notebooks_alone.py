"""Every notebook alone, in a fresh environment with the wheel: as on Colab, and as on Binder.

pip installs from an index, so these tests need a network. `.ci/run` runs one of the notebooks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, build_wheel, run_alone

import sft_utils

sys.path.insert(0, str(ROOT / "book" / "_ext"))

from page_report import PeakMemory

pytestmark = pytest.mark.weekly

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
MOST_MEMORY = 1.2 * 1024  # MB: Binder gives two gigabytes, and the server takes its share


def make_environment(folder: Path, *arguments: object, cwd: Path) -> Path:
    """A fresh virtual environment with what pip is asked for; its Python."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    # Where PyTorch's own index cannot be reached, the tested versions come from the default one.
    pip = {"PIP_NO_INDEX": "0", "PIP_RETRIES": os.environ.get("PIP_RETRIES", "0")}
    if index := os.environ.get("TORCH_INDEX"):
        torch = ("--no-deps", "--index-url", index, "-c", ROOT / "constraints.txt", "torch")
        run_alone(python, "-m", "pip", "install", "--quiet", *torch, cwd=cwd, **pip)
    run_alone(python, "-m", "pip", "install", "--quiet", *arguments, cwd=cwd, **pip)
    return python


@pytest.fixture(scope="session")
def kernel(shared):
    """A folder of kernels with one, in an environment that holds the wheel and what it needs.

    The wheel is what the first cell installs, from a file in place of the repository. What runs a
    notebook (a kernel) is there on Colab. All processes share the environment.
    """
    from filelock import FileLock

    folder = shared / "alone"
    spec = folder / "kernels" / "python3" / "kernel.json"
    with FileLock(f"{folder}.lock"):
        if not spec.exists():
            wheel = build_wheel(folder)
            pins = ("-c", ROOT / "constraints.txt")
            python = make_environment(folder / "venv", *pins, wheel, "ipykernel", cwd=folder)
            spec.parent.mkdir(parents=True)
            argv = [str(python), "-P", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            spec.write_text(json.dumps({"argv": argv, "display_name": "", "language": "python"}))
    return spec.parents[1]


def test_binder_builds_its_environment_from_nothing(tmp_path):
    """As Binder does: in a clone, from ``.binder``; what comes out is PyTorch without CUDA."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "sft_utils", clone / "sft_utils")
    shutil.copytree(ROOT / ".binder", clone / ".binder")
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, clone)
    python = make_environment(tmp_path / "venv", "-r", ".binder/requirements.txt", cwd=clone)
    code = "import sft_utils, torch, sys; print(torch.version.cuda, sft_utils.__version__)"
    printed = run_alone(python, "-c", code, cwd=tmp_path)
    assert printed.split() == ["None", sft_utils.__version__]
    jupyter_book = python.parent / "jupyter-book"
    version = subprocess.run([jupyter_book, "--version"], capture_output=True, text=True).stdout
    assert "1.0.4" in version


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_runs_alone(kernel, tmp_path, monkeypatch, path):
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("SFT_PROFILE", raising=False)
    monkeypatch.setenv("SFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    specs = KernelSpecManager(kernel_dirs=[str(kernel)], ensure_native_kernel=False)
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=specs)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, km=manager, timeout=1800,
                            resources={"metadata": {"path": str(tmp_path)}})  # fmt: skip
    try:
        with PeakMemory(lambda: manager.provisioner and manager.provisioner.pid) as memory:
            client.execute()
    finally:
        manager.shutdown_kernel(now=True)
    print(f"{path.stem}: at most {memory.mb:.0f} MB")
    assert memory.mb < MOST_MEMORY
    assert not list(tmp_path.glob("*.py"))
    codes = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in codes)
