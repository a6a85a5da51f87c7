"""Sphinx extension: ``{eval}`` puts the value of an expression into the prose.

``{eval}`gain.exact``` and ``{eval}`model.num_parameters() / 1e6:.2f``` stand in the text of a page
that executes. When the page does, `EvaluatingClient` computes each after the code cells before it,
and those of the opening, above all code, at the end: in the page's kernel, without a trace in it.
The values are kept with the page's outputs, so a page from the cache has them too, and the role of
this extension puts them in. The expressions are inputs of the page, prose is not: see
`honest_cache`.

The role has the name and the idea of myst-nb's own, which works without a cache only. In
notebooks the values are where JupyterLab and MyST look for them, in ``user_expressions``.
"""

from __future__ import annotations

import ast
import json
import queue
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbclient.util import ensure_async
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxRole

from sft_utils.wording import cut, visible

#: Directives whose content is no prose.
LITERAL = {
    "code", "code-block", "code-cell", "sourcecode", "literalinclude", "parsed-literal", "math",
    "raw", "eval-rst", "mermaid",
}  # fmt: skip
DIRECTIVE = re.compile(r"\{([\w:+-]+)\}\s*(.*)", re.DOTALL)
OPTIONS = re.compile(r"\A(?:---\n.*?\n---\n|(?:\s*:[\w-]+:[^\n]*\n)+)", re.DOTALL)
#: What the kernel is asked: the text of a value, and of a measure what is known of it as well.
ASKED = (
    '(lambda v, b, j: j.dumps({{"text": b.format(v, {spec!r}), "none": v is None, '
    '"measure": b.getattr(v, "as_dict", b.dict)()}}))'
    '(({expression}), __import__("builtins"), __import__("json"))'
)


#: Characters of a value in the prose. More are no part of a sentence.
MOST = 500


class ExpressionError(SphinxError):
    """An expression stands where none can be computed. The message names it and the place."""

    category = "An expression in the prose"


class FailedExpression(CellExecutionError):
    """An expression raised. It names page line, expression and exception."""


def find(source: str, config: MdParserConfig) -> list[str]:
    """The expressions of a Markdown text, in order, exactly as the role will get them."""
    parser = create_md_parser(config, RendererHTML)
    return list(_expressions(parser.parse(source), parser))


def _expressions(tokens: list[Token], parser: MarkdownIt) -> Iterator[str]:
    for token in tokens:
        if token.type == "myst_role" and token.meta["name"] == "eval":
            yield token.content
        elif token.type == "image":
            alt = list(_expressions(token.children or [], parser))
            if alt:
                raise ExpressionError(
                    f"{{eval}}`{alt[0]}` is in the text of an image. Use a figure."
                )
        elif token.type in ("fence", "colon_fence"):
            directive = DIRECTIVE.fullmatch(token.info.strip())
            if directive is None and token.type == "fence":  # code
                continue
            if directive and directive[1] not in LITERAL:
                yield from _expressions(parser.parse(directive[2]), parser)
            if directive is None or directive[1] not in LITERAL:
                yield from _expressions(parser.parse(OPTIONS.sub("", token.content)), parser)
        else:
            yield from _expressions(token.children or [], parser)


def split(text: str) -> tuple[str, str]:
    """The expression and the format after it: cut at the first ``:`` that leaves an expression.

    ``s[3:7]`` and ``d["a:b"]`` are whole, ``x:.2f`` is not. Raises ``SyntaxError``.
    """
    places = [len(text), *(place for place, sign in enumerate(text) if sign == ":")]
    for place in places:
        try:
            ast.parse(f"({text[:place]})", mode="eval")
        except SyntaxError:
            continue
        return text[:place], text[place + 1 :]
    raise SyntaxError(f"{text!r} is no expression.")


def in_a_line(text: str) -> str:
    """A value as a sentence can hold it: without line breaks, all to be seen, and not too long."""
    return cut(visible(re.sub(r"\s*[\n\r]\s*", " ", text)), MOST)


def prose(notebook: nbformat.NotebookNode) -> Iterator[tuple[int, nbformat.NotebookNode]]:
    """The Markdown cells of a notebook, each with the number of code cells before it."""
    before = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield before, cell
        before += cell.cell_type == "code"


def annotate(
    notebook: nbformat.NotebookNode, config: MdParserConfig, page: Path
) -> list[tuple[int, str]]:
    """Note in each Markdown cell its expressions; return them with the code cells before each.

    ``page`` is the file of the notebook, from which errors tell the line.
    """
    asking = [(before, cell) for before, cell in prose(notebook) if "{eval}" in cell.source]
    source, place, found = page.read_text("utf-8") if asking else "", 0, []
    for before, cell in asking:
        try:
            texts = find(cell.source, config)
        except ExpressionError as error:
            raise ExpressionError(f"{page.name}: {error}") from None
        cell.metadata["expressions"], cell.metadata["lines"] = texts, []
        for text in texts:
            found.append((before, text))
            place = max(place, source.find(f"`{text}`", place))
            cell.metadata["lines"].append(source.count("\n", 0, place) + 1)
    return found


def values(notebook: nbformat.NotebookNode) -> list[list[Any]]:
    """What was computed: code cells before, expression and result, in order."""
    return [
        [before, entry["expression"], entry["result"]]
        for before, cell in prose(notebook)
        for entry in cell.metadata.get("user_expressions", ())
    ]


def attach(notebook: nbformat.NotebookNode, kept: list[list[Any]]) -> None:
    """Put kept values back into the Markdown cells of a notebook that was not executed."""
    known = {(before, text): result for before, text, result in kept}
    for before, cell in prose(notebook):
        if texts := cell.metadata.get("expressions"):
            cell.metadata["user_expressions"] = [
                {"expression": text, "result": known[before, text]} for text in texts
            ]


class EvaluatingClient(NotebookClient):
    """Executes a notebook and computes the expressions of its prose, each in its place."""

    async def async_execute_cell(
        self, cell: Any, cell_index: int, execution_count: int | None = None,
        store_history: bool = True,
    ) -> Any:  # fmt: skip
        """Execute a code cell, or compute the expressions of a Markdown cell.

        The opening of a page, before its first code cell, tells what the page finds: it is
        computed after the last cell.
        """
        kinds = [other.cell_type for other in self.nb.cells]
        opening = range(kinds.index("code") if "code" in kinds else 0)
        if cell.cell_type == "code":
            await super().async_execute_cell(cell, cell_index, execution_count, store_history)
        elif cell_index not in opening:
            await self._compute_all(cell_index)
        if cell_index == len(kinds) - 1:
            for index in opening:
                await self._compute_all(index)
        return cell

    async def _compute_all(self, cell_index: int) -> None:
        cell = self.nb.cells[cell_index]
        if texts := cell.metadata.get("expressions"):
            cell.metadata["user_expressions"] = [
                {"expression": text, "result": result}
                for text, result in zip(texts, await self._compute(cell_index, texts), strict=True)
            ]

    async def _compute(self, cell_index: int, texts: list[str]) -> list[dict[str, Any]]:
        asked = {}
        for number, text in enumerate(texts):
            try:
                expression, spec = split(text)
            except SyntaxError as error:
                raise self._failed(cell_index, text, "SyntaxError", str(error)) from None
            asked[str(number)] = ASKED.format(expression=expression, spec=spec)
        assert self.kc is not None
        sent = self.kc.execute("", silent=True, store_history=False, user_expressions=asked)
        reply = await self._message(self.kc.get_shell_msg, sent, "execute_reply")
        # Until it is idle the kernel still sends, and would be shut down in the middle of it.
        while (await self._message(self.kc.get_iopub_msg, sent, "status"))["execution_state"] != (
            "idle"
        ):
            pass
        results = []
        for number, text in enumerate(texts):
            answer = reply["user_expressions"][str(number)]
            if answer["status"] != "ok":
                raise self._failed(cell_index, text, answer["ename"], answer["evalue"])
            told = json.loads(ast.literal_eval(answer["data"]["text/plain"]))
            if told["none"]:
                raise self._failed(cell_index, text, "ValueError", "its value is None.")
            data = {"text/plain": in_a_line(told["text"])}
            results.append(
                {"status": "ok", "data": data, "metadata": {"measure": told["measure"] or None}}
            )
        return results

    async def _message(self, receive: Any, sent: str, kind: str) -> Any:
        """The content of the next message of a kind that answers what was sent.

        As for a cell, a kernel that died and the time limit of the book are told.
        """
        start = time.monotonic()
        while True:
            try:
                message = await ensure_async(receive(timeout=1))
            except queue.Empty:
                assert self.km is not None
                if not await ensure_async(self.km.is_alive()):
                    raise DeadKernelError("Kernel died") from None
                if self.timeout and 0 < self.timeout < time.monotonic() - start:
                    raise CellTimeoutError(
                        f"The expressions of a paragraph took more than {self.timeout} s."
                    ) from None
                continue
            if message["parent_header"].get("msg_id") == sent and message["msg_type"] == kind:
                return message["content"]

    def _failed(self, cell_index: int, text: str, name: str, message: str) -> FailedExpression:
        known = self.nb.cells[cell_index].metadata
        line = known["lines"][known["expressions"].index(text)]
        told = f"line {line}, {{eval}}`{text}`: {message}"
        return FailedExpression(f"{name}: {told}", name, told)


class EvalRole(SphinxRole):
    """Puts in the text of the value; markup in it is text."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        page = getattr(self.env, "honest_cache", {}).get(self.env.docname, {})
        kept, starts = page.get("expressions", []), page.get("cells", [])
        found = [(before, result) for before, text, result in kept if text == self.text]
        if not found:
            raise ExpressionError(
                f"{self.env.docname}, line {self.lineno}: {{eval}}`{self.text}` was not computed. "
                "It can stand in the prose of a page with code cells, and in no included file."
            )
        texts = {result["data"]["text/plain"] for _, result in found}
        if len(texts) > 1:  # it changes on the page: take that of the cell that the line is in
            here = sum(line < self.lineno for line in starts)
            texts = {result["data"]["text/plain"] for before, result in found if before == here}
        classes = ["pasted-text", "inline-expression"]  # a value, as one that is glued
        shown = nodes.inline("", texts.pop(), classes=classes, support_smartquotes=False)
        return [shown], []


def setup(app: Sphinx) -> dict[str, Any]:
    """Put the role in place of myst-nb's."""
    app.setup_extension("myst_nb")
    app.add_role("eval", EvalRole(), override=True)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
