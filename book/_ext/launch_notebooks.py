"""Sphinx extension: beside each page that executes, the same page as a notebook.

Binder, Colab and the download button open ``book/x.ipynb``, and the theme links to it only if it
is there. So each build writes it before Sphinx reads the pages. It is made from the page alone:
the same page gives the same bytes. The files are committed, since Binder and Colab take them from
the repository.

A plain notebook knows nothing of MyST, so what the pages use of it is turned into Markdown. A
directive or role that has no form here is an error, so that none is shown raw.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from pybtex.database import BibliographyData, Entry, parse_file
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
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
Where the page shows a number that a cell computed, the name stands here under which the cell
stored it, or the expression: `name`.\
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
MYST = re.compile(r"\{[a-z:-]+\}`|^ *(?::{3,}|`{3,}|~{3,})\{[^}]*\}|^ *:{3,}|^\([\w-]+\)=$", re.M)


class NotebookError(SphinxError):
    """A page holds MyST for which a plain notebook has no form. The message names it."""

    category = "No notebook can be made"


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

    def make(self, page: str, docname: str) -> str | None:
        """The notebook of a page, as text; None for a page that executes nothing.

        ``docname`` is Sphinx's name of the page, ``book/03-baseline``. Raises `NotebookError`.
        """
        notebook = read_myst_markdown_notebook(page)
        if "kernelspec" not in notebook.metadata:
            return None
        notebook.metadata.pop("file_format", None)
        notebook.metadata = nbformat.from_dict({"kernelspec": notebook.metadata["kernelspec"]})
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = self.plain(cell.source, docname)
            elif folded(cell.metadata.get("tags", [])):
                cell.metadata["jupyter"] = {"source_hidden": True}
        notebook.cells = [cell for cell in notebook.cells if cell.source]
        preface = PREFACE.format(title=self.title, page=f"{self.site}{docname}.html")
        notebook.cells[:0] = [
            nbformat.v4.new_code_cell(self.install),
            nbformat.v4.new_markdown_cell(preface),
        ]
        for number, cell in enumerate(notebook.cells):
            cell.id = f"cell-{number}"
        nbformat.validate(notebook)
        return nbformat.writes(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    def plain(self, text: str, docname: str) -> str:
        """The text of a page without MyST: what a notebook shows, on GitHub and Colab too."""
        text = SHOWN.sub(lambda match: self._shown(match, docname), text)
        text = ADMONITION.sub(admonition, text)
        text = ROLE_OR_CODE.sub(lambda m: self._role(m, docname) if m["name"] else m[0], text)
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

    def _role(self, match: re.Match[str], docname: str) -> str:
        name, text = match["name"], match["text"]
        if name == "glue:text":  # "03-baseline.md::base_chat_exact:s", or the key alone
            return f"`{text.split('::')[-1].split(':')[0]}`"
        if name == "eval":
            return f"`{text}`"
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


def folded(tags: list[str]) -> bool:
    """Whether the page shows the source of a cell folded away, or not at all."""
    return bool({"hide-cell", "hide-input", "remove-cell", "remove-input"} & set(tags))


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


def write(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """``env-before-read-docs``: write each page's notebook, if it is not what is there.

    Of the book's own pages: what else lies in its folder is somebody's, and is left alone.
    """
    root = Path(app.srcdir)
    notebooks = notebooks_of(root, app.config)
    for docname in sorted(env.found_docs):
        page = root / f"{docname}.md"
        if page.parent != root / "book" or not page.is_file():
            continue
        text = notebooks.make(page.read_text(encoding="utf-8"), docname)
        path = page.with_suffix(".ipynb")
        if text is None:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8", newline="\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handler."""
    app.connect("env-before-read-docs", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
