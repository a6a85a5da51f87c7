"""What the package's modules say of themselves: chapters that name what they are said to explain."""

import ast
import re

from conftest import ROOT, own_files

MODULES = {}
for _path in own_files("sft_utils/**/*.py"):
    _parts = _path.relative_to(ROOT).with_suffix("").parts
    MODULES[".".join(_parts).removesuffix(".__init__")] = ast.parse(_path.read_text("utf8"))

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
