"""Sphinx extension: a result in the prose that no cell computed fails the build of the site.

A result is a number with a unit, a percentage, a part of a whole ("9 of 10"), a decimal, a number
in the thousands, or one that stands alone in a table. Prose is what people type for readers:
paragraphs, headings, table cells, captions, alt texts and raw HTML. What is no prose is left out:
code, formulas, the outputs of cells, computed values and addresses. A number alone in code type or
in a formula is prose in disguise, and so is a number typed into the call that glues it. Constants
and names may be typed: see `ALLOWED`.

Not seen: number words, a small number without a unit, a typed number that reaches `glue` by a
variable, and text that a cell prints. Text that is glued as Markdown looks typed: glue it as text.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from docutils import nodes
from myst_nb.ext.glue.utils import PendingGlueReference
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)

NUMBER = r"(?:(?<!\w)[+−-])?(?:\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?|[½⅓⅔¼¾⅕-⅞])"
UNITS = (
    r"%|‰|×|per\s?cent|percentage\spoints|points?|times|nats?|bits|"
    r"seconds?|s|ms|minutes?|min|hours?|h|days?|[kMGT]i?B|bytes|tokens?|[MB]|million|billion|"
    r"rows?|questions?|answers?|entities|facts|models?|runs?|seeds?|updates?|steps?|epochs?|"
    r"parameters?|weights|words?|samples?|pages|cells|examples?|documents|relations|splits"
)
#: What is a result: a number with a unit, a part of a whole, a decimal, a number of thousands or
#: alone in its place.
RESULT = re.compile(
    rf"(?<![\w.,:]){NUMBER}(?:(?=[\s-]?(?:{UNITS})(?!\w))|(?=\s(?:of|out\sof)\b))"
    rf"|(?<=\d\sof\s)\d[\d,]*"
    rf"|(?<![\w.-])[+−-]?\d[\d,]*(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)(?![\w.]\w)"
    rf"|(?<![\w.,])\d{{1,3}}(?:,\d{{3}})+|[½⅓⅔¼¾⅕-⅞]"
    rf"|\A\s*{NUMBER}\s*\Z"
)
#: Constants and names with numbers in them, which may be typed. Only ASCII digits are meant.
ALLOWED = [
    re.compile(pattern)
    for pattern in (
        # The size that a published model is called by: 0.6B, "0.1 B or more", "135 million", 135 M.
        # Never below a hundred million, as the models made here are; no number of tokens or bytes.
        r"(?<![\w.,])(?:[0-9]+(?:\.[0-9]+)?\s?B\b|[0-9]{3}\s(?:million|M)\b)"
        r"(?!\s(?:tokens|bytes|of|per|an?)\b)",
        # A name with a number in it: Qwen3-0.6B, Llama-3.1-8B, Apache-2.0.
        r"(?<![\w.])(?=[a-z]*[A-Z])[A-Za-z]{2,}[-‑]?[0-9][A-Za-z0-9]*(?:[.‑-][A-Za-z0-9]+)*",
        # A version: three parts or a v, or two parts after the name of the software; a license.
        r"(?<![\w.,])v?[0-9]+\.[0-9]+\.[0-9]+\b",
        r"(?<![\w.,])v[0-9]+(?:\.[0-9]+)?\b",
        r"\b(?:Python|PyTorch|CUDA|TRL|[Tt]ransformers|[Vv]ersion)\s[0-9]+(?:\.[0-9]+)?\b",
        r"\bCC\sBY(?:-[A-Z]{2})*\s[0-9]\.[0-9]\b",
        r"\barXiv:[0-9]{4}\.[0-9]{4,5}(?:v[0-9]+)?\b",
        # Levels and settings that are chosen, not found: a 95 % interval, p < 0.05, 80 % power.
        # (A term of the glossary, which is a link, is hidden by then.)
        r"(?<![\w.,])95\s?%(?=\s(?:(?:t-)?(?:intervals?|confidence)\b|[\U000f0000-\U0010ffff]))",
        r"(?<![\w.,])(?:4|8|16|32|64)\sbits\b",
        r"(?<![\w.,])[01](?=\sof\s(?!\d))",
        r"\bp\s?(?:[<≤]\s?0?\.[0-9]+|=\s?0?\.05)\b",
        r"(?<![\w.,])80\s?%(?=\spower\b)",
        r"\bseeds?\s[0-9]+\b(?!\s?%)",
    )
]
#: What follows a measurement and never a name: "Accuracy-97 %" is no name.
MEASURED = re.compile(r"\s*[%‰×]")
#: Text that a program writes and pages include, by the file that it comes from. The cards of the
#: checkpoints are written by ``model_card`` in ``sft_utils/atlas/pretrain.py``.
COMPUTED = ("*/sft_utils/atlas/checkpoints/*/README.md",)
#: The calls whose argument is shown in the prose: its position and its name.
GLUES = {"glue": (1, "value"), "Measure": (0, "value"), "claim": (1, "sentence")}
#: The end of a sentence: a figure is cited where its own sentence has a {cite}.
END = re.compile(
    r"(?<!\b[ei]\.[ge])(?<!\bal)(?<!\bvs)(?<!\bpp)(?<!\bp)[.!?][\"”’)*\]]*\s+(?![a-z\s])"
)

#: Stands in a block's text for a citation.
CITED = "\ue000"
#: Characters that are no prose are moved up by this much, into a plane where none is a number.
HIDDEN = 0xF0000
NO_PROSE = (
    nodes.literal_block,
    nodes.doctest_block,
    nodes.comment,
    nodes.substitution_definition,
    nodes.system_message,
    nodes.label,
    nodes.footnote_reference,
    nodes.citation_reference,
    addnodes.index,
    addnodes.desc_signature,
    addnodes.productionlist,
    PendingGlueReference,
)
REMEDY = "Compute it: write {eval}`expression` in its place, or say it without a numeral."


class Found(NamedTuple):
    """A sentence with numbers that were typed."""

    file: str
    line: int | None
    numbers: str
    sentence: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.numbers} in “{self.sentence}”"


def hide(text: str) -> str:
    """The text in characters that no rule matches. `shown` brings it back."""
    return "".join(chr(HIDDEN + ord(c)) if ord(c) < 0x20000 else c for c in text)


def shown(text: str) -> str:
    """The text as people read it, on one line."""
    text = "".join(chr(ord(c) - HIDDEN) if ord(c) >= HIDDEN else c for c in text)
    return " ".join(text.replace(CITED, "[cited]").split())


def typed(text: str) -> Iterator[tuple[int, str, str]]:
    """The sentences of a block that have typed numbers: where, the numbers, the sentence."""
    for pattern in ALLOWED:
        text = pattern.sub(_hide_name, text)
    start = 0
    for end in [*(match.end() for match in END.finditer(text)), len(text)]:
        sentence = text[start:end]
        found = list(RESULT.finditer(sentence))
        if found and CITED not in sentence:
            numbers = ", ".join(shown(number[0]).strip("()[]“”‘’\"',.;:?!* ") for number in found)
            yield start + found[0].start(), numbers, shown(sentence)
        start = end


def _hide_name(name: re.Match[str]) -> str:
    """The name, its words hidden, unless it is a measurement after all."""
    measured = "%" not in name[0] and MEASURED.match(name.string, name.end())
    return name[0] if measured else re.sub(r"\S+", lambda word: hide(word[0]), name[0])


class _Html(HTMLParser):
    """The text of raw HTML that people read or hear."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.hidden = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.hidden = tag in ("script", "style")
        spoken = ("alt", "title", "aria-label")
        self.texts += [value for name, value in attributes if name in spoken and value]

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.texts.append(data)


def text_of(node: nodes.Node) -> str:
    """The prose of an inline node or a block, with marks for what is left out."""
    if isinstance(node, nodes.Text):
        return node.astext()
    if not isinstance(node, nodes.Element):
        return ""
    if isinstance(node, nodes.raw):
        html = _Html()
        html.feed(node.astext())
        return " ".join(html.texts)
    if isinstance(node, NO_PROSE) or "nb_element" in node:
        return hide("…")
    if "pasted-text" in node["classes"]:
        return hide(node.astext())
    if node.get("refdomain") == "cite":
        return CITED
    if isinstance(node, nodes.literal):
        text = node.astext()
        code = re.search(r"[^\W\d_]|[\[{=<_]", re.sub(r"(?<=[0-9.])e(?=[+-]?[0-9])", "", text))
        return hide(text) if code else text  # `-100` and `5e-4` are numbers, `[1, 2]` is code
    if isinstance(node, nodes.math | nodes.math_block):
        text = re.sub(r"\\[,;!: ]", " ", node.astext().replace("\\times", "×").replace("\\%", "%"))
        text = re.sub(r"\\(?:text|mathrm|mathbf|cdot|approx|sim|pm)\b", "", text)
        return hide(text) if any(map(str.isalpha, text)) else text  # a formula has a variable
    parts = [text_of(child) for child in node.children if not _is_block(child)]
    parts += [f" {node[name]}" for name in ("alt", "explanation", "reftitle") if node.get(name)]
    text, address = "".join(parts), node.get("refuri") or node.get("reftarget") or ""
    if text and address.endswith(text):
        return hide(text)
    # In a link, the number of an issue or a chapter is a name: its address has the number too.
    names = re.findall(r"[0-9]+", address)
    pattern = rf"(?<![\w.,])(?:{'|'.join(names)})(?![\w%]|[.,][0-9]|\s[%×])"
    return re.sub(pattern, lambda number: hide(number[0]), text) if names else text


def _is_block(node: nodes.Node) -> bool:
    return isinstance(node, nodes.TextElement) and not isinstance(node, nodes.Inline)


def blocks(node: nodes.Node, in_cell: bool = False) -> Iterator[nodes.Element]:
    """The blocks of text that people typed, in order; of a code cell, only its captions."""
    if not isinstance(node, nodes.Element) or isinstance(node, NO_PROSE):
        return
    in_cell = in_cell or "nb_element" in node
    if isinstance(node, nodes.caption) if in_cell else _is_block(node) or _stands_alone(node):
        yield node
    for child in node.children:
        yield from blocks(child, in_cell)


def _stands_alone(node: nodes.Element) -> bool:
    """Whether it is raw HTML or an image outside of any text."""
    return isinstance(node, nodes.raw | nodes.image) and not isinstance(
        node.parent, nodes.TextElement
    )


def in_prose(document: nodes.document, root: str, page: str) -> Iterator[Found]:
    """The typed numbers in the prose of a page. ``root`` is the folder of the book."""
    for block in blocks(document):
        file, line = _place(block)
        if any(fnmatch(Path(file).as_posix(), pattern) for pattern in COMPUTED):
            continue
        name = Path(os.path.relpath(file, root)).as_posix() if file else page
        text = text_of(block)
        for position, numbers, sentence in typed(text):
            at = line + text.count("\n", 0, position) if line else None
            yield Found(name, at, numbers, sentence)


def _place(block: nodes.Element) -> tuple[str, int | None]:
    """The file and the line of a block. MyST does not know them of a cell, only of its table."""
    above = [block]
    while above[-1].parent is not None:
        above.append(above[-1].parent)
    tables = [number for number, node in enumerate(above) if isinstance(node, nodes.table)]
    for node in above[tables[0] if tables else 0 :]:
        if node.source:
            return node.source, node.line
    return "", None


def in_cells(notebook: nbformat.NotebookNode, page: str) -> Iterator[Found]:
    """The numbers typed into calls that glue, and into the alt texts of cells."""
    lines = notebook.metadata.get("source_map", [None] * len(notebook.cells))
    for cell, start in zip(notebook.cells, lines, strict=False):
        if cell.cell_type != "code":
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        for _, numbers, sentence in typed(str(alt)):
            yield Found(page, start, numbers, sentence)
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:  # a magic command of IPython
            continue
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and (value := _typed_value(call)) is not None:
                yield Found(page, start, ast.unparse(value), ast.unparse(call))


def _typed_value(call: ast.Call) -> ast.expr | None:
    """The value that a call glues, if it has a number in it and nothing that was computed."""
    function = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if function not in GLUES:
        return None
    position, name = GLUES[function]
    named = [keyword.value for keyword in call.keywords if keyword.arg == name]
    for value in call.args[position : position + 1] or named:
        parts = list(ast.walk(value))
        computed = {part.id for part in parts if isinstance(part, ast.Name)} - set(dir(builtins))
        constants = [part.value for part in parts if isinstance(part, ast.Constant)]
        if not computed and any(
            list(typed(constant)) if isinstance(constant, str) else type(constant) in (int, float)
            for constant in constants
        ):
            return value
    return None


def _pages(env: BuildEnvironment) -> dict[str, list[tuple]]:
    """What was found on each page. It outlives the build, so that a warm build fails as well."""
    if not hasattr(env, "typed_numbers"):
        env.typed_numbers = {}  # type: ignore[attr-defined]
    return env.typed_numbers  # type: ignore[attr-defined]


def collect(app: Sphinx, document: nodes.document) -> None:
    """``doctree-read``: find the typed numbers of a page."""
    env = app.env
    page = Path(env.doc2path(env.docname)).relative_to(app.srcdir).as_posix()
    found = list(in_prose(document, str(app.srcdir), page))
    if "kernelspec" in env.metadata[env.docname]:  # myst-nb has read it as a notebook
        folder = env.mystnb_config.output_folder  # type: ignore[attr-defined]
        notebook = nbformat.read(Path(folder, f"{env.docname}.ipynb"), as_version=4)
        found += in_cells(notebook, page)
    _pages(env)[env.docname] = [tuple(one) for one in found]


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """``env-purge-doc``: forget a page before it is read again, or when it is gone."""
    _pages(env).pop(docname, None)


def finish(app: Sphinx, error: Exception | None) -> None:
    """``build-finished``: tell of all that was found and fail, after the whole site is written."""
    if error is not None or app.builder.format != "html":
        return
    found = [Found(*one) for _, page in sorted(_pages(app.env).items()) for one in page]
    if found:
        told = "\n".join(map(str, found))
        LOGGER.error("typed numbers in the prose of the book:\n%s\n%s", told, REMEDY)
        app.statuscode = 1


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers. A change of this file makes Sphinx read every page again."""
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", purge)
    app.connect("build-finished", finish)
    rules = int(hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8], 16)
    return {"version": "1", "env_version": rules, "parallel_read_safe": False}
