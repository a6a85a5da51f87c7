"""Runs the code cells of pages, one page after another, in one process that imports torch once.

    python page_runner.py out.jsonl < paths-of-pages

For every path that is read, one line of JSON is appended to ``out.jsonl``: what each cell showed,
and which models were loaded. A page starts with an empty namespace, and the first cell that fails
ends it, as in a build. Other settings come from the environment (``SFT_PROFILE``, ``SFT_RUNS``).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))
EXTENSIONS = {"amsmath", "colon_fence", "deflist", "dollarmath", "substitution", "tasklist"}


class Runner:
    """Such a process, for a test: it is given a line and answers with what it found."""

    def __init__(self, results: Path, *command: object, **settings: str) -> None:
        self.results, self.log = results, results.with_suffix(".log")
        quiet = {
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "KMP_BLOCKTIME": "0",
            "TQDM_DISABLE": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TMPDIR": str(results.parent),  # it is killed, and removes nothing
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command), results],
                env={k: v for k, v in os.environ.items() if k != "SFT_PROFILE"} | quiet | settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self, line: object) -> dict[str, Any]:
        """The answer to a line; the test fails if the process ends."""
        assert self.process.stdin and self.process.stdout
        print(line, file=self.process.stdin, flush=True)
        while (told := self.process.stdout.readline()) not in ("", "done\n"):
            pass
        if not told:
            pytest.fail(f"{line}: the process ended.\n{self.log.read_text()[-4000:]}")
        return json.loads(self.results.read_text("utf8").splitlines()[-1])

    def close(self) -> None:
        """End the process, whatever it is doing."""
        with self.process:  # closes its pipes and waits for it
            self.process.kill()


def serve(answer: Callable[[str], dict[str, Any]]) -> None:
    """Be such a process: answer each line of standard input."""
    for line in sys.stdin:
        found = json.dumps(answer(line.strip()))
        with open(sys.argv[1], "a", encoding="utf-8") as file:
            file.write(found + "\n")
        print("done", file=sys.__stdout__, flush=True)


def make_shell() -> InteractiveShell:
    """What runs the cells."""
    shell = InteractiveShell.instance(history_length=0)
    shell.history_manager.enabled = False
    shell.colors = "nocolor"
    return shell


def code_cells(path: Path) -> list[Any]:
    """The code cells of a page."""
    notebook = read_myst_markdown_notebook(path.read_text("utf8"), path=path)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def expressions(path: Path) -> list[tuple[int, str]]:
    """What the prose of a page computes in this build, each with the code cells before it.

    As in a build, the opening is computed after the last cell.
    """
    from inline_expressions import find
    from inline_expressions import prose as markdown
    from page_inputs import profile_in_use
    from profile_pages import resolve_only

    text = resolve_only(path.read_text("utf8"), profile_in_use())
    notebook = read_myst_markdown_notebook(text, path=path)
    last = sum(cell.cell_type == "code" for cell in notebook.cells)
    config = MdParserConfig(enable_extensions=EXTENSIONS)
    return [(before or last, text) for before, cell in markdown(notebook)
            for text in find(cell.source, config)]  # fmt: skip


def compute(text: str, shell: InteractiveShell) -> str:
    """The value of an expression in the prose, or its error."""
    from inline_expressions import split

    expression, spec = split(text)
    try:
        return format(eval(expression, shell.user_ns), spec)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def run_cells(
    sources: list[str], folder: Path, shell: InteractiveShell, asked: Any = ()
) -> dict[str, Any]:
    """Execute cells up to the first that fails, where a build would; compute what prose asks."""
    shell.reset(new_session=True)
    os.chdir(folder)
    started, cells, prose = time.perf_counter(), [], []
    for number, source in enumerate(sources, 1):
        with capture_output() as captured:
            result = shell.run_cell(source, store_history=True)
        error = result.error_before_exec or result.error_in_exec
        cells.append(
            {
                "source": source,
                "error": f"{type(error).__name__}: {error}" if error else None,
                "stdout": captured.stdout,
                "stderr": captured.stderr,
                "outputs": [
                    {"data": {k: str(v) for k, v in o.data.items()}, "metadata": o.metadata or {}}
                    for o in captured.outputs
                ],
            }
        )
        if error:
            break
        prose += [(text, compute(text, shell)) for before, text in asked if before == number]
    gc.collect()
    seconds = round(time.perf_counter() - started, 1)
    return {"cells": cells, "of": len(sources), "seconds": seconds, "prose": prose}


def main() -> None:
    """Run each page that is named on standard input."""
    from sft_utils import models

    shell, loaded, resolve = make_shell(), set(), models.resolve

    def noted(source: str | Path) -> str:
        found = resolve(source)
        loaded.add(str(source))  # not reached for the names that a page only tries
        return found

    def answer(line: str) -> dict[str, Any]:
        loaded.clear()
        path = Path(line)
        sources = [cell.source for cell in code_cells(path)]
        result = run_cells(sources, path.parent, shell, expressions(path))
        return result | {"page": path.name, "loaded": sorted(loaded)}

    models.resolve = noted
    serve(answer)


if __name__ == "__main__":
    main()
