"""Every keyword argument that a page or the package writes exists in the installed libraries.

Libraries rename arguments, and a book that nobody runs goes on printing the old ones. Pages run
here, but not on every version and not in every branch, so each call is looked up without running
it: what is imported by name is found, and its signature asked; a page's method is looked for in
the classes that pages work with. Where a signature takes any keyword, nothing can be said; how many
calls could be checked is asserted, so that the search cannot come to nothing.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, own_files
from myst_nb.core.read import read_myst_markdown_notebook

LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "numpy", "pandas", "peft", "torch",
             "transformers", "trl", "matplotlib", "scipy", "statsmodels", "sft_utils")  # fmt: skip
#: Where methods are looked for, since the code does not say what a variable holds.
OWNERS = ("trl.SFTTrainer", "transformers.PreTrainedModel", "transformers.PreTrainedTokenizerFast",
          "transformers.TrainingArguments", "datasets.Dataset", "pandas.DataFrame", "pandas.Series",
          "torch.Tensor", "torch.optim.Optimizer", "pathlib.Path")  # fmt: skip
PAGES = own_files("book/*.md")
MODULES = own_files("sft_utils/**/*.py")


def source(path: Path) -> str:
    """The code of a module, or of all code cells of a page."""
    text = path.read_text("utf8")
    if path.suffix == ".py":
        return text
    cells = read_myst_markdown_notebook(text).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "code")


def package_of(path: Path) -> str:
    """The package that relative imports of the file start from."""
    return ".".join(path.relative_to(ROOT).parent.parts) if path.suffix == ".py" else ""


def imports(tree: ast.AST, package: str) -> dict[str, Any]:
    """What each imported name stands for, wherever in the file it is imported."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in LIBRARIES:
                    module = importlib.import_module(name.name)
                    top = importlib.import_module(name.name.split(".")[0])
                    found[name.asname or name.name.split(".")[0]] = module if name.asname else top
        elif isinstance(node, ast.ImportFrom):
            name = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if name.split(".")[0] in LIBRARIES:
                module = importlib.import_module(name)
                for item in node.names:
                    value = getattr(module, item.name, None)
                    if value is None:
                        value = importlib.import_module(f"{name}.{item.name}")
                    found[item.asname or item.name] = value
    return found


def target(node: ast.expr, names: dict[str, Any]) -> Any:
    """The object that an expression such as ``torch.nn.functional.cross_entropy`` names."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = target(node.value, names)
        return getattr(owner, node.attr, None) if owner is not None else None
    return None


def methods(name: str) -> list[Any]:
    """The methods of that name that the classes in ``OWNERS`` have."""
    owners = (path.rpartition(".") for path in OWNERS)
    classes = (getattr(importlib.import_module(module), cls) for module, _, cls in owners)
    return [found for cls in classes if (found := getattr(cls, name, None)) is not None]


def calls(code: str, package: str = "") -> Iterator[tuple[str, list[Any], list[str]]]:
    """Each call whose target can be found: as it is written, what it may be, its keywords."""
    tree = ast.parse(code)
    names = imports(tree, package)
    for node in ast.walk(tree):  # a name that the file gives to something else says nothing
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.pop(node.name, None)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.pop(node.id, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = target(node.func, names)
            found = [called] if called is not None else []
            if not found and not package and isinstance(node.func, ast.Attribute):
                found = methods(node.func.attr)
            if found:
                yield ast.unparse(node.func), found, [k.arg for k in node.keywords if k.arg]


def unknown(found: list[Any], keywords: list[str]) -> list[str] | None:
    """The keywords that none of the signatures has; None if one of them does not say."""
    taken = set()
    for called in found:
        try:
            parameters = inspect.signature(called).parameters.values()
        except (TypeError, ValueError):  # a function of compiled code
            return None
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return None
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        taken |= {p.name for p in parameters if p.kind in by_name}
    return [name for name in keywords if name not in taken]


@pytest.mark.parametrize("path", PAGES + MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_keyword_exists_in_the_installed_libraries(path):
    wrong = {}
    for name, found, keywords in calls(source(path), package_of(path)):
        if gone := unknown(found, keywords):
            wrong[name] = gone
    assert wrong == {}


def test_many_calls_are_checked():
    """Among them the constructors that the book is about, wherever a page calls them."""
    checked = [
        name
        for path in PAGES
        for name, found, keywords in calls(source(path))
        if keywords and unknown(found, keywords) is not None
    ]
    assert len(checked) >= 150
    assert {"SFTConfig", "SFTTrainer"} <= set(checked)


@pytest.mark.parametrize(
    ("code", "gone"),
    [
        ("from trl import SFTTrainer\nSFTTrainer(model=m, tokenizer=t)", ["tokenizer"]),
        ("import trl\ndef f():\n    return trl.SFTConfig(evaluation_strategy='no')",
         ["evaluation_strategy"]),
        ("from sft_utils import load_model_and_tokenizer as l\nl('x', torch_dtype=1)",
         ["torch_dtype"]),
        ("trainer.train(resume_from=None)", ["resume_from"]),
    ],
)  # fmt: skip
def test_an_old_name_is_noticed(code, gone):
    [(_, found, keywords)] = calls(code)
    assert unknown(found, keywords) == gone
