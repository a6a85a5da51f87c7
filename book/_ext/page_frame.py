"""Sphinx extension: what every page has around its text.

A description for search engines and for what a link to the page shows elsewhere, made of the page's
first sentences with the values that they quote (sphinxext.opengraph writes the rest of what is
shown); under the title, how long it takes to read and to run; at the end, what ran to make it,
and how long; the words of the page for addresses that do not exist, which notfound.extension makes.
And the front page's first screen: one question of a glued table of answers, with the answers side
by side.
"""

from __future__ import annotations

import html
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
from bs4 import BeautifulSoup, Tag
from docutils import nodes
from page_inputs import profile_name
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

#: Characters of a description, about what search engines show.
LENGTH = 160
#: What a link to the book shows, from the root of the repository; a robot loads it, no page does.
PICTURE = "docs/site.png"
#: What people read of such a text.
WORDS_A_MINUTE = 200
#: What a page's results come from, besides its own code.
LIBRARIES = ("torch", "transformers", "trl", "datasets")
NOT_FOUND = """<section id="not-found">
<h1>There is no such page</h1>
<p>The address may have been mistyped, or the page may have moved.</p>
<p>Start from <a href="{front}">the front page</a>, or use the search.</p>
</section>"""


# --- The description -----------------------------------------------------------------------------


def first_sentences(doctree: nodes.document, length: int = LENGTH) -> str:
    """The opening of a page as plain text, whole sentences if one fits into ``length``."""
    text = ""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(f"{text} {_plain(paragraph)}".split())
        if len(text) >= length / 2:
            break
    if len(text) <= length:
        return text
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)|[。！？]", text[:length])]  # noqa: RUF001
    if ends and ends[-1] > length / 3:
        return text[: ends[-1]]
    space = text.rfind(" ", 0, length - 1)  # an address, or a script without spaces, has none
    return text[: space if space > length / 3 else length - 1].rstrip(",;:") + "…"


def _plain(node: nodes.Node) -> str:
    """What is read of a paragraph, quoted values among it."""
    raw = [part for part in node.findall(nodes.raw)]
    if raw and not node.astext().strip():
        return BeautifulSoup(raw[0].astext(), "html.parser").get_text()
    return node.astext()


# --- What ran ------------------------------------------------------------------------------------


def what_ran(app: Sphinx, page: str) -> str:
    """The last lines of a page: its cells, its models' profile, the libraries, the time."""
    known = getattr(app.env, "honest_cache", {}).get(page, {})
    if "seconds" not in known:
        return "<p>No code runs on this page. What it quotes comes from the pages it links to.</p>"
    folder = app.env.mystnb_config.output_folder  # type: ignore[attr-defined]
    notebook = nbformat.read(Path(folder, f"{page}.ipynb"), as_version=4)
    profile = Path(profile_name()).stem
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    facts = {
        "Code": f"{cells} cells, executed when this site was built",
        "Time": f"{known['seconds']:.0f} s"
        + (f", at most {known['peak_mb']:.0f} MB of memory" if known.get("peak_mb") else ""),
        "Models and data": f"profile <code>{html.escape(profile)}</code>",
        "Libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def times_of(app: Sphinx, page: str, doctree: nodes.document) -> str:
    """A line for a page that executes: how long it takes to read, and how long it ran."""
    seconds = getattr(app.env, "honest_cache", {}).get(page, {}).get("seconds")
    if seconds is None:
        return ""
    words = sum(len(text.astext().split()) for text in doctree.findall(nodes.paragraph))
    minutes = max(1, round(words / WORDS_A_MINUTE))
    return (
        f'<p class="sft-times">Some {minutes} minute{"s" * (minutes > 1)} to read; '
        f"it ran in {seconds:.0f} s when this site was built.</p>\n"
    )


def configure(app: Sphinx) -> None:
    """``builder-inited``: the site's address and its picture, if there is one of what was built."""
    config: Any = app.config
    config.ogp_site_url, config.ogp_site_name = config.html_baseurl, config.html_title
    if app.tags.has("atlas") and Path(app.confdir, PICTURE).is_file():
        config.html_extra_path.append(PICTURE)
        config.ogp_image = Path(PICTURE).name
    base = config.notfound_urls_prefix = urlsplit(config.html_baseurl).path or "/"
    front = base + app.builder.get_target_uri(config.master_doc)
    config.notfound_context = {"title": "Not found", "body": NOT_FOUND.format(front=front)}


def add_frame(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """``html-page-context``: the description, and what ran below the text."""
    if doctree is None:
        words = {
            "search": "Search the book Supervised Fine-Tuning, Executed.",
            "genindex": "The index of the book Supervised Fine-Tuning, Executed.",
            "404": "This address does not exist.",
        }
        description = words.get(page, app.config.project)
    else:
        description = first_sentences(doctree) or str(context.get("title", ""))
        if times := times_of(app, page, doctree):
            title, end, rest = context["body"].partition("</h1>")
            context["body"] = f"{title}{end}\n{times}{rest}"
        context["body"] += (
            '<section class="what-ran" aria-label="What ran">'
            f'<p class="what-ran-title">What ran</p>{what_ran(app, page)}</section>\n'
        )
    text = html.escape(description)
    context["meta"] = (context.get("meta") or {}) | {"og:description": text}
    tag = f'<meta name="description" content="{text}">\n'
    context["metatags"] = context.get("metatags", "") + tag
    if page == "404":
        context["content_root"] = app.config.notfound_urls_prefix


# --- The first screen ----------------------------------------------------------------------------


def side_by_side(table: str) -> str:
    """The first question of an `answer_table` and its last two answers, without the table."""
    soup = BeautifulSoup(table, "html.parser")
    row = soup.select_one("table.sft-answers tbody tr")
    names = [name.get_text() for name in soup.select("table.sft-answers thead th")]
    if row is None or len(names) < 3:
        raise SphinxError(f"The front page needs a table of answers, and got: {table[:200]}")
    cells = [_lines(cell) for cell in row.find_all("td")]
    answers = "".join(
        f'<div class="answer"><p class="who">{html.escape(name)}</p><p>{text}</p></div>'
        for name, text in zip(names[-2:], cells[-2:], strict=True)
    )
    return f'<div class="asked"><p class="question">{cells[0]}</p>{answers}</div>'


def _lines(cell: Tag) -> str:
    """The text of a cell, its last line, how the answer ended, set apart."""
    *text, end = cell.get_text().strip().rsplit("\n", 1)
    if not text:
        return html.escape(end)
    return f'{html.escape(text[0])} <span class="ending">{html.escape(end)}</span>'


def fill_first_screen(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """``doctree-resolved``: the glued table in ``:::{div} first-answer`` becomes its first row."""
    for box in doctree.findall(
        lambda node: "first-answer" in getattr(node, "attributes", {}).get("classes", ())
    ):
        tables = [raw for raw in box.findall(nodes.raw) if "sft-answers" in raw.astext()]
        for raw in tables:
            text = side_by_side(raw.astext())
            raw.parent.replace(raw, nodes.raw("", text, format="html"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers."""
    app.connect("builder-inited", configure)
    app.connect("html-page-context", add_frame, priority=400)  # before sphinxext.opengraph
    app.connect("doctree-resolved", fill_first_screen)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
