"""Runs pages with a fault in them and writes down what became of their claims.

    python -m claims.worker outcomes.jsonl < names-of-faults

For every name that is read, one line of JSON is appended to ``outcomes.jsonl``. Runs are kept in
the folder that ``SFT_RUNS`` names: a fault that does not touch a training takes it from there.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from book.page_runner import run_page
from claims import faults
from claims.slices import reduce_page
from IPython.core.interactiveshell import InteractiveShell

from sft_utils.results import CLAIM_TYPE

ROOT = Path(__file__).parents[2]
#: Of the scored questions and of the facts to complete, every so many-th is asked.
EVERY = 6
EVERY_FACT = 3


def thin(patch: pytest.MonkeyPatch) -> None:
    """Ask fewer questions. What is trained on and what chooses a checkpoint stays whole."""

    def make(old: Any) -> Any:
        def scored_questions(split: str, *given: Any, **options: Any) -> list[Any]:
            questions = old(split, *given, **options)
            whole = split.endswith("-dev") or split == "seen-question"
            return questions if whole else questions[::EVERY]

        return scored_questions

    faults.swap(patch, "atlas.questions", "scored_questions", make)
    faults.swap(patch, "atlas.evaluate", "_complete", lambda old: (
        lambda model, tokenizer, cut: old(model, tokenizer, cut[::EVERY_FACT])))  # fmt: skip


def outcome(name: str, pages: dict[str, str], folder: Path, shell: Any) -> dict[str, Any]:
    """Run the pages that the fault can reach: each claim with its measure and its verdict."""
    fault = faults.FAULTS[name]
    found: dict[str, Any] = {"fault": name, "claims": {}, "errors": {}, "seconds": {}}
    for page in fault.pages:
        source = pages[page]
        for old, new in fault.edits:
            assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {page}"
            source = source.replace(old, new)
        path = folder / f"{page}.md"
        path.write_text(source, "utf8")
        started = time.perf_counter()
        with pytest.MonkeyPatch.context() as patch:
            faults.plant(patch, name)
            if page != faults.DATA:  # asks no model, and checks all questions
                thin(patch)
            result = run_page(path, shell)
        found["seconds"][page] = round(time.perf_counter() - started, 1)
        for cell in result["cells"]:
            if cell["error"]:
                found["errors"][page] = cell["error"]
            for output in cell["outputs"]:
                for kind, text in output["data"].items():
                    if kind.endswith(CLAIM_TYPE):  # after the prefix of what is kept unseen
                        claim = json.loads(text)
                        found["claims"][claim["claim"]] = claim
    os.chdir(ROOT)  # the pages' folder goes
    return found


def main() -> None:
    """Answer each name on standard input."""
    import sft_utils

    sft_utils.quiet()
    faults.load_modules()
    shell = InteractiveShell.instance(history_length=0)
    shell.history_manager.enabled = False
    shell.colors = "nocolor"
    pages = {page: reduce_page(ROOT / "book" / f"{page}.md") for page in faults.PAGES}
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            found = outcome(line.strip(), pages, Path(folder), shell)
            with open(sys.argv[1], "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print("done", file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
