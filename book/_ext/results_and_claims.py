"""Sphinx extension: the results and claims of all pages, for programs and for people.

Pages store values and claims in their cells' outputs (`sft_utils.results`), so that a page from
the cache has them too. `honest_cache` takes them from each notebook by `entries`; when all pages
have been read, this extension has them all. It writes ``results.json`` and its JSON Schema beside
the site, fills the directives ``{results-list}``, ``{claims-list}`` and ``{live-and-recorded}``,
and, if a claim fails, says so at the very end and makes the build exit with an error, on a warm
build too.
"""

from __future__ import annotations

import atexit
import json
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import jsonschema
import nbformat
from docutils import nodes
from page_inputs import profile_name
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from sft_utils.claims import CLAIM_TYPE
from sft_utils.results import RESULT_TYPE, RUN_TYPE

LOGGER = logging.getLogger(__name__)
SCHEMA = Path(__file__).with_name("results.schema.json")
#: Of the form of ``results.json``. A program that reads the file can tell by it.
VERSION = 2
#: How a value was made: all in this build, or from recorded runs as well.
LIVE, LIVE_AND_RECORDED = "live", "live and recorded"
#: Quantities that no two executions share.
TIMINGS = {"s", "ms", "minutes", "tokens/s", "MB"}
EVAL = re.compile(r"\{eval\}(`+)(.+?)\1")
#: What a line of MyST has for its reader, without the markup.
PLAIN = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\s*\{cite(?::\w+)?\}`[^`]*`", ""),
        (r"\{glue:text\}`[^`]*`", "…"),
        (r"\{[\w:-]+\}`([^`<]*?)\s*(?:<[^`]*>)?`", r"\1"),
        (r"!?\[([^\]]*)\]\([^)]*\)", r"\1"),
        (r"^[\s>#|:-]+|[\s|]+$", ""),
        (r"\s*\|\s*", " · "),
        (r"[*`]+", ""),
    )
]
TEXT_NUMBER = re.compile(r"([+-]?\d[\d,]*(?:\.\d+)?)(?: (%|points|nats|s|ms|MB|tokens/s))?")

Entry = dict[str, Any]


class LedgerError(SphinxError):
    """Two claims of one name."""

    category = "Results"


def entries(notebook: nbformat.NotebookNode, page: str) -> Iterator[Entry]:
    """What the cells of an executed notebook stored, in order.

    Each says how it was ``made``: live, or from recorded runs too, once its page has read any.
    """
    section, made, last = "", LIVE, 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"^(`{3,}|:{3,}).*?^\1", "", cell.source, flags=re.DOTALL | re.MULTILINE)
            headings = re.findall(r"^##+ +(.+?)\s*$", prose, flags=re.MULTILINE)
            section = headings[-1] if headings else section
            computed = cell.metadata.get("user_expressions", ())
            for value, sentence in zip(computed, _sentences(cell), strict=True):
                yield {**_inline(value), "sentence": sentence, "page": page, "cell": last,
                       "section": section, "made": made}  # fmt: skip
        last = cell.get("execution_count") or last
        for output in cell.get("outputs", []):
            stored = output.get("metadata", {}).get("scrapbook")
            if stored and not stored["name"].endswith("_ci"):  # it is in the measure already
                prefix = stored["mime_prefix"]
                data = {kind.removeprefix(prefix): value for kind, value in output["data"].items()}
                found = _entry(stored["name"], data)
                if found:
                    made = made if found.get("live", True) else LIVE_AND_RECORDED
                    place = {"page": page, "cell": cell.execution_count, "section": section}
                    yield {**found, **place, "made": made}


def _sentences(cell: nbformat.NotebookNode) -> Iterator[str]:
    """The line of each expression in a Markdown cell, as it reads; a line has one sentence."""
    computed, place = cell.metadata.get("user_expressions", ()), 0
    texts = {v["expression"]: v["result"]["data"]["text/plain"] for v in computed}
    for value in computed:
        place = max(place, cell.source.find(f"`{value['expression']}`", place))
        start = cell.source.rfind("\n", 0, place) + 1
        line = cell.source[start:].partition("\n")[0]
        shown = EVAL.sub(lambda role: texts.get(role[2], "…"), line)
        for pattern, plain in PLAIN:
            shown = pattern.sub(plain, shown)
        yield " ".join(shown.split())


def _inline(value: dict[str, Any]) -> Entry:
    """What an expression in the prose gave, under the expression as its name."""
    name, result = value["expression"], value["result"]
    if measure := result["metadata"]["measure"]:
        return {"name": name, **measure}
    return _entry(name, {"text/plain": result["data"]["text/plain"]}) or {"name": name}


def _entry(name: str, data: dict[str, Any]) -> Entry | None:
    """A claim, a run, a measure, a number or a text; None for a figure or a table."""
    for kind in (CLAIM_TYPE, RUN_TYPE):
        if kind in data:
            return json.loads(data[kind])
    if RESULT_TYPE in data:
        return {"name": name, **json.loads(data[RESULT_TYPE])}
    if not set(data) <= {"text/plain"}:
        return None
    text = data["text/plain"]
    if re.fullmatch(r"'.*'|\".*\"", text, flags=re.DOTALL):
        text = text[1:-1]
    number = TEXT_NUMBER.fullmatch(text)
    if number is None:
        return {"name": name, "text": text}
    value = float(number[1].replace(",", ""))
    unit = number[2] or ""
    scaled = value / 100 if unit in ("%", "points") else value
    return {
        "name": name, "text": text, "value": int(value) if value.is_integer() and not unit
        else round(scaled, 10), "unit": unit, "n": None, "entities": None, "low": None,
        "high": None, "seeds": [], "run": None,
    }  # fmt: skip


class ResultsList(nodes.General, nodes.Element):
    """Stands where the list of all results goes until all pages have been read."""


class ClaimsList(nodes.General, nodes.Element):
    """The same for the claims."""


class LiveAndRecorded(nodes.General, nodes.Element):
    """Stands where a sentence tells how many fine-tunings are live and how many are recorded."""


class ResultsListDirective(SphinxDirective):
    """``{results-list}``: every result of the book, each linked to where it comes from."""

    def run(self) -> list[nodes.Node]:
        return [ResultsList()]


class ClaimsListDirective(SphinxDirective):
    """``{claims-list}``: every claim of the book with its verdict."""

    def run(self) -> list[nodes.Node]:
        return [ClaimsList()]


class LiveAndRecordedDirective(SphinxDirective):
    """``{live-and-recorded}``: how many fine-tunings the pages rest on, and of which kind."""

    def run(self) -> list[nodes.Node]:
        return [LiveAndRecorded()]


class Ledger:
    """The handlers of the extension."""

    def __init__(self, app: Sphinx) -> None:
        self.app = app
        self.found: list[Entry] = []

    @property
    def claims(self) -> list[Entry]:
        return [entry for entry in self.found if "claim" in entry]

    @property
    def results(self) -> list[Entry]:
        return [entry for entry in self.found if "claim" not in entry and "live" not in entry]

    @property
    def runs(self) -> dict[str, list[str]]:
        """The fine-tunings that pages rest on: made while the book is built, and on record."""
        noted = {(e["run"], e["live"]) for e in self.found if "live" in e}
        live = {run for run, is_live in noted if is_live}
        return {"live": sorted(live), "recorded": sorted({run for run, _ in noted} - live)}

    @property
    def failed(self) -> list[Entry]:
        return [entry for entry in self.claims if not entry["holds"]]

    def collect(self, app: Sphinx, env: BuildEnvironment) -> list[str]:
        """``env-updated``: read every notebook; the pages that list results are written again."""
        pages = getattr(env, "honest_cache", {})
        self.found = [
            entry for docname in sorted(pages) for entry in pages[docname].get("results", ())
        ]
        names = [entry["claim"] for entry in self.claims]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise LedgerError(f"Two claims are called {twice[0]!r}: give one another name.")
        return [
            docname for docname in env.found_docs if any(env.get_doctree(docname).findall(_is_list))
        ]

    def fill(self, app: Sphinx, doctree: nodes.document, docname: str) -> None:
        """``doctree-resolved``: put the lists in."""
        for node in list(doctree.findall(ResultsList)):
            head = (
                "sentence", "value", "95 % interval", "n", "entities", "seeds", "run", "made",
                "name", "from",
            )  # fmt: skip
            tables: list[nodes.Node] = []
            for page, listed in groupby(self.results, key=lambda entry: entry["page"]):
                rows = [
                    [
                        entry.get("sentence") or "–",
                        entry["text"],
                        _interval(entry),
                        *(_text(entry.get(key)) for key in ("n", "entities", "seeds")),
                        (entry.get("run") or "")[:16],
                        entry["made"],
                        nodes.literal("", entry["name"]),
                        self.link(entry, docname),
                    ]
                    for entry in listed
                    if "value" in entry
                ]
                if rows:
                    title = app.env.titles[page.rsplit(".", 1)[0]].astext()
                    tables += [nodes.rubric("", title), _table(head, rows)]
            node.replace_self(tables)
        for node in list(doctree.findall(LiveAndRecorded)):
            live, recorded = map(len, self.runs.values())
            told = (
                f"Of the fine-tunings that the figures of this book rest on, {live} were made "
                f"while this site was built, and {recorded} are recorded."
            )
            node.replace_self(nodes.paragraph("", told))
        for node in list(doctree.findall(ClaimsList)):
            head = ("claim", "sentence", "measured", "required", "verdict", "made", "from")
            rows = [
                [
                    entry["claim"],
                    entry["sentence"],
                    f"{entry['measure']['text']} {_interval(entry['measure'])}".strip(),
                    _required(entry),
                    "holds" if entry["holds"] else "FAILS",
                    entry["made"],
                    self.link(entry, docname),
                ]
                for entry in self.claims
            ]
            node.replace_self(_table(head, rows))

    def finish(self, app: Sphinx, error: Exception | None) -> None:
        """``build-finished``: write ``results.json``; a failed claim is an error of the build."""
        if error is not None or app.builder.format != "html" or not self.found:
            return
        document = {
            "$schema": SCHEMA.name,
            "version": VERSION,
            "profile": profile_name(),  # no machine's folders
            "runs": self.runs,
            "claims": self.claims,
            "results": [e for e in self.results if e.get("unit") not in TIMINGS],
            "timings": [e for e in self.results if e.get("unit") in TIMINGS],
        }
        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
        jsonschema.validate(document, schema)
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        Path(app.outdir, "results.json").write_text(text, encoding="utf-8")
        Path(app.outdir, SCHEMA.name).write_text(SCHEMA.read_text("utf-8"), encoding="utf-8")
        LOGGER.info("%d results, %d claims", len(self.results), len(self.claims))
        if self.failed:
            app.statuscode = 1
            lines = [f"{len(self.failed)} of {len(self.claims)} claims fail:"]
            lines += [
                f"  {e['page']}, cell {e['cell']}, {e['claim']}: “{e['sentence']}”"
                f" {e['measure']['text']}; required: {_required(e)}"
                for e in self.failed
            ]
            # Jupyter Book says last that the build is done; this comes after it.
            atexit.register(print, "\n".join(lines), file=sys.stderr, flush=True)

    def link(self, entry: Entry, docname: str) -> nodes.reference:
        """To the section of the page that the entry comes from."""
        page = entry["page"].rsplit(".", 1)[0]
        uri = self.app.builder.get_relative_uri(docname, page)
        if "claim" in entry:
            uri += f"#claim-{entry['claim']}"
        elif nodes.make_id(entry["section"]) in _anchors(self.app.env, page):
            uri += f"#{nodes.make_id(entry['section'])}"
        text = f"{Path(page).name}, cell {entry['cell']}"
        return nodes.reference("", text, internal=True, refuri=uri)


def _is_list(node: nodes.Node) -> bool:
    return isinstance(node, ResultsList | ClaimsList | LiveAndRecorded)


def _anchors(env: BuildEnvironment, docname: str) -> set[str]:
    """The ids of a page's sections."""
    return {
        ref["anchorname"].removeprefix("#") for ref in env.tocs[docname].findall(nodes.reference)
    }


def _required(entry: Entry) -> str:
    """The threshold of a claim in the unit of its measure."""
    least = entry["at_least"] is not None
    limit = entry["at_least"] if least else entry["at_most"]
    unit = entry["measure"]["unit"]
    number = 100 * limit if unit in ("%", "points") else limit
    return f"at {'least' if least else 'most'} {number:g} {unit}".rstrip()


def _interval(entry: Entry) -> str:
    """The interval, in the unit of the value."""
    if entry.get("low") is None:
        return ""
    hundred = entry["unit"] in ("%", "points")
    ends = [100 * entry[key] if hundred else entry[key] for key in ("low", "high")]
    return "({:.{d}f} to {:.{d}f})".format(*ends, d=1 if hundred else 3)


def _text(value: Any) -> str:
    """A number with its thousands apart, a list with commas, nothing for None."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:,}"


def _table(head: tuple[str, ...], rows: list[list[Any]]) -> nodes.table:
    """A table of texts and links."""
    group = nodes.tgroup("", cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    body = nodes.tbody("", *(nodes.row("", *map(_cell, row)) for row in rows))
    group += [nodes.thead("", nodes.row("", *map(_cell, head))), body]
    return nodes.table("", group, classes=["sft-ledger"])


def _cell(content: Any) -> nodes.entry:
    inside = content if isinstance(content, nodes.Node) else nodes.Text(str(content))
    return nodes.entry("", nodes.paragraph("", "", inside))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers and add the directives."""
    ledger = Ledger(app)
    app.add_node(ResultsList)
    app.add_node(ClaimsList)
    app.add_node(LiveAndRecorded)
    app.add_directive("results-list", ResultsListDirective)
    app.add_directive("claims-list", ClaimsListDirective)
    app.add_directive("live-and-recorded", LiveAndRecordedDirective)
    app.connect("env-updated", ledger.collect)
    app.connect("doctree-resolved", ledger.fill)
    app.connect("build-finished", ledger.finish)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
