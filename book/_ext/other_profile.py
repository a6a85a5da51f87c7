"""Sphinx extension: from each page of the book to the same page as other profiles made it.

The pages of the profile ``hub`` need a network and hours, and those of ``smollm2`` a model that is
installed by a command of its own, so they are built elsewhere and now and then. Where such a site
lies in ``_build/hub`` or ``_build/smollm2``, it is published under ``hub/`` or ``smollm2/`` with
this one, and each page links to its twin there, with the models, their revisions and the date.
Where there is none, nothing is linked.
"""

from __future__ import annotations

import html
import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

from docutils import nodes
from page_inputs import own_models
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
FOLDERS = ("hub", "smollm2")
#: What chapter 01 of the other site stored: the models and the data with their revisions.
LOADED = "setup_loaded"


class TwinError(SphinxError):
    """There is another site, and it does not say what it is. The message says what is missing."""

    category = "The pages of another profile"


class Twin:
    """Another site, built with another profile; ``line`` says which."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            built = date.fromisoformat((folder / "built.txt").read_text(encoding="utf-8").strip())
            loaded = {entry["name"]: entry["text"] for entry in results["results"]}[LOADED]
        except (OSError, ValueError, KeyError) as error:
            raise TwinError(
                f"{folder} does not say what was built there ({error}). It needs results.json with "
                f"the value {LOADED!r} and built.txt with the date. Remove the folder, or fetch "
                "the site of the workflow Hub again."
            ) from error
        self.line = f"profile {results['profile']}, {built.isoformat()}: {loaded}"

    def link(self, pagename: str, root: str) -> str:
        """A paragraph that links to the page's twin; empty if it has none.

        ``root`` leads from the page to the top of the site, as ``../``.
        """
        if not (self.folder / f"{pagename}.html").is_file():
            return ""
        target = html.escape(f"{root}{self.folder.name}/{pagename}.html")
        return (
            f'<p class="sft-twin"><a href="{target}">The same page with other models</a> '
            f"({html.escape(self.line)})</p>"
        )


def begin(app: Sphinx) -> None:
    """``builder-inited``: see which other sites there are. The book alone links to them."""
    folders = [Path(app.srcdir, "_build", name) for name in FOLDERS if own_models()]
    app.twins = [Twin(folder) for folder in folders if folder.is_dir()]  # type: ignore[attr-defined]


def add(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: nodes.Node | None
) -> None:
    """``html-page-context``: the links, under the title of a page."""
    if doctree is None:
        return
    root = context["pathto"]("", 1)
    root = root if root.endswith("/") else f"{root}/"
    head, end, rest = context["body"].partition("</h1>")
    twins: list[Twin] = app.twins  # type: ignore[attr-defined]
    links = "".join(f"\n{link}" for twin in twins if (link := twin.link(pagename, root)))
    if end and links:
        context["body"] = f"{head}{end}{links}\n{rest}"


def publish(app: Sphinx, error: Exception | None) -> None:
    """``build-finished``: put the other sites beside this one."""
    if error is not None:
        return
    for twin in app.twins:  # type: ignore[attr-defined]
        target = Path(app.outdir, twin.folder.name)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(twin.folder, target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers."""
    app.connect("builder-inited", begin)
    app.connect("html-page-context", add)
    app.connect("build-finished", publish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
