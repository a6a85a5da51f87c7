"""The notebooks beside the pages: made from them, readable without MyST, opened by the buttons."""

from __future__ import annotations

import builtins
import html
import json
import re
import sys
import tomllib
from types import SimpleNamespace
from urllib.parse import parse_qs, urlparse

import nbformat
import pytest
import yaml
from book.page_runner import code_cells
from bs4 import BeautifulSoup
from conftest import ROOT, own_files
from markdown_it import MarkdownIt
from packaging.requirements import Requirement

sys.path.insert(0, str(ROOT / "book" / "_ext"))

import launch_notebooks
from launch_notebooks import NotebookError

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
REPOSITORY, BRANCH = CONFIG["repository"]["url"], CONFIG["repository"]["branch"]
PAGES = sorted(
    path.stem
    for path in own_files("book/*.md")
    if "\nkernelspec:" in path.read_text("utf8").partition("\n---\n")[0]
)


SETTINGS = SimpleNamespace(
    html_title=CONFIG["title"],
    html_baseurl=CONFIG["html"]["baseurl"],
    html_theme_options={"repository_url": REPOSITORY, "repository_branch": BRANCH},
)


#: What a build knows of a page without cells.
EXECUTED = launch_notebooks.Executed([], {}, lambda *named: " ".join(named))


@pytest.fixture(scope="module")
def notebooks():
    return launch_notebooks.notebooks_of(ROOT, SETTINGS)


def read(name):
    return nbformat.read(ROOT / "book" / f"{name}.ipynb", as_version=4)


# --- What is committed ----------------------------------------------------------------------------


def test_every_page_that_executes_has_a_notebook_and_no_other():
    assert len(PAGES) > 10
    assert sorted(path.stem for path in own_files("book/*.ipynb")) == PAGES
    assert {first_cell(name) for name in PAGES} == {first_cell()}


@pytest.mark.parametrize("name", PAGES)
def test_the_notebook_is_in_step_with_its_page_and_executed(name):
    page = (ROOT / "book" / f"{name}.md").read_text("utf8")
    notebook = read(name)
    assert notebook.metadata["page"] == launch_notebooks.digest(page), (
        f"book/{name}.md was changed after its notebook was made: run `make book notebooks`."
    )
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"][1:]
    sources = [cell.source for cell in code_cells(ROOT / "book" / f"{name}.md")]
    assert [cell.source for cell in cells] == sources
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    text = "".join(cell.source for cell in notebook.cells)
    assert not re.search(r"\{(?:eval|glue:text|only)\}", text)
    # It needs no release: of the repository's files only those that the launch buttons open.
    used = re.findall(rf"{re.escape(REPOSITORY)}(?:@|/(?:blob|tree|raw)/)([\w.-]+)", text)
    assert used and set(used) == {BRANCH}


# --- How MyST is turned into Markdown -------------------------------------------------------------


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("to {glue:text}`09-base-knows.md::base_n:s` and {glue:text}`k`",
         "to book/09-base-knows base_n s and book/03-baseline k s"),
        ("a {term}`base model` and {term}`its loss <loss>`", "a base model and its loss"),
        ("found {cite}`holm1979simple`", "found (Holm 1979)"),
        ("{cite}`allenzhu2023storage,ouyang2022training`",
         "(Allen-Zhu and Li 2023; Ouyang et al. 2022)"),
        (":::{admonition} Predict\n:class: tip\nHow many?\nWhy?\n:::",
         "> **Predict**\n>\n> How many?\n> Why?"),
        ("```{glue:} figure\n:doc: 08-evaluation.md\n```",
         "*Here the page shows the output `figure` of [08-evaluation.md]"
         "(https://sft-executed.github.io/sft-executed/book/08-evaluation.html).*"),
        ("```{include} ../sft_utils/atlas/tables/README.md\n:start-line: 6\n```",
         "*Here the page shows the file [sft_utils/atlas/tables/README.md]"
         f"({REPOSITORY}/blob/{BRANCH}/sft_utils/atlas/tables/README.md).*"),
        ("[chapter 07](07-training.md#two-judges)",
         "[chapter 07](https://sft-executed.github.io/sft-executed/book/07-training.html#two-judges)"),
        ("(here)=\n## Title", "## Title"),
        ("Before.\n\n% a comment\n\nAfter.", "Before.\n\n\nAfter."),
        ("`{glue:text}` and ``{code}`x` `` are", "`{glue:text}` and ``{code}`x` `` are"),
    ],
)  # fmt: skip
def test_myst_becomes_markdown(notebooks, myst, markdown):
    assert notebooks.plain(myst, "book/03-baseline", EXECUTED) == markdown


@pytest.mark.parametrize(
    "myst", ["{numref}`figure`", "{cite}`nobody2020nothing`", ":::{dropdown} More\nx\n:::"]
)
def test_what_has_no_form_is_an_error_that_names_the_page(notebooks, myst):
    with pytest.raises(NotebookError, match=r"^book/x\.md: "):
        notebooks.plain(f"Before.\n\n{myst}\n\nAfter.", "book/x", EXECUTED)


HEADER = "---\nkernelspec: {name: python3, display_name: Python 3}\n---\n"


def made(notebooks, page, outputs=(), **values):
    """The cells of a page's notebook, without those that every notebook begins with."""
    known = {(0, name): value for name, value in values.items()}
    executed = EXECUTED._replace(outputs=list(outputs), values=known)
    notebook = nbformat.reads(notebooks.make(HEADER + page, "book/x", executed), as_version=4)
    assert notebook.metadata["page"] == launch_notebooks.digest(HEADER + page)
    return notebook.cells[2:]


def test_cells_that_the_page_folds_are_folded(notebooks):
    page = "```{code-cell}\n:tags: [hide-cell]\n1\n```\n```{code-cell}\n2\n```\n"
    page += "```{code-cell}\n:tags: [hide-output]\n3\n```\n"
    folded, shown, quiet = made(notebooks, page, [[], [], []])
    assert folded.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}
    assert folded.metadata.cellView == "form"
    assert not {"jupyter", "cellView"} & set(shown.metadata)
    assert quiet.metadata.jupyter == {"outputs_hidden": True}


def test_outputs_and_values_are_in_place(notebooks):
    page = (
        "Is {eval}`a`.\n\n```{only} atlas\nOurs.\n```\n\n```{only} not atlas\nNot {eval}`b`.\n```\n"
    )
    page += "\n```{code-cell}\n1\n```\n"
    result = nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=7)
    text, cell = made(notebooks, page, [[result]], a="12 %")
    assert text.source.split() == ["Is", "12", "%.", "Ours."]
    assert cell.execution_count == cell.outputs[0].execution_count == 1
    assert cell.outputs[0].data == {"text/plain": "1"}


def test_a_value_is_shown_as_it_is(notebooks):
    """Markup of a reader's rows is not rendered, and MyST in them is none."""
    hostile = "<b>*x*</b> ![a](https://host.example/x.png) `c` {glue:text}`x` 5 | $6$ & _y_"
    page = "It is {eval}`a`.\n\n```{code-cell}\n1\n```\n"
    text, _ = made(notebooks, page, [[]], a=hostile)
    shown = MarkdownIt().render(text.source)
    assert html.unescape(shown) == f"<p>It is {hostile}.</p>\n" and "<b>" not in shown


# --- The first cell -------------------------------------------------------------------------------


def first_cell(name="03-baseline"):
    return read(name).cells[0].source


@pytest.mark.parametrize("on_colab", [True, False])
def test_the_first_cell_installs_on_colab_only(monkeypatch, on_colab):
    from IPython.core.interactiveshell import InteractiveShell

    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)  # a shell leaves it behind
    shell, asked = InteractiveShell(), []
    shell.register_magic_function(asked.append, "line", "pip")
    result = shell.run_cell(first_cell())
    assert result.error_in_exec is None and result.error_before_exec is None
    assert len(asked) == on_colab
    if on_colab:
        [requirement] = re.findall(r'"(.+)"', asked[0])
        assert Requirement(requirement).name == PROJECT["name"]
        # What a release lacks, or that there is none yet, is no matter: page and package are one.
        assert Requirement(requirement).url == f"git+{REPOSITORY}@{BRANCH}"


def test_no_range_of_the_package_replaces_a_newer_torch():
    found = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    assert {clause.operator for clause in found["torch"]} == {">="}


# --- The buttons ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_each_button_opens_the_notebook_that_is_committed(site, name):
    soup = BeautifulSoup((site.html / "book" / f"{name}.html").read_text("utf8"), "html.parser")
    links = {link.hostname: link for link in (urlparse(a["href"]) for a in soup.select("a[href]"))}
    binder, colab = links["mybinder.org"], links["colab.research.google.com"]
    address = urlparse(REPOSITORY).path.strip("/")
    assert binder.path == f"/v2/gh/{address}/{BRANCH}"
    [opened] = parse_qs(binder.query)["urlpath"]
    assert opened == f"lab/tree/book/{name}.ipynb"
    assert colab.path == f"/github/{address}/blob/{BRANCH}/book/{name}.ipynb"
    # The build has changed no tracked file, and its own notebook is the one to download.
    kept = (site.source / "book" / f"{name}.ipynb").read_text("utf8")
    assert kept == (ROOT / "book" / f"{name}.ipynb").read_text("utf8")
    download = json.loads((site.html / "_sources" / "book" / f"{name}.ipynb").read_text("utf8"))
    assert download["metadata"]["page"] == read(name).metadata["page"]


def test_binder_takes_the_python_of_the_pins():
    [tested] = re.findall(r"Python (3\.\d+), Linux", (ROOT / "constraints.txt").read_text("utf8"))
    assert (ROOT / ".binder" / "runtime.txt").read_text("utf8").strip() == f"python-{tested}"
