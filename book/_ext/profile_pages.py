"""Sphinx extension: which pages a build has, where it goes, and what of their text is for it.

The walk-through reports on any profile; the measured part is about the book's own models. So a
build with another profile leaves the measured part out, and chapter 04 where no reference is named.
It goes to a folder of its own, ``_build/profiles/mine/html``, and what it leaves out is linked in
the published book. What stands in an ``{only}`` block for other builds is taken out before it is
read: no expression in it is computed, and no value in it is looked for.
"""

from __future__ import annotations

import atexit
import hashlib
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from page_inputs import own_models, profile_file, profile_in_use, profile_name
from sphinx.application import Sphinx
from sphinx.config import Config

#: Pages about the book's own models and data, and the one that needs a reference.
MEASURED = re.compile(r"book/(?:(?:09|[1-9]\d)-\S+|cards|claims)")
REFERENCE = re.compile(r"book/04-\S+")
ONLY = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{only\} (?P<unless>not )?(?P<of>[\w-]+) *\n"
    r"(?P<body>.*?)^(?P=fence) *$",
    re.M | re.S,
)
LINK = re.compile(r"(\]\()([\w./-]+)\.md(#[^)\s]*)?\)")


def resolve_only(text: str, profile: str, unwrap: bool = False) -> str:
    """The text without the ``{only}`` blocks of other builds; every line stays in its place.

    A block is for the shipped profile that it names, or ``not`` for it. With ``unwrap`` the blocks
    that stay lose their fences.
    """

    def change(block: re.Match[str]) -> str:
        if (block["unless"] is None) != (block["of"] == profile):
            return "\n" * block[0].count("\n")
        return f"\n{block['body']}" if unwrap else block[0]

    return ONLY.sub(change, text)


class ProfilePages:
    """The handlers of the extension, for a build with another profile than the book's own."""

    def __init__(self, app: Sphinx) -> None:
        self.app = app
        self.left_out: set[str] = set()
        outdir = Path(app.outdir)
        self.folder = own_folder(outdir.parent / "profiles", profile_file(Path.cwd()))
        path = type(app.outdir)
        app.outdir = path(self.folder / outdir.name)
        app.doctreedir = path(self.folder / Path(app.doctreedir).name)
        for folder in (app.outdir, app.doctreedir):
            Path(folder).mkdir(parents=True, exist_ok=True)

    def choose(self, app: Sphinx, config: Config) -> None:
        """``config-inited``: a table of contents of what this build has."""
        path = Path(app.srcdir, config.external_toc_path)  # type: ignore[attr-defined]
        toc = yaml.safe_load(path.read_text(encoding="utf-8"))
        for part in toc.get("parts", []):
            part["chapters"] = [c for c in part["chapters"] if not self._leave_out(c["file"])]
        toc["parts"] = [part for part in toc.get("parts", []) if part["chapters"]]
        own = self.folder / "_toc.yml"
        own.write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
        config.external_toc_path = own.as_posix()  # type: ignore[attr-defined]

    def _leave_out(self, docname: str) -> bool:
        out = bool(MEASURED.fullmatch(docname)) or (
            bool(REFERENCE.fullmatch(docname)) and not names_a_reference()
        )
        if out:
            self.left_out.add(docname)
        return out

    def link(self, app: Sphinx, docname: str, source: list[str]) -> None:
        """``source-read``: links to pages that are left out lead to the published book."""
        site = app.config.html_baseurl

        def change(link: re.Match[str]) -> str:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(docname), link[2]))
            if target not in self.left_out:
                return link[0]
            return f"{link[1]}{site}{target}.html{link[3] or ''})"

        source[0] = LINK.sub(change, source[0])

    def note_profile(self, app: Sphinx, doctree: nodes.document) -> None:
        """``doctree-read``: say under the title of an executed page how it was built."""
        title, docname = next(doctree.findall(nodes.title), None), app.env.docname
        if title is None or "inputs" not in getattr(app.env, "honest_cache", {}).get(docname, {}):
            return
        # Any file may be a profile: its name is shown as it is, and like any value that was
        # computed it is no prose.
        name = nodes.inline("", Path(profile_name()).stem, classes=["pasted-text"])
        target = f"{app.config.html_baseurl}{app.builder.get_target_uri(docname)}"
        book = nodes.reference("", "the same page of the book", refuri=target)
        said = nodes.paragraph(
            "", "", nodes.Text("Built with the profile "), name,
            nodes.Text(". With the book's own models: "), book, nodes.Text("."),
        )  # fmt: skip
        title.parent.insert(title.parent.index(title) + 1, nodes.note("", said))

    def tell(self, app: Sphinx, error: Exception | None) -> None:
        """``build-finished``: say where the pages are; Jupyter Book names its own folder."""
        if error is None:
            index = Path(app.outdir, "index.html")
            told = f"The pages of the profile {Path(profile_name()).stem} are here: {index}"
            atexit.register(print, told, flush=True)


def own_folder(parent: Path, profile: Path | None) -> Path:
    """The folder of a profile's pages, after its file; of another file of that name, another one.

    Each folder has a file ``profile`` that names the file whose pages it holds. Where that is no
    longer there, as in a book that was moved, its folder is free.
    """
    stem = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", Path(profile_name()).stem)[:60]
    folder = parent / (stem.strip(". ") or "profile")
    if profile is None:  # the first page says so
        return folder
    path = str(profile.resolve())
    note = folder / "profile"
    other = note.read_text("utf-8", "surrogateescape") if note.is_file() else path
    if other != path and Path(other).is_file():
        digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        folder = parent / f"{folder.name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile").write_text(path, "utf-8", "surrogateescape")
    return folder


def names_a_reference() -> bool:
    """Whether the profile in use names a reference, as far as its file can be read."""
    file = profile_file(Path.cwd())
    try:
        return bool(tomllib.loads(file.read_text(encoding="utf-8-sig"))["models"]["reference"])
    except (AttributeError, OSError, ValueError, KeyError, TypeError):
        return False  # the first page says what is wrong with the profile


def choose_text(app: Sphinx, docname: str, source: list[str]) -> None:
    """``source-read``: take out what is for other builds."""
    source[0] = resolve_only(source[0], profile_in_use())


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers."""
    if (name := profile_in_use()).isidentifier():  # for `{only}`; a path names no shipped profile
        app.tags.add(name)
    if not own_models():
        pages = ProfilePages(app)
        app.connect("config-inited", pages.choose, priority=100)  # before the table is read
        app.connect("source-read", pages.link)
        app.connect("doctree-read", pages.note_profile)
        app.connect("build-finished", pages.tell)
    app.connect("source-read", choose_text, priority=100)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
