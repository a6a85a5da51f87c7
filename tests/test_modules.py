"""What the package's modules say of themselves, where that is told, and what they may use."""

import ast
import copy
import re
import runpy
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name

import pytest
from conftest import ROOT, own_files

#: Of each module, by its dotted name, the text as a tree and the package that imports start from.
MODULES = {}
PACKAGES = {}
for _path in own_files("sft_utils/**/*.py"):
    _package, _name = ".".join(_path.parent.relative_to(ROOT).parts), _path.stem
    _module = _package if _name == "__init__" else f"{_package}.{_name}"
    MODULES[_module], PACKAGES[_module] = ast.parse(_path.read_text("utf8")), _package

CHAPTERS = re.compile(r"\b(?:chapter|page)s? (\d\d(?:(?:,| and| to) \d\d)*)", re.I)
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.M | re.S)


def test_a_docstring_names_chapters_whose_code_names_what_it_is_of():
    """A module is named by its dotted name, or by a name that it offers."""
    pages = own_files("book/[0-9][0-9]-*.md")
    code = {path.name[:2]: " ".join(CODE.findall(path.read_text("utf8"))) for path in pages}
    wrong = []
    for module, tree in MODULES.items():
        things = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        things = [thing for thing in things if not thing.name.startswith("_")]
        offered = [thing.name for thing in things if thing in tree.body]
        names = {tree: [module, *offered]} | {thing: [thing.name] for thing in things}
        for thing, called in names.items():
            text = " ".join((ast.get_docstring(thing) or "").split())
            for chapter in re.findall(r"\d\d", " ".join(CHAPTERS.findall(text))):
                if not re.search(rf"\b({'|'.join(called)})\b", code.get(chapter, "")):
                    wrong.append(f"{module}, {called[0]}: chapter {chapter}")
    assert wrong == []


def test_the_map_of_the_modules_is_that_of_today():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf8")
    mapped = runpy.run_path(str(ROOT / "tools" / "module_map.py"))["mapped"]
    modules = [*own_files("sft_utils/**/*.py"), *own_files("book/_ext/**/*.py")]
    assert "\n| `atlas/world.py` | The Atlas as data: " in text
    assert mapped(text, modules) == text, "The map is out of date: `make map` writes it again."


def imports(module, tree):
    """What is imported in ``tree``, at the top or further in: module, name, what it is called here.

    The name is None where the module itself is imported.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, alias.asname) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = resolve_name("." * node.level + (node.module or ""), PACKAGES[module])
            for alias in node.names:
                inner = f"{start}.{alias.name}"
                found = (inner, None) if inner in MODULES else (start, alias.name)
                yield *found, alias.asname or alias.name


def test_no_module_outside_the_atlas_imports_it_or_uses_private_names_of_others():
    atlas, wrong = re.compile(r"sft_utils\.atlas(\.|$)"), []
    for module, tree in MODULES.items():
        found = [each for each in imports(module, tree) if each[0] in MODULES]
        modules = {called: other for other, name, called in found if name is None}
        used = [(other, name) for other, name, _ in found if name]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used += [(modules[node.value.id], node.attr)] if node.value.id in modules else []
        if not atlas.match(module):
            wrong += [f"{module} imports {other}" for other, _, _ in found if atlas.match(other)]
        wrong += [f"{module} uses {o}.{n}" for o, n in used if re.match(r"_(?!_)", n)]
    assert wrong == []


def test_imports_go_round_in_no_circle():
    """Inside functions too; what only a type checker reads does not count."""
    uses = {}
    for module, tree in copy.deepcopy(MODULES).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
        uses[module] = {other for other, _, _ in imports(module, tree) if other in MODULES}
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        pytest.fail(f"A circle of imports: {' → '.join(reversed(error.args[1]))}")
