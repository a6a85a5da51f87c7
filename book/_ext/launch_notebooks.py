"""Sphinx extension: each page that executes, as an executed notebook.

Each build writes them where the download button finds them, with its own outputs and values. They
are committed beside the pages too, where Binder, Colab and the theme's buttons look for them:
``make notebooks`` copies those of the last build. On another processor the last digits differ, so
`make book` never changes a committed one; each knows by a digest of which page it is.

A plain notebook knows nothing of MyST, so what the pages use of it is turned into Markdown. A
directive or role that has no form here is an error, so that none is shown raw.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from myst_nb.core.variables import format_plain_text
from myst_nb.ext.glue.crossref import read_glue_cache
from page_frame import LIBRARIES
from page_inputs import profile_in_use
from profile_pages import resolve_only
from pybtex.database import BibliographyData, Entry, parse_file
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

#: Colab has PyTorch, and the package's ranges let it be. It opens the notebook on the branch of the
#: launch buttons, so the package is that branch's too: a tag may lack what a page needs, or not be.
INSTALL = """\
# On Colab this installs the book's package; elsewhere it is there already.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "{package} @ git+{repository}@{branch}"\
"""

PREFACE = """\
This is the notebook of [a page of *{title}*]({page}).
Its outputs, and the numbers in its text, are of a build with {libraries}; they stay until you run
its cells.\
"""

CODE = re.compile(
    r"^ *(?P<fence>`{3,}|~{3,})(?!\{).*?^ *(?P=fence)[`~]* *$"
    r"|(?<!`)(?P<tick>``?)(?!`).+?(?<!`)(?P=tick)(?!`)",
    re.M | re.S,
)
ADMONITION = re.compile(
    r"^(?P<fence>:{3,}|`{3,})\{(?P<name>[a-z]+)\} *(?P<title>[^\n]*)\n(?P<body>.*?)^(?P=fence) *$",
    re.M | re.S,
)
SHOWN = re.compile(
    r"^(?P<ticks>`{3,})\{(?P<name>glue:|include|nb-exec-table|live-model)\} *(?P<what>\S*) *\n"
    r"(?P<options>(?::[^\n]*\n)*)(?P=ticks) *$",
    re.M,
)
ROLE = re.compile(r"\{(?P<name>[a-z:-]+)\}(?P<ticks>`+)(?P<text>.+?)(?P=ticks)", re.S)
ROLE_OR_CODE = re.compile(f"{ROLE.pattern}|{CODE.pattern}", re.M | re.S)
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s:]+?)\.md(?P<anchor>#[^)\s]*)?\)")
COMMENT = re.compile(r"^%[^\n]*\n?", re.M)
TARGET = re.compile(r"^\([\w-]+\)= *\n", re.M)
MYST = re.compile(r"\{[a-z:-]+\}`|^ *(?::{3,}|`{3,}|~{3,})\{[^}]*\}|^ *:{3,}|^\([\w-]+\)=$", re.M)


class NotebookError(SphinxError):
    """A page holds MyST for which a plain notebook has no form. The message names it."""

    category = "No notebook can be made"


class Executed(NamedTuple):
    """What a build knows of a page."""

    outputs: list[list[Any]]
    """Of each code cell."""
    values: dict[tuple[int, str], str]
    """Of each expression, by the number of code cells before it and its text."""
    glued: Callable[[str, str, str], str]
    """The text of a value: of which page, under which name, in which format."""


class Notebooks:
    """Makes the notebooks of a book: its address, its package and its references.

    ``site`` is where the book is published, ``repository`` and ``branch`` where its source is, and
    ``package`` the name that it is installed by.
    """

    def __init__(
        self, title: str, site: str, repository: str, branch: str, package: str,
        references: BibliographyData,
    ) -> None:  # fmt: skip
        self.title = title
        self.site = site.rstrip("/") + "/"
        self.repository, self.branch = repository, branch
        self.install = INSTALL.format(package=package, repository=repository, branch=branch)
        self.references = references

    def make(self, page: str, docname: str, executed: Executed) -> str:
        """The notebook of a page, as text.

        ``docname`` is Sphinx's name of the page, ``book/03-baseline``. Raises `NotebookError`.
        """
        notebook = read_myst_markdown_notebook(resolve_only(page, profile_in_use(), unwrap=True))
        notebook.metadata = nbformat.from_dict(
            {"kernelspec": notebook.metadata["kernelspec"], "page": digest(page)}
        )
        before = 0
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = self.plain(cell.source, docname, executed, before)
                continue
            fold(cell)
            cell.outputs, before = executed.outputs[before], before + 1
            cell.execution_count = before
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = before
        notebook.cells = [cell for cell in notebook.cells if cell.source]
        libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
        page_url = f"{self.site}{docname}.html"
        preface = PREFACE.format(title=self.title, page=page_url, libraries=libraries)
        notebook.cells[:0] = [
            nbformat.v4.new_code_cell(self.install),
            nbformat.v4.new_markdown_cell(preface),
        ]
        for number, cell in enumerate(notebook.cells):
            cell.id = f"cell-{number}"
        nbformat.validate(notebook)
        return nbformat.writes(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    def plain(self, text: str, docname: str, executed: Executed, before: int = 0) -> str:
        """The text of a page without MyST: what a notebook shows, on GitHub and Colab too.

        ``before`` is the number of code cells before the text.
        """

        def role(match: re.Match[str]) -> str:
            return self._role(match, docname, executed, before) if match["name"] else match[0]

        text = SHOWN.sub(lambda match: self._shown(match, docname), text)
        text = ADMONITION.sub(admonition, text)
        text = ROLE_OR_CODE.sub(role, text)
        text = outside_code(text, lambda part: TARGET.sub("", part))
        text = outside_code(text, lambda part: COMMENT.sub("", part)).strip()
        text = outside_code(text, lambda part: LINK.sub(lambda m: self._link(m, docname), part))
        outside_code(text, lambda part: refuse(part, docname))
        return text

    def _shown(self, match: re.Match[str], docname: str) -> str:
        """A line in place of what only the page can show."""
        name, what = match["name"], match["what"]
        if name == "nb-exec-table":
            return "*Here the page shows how long each page took.*"
        if name == "live-model":
            return "*Here the page asks the models in the browser.*"
        if name == "include":
            file = posixpath.normpath(posixpath.join(posixpath.dirname(docname), what))
            link = f"{self.repository}/blob/{self.branch}/{file}"
            return f"*Here the page shows the file [{file}]({link}).*"
        doc = re.search(r":doc: *(\S+)", match["options"])
        where = f" of [{doc[1]}]({doc[1]})" if doc else ""
        return f"*Here the page shows the output `{what}`{where}.*"

    def _role(self, match: re.Match[str], docname: str, executed: Executed, before: int) -> str:
        name, text = match["name"], match["text"]
        if name == "glue:text":  # "09-base-knows.md::base_chat_exact:s", or the key alone
            page, _, key = text.rpartition("::")
            key, _, form = key.partition(":")
            page = posixpath.join(posixpath.dirname(docname), page.removesuffix(".md"))
            return literal(executed.glued(page if "::" in text else docname, key, form or "s"))
        if name == "eval":
            return literal(executed.values[before, text])
        if name == "term":  # "shown <entry>", or the entry itself
            return re.sub(r"\s*<[^>]*>$", "", text)
        if name == "cite":
            return f"({'; '.join(self._citation(key.strip(), docname) for key in text.split(','))})"
        raise NotebookError(f"{docname}.md: the role {match[0]!r} has no form in a notebook.")

    def _citation(self, key: str, docname: str) -> str:
        entry = self.references.entries.get(key)
        if entry is None:
            raise NotebookError(f"{docname}.md: {key!r} is cited and is not in the references.")
        return f"{authors(entry)} {entry.fields.get('year', '')}".strip()

    def _link(self, match: re.Match[str], docname: str) -> str:
        """A link to a page: to the published one, since Colab follows no link to a neighbor."""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(docname), match["target"]))
        return f"[{match['text']}]({self.site}{target}.html{match['anchor'] or ''})"


def literal(text: str) -> str:
    """A value that a cell computed, in Markdown that shows it as it is."""
    return re.sub(r"[\\`*{}\[\]<>|$&~]|\b_|_\b|(?<!\w)_(?!\w)", r"\\\g<0>", text)


def authors(entry: Entry) -> str:
    """The last name of a single author, of both of two, or of the first of more."""
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [" ".join([*p.prelast_names, *p.last_names]).replace("{", "").replace("}", "")
             for p in people]  # fmt: skip
    if not names:
        return str(entry.fields.get("title", entry.key)).replace("{", "").replace("}", "")
    return f"{names[0]} et al." if len(names) > 2 else " and ".join(names)


def admonition(match: re.Match[str]) -> str:
    """A quotation under its title in bold. Other directives stay, and are refused later."""
    titles = {"admonition": match["title"], "note": "Note", "important": "Important"}
    if match["name"] not in titles:
        return match[0]
    body = re.sub(r"\A(?::[a-z]+:[^\n]*\n)+", "", match["body"]).strip()
    lines = [f"**{titles[match['name']].strip()}**", "", *body.splitlines()]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def fold(cell: nbformat.NotebookNode) -> None:
    """Fold away in JupyterLab and on Colab what the page folds away or does not show."""
    tags = set(cell.metadata.get("tags", []))
    if tags & {"hide-cell", "hide-input", "remove-cell", "remove-input"}:
        cell.metadata["cellView"] = "form"  # Colab's word
        cell.metadata["jupyter"] = {"source_hidden": True}
    if tags & {"hide-cell", "hide-output"}:
        cell.metadata.setdefault("jupyter", {})["outputs_hidden"] = True


def digest(page: str) -> str:
    """Of which page a notebook is: a short hash of the page's text."""
    return hashlib.sha256(page.encode()).hexdigest()[:16]


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with ``change`` applied to what is no code, neither a block nor within a line."""
    done, parts = 0, []
    for match in CODE.finditer(text):
        parts += [change(text[done : match.start()]), match[0]]
        done = match.end()
    return "".join([*parts, change(text[done:])])


def refuse(text: str, docname: str) -> str:
    """Raise `NotebookError` if MyST is left in the text."""
    if found := MYST.search(text):
        raise NotebookError(
            f"{docname}.md: {found[0].strip()!r} would stand raw in the notebook. Give it a form "
            "in book/_ext/launch_notebooks.py, or write it in Markdown."
        )
    return text


def notebooks_of(root: Path, config: Any) -> Notebooks:
    """What makes the notebooks of the book in ``root``, given Sphinx's configuration."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    references = parse_file(str(root / "book" / "references.bib"), bib_format="bibtex")
    source = (config.html_theme_options[f"repository_{part}"] for part in ("url", "branch"))
    return Notebooks(config.html_title, config.html_baseurl, *source, project["name"], references)


def write(app: Sphinx, error: Exception | None) -> None:
    """``build-finished``: write each page's notebook where the download button finds it."""
    if error is not None or app.builder.format != "html":
        return
    notebooks = notebooks_of(Path(app.srcdir), app.config)
    folder = app.env.mystnb_config.output_folder  # type: ignore[attr-defined]

    def glued(docname: str, key: str, form: str) -> str:
        [text] = [v for k, v in read_glue_cache(folder, docname)[key]["data"].items()
                  if k.endswith("text/plain")]  # fmt: skip
        return format_plain_text("".join(text), form)

    for docname, known in sorted(app.env.honest_cache.items()):  # type: ignore[attr-defined]
        if "inputs" not in known:
            continue
        run = nbformat.read(Path(folder, f"{docname}.ipynb"), as_version=4)
        executed = Executed(
            [cell.outputs for cell in run.cells if cell.cell_type == "code"],
            {(place, text): result["data"]["text/plain"]
             for place, text, result in known["expressions"]},
            glued,
        )  # fmt: skip
        page = Path(app.env.doc2path(docname)).read_text(encoding="utf-8")
        path = Path(app.outdir, "_sources", f"{docname}.ipynb")
        path.write_text(notebooks.make(page, docname, executed), encoding="utf-8", newline="\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handler."""
    app.connect("build-finished", write, priority=900)  # when all else has been written
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
