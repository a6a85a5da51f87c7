"""Sphinx extension: from each page to the same page as another profile made it.

The pages of the profile ``hub`` need a network and hours, so they are built elsewhere and now and
then. Where such a site lies in ``_build/hub``, it is published under ``hub/`` with this one, and
each page links to its twin there, with the models, their revisions and the date. Where there is
none, nothing is linked.
"""

from __future__ import annotations

import html
import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
FOLDER = "hub"
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
        target = html.escape(f"{root}{FOLDER}/{pagename}.html")
        return (
            f'<p class="sft-twin"><a href="{target}">The same page with other models</a> '
            f"({html.escape(self.line)})</p>"
        )


def begin(app: Sphinx) -> None:
    """``builder-inited``: see whether there is another site."""
    folder = Path(app.srcdir, "_build", FOLDER)
    app.twin = Twin(folder) if folder.is_dir() else None  # type: ignore[attr-defined]


def add(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: nodes.Node | None
) -> None:
    """``html-page-context``: the link, under the title of a page."""
    twin: Twin | None = app.twin  # type: ignore[attr-defined]
    if twin is None or doctree is None:
        return
    root = context["pathto"]("", 1)
    root = root if root.endswith("/") else f"{root}/"
    head, end, rest = context["body"].partition("</h1>")
    if end and (link := twin.link(pagename, root)):
        context["body"] = f"{head}{end}\n{link}\n{rest}"


def publish(app: Sphinx, error: Exception | None) -> None:
    """``build-finished``: put the other site beside this one."""
    twin: Twin | None = app.twin  # type: ignore[attr-defined]
    if twin is not None and error is None:
        target = Path(app.outdir, FOLDER)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(twin.folder, target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers."""
    app.connect("builder-inited", begin)
    app.connect("html-page-context", add)
    app.connect("build-finished", publish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
