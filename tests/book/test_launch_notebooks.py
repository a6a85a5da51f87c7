"""The notebooks beside the pages: made from them, readable without MyST, opened by the buttons."""

from __future__ import annotations

import builtins
import re
import shutil
import sys
import tomllib
from types import SimpleNamespace
from urllib.parse import parse_qs, urlparse

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROOT, own_files
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
def test_the_notebook_is_that_of_the_page_without_outputs(notebooks, name):
    page = (ROOT / "book" / f"{name}.md").read_text("utf8")
    made = notebooks.make(page, f"book/{name}")
    text = (ROOT / "book" / f"{name}.ipynb").read_text("utf8")
    assert made == text, f"`make book` writes book/{name}.ipynb anew; commit it."
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert len(cells) == 1 + len(re.findall(r"^```\{code-cell\}", page, re.MULTILINE))
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    # It needs no release: of the repository's files only those that the launch buttons open.
    used = re.findall(rf"{re.escape(REPOSITORY)}(?:@|/(?:blob|tree|raw)/)([\w.-]+)", text)
    assert used and set(used) == {BRANCH}


# --- How MyST is turned into Markdown -------------------------------------------------------------


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("to {glue:text}`03-baseline.md::base_n:s` rows", "to `base_n` rows"),
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
        ("Before.\n\n% a comment\n\nAfter.", "Before.\n\n\nAfter."),
        ("`{glue:text}` and ``{code}`x` `` are", "`{glue:text}` and ``{code}`x` `` are"),
    ],
)  # fmt: skip
def test_myst_becomes_markdown(notebooks, myst, markdown):
    assert notebooks.plain(myst, "book/03-baseline") == markdown


@pytest.mark.parametrize(
    "myst", ["{numref}`figure`", "{cite}`nobody2020nothing`", ":::{dropdown} More\nx\n:::"]
)
def test_what_has_no_form_is_an_error_that_names_the_page(notebooks, myst):
    with pytest.raises(NotebookError, match=r"^book/x\.md: "):
        notebooks.plain(f"Before.\n\n{myst}\n\nAfter.", "book/x")


def test_cells_that_the_page_folds_are_folded(notebooks):
    page = "---\nkernelspec: {name: python3, display_name: Python 3}\n---\n"
    page += "```{code-cell}\n:tags: [hide-cell]\n1\n```\n```{code-cell}\n2\n```\n"
    *_, folded, shown = nbformat.reads(notebooks.make(page, "book/x"), as_version=4).cells
    assert folded.metadata.jupyter.source_hidden and "jupyter" not in shown.metadata


def test_a_build_leaves_notebooks_of_the_readers_own_alone(tmp_path):
    """Beside a page that is not in the table of contents, whatever that page is."""
    (tmp_path / "book").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "book" / "references.bib", tmp_path / "book")
    kernel = "---\nkernelspec: {name: python3, display_name: Python 3}\n---\n"
    pages = {"a": f"{kernel}# A\n", "mine": f"{kernel}(x)=\n# Mine\n", "notes": "# Notes\n"}
    for name, text in pages.items():
        (tmp_path / "book" / f"{name}.md").write_text(text)
        (tmp_path / "book" / f"{name}.ipynb").write_text("old")
    app = SimpleNamespace(srcdir=tmp_path, config=SETTINGS)
    launch_notebooks.write(app, SimpleNamespace(found_docs={"book/a"}), ["book/a"])
    found = {path.stem: path.read_text() for path in (tmp_path / "book").glob("*.ipynb")}
    assert "# A" in found.pop("a")
    assert found == {"mine": "old", "notes": "old"}


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
def test_each_button_opens_the_notebook_that_is_committed_and_that_a_build_writes(site, name):
    soup = BeautifulSoup((site.html / "book" / f"{name}.html").read_text("utf8"), "html.parser")
    links = {link.hostname: link for link in (urlparse(a["href"]) for a in soup.select("a[href]"))}
    binder, colab = links["mybinder.org"], links["colab.research.google.com"]
    address = urlparse(REPOSITORY).path.strip("/")
    assert binder.path == f"/v2/gh/{address}/{BRANCH}"
    [opened] = parse_qs(binder.query)["urlpath"]
    assert opened == f"lab/tree/book/{name}.ipynb"
    assert colab.path == f"/github/{address}/blob/{BRANCH}/book/{name}.ipynb"
    written = (site.source / "book" / f"{name}.ipynb").read_text("utf8")
    assert written == (ROOT / "book" / f"{name}.ipynb").read_text("utf8")


def test_binder_takes_the_python_of_the_pins():
    [tested] = re.findall(r"Python (3\.\d+), Linux", (ROOT / "constraints.txt").read_text("utf8"))
    assert (ROOT / ".binder" / "runtime.txt").read_text("utf8").strip() == f"python-{tested}"
