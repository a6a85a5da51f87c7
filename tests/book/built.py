"""One build of the whole book, cold and from a copy, that every test of the site looks at.

The copy holds what git tracks, the package among it, so a build that passes here needs nothing
else. It starts with no cache and no stored run. To work on the tests, build
once and give the folder with ``_build`` in it: ``SFT_SITE=. pytest tests/book/test_site.py``. The
tests of building itself are then skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from own_files import copy_tree

ROOT = Path(__file__).parents[2]


#: How a build went, and what it says of each page's execution.
Build = namedtuple("Build", "code output executions")


@dataclass
class Page:
    """One page: its source, what was executed, and what readers get."""

    site: Site = field(repr=False)
    name: str  # "03-baseline"

    @cached_property
    def source(self) -> str:
        return (self.site.source / "book" / f"{self.name}.md").read_text("utf8")

    @property
    def executes(self) -> bool:
        return "\n```{code-cell}" in self.source

    @property
    def path(self) -> Path:
        return self.site.html / "book" / f"{self.name}.html"

    @cached_property
    def soup(self) -> Any:
        """The whole page."""
        from bs4 import BeautifulSoup

        return BeautifulSoup(self.path.read_text("utf8"), "html.parser")

    @property
    def article(self) -> Any:
        """The page without the theme's frame."""
        return self.soup.find("article")

    @property
    def text(self) -> str:
        """What people read, white space as single spaces."""
        return " ".join(self.article.get_text(" ").split())

    def notebook(self, *folders: str) -> Any:
        """The executed notebook, as myst-nb wrote it, or as it can be downloaded."""
        import nbformat

        folder = self.site.build.joinpath(*(folders or ("jupyter_execute",)))
        return nbformat.read(folder / "book" / f"{self.name}.ipynb", as_version=4)

    @cached_property
    def cells(self) -> list[Any]:
        """The code cells as they were executed; none where the page has none."""
        if not self.executes:
            return []
        return [cell for cell in self.notebook().cells if cell.cell_type == "code"]

    @cached_property
    def glued(self) -> dict[str, str]:
        """What the page glued, as its prose shows it."""
        from myst_nb.core.variables import format_plain_text

        file = self.site.build / "jupyter_execute" / "book" / f"{self.name}.glue.json"
        values = json.loads(file.read_text("utf8")) if file.exists() else {}
        found = {}
        for key, output in values.items():
            [text] = [t for mime, t in output["data"].items() if mime.endswith("text/plain")]
            found[key] = format_plain_text("".join(text), "s")
        return found


@dataclass
class Site:
    """A built book: ``source`` holds its pages, ``folder`` in ``root`` what was built."""

    source: Path
    root: Path
    cold: Build | None = None  # None where it was built before
    folder: str = "_build"
    pages: dict[str, Page] = field(default_factory=dict)

    @property
    def build(self) -> Path:
        return self.root / self.folder

    @property
    def html(self) -> Path:
        return self.build / "html"

    def page(self, name: str) -> Page:
        return self.pages.setdefault(name, Page(self, name))

    def executions(self) -> dict[str, dict[str, Any]]:
        """``execution.json`` by page; empty if the build did not come to its end."""
        file = self.html / "execution.json"
        if not file.exists():
            return {}
        return {Path(run["page"]).stem: run for run in json.loads(file.read_text("utf8"))}

    def run(self, **environment: str) -> Build:
        """Build, as ``make book`` does, in the copy."""
        (self.html / "execution.json").unlink(missing_ok=True)
        unset = {"SFT_PROFILE", "OMP_NUM_THREADS", "TQDM_DISABLE", "OMP_WAIT_POLICY"}
        result = subprocess.run(
            [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", "."],
            cwd=self.root,
            env={name: value for name, value in os.environ.items() if name not in unset}
            | {
                "PYTHONPATH": str(self.root),  # the package of the copy, before the installed one
                "SFT_RUNS": str(self.root / ".runs"),
                "HF_HUB_OFFLINE": "1",
                "NO_COLOR": "1",
            }
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Build(result.returncode, result.stdout, self.executions())


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built book; whether its build succeeded is for a test to say."""
    if built := os.environ.get("SFT_SITE"):
        root = Path(built).resolve()
        return Site(root if (root / "book").is_dir() else ROOT, root)
    root = tmp_path_factory.mktemp("site")
    copy_tree(root)
    site = Site(root, root)
    site.cold = site.run()
    return site


@pytest.fixture(scope="session")
def again(site):
    """The second build, warm, after an edit to the prose of every page: all are read again."""
    if site.cold is None:
        pytest.skip("SFT_SITE names a site that was built before")
    if site.cold.code != 0:
        pytest.fail("the cold build failed; see test_the_build_succeeds", pytrace=False)
    for name in site.cold.executions:
        assert site.page(name).cells  # kept as the cold build left them
    for path in (site.root / "book").glob("*.md"):
        path.write_text(
            path.read_text("utf8") + "\n% A comment: prose has changed, code has not.\n"
        )
    return site.run()


@pytest.fixture
def page(site, request):
    """The page that the test is for, by its name; the test fails if it was not built."""
    page = site.page(request.param)
    if not page.path.exists():
        pytest.fail(f"book/{page.name}.md was not built", pytrace=False)
    return page
