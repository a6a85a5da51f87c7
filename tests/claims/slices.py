"""Pages cut down to what their claims rest on.

A page's code is walked backwards from its claims, statement by statement: kept is what binds or
changes a name that is still needed. Samples, sheets, figures and exercises fall away by
themselves, and a page that changes needs no list here.
"""

from __future__ import annotations

import ast
import re
import symtable
from collections.abc import Iterable, Sequence
from pathlib import Path

from myst_nb.core.read import read_myst_markdown_notebook

#: Functions that change what they are given. Others only read it, or show it.
CHANGE_THEIR_ARGUMENTS = {"train", "silence"}
HEADER = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n"


def claims_of(page: Path) -> list[str]:
    """The names of the claims that a page states, in its order."""
    return re.findall(r"\bclaim\(\s*\"([\w-]+)\"", page.read_text("utf8"))


def reduce_page(page: Path) -> str:
    """The page with only those statements that its claims need, cell by cell, and no prose."""
    notebook = read_myst_markdown_notebook(page.read_text("utf8"), path=page)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    kept = [f"```{{code-cell}}\n{source}\n```\n" for source in reduce_cells(cells) if source]
    return "\n".join([HEADER, *kept])


def reduce_cells(cells: Sequence[str]) -> list[str]:
    """Each cell with the statements that the claims need; empty where it has none."""
    needed: set[str] = set()
    reduced = []
    for source in reversed(cells):
        kept: list[str] = []
        for statement in reversed(ast.parse(source).body):
            if _states_a_claim(statement) or needed & _changed(statement):
                needed = (needed - _bound(statement)) | _used(statement)
                kept.insert(0, _text(source, statement))
        reduced.insert(0, "\n".join(kept))
    return reduced


def _text(source: str, statement: ast.stmt) -> str:
    """The statement as the page has it, decorators and comments within it included."""
    above = [decorator.lineno for decorator in getattr(statement, "decorator_list", ())]
    first = min([statement.lineno, *above])
    return "\n".join(source.split("\n")[first - 1 : statement.end_lineno])


def _states_a_claim(statement: ast.stmt) -> bool:
    calls = (node for node in ast.walk(statement) if isinstance(node, ast.Call))
    return any(isinstance(call.func, ast.Name) and call.func.id == "claim" for call in calls)


def _used(statement: ast.stmt) -> set[str]:
    """The names that must be there before the statement runs."""
    if isinstance(statement, ast.If):
        inner = _used_in(statement.body) | _used_in(statement.orelse)
        return _names(ast.Expr(statement.test)) | inner
    if isinstance(statement, ast.For):
        return _names(ast.Expr(statement.iter)) | (
            _used_in(statement.body) - _names_stored(statement.target)
        )
    return _names(statement)


def _used_in(body: Iterable[ast.stmt]) -> set[str]:
    needed: set[str] = set()
    for statement in reversed(list(body)):
        needed = (needed - _bound(statement)) | _used(statement)
    return needed


def _names(statement: ast.stmt) -> set[str]:
    """The page's names that a statement reads, those in its functions among them."""
    table = symtable.symtable(ast.unparse(ast.fix_missing_locations(statement)), "page", "exec")
    found = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    inner = list(table.get_children())
    while inner:
        scope = inner.pop()
        found |= {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
        inner += scope.get_children()
    return found


def _bound(statement: ast.stmt) -> set[str]:
    """The names that the statement binds whatever happens: what they were before is not needed."""
    if isinstance(statement, ast.If):
        ways = [{n for s in way for n in _bound(s)} for way in (statement.body, statement.orelse)]
        return ways[0] & ways[1]
    if isinstance(
        statement, ast.Assign | ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
    ):
        return _changed_by_name(statement)
    return set()


def _changed(statement: ast.stmt) -> set[str]:
    """The names that the statement may bind, or whose value it may change."""
    found = _changed_by_name(statement)
    for node in ast.walk(statement):
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= _root(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            method = node.value.func  # checks.append(...), but not pd.DataFrame(...)
            if isinstance(method, ast.Attribute) and method.attr.islower():
                found |= _root(method)
        if isinstance(node, ast.Call) and _called(node) in CHANGE_THEIR_ARGUMENTS:
            for argument in node.args:
                found |= _root(argument)
    return found


def _changed_by_name(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.If | ast.For | ast.With | ast.Try | ast.While):
        parts = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
        found = {name for part in parts for inner in part for name in _changed_by_name(inner)}
        return found | (
            _names_stored(statement.target) if isinstance(statement, ast.For) else set()
        )
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    return _names_stored(statement)


def _names_stored(node: ast.AST) -> set[str]:
    return {
        inner.id
        for inner in ast.walk(node)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
    }


def _root(node: ast.AST) -> set[str]:
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _called(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))
