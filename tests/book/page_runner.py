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
import sys
import time
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from myst_nb.core.read import read_myst_markdown_notebook


def run_page(path: Path, shell: InteractiveShell) -> dict[str, Any]:
    """Execute a page's cells up to the first that fails."""
    notebook = read_myst_markdown_notebook(path.read_text("utf8"), path=path)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    shell.reset(new_session=True)
    os.chdir(path.parent)  # where a build runs it
    started, cells = time.perf_counter(), []
    for source in sources:
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
    gc.collect()
    seconds = round(time.perf_counter() - started, 1)
    return {"page": path.name, "cells": cells, "of": len(sources), "seconds": seconds}


def note_models(loaded: list[str]) -> None:
    """Write down every name of a model that is loaded."""
    from sft_utils import models

    resolve = models.resolve

    def noted(source: str | Path) -> str:
        found = resolve(source)
        loaded.append(str(source))  # not reached for the names that a page only tries
        return found

    models.resolve = noted


def main() -> None:
    """Run each page that is named on standard input."""
    loaded: list[str] = []
    note_models(loaded)
    shell = InteractiveShell.instance(history_length=0)
    shell.history_manager.enabled = False
    shell.colors = "nocolor"
    for line in sys.stdin:
        loaded.clear()
        result = run_page(Path(line.strip()), shell) | {"loaded": sorted(set(loaded))}
        with open(sys.argv[1], "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print("done", file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
