"""Runs pages with a fault in them and tells what became of their claims.

    python -m claims.worker outcomes.jsonl < names-of-faults

Of a page runs what its claims rest on. Runs are kept in the folder that ``SFT_RUNS`` names: a fault
that does not touch a training takes it from there.
"""

from __future__ import annotations

import ast
import json
import re
import symtable
from pathlib import Path
from typing import Any

import pytest
from book.page_runner import code_cells, make_shell, run_cells, serve
from claims import faults

from sft_utils.claims import CLAIM_TYPE

ROOT = Path(__file__).parents[2]
#: Of the scored questions and of the facts to complete, every so many-th is asked.
EVERY = 6
EVERY_FACT = 3


def claims_of(page: str) -> list[str]:
    """The names of the claims of a page that are looked at, in its order."""
    text = (ROOT / "book" / f"{page}.md").read_text("utf8")
    found = re.findall(r"\bclaim\(\s*\"([\w-]+)\"", text)
    return [name for name in found if page != faults.COST or name in faults.OF_COST]


def names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """The names that a statement binds or changes, and those that it reads."""
    scopes = [symtable.symtable(ast.unparse(statement), "page", "exec")]
    symbols = scopes[0].get_symbols()
    changes = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    reads = {s.get_name() for s in symbols if s.is_referenced()}
    for scope in scopes:  # and the scopes within it
        scopes += scope.get_children()
        reads |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
    own: set[str] = set()  # of loops
    for node in ast.walk(statement):
        changed: Any = None
        if isinstance(node, ast.For):
            own |= {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            changed = node
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            changed = node.value.func  # checks.append(...), but not pd.DataFrame(...)
            changed = changed if getattr(changed, "attr", "").islower() else None
        elif isinstance(node, ast.Call) and re.search(
            r"\b(train|silence)$", ast.unparse(node.func)
        ):
            changed = node.args[0] if node.args else None
        while isinstance(changed, ast.Subscript | ast.Attribute):
            changed = changed.value
        if isinstance(changed, ast.Name):
            changes.add(changed.id)
    return changes - own, reads - own


def appending(cells: list[str]) -> dict[str, set[str]]:
    """The functions of a page that add to a list of the page, and the names of these lists."""
    found: dict[str, set[str]] = {}
    for function in (n for cell in cells for n in ast.parse(cell).body):
        if isinstance(function, ast.FunctionDef):
            calls = [n.func for n in ast.walk(function) if isinstance(n, ast.Call)]
            lists = {ast.unparse(f.value) for f in calls if getattr(f, "attr", "") == "append"}
            _, reads = names(function)
            found[function.name] = lists & reads
    return found


def cells_of(page: str, edits: tuple[tuple[str, str], ...]) -> list[str]:
    """The page's cells with no more than what its claims rest on, edited.

    Statement by statement, from the last to the first: kept is what binds or changes a name that is
    still needed. Without this a fault would ask twice as many questions.
    """
    needed: set[str] = set()
    cells, stated = [], claims_of(page)
    given = code_cells(ROOT / "book" / f"{page}.md")
    adding = appending([cell.source for cell in given])
    for cell in reversed(given):
        kept: list[str] = []
        for statement in reversed(ast.parse(cell.source).body):
            changes, reads = names(statement)
            text = ast.unparse(statement)
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                changes |= adding.get(ast.unparse(statement.value.func), set())
            states = re.match(r"claim\(\s*['\"]([\w-]+)", text)
            if (states and states[1] in stated) or (not states and changes & needed):
                binds = ast.Assign | ast.Import | ast.ImportFrom | ast.FunctionDef
                needed = (needed - changes if isinstance(statement, binds) else needed) | reads
                kept.insert(0, text)
        cells.insert(0, "\n".join(kept))
    for old, new in edits:
        found = sum(cell.count(old) for cell in cells)
        assert found == 1, f"{old!r} stands {found} times in {page}"
        cells = [cell.replace(old, new) for cell in cells]
    return [cell for cell in cells if cell]


def thin(patch: pytest.MonkeyPatch) -> None:
    """Ask fewer questions. What is trained on and what chooses a checkpoint stays whole."""

    def scored_questions(old: Any, split: str, *given: Any, **options: Any) -> list[Any]:
        questions = old(split, *given, **options)
        whole = split.endswith("-dev") or split == "seen-question"
        return questions if whole else questions[::EVERY]

    def _complete(old: Any, model: Any, tokenizer: Any, cut: Any) -> Any:
        return old(model, tokenizer, cut[::EVERY_FACT])

    faults.swap(patch, "atlas.questions", "scored_questions", scored_questions)
    faults.swap(patch, "atlas.evaluate", "_complete", _complete)


def outcome(name: str, shell: Any) -> dict[str, Any]:
    """Run the pages that the fault can reach: each claim with its measure and its verdict."""
    fault = faults.FAULTS[name]
    found: dict[str, Any] = {"fault": name, "claims": {}, "errors": {}, "seconds": {}}
    for page in fault.pages:
        with pytest.MonkeyPatch.context() as patch:
            faults.plant(patch, name)
            thin(patch)
            result = run_cells(cells_of(page, fault.edits), ROOT / "book", shell)
        found["seconds"][page] = result["seconds"]
        for cell in result["cells"]:
            if cell["error"]:
                found["errors"][page] = cell["error"]
            for output in cell["outputs"]:
                for kind, text in output["data"].items():
                    if kind.endswith(CLAIM_TYPE):  # after the prefix of what is kept unseen
                        claim = json.loads(text)
                        found["claims"][claim["claim"]] = claim
    return found


def main() -> None:
    """Answer each name on standard input."""
    import sft_utils

    sft_utils.quiet()
    faults.load_modules()
    shell = make_shell()
    serve(lambda name: outcome(name, shell))


if __name__ == "__main__":
    main()
