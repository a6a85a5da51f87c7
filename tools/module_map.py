"""Writes the map of the modules into CONTRIBUTING.md: each with its docstring's first sentence.

``make map`` runs this. It needs nothing but Python.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "CONTRIBUTING.md"
FOLDERS = ("sft_utils", "book/_ext")
MARKED = re.compile(r"(?<=<!-- map -->\n).*?(?=<!-- end of map -->)", re.S)


def place(path):
    """What a module is sorted by: a package, then what it holds, then the modules beside it."""
    *folders, name = path.parts
    return [(1, folder) for folder in folders] + [(0 if name == "__init__.py" else 2, name)]


def line(path, folder):
    """A line of the table: the module, or the folder of a package, and its first sentence."""
    name = path.relative_to(folder).as_posix().removesuffix("__init__.py") or f"{folder.name}/"
    text = " ".join((ast.get_docstring(ast.parse(path.read_text("utf8"))) or "").split())
    sentence = re.split(r"(?<=[.!?]) ", text)[0].replace("|", "\\|")
    return f"| `{name}` | {sentence} |\n"


def mapped(text, paths):
    """``text`` with the map of the modules at ``paths`` between its marks."""
    tables = ""
    for folder in FOLDERS:
        inside = sorted((p for p in paths if p.is_relative_to(ROOT / folder)), key=place)
        lines = "".join(line(path, ROOT / folder) for path in inside)
        tables += f"\n| in `{folder}/` | |\n|---|---|\n{lines}"
    return MARKED.sub(lambda _: tables + "\n", text)


if __name__ == "__main__":
    modules = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    DOCUMENT.write_text(mapped(DOCUMENT.read_text("utf8"), modules), "utf8")
