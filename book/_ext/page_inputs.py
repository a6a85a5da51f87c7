"""What a page's execution depends on, found by reading code and running none of it.

`inputs` lists, for one page: its code cells; every file of the package that they can reach; the
profile; the pins. A page is out of date when one of these changed. Where reading the code cannot
tell what it will import, the answer is the whole package: a page may then execute once too
often, but never too seldom.

Not seen: files outside the package (unless the profile names them), and a folder of the package
that code reads without naming it in any string.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import symtable
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeGuard

#: Distributions whose installed versions are part of every page's inputs.
PINNED = ("torch", "transformers", "trl", "datasets", "numpy", "pandas")
#: The dict literal, ``{"name": "module"}``, from which a package's ``__getattr__`` imports.
LAZY_TABLE = "_EXPORTS"
#: The profile whose models the book ships.
BOOKS_OWN = "atlas"
#: The package's folder of profiles. Inputs are the one in use, and those that a page names.
PROFILE_FOLDER = "profile_files"
#: What says which recorded runs a page makes again, by a module that it reaches.
LIVE = {"training/records.py": "SFT_LIVE", "atlas/real_model.py": "SFT_REAL"}
#: Calls that can import what no reader of the source foresees.
DYNAMIC = {"import_module", "__import__", "run_module", "run_path"}


@dataclass(frozen=True)
class Code:
    """What a piece of Python asks for, and the names it offers, as far as reading it tells."""

    imports: frozenset[tuple[str, str]]
    """``from module import name`` as (module, name); ``import module`` as (module, "")."""
    words: frozenset[str]
    """The words of its strings: code that opens a file names its folder in one of them."""
    in_doubt: bool
    """It may import something that cannot be read from it."""
    names: frozenset[str]
    """What it defines at the top level."""
    exports: dict[str, str]
    """Its lazy table, empty if it has none."""
    full: str
    """A hash of its text."""
    core: str
    """The same, without the lazy table, ``__all__`` and what only a type checker reads."""

    @property
    def lazy(self) -> bool:
        """Whether an attribute may be imported when it is asked for (PEP 562)."""
        return "__getattr__" in self.names


class Package:
    """An importable package, read as text. The first import of a page never happens here."""

    def __init__(self, name: str) -> None:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                f"honest_cache_package is {name!r}, and no such package is installed. "
                "Run `pip install -e .` in the root of the book."
            )
        self.name = name
        self.root = Path(spec.submodule_search_locations[0])

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Every module, by its dotted name."""
        found = {}
        for path in self.root.rglob("*.py"):
            parts = path.relative_to(self.root.parent).with_suffix("").parts
            found[".".join(parts[1:-1] if parts[-1] == "__init__" else parts[1:])] = path
        return {f"{self.name}.{module}".rstrip("."): path for module, path in found.items()}

    @cached_property
    def data(self) -> dict[str, list[Path]]:
        """Every file that is not code, under the package whose folder holds it."""
        homes = {path.parent: m for m, path in self.modules.items() if path.stem == "__init__"}
        found: dict[str, list[Path]] = {}
        for path in self.root.rglob("*"):
            inside = path.relative_to(self.root).parts
            unseen = any(part.startswith(".") or part == "__pycache__" for part in inside)
            if unseen or path.suffix == ".py" or inside[0] == PROFILE_FOLDER or path.is_dir():
                continue
            home = next((homes[folder] for folder in path.parents if folder in homes), self.name)
            found.setdefault(home, []).append(path)
        return found

    def code(self, module: str) -> Code:
        """Read one module."""
        path = self.modules[module]
        is_package = path.stem == "__init__"
        return _read_module(*_stamp(path), module, module if is_package else _parent(module))

    def reach(self, code: Code) -> set[str]:
        """Every module that running ``code`` may import, directly or through other modules."""
        found: set[str] = set()
        asked = self._asked_for(code)
        while asked:
            module = asked.pop()
            found.add(module)
            parent = _parent(module)
            asked |= self._asked_for(self.code(module)) | ({parent} & self.modules.keys())
            asked -= found
        return found

    def files(self, code: Code) -> dict[str, str]:
        """Every file of the package that running ``code`` may read: its name and a hash."""
        reached, hashes = self.reach(code), {}
        for module in sorted(reached):
            path, text = self.modules[module], self.code(module)
            # A new line in the lazy table concerns only the pages that ask for everything.
            whole = not text.exports or self._beneath(module) <= reached
            hashes[self._name(path)] = text.full if whole else text.core
            for file in self.data.get(module, ()):
                hashes[self._name(file)] = hash_file(file)
        return hashes

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root.parent).as_posix()

    def _beneath(self, module: str) -> set[str]:
        return {m for m in self.modules if m == module or m.startswith(f"{module}.")}

    def _asked_for(self, code: Code) -> set[str]:
        if code.in_doubt:
            return set(self.modules)
        asked: set[str] = set()
        for module, name in code.imports:
            asked |= self._bound(module, name)
        for module, path in self.modules.items():
            if path.stem == "__init__" and module.rpartition(".")[2] in code.words - {self.name}:
                asked.add(module)
        for word in code.words:
            while word.startswith(f"{self.name}.") and word not in self.modules:
                word = _parent(word)
            asked |= {word} & self.modules.keys() - {self.name}
        return asked

    def _bound(self, module: str, name: str) -> set[str]:
        """The modules that ``from module import name`` may reach."""
        if module != self.name and not module.startswith(f"{self.name}."):
            return set()
        if module not in self.modules:
            return self._beneath(module)
        code, found = self.code(module), set()
        if not name:
            return self._beneath(module) if code.lazy else {module}
        if f"{module}.{name}" in self.modules:
            found |= self._bound(f"{module}.{name}", "")
        if name in code.exports:
            target = f"{module}.{code.exports[name].lstrip('.')}"
            found |= self._bound(target, name) or self._beneath(module)
        if not found and code.lazy and name not in code.names:
            found = self._beneath(module)
        return found | {module}


def read_code(text: str, module: str = "__main__", package: str = "") -> Code:
    """Read a module, or the code cells of a page joined together.

    ``package`` is the one that relative imports start from. Text that is no plain Python, such
    as a cell with a ``%magic`` or ``!command``, is in doubt.
    """
    digest = _hash(text.encode())
    try:
        tree = ast.parse(text)
        symbols = symtable.symtable(text, module, "exec").get_symbols()
    except SyntaxError:
        nothing: frozenset = frozenset()
        return Code(nothing, nothing, True, nothing, {}, digest, digest)
    exports, idle = _idle_statements(tree)
    lines = text.splitlines()
    for statement in idle:
        tree.body.remove(statement)
        first, last = statement.lineno - 1, statement.end_lineno or statement.lineno
        lines[first:last] = [""] * (last - first)
    imports, words, in_doubt = set(), set(), False
    for node in _walk(tree, imported=module != "__main__"):
        match node:
            case ast.Import():
                for alias in node.names:
                    imports.add((alias.name, ""))
                    if not alias.asname:  # binds the first name only, and with it the rest
                        imports.add((alias.name.partition(".")[0], ""))
            case ast.ImportFrom():
                start = _absolute(node, package)
                imports |= {(start, alias.name) for alias in node.names}
            case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
                match node.args:
                    case _ if name not in DYNAMIC:
                        pass
                    case [ast.Constant(value=str(target)), *_] if target[:1] != ".":
                        imports.add((target, ""))
                    case _:  # what a lazy table's own __getattr__ imports is in the table
                        in_doubt = in_doubt or not exports
            case ast.Constant(value=str(value)):
                words |= {word.strip(".") for word in re.findall(r"[\w.]+", value)}
    names = frozenset(s.get_name() for s in symbols if s.is_local()) - {LAZY_TABLE, "__all__"}
    core = _hash("\n".join(lines).encode()) if exports else digest
    return Code(frozenset(imports), frozenset(words), in_doubt, names, exports, digest, core)


def inputs(cells: list[str], folder: Path, package: Package, pins: Path | None) -> dict[str, str]:
    """All that the execution of one page depends on: a name for each thing, and its state.

    ``cells`` are the sources of the page's code cells, ``folder`` is where its kernel runs,
    ``pins`` is the constraints file.
    """
    parts = [read_code(cell) for cell in cells]
    page = Code(
        imports=frozenset().union(*(part.imports for part in parts)),
        words=frozenset().union(*(part.words for part in parts)),
        in_doubt=any(part.in_doubt or package.name in part.words for part in parts),
        names=frozenset(),
        exports={},
        full="",
        core="",
    )
    files = package.files(page)
    live = {
        variable: os.environ.get(variable, "")
        for module, variable in LIVE.items()
        if f"{package.name}/{module}" in files
    }
    shipped = (package.root / PROFILE_FOLDER).glob("*.toml")
    named = {f"profile {file.stem}": hash_file(file) for file in shipped if file.stem in page.words}
    return {
        "code cells": _hash(json.dumps(cells).encode()),
        **files,
        **live,
        **named,
        **_profile(package, folder),
        **_pins(pins),
    }


def digest(page_inputs: dict[str, str]) -> str:
    """One short text that changes when any input does."""
    return _hash(json.dumps(page_inputs, sort_keys=True).encode())[:32]


def hash_file(path: Path) -> str:
    """A hash of a file's bytes, read again only if its size or time of change differs."""
    return _hash_file(*_stamp(path))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _stamp(path: Path) -> tuple[Path, int, int]:
    state = path.stat()
    return path, state.st_size, state.st_mtime_ns


@cache
def _hash_file(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _read_module(path: Path, size: int, mtime_ns: int, module: str, package: str) -> Code:
    return read_code(path.read_text(encoding="utf-8"), module, package)


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The full name of the module in ``from module import ...``."""
    parts = package.split(".")
    start = parts[: len(parts) - node.level + 1] if node.level else []
    return ".".join([*start, node.module] if node.module else start)


def _is_type_checking(node: ast.AST) -> TypeGuard[ast.If]:
    test = node.test if isinstance(node, ast.If) else None
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def _idle_statements(tree: ast.Module) -> tuple[dict[str, str], list[ast.stmt]]:
    """The lazy table, and the statements that run nothing by themselves because of it."""
    exports: dict[str, str] = {}
    idle: list[ast.stmt] = []
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {getattr(target, "id", "") for target in targets}
        if LAZY_TABLE in names and isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            with suppress(ValueError, AttributeError):  # no literal, no dict
                exports = {
                    str(key): str(value) for key, value in ast.literal_eval(node.value).items()
                }
        if names & {LAZY_TABLE, "__all__"} or (_is_type_checking(node) and not node.orelse):
            idle.append(node)
    return (exports, idle) if exports else ({}, [])


def _walk(node: ast.AST, imported: bool) -> Iterator[ast.AST]:
    """Like `ast.walk`, past docstrings, past what only a type checker reads, and past commands.

    What stands under ``if __name__ == "__main__":`` does not run where a module is ``imported``.
    """
    idle = _is_type_checking(node) or (imported and _is_command(node))
    for child in getattr(node, "orelse", ()) if idle else ast.iter_child_nodes(node):
        if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
            yield child
            yield from _walk(child, imported)


def _is_command(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def profile_in_use() -> str:
    """``SFT_PROFILE``: the name of a shipped profile, or where the reader's own lies."""
    return os.environ.get("SFT_PROFILE") or BOOKS_OWN


def profile_name() -> str:
    """What pages call the profile in use: the name of a shipped one, or of the reader's file.

    Where the file's name is no text, its bytes no UTF-8, � stands for what cannot be written.
    """
    name = Path(profile_in_use()).name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def own_models() -> bool:
    """Whether the book is built with the models that it ships."""
    return profile_in_use() == BOOKS_OWN


def profile_file(folder: Path, package: Package | None = None) -> Path | None:
    """The file of the profile in use, as a page in ``folder`` finds it."""
    name = profile_in_use()
    shipped = (package or Package("sft_utils")).root / PROFILE_FOLDER / f"{name}.toml"
    places = [shipped, *(above / Path(name).expanduser() for above in (folder, *folder.parents))]
    return next((place for place in places if place.is_file()), None)


def _profile(package: Package, folder: Path) -> dict[str, str]:
    """The profile in use, its file, and the local files that it names."""
    name = profile_in_use()
    file = profile_file(folder, package)
    found = {"profile": name}
    if file:
        found[f"profile {name}"] = hash_file(file)
        with suppress(tomllib.TOMLDecodeError, UnicodeDecodeError):
            for text in _strings(tomllib.loads(file.read_text(encoding="utf-8-sig"))):
                for path in _local_files(text, (file.parent, folder)):
                    found[path.as_posix()] = hash_file(path)
    return found


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _local_files(text: str, folders: Iterable[Path]) -> Iterator[Path]:
    """The file, or the files of the folder, that ``text`` names, if it names one."""
    if not re.search(r"\w", text) or "\n" in text:
        return
    package, _, file = text.partition(":")
    if package.isidentifier() and file.endswith(".gguf"):  # a model in an installed package
        with suppress(ValueError):  # __main__ may have no spec
            spec = importlib.util.find_spec(package)
            places = spec.submodule_search_locations if spec else None
            yield from (path for place in places or () if (path := Path(place, file)).is_file())
    for folder in folders:
        # A sentence can be too long for a path, or begin as if with somebody's home: "~5 km?"
        with suppress(OSError, RuntimeError, ValueError):
            path = folder / Path(text).expanduser()
            inside = path.rglob("*") if path.is_dir() else [path]
            yield from (file for file in inside if file.is_file())


def _pins(constraints: Path | None) -> dict[str, str]:
    """The constraints, comments aside, and the versions that are really installed."""
    found = {"python": platform.python_version()}
    for name in PINNED:
        found[name] = _version(name)
    if constraints:
        lines = constraints.read_text(encoding="utf-8").splitlines()
        pins = sorted({line.partition("#")[0].strip() for line in lines} - {""})
        found[constraints.name] = _hash("\n".join(pins).encode())
    return found


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
