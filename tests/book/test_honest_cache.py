"""The extension, on a small book of its own: what executes, what does not, and what is shown.

A page counts its own executions by appending its number to a file, so "nothing executed" is seen
and not inferred. Every test starts from the same finished build.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
import yaml
from book.small_book import EXTENSION, JUPYTER_BOOK, SPHINX, SmallBook
from conftest import ROOT, thinned

sys.path.insert(0, str(EXTENSION))

import page_inputs  # noqa: E402
import page_report  # noqa: E402
import page_runs  # noqa: E402

PACKAGE = {
    "__init__.py": """
        from importlib import import_module

        _EXPORTS = {"add": "sums", "answer": "lookup", "glue": "results"}
        __version__ = "1"
        __all__ = ["__version__", *_EXPORTS]


        def __getattr__(name):
            if name not in _EXPORTS:
                raise AttributeError(name)
            return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
        """,
    "sums.py": """
        def add(a, b):
            return a + b
        """,
    "lookup.py": """
        def answer(entity):
            from .atlas import world

            return f"It is {world.capital(entity)}."
        """,
    "results.py": """
        from typing import TYPE_CHECKING

        if TYPE_CHECKING:
            from toy.unused import nothing


        def glue(name, value):
            from IPython.display import display

            scrapbook = {"name": name, "mime_prefix": ""}
            display({"text/plain": value}, raw=True, metadata={"scrapbook": scrapbook})
        """,
    "unused.py": """
        nothing = None
        """,
    "dynamic.py": """
        import importlib


        def load(name):
            return importlib.import_module("toy." + name)
        """,
    "shipped.py": """
        from pathlib import Path


        def folder(name):
            return Path(__file__).parent / "atlas" / "checkpoints" / name
        """,
    "atlas/__init__.py": "",
    "atlas/world.py": """
        from pathlib import Path


        def capital(entity):
            rows = (Path(__file__).parent / "tables" / "countries.csv").read_text().splitlines()
            return dict(row.split(",") for row in rows)[entity]
        """,
    "atlas/pretrain.py": "",
    "atlas/tables/countries.csv": "Kenya,Nairobi\n",
    "atlas/checkpoints/base/model.bin": "weights\n",
    "profile_files/atlas.toml": 'base = "atlas-base"\ndata = "rows.jsonl"\n',
    "profile_files/hub.toml": 'base = "Qwen/Qwen3-0.6B-Base"\n',
}

HEADER = """\
---
file_format: mystnb
kernelspec:
  name: python3
  display_name: Python 3
---

"""


def page(number: str, title: str, *cells: str) -> str:
    """A page that first counts its execution."""
    count = f'with open("../executed", "a") as file:\n    print("{number}", file=file)'
    blocks = [f"```{{code-cell}} ipython3\n{cell}\n```\n" for cell in (count, *cells)]
    return HEADER + f"# {title}\n\nOld prose.\n\n" + "\n".join(blocks)


PAGES = {
    "index.md": "# Book\n\n```{toctree}\n00-intro\n01-sums\n02-lazy\n```\n",
    "00-intro.md": "# Intro\n\nQuoted: {glue:text}`02-lazy.md::answer:s`\n"
    "\n```{only} atlas\nOur own.\n```\n\n```{only} not atlas\nYours.\n```\n",
    "01-sums.md": page("01", "Sums", "from toy import add\nadd(20, 2) * 1000"),
    "02-lazy.md": page(
        "02", "Lazy", 'from toy import answer, glue\nglue("answer", answer("Kenya"))'
    ),
}

CONF = f"""
import sys

sys.path.append({str(EXTENSION)!r})
extensions = ["myst_nb", "honest_cache"]
root_doc = "book/index"
exclude_patterns = ["_build"]
html_theme = "basic"
honest_cache_package = "toy"
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
"""


#: Sphinx in a process that an interrupt reaches, whatever it inherits: one whose parent ignores or
#: blocks the signal, as under nohup, would do so too.
INTERRUPTIBLE = """
import signal, sys
from sphinx.cmd.build import main

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
sys.exit(main(sys.argv[1:]))
"""


Build = namedtuple("Build", "code output executed")


class Book(SmallBook):
    """The sample book, which counts the executions of its pages."""

    def edit(self, name: str, old: str, new: str) -> None:
        """Change one file of the book."""
        text = (self.root / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def build(self, *command: str, **environment: str) -> Build:
        """Build the site."""
        return Build(*super().build(*command, **environment), self.executed())

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a build, by default with every warning an error."""
        (self.root / "executed").unlink(missing_ok=True)
        return super().start(*(command or (*SPHINX, "-W")), **environment)

    def executed(self) -> list[str]:
        """The pages that executed since the last build began, by their numbers."""
        log = self.root / "executed"
        return sorted(log.read_text().split()) if log.exists() else []

    def html(self, name: str) -> str:
        """A page as readers see it, without tags."""
        text = (self.root / "_build" / "html" / "book" / f"{name}.html").read_text()
        return re.sub(r"<[^>]+>", "", text)

    def outputs(self, name: str) -> list[list[dict]]:
        """The outputs of each code cell in the notebook that readers download."""
        file = self.root / "_build" / "jupyter_execute" / "book" / f"{name}.ipynb"
        cells = json.loads(file.read_text())["cells"]
        return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]

    def report(self) -> dict[str, dict]:
        """``execution.json``, by page."""
        file = self.root / "_build" / "html" / "execution.json"
        return {entry["page"]: entry for entry in json.loads(file.read_text())}


def new_book(root: Path, pages: dict[str, str]) -> Book:
    """Write the sample book and its package."""
    book = Book(root)
    for name, text in PACKAGE.items():
        book.write(f"toy/{name}", dedent(text).lstrip())
    for name, text in pages.items():
        book.write(f"book/{name}", text)
    book.write("book/rows.jsonl", "{}\n")
    book.write("constraints.txt", "numpy==2.0  # a comment\n")
    book.write("conf.py", CONF)
    return book


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A book, its first build, and a copy of the folder after it."""
    folder = tmp_path_factory.mktemp("books")
    book = new_book(folder / "book", PAGES)
    build = book.build()
    assert build.code == 0, build.output
    shutil.copytree(book.root, folder / "copy")
    return book, build, folder / "copy"


@pytest.fixture
def book(first: tuple[Book, Build, Path]) -> Book:
    """The book as the first build left it, in the same place."""
    shutil.rmtree(first[0].root)
    shutil.copytree(first[2], first[0].root)
    return first[0]


def test_first_build_executes_every_page_and_reports_it(book, first):
    build = first[1]
    assert build.executed == ["01", "02"]
    for name in ("01-sums", "02-lazy"):
        assert re.search(rf"^book/{name}.md: executing$", build.output, re.M)
        assert re.search(rf"^book/{name}.md: \d+\.\d s", build.output, re.M)
        assert re.search(rf"^book/{name}.md +\d+\.\d s", build.output, re.M)
        entry = book.report()[f"book/{name}.md"]
        assert entry["seconds"] > 0 and entry["cached"] is False
        if sys.platform == "linux":
            assert 10 < entry["peak_mb"] < 1000
    assert "2 of 2 pages executed" in build.output
    assert "Quoted: It is Nairobi." in book.html("00-intro")  # a page that comes before 02


def test_nothing_or_prose_changed_executes_nothing_and_the_notebook_keeps_its_outputs(book):
    build = book.build()
    assert build.code == 0
    assert build.executed == []
    assert "0 added, 0 changed, 0 removed" in build.output
    assert "no targets are out of date" in build.output
    assert re.search(r"^book/01-sums.md +from cache", build.output, re.M)
    assert all(entry["cached"] for entry in book.report().values())
    before = book.outputs("01-sums")
    book.edit("book/01-sums.md", "Old prose.", "New prose.")
    build = book.build()
    assert build.executed == []
    assert "0 added, 1 changed, 0 removed" in build.output
    assert re.search(r"^book/01-sums.md: from cache$", build.output, re.M)
    assert "New prose." in book.html("01-sums") and "22000" in book.html("01-sums")
    assert book.outputs("01-sums") == before
    assert before[1][0]["data"]["text/plain"] == ["22000"]


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        pytest.param("toy/sums.py", "a + b", "b + a", ["01"], id="module"),
        pytest.param("toy/atlas/checkpoints/base/model.bin", "w", "W", ["02"], id="checkpoint"),
        pytest.param("constraints.txt", "2.0", "2.1", ["01", "02"], id="pin"),
    ],
)
def test_a_change_executes_the_pages_that_reach_it(book, file, old, new, expected):
    book.edit(file, old, new)
    build = book.build()
    assert build.code == 0, build.output
    assert build.executed == expected
    assert f"executing (changed: {file})" in build.output


def test_what_no_page_reaches_executes_nothing(book):
    book.edit("toy/__init__.py", '"add"', '"nothing": "unused", "add"')
    book.edit("toy/unused.py", "None", "0")
    book.edit("toy/atlas/pretrain.py", "", "steps = 1\n")
    book.edit("toy/profile_files/hub.toml", "Qwen3", "Qwen4")
    book.edit("constraints.txt", "a comment", "another comment")
    build = book.build()
    assert build.executed == []
    assert "0 added, 0 changed, 0 removed" in build.output


def test_another_profile_and_back(book):
    assert book.build(SFT_PROFILE="hub").executed == ["01", "02"]
    assert book.build().executed == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the name of a file is text")
def test_a_profile_whose_files_name_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_PROFILE", "runs/\udcff2.toml")  # as Python reads the byte ff
    assert page_inputs.profile_name() == "\ufffd2.toml"
    monkeypatch.delenv("SFT_PROFILE")
    assert page_inputs.profile_name() == "atlas"


def test_a_quoting_page_follows_the_page_it_quotes(book):
    book.edit("toy/atlas/tables/countries.csv", "Nairobi", "Mombasa")
    build = book.build()
    assert build.code == 0
    assert build.executed == ["02"]
    assert "It is Mombasa." in book.html("02-lazy")
    assert "Quoted: It is Mombasa." in book.html("00-intro")
    # A value that is no longer there is an error, and not the old value.
    book.edit("book/02-lazy.md", 'glue("answer", answer("Kenya"))', "answer")
    build = book.build()
    assert build.code != 0
    assert "'answer' not found in doc 'book/02-lazy'" in build.output


@pytest.mark.weekly
def test_the_search_keeps_the_terms_of_pages_that_are_not_written(book):
    book.edit("book/00-intro.md", "Quoted", "```{glossary}\nEnd token\n  It ends.\n```\n\nQuoted")

    def terms() -> dict:
        text = (book.root / "_build" / "html" / "searchindex.js").read_text()
        return json.loads(text[text.index("(") + 1 : text.rindex(")")])["indexentries"]

    assert book.build().code == 0
    [[(_, target, _)]] = terms().values()
    assert target == "term-End-token"
    before = terms()
    book.edit("book/01-sums.md", "Old prose.", "New prose.")
    assert book.build().code == 0
    assert terms() == before and list(before) == ["end token"]


@pytest.mark.weekly
def test_an_edit_while_a_page_runs_is_not_cached(book):
    edit = 'with open("../toy/sums.py", "a") as file:\n    print("# edited", file=file)'
    book.write("book/01-sums.md", page("01", "Sums", "from toy import add\nadd(1, 2)", edit))
    assert "book/01-sums.md: what it depends on was edited" in book.build().output
    assert book.build().executed == ["01"]


def wait_for(building, start):
    """What a build says until a line begins so; the test fails if none does."""
    said = ""
    while not (line := building.stdout.readline()).startswith(start):
        assert line, said
        said += line
    return said


def test_an_interrupted_build_leaves_nothing_stale(book):
    book.edit("toy/atlas/tables/countries.csv", "Nairobi", "Mombasa")
    building = book.start()
    wait_for(building, "book/02-lazy.md: executing")
    building.kill()
    building.communicate()
    book.edit("toy/atlas/tables/countries.csv", "Mombasa", "Nairobi")
    build = book.build()
    assert build.code == 0, build.output
    assert build.executed == []
    assert "Quoted: It is Nairobi." in book.html("00-intro")
    assert "It is Nairobi." in book.html("02-lazy")


#: A cell that says that its page is under way, and waits until another page says so.
MEET = """\
import pathlib, time

pathlib.Path("../{own}").touch()
end = time.monotonic() + {seconds}
while not (met := pathlib.Path("../{other}").exists()) and time.monotonic() < end:
    time.sleep(0.05)
met"""


@pytest.mark.weekly
@pytest.mark.skipif(page_runs.room() < 2, reason="no room for two kernels")
def test_pages_of_the_books_own_models_execute_side_by_side(book):
    for name, number, other, size in (("01-sums", "01", "02", 3), ("02-lazy", "02", "01", 0)):
        meet = MEET.format(own=f"met-{number}", other=f"met-{other}", seconds=120)
        large = f"large = b'1' * {size}00_000_000"
        book.write(f"book/{name}.md", page(number, name, large, meet, "time.sleep(0.5)"))
    book.write("book/00-intro.md", "# Intro\n")
    build = book.build()
    assert build.code == 0, build.output
    assert build.executed == ["01", "02"]
    assert "True" in book.html("01-sums") and "True" in book.html("02-lazy")
    large, small = (book.report()[f"book/{name}.md"]["peak_mb"] for name in ("01-sums", "02-lazy"))
    assert large > small + 200, "each kernel has its own"


@pytest.mark.weekly
def test_with_other_models_one_page_executes_after_the_other(book):
    for name, number, other in (("01-sums", "01", "02"), ("02-lazy", "02", "03")):
        meet = MEET.format(own=f"met-{number}", other=f"met-{other}", seconds=3)
        book.write(f"book/{name}.md", page(number, name, meet))
    book.write("book/00-intro.md", "# Intro\n")
    build = book.build(SFT_PROFILE="hub")
    assert build.code == 0, build.output
    assert "False" in book.html("01-sums")


@pytest.mark.skipif(page_runs.room() < 2, reason="no room for two kernels")
@pytest.mark.skipif(sys.platform == "win32", reason="sends no interrupt to one process")
@pytest.mark.parametrize("how", thinned(["SIGINT", "SIGTERM", "a page fails"], 3))
def test_a_build_that_ends_early_leaves_no_kernel(book, how):
    note = 'import os, pathlib\n\npathlib.Path("../kernel").write_text(str(os.getpid()))'
    meet = MEET.format(own="met-02", other="never", seconds=500)
    book.write("book/02-lazy.md", page("02", "Lazy", note, meet))
    wait = MEET.format(own="met-01", other="met-02", seconds=120)
    wait += "\n1 / 0" if how == "a page fails" else "\n" + wait.replace("met-02", "never")
    book.write("book/01-sums.md", page("01", "Sums", wait))
    building = book.start("-c", INTERRUPTIBLE, *SPHINX[2:], "-W")
    try:
        if how != "a page fails":
            end = time.monotonic() + 120
            while not (book.root / "met-02").exists() and time.monotonic() < end:
                time.sleep(0.1)
            building.send_signal(getattr(signal, how))
        output = building.communicate(timeout=100)[0]
    finally:
        building.kill()
    assert building.returncode != 0
    if how == "a page fails":
        assert output.rstrip().endswith("ZeroDivisionError: division by zero")
    kernel = int((book.root / "kernel").read_text())
    end = time.monotonic() + 30
    while psutil.pid_exists(kernel) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(kernel)


@pytest.mark.weekly  # the build of the book has it at each change
def test_jupyter_book_with_the_configuration_of_this_book(tmp_path):
    """Cold, broken, broken again, mended: with ``-W`` and this book's own ``_config.yml``."""
    names = ("TQDM_DISABLE", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    settings = f"import os\n\n[os.environ[name] for name in {names}]"
    pieces = "print('in', flush=True)\nprint('pieces')"
    sums = page("01", "Sums", settings, pieces, "from toy import add\nadd(20, 2) * 1000")
    pages = {"00-intro.md": "# Intro\n", "01-sums.md": sums, "references.bib": ""}
    book = new_book(tmp_path, pages)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["sphinx"]["local_extensions"]["honest_cache"] = str(EXTENSION)
    config["sphinx"]["config"]["honest_cache_package"] = "toy"
    book.write("_config.yml", yaml.safe_dump(config))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # the notebooks name its package
    toc = "format: jb-book\nroot: book/00-intro\nchapters:\n  - file: book/01-sums\n"
    book.write("_toc.yml", toc)
    command = (*JUPYTER_BOOK, "-W")

    cold = book.build(*command)
    assert cold.code == 0, cold.output
    assert cold.executed == ["01"]
    assert "['1', 'PASSIVE', '1']" in book.html("01-sums").replace("&#39;", "'")
    outputs = book.outputs("01-sums")
    assert outputs[-1][0]["data"]["text/plain"] == ["22000"]
    assert [output["text"] for output in outputs[-2]] == [["in\n", "pieces\n"]]

    book.edit("toy/sums.py", "a + b", "a / 0")
    for _ in range(2):
        broken = book.build(*command)
        assert broken.code != 0
        assert broken.executed == ["01"]
        last = broken.output.rstrip().splitlines()[-1]
        assert last == "book/01-sums.md, cell 4: ZeroDivisionError: division by zero"

    book.edit("toy/sums.py", "a / 0", "a + b")
    mended = book.build(*command)
    assert mended.code == 0, mended.output
    assert mended.executed == []
    assert "22000" in book.html("01-sums")
    assert book.outputs("01-sums") == outputs
    assert book.report()["book/01-sums.md"]["cached"] is True


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> page_inputs.Package:
    """The sample package, ready to be read."""
    new_book(tmp_path, {})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    return page_inputs.Package("toy")


EVERYTHING = (
    "atlas atlas.pretrain atlas.world dynamic lookup results shipped sums unused"  # and toy itself
)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import numpy", None),
        ("from toy import __version__", ""),
        ("from toy import add", "sums"),
        ("from toy.sums import add", "sums"),
        ("import toy.sums as s", "sums"),
        ("from toy import answer", "lookup atlas atlas.world"),
        ("from toy import shipped", "shipped atlas"),
        ("import importlib\nimportlib.import_module('toy.sums')", "sums"),
        ("open('../toy/atlas/tables/countries.csv')", "EVERYTHING"),
        ("open('atlas/tables/countries.csv')", "atlas"),
        ("run('-m', 'toy.lookup')", "lookup atlas atlas.world"),
        ("import toy.sums", "EVERYTHING"),
        ("from toy import *", "EVERYTHING"),
        ("from toy import dynamic", "EVERYTHING"),
        ("%run script.py", "EVERYTHING"),
    ],
)
def test_modules_that_a_cell_reaches(toy, tmp_path, code, expected):
    found = page_inputs.inputs([code], tmp_path, toy, None)
    modules = {name[:-3].removesuffix("/__init__") for name in found if name.endswith(".py")}
    names = (EVERYTHING if expected == "EVERYTHING" else expected or "").split()
    reached = {"toy/" + name.replace(".", "/") for name in names}
    assert modules == reached | ({"toy"} if expected is not None else set())


def test_relative_imports_start_from_the_right_package():
    code = "from . import a\nfrom .b import c\nfrom ..d import e"
    found = page_inputs.read_code(code, "toy.atlas.world", "toy.atlas").imports
    assert found == {("toy.atlas", "a"), ("toy.atlas.b", "c"), ("toy.d", "e")}


def test_files_named_by_the_profile_are_inputs(toy, tmp_path, monkeypatch):
    monkeypatch.delenv("SFT_PROFILE", raising=False)
    before = page_inputs.inputs([], tmp_path / "book", toy, None)
    (tmp_path / "book" / "rows.jsonl").write_text('{"changed": 1}\n')
    after = page_inputs.inputs([], tmp_path / "book", toy, None)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {(tmp_path / "book" / "rows.jsonl").as_posix()}
    assert page_inputs.digest(before) != page_inputs.digest(after)


def test_a_profile_that_a_page_names_is_an_input(toy, tmp_path, monkeypatch):
    monkeypatch.delenv("SFT_PROFILE", raising=False)
    for cell, named in (("load_profile('hub')", {"profile hub"}), ("load_profile()", set())):
        before = page_inputs.inputs([cell], tmp_path / "book", toy, None)
        with (toy.root / "profile_files/hub.toml").open("a") as file:
            file.write("# changed\n")
        after = page_inputs.inputs([cell], tmp_path / "book", toy, None)
        assert {name for name in after if before.get(name) != after[name]} == named


def test_what_makes_a_recorded_run_live_is_an_input(tmp_path, monkeypatch):
    package = page_inputs.Package("sft_utils")
    assert all((package.root / module).is_file() for module in page_inputs.LIVE)
    cell, found = ["from sft_utils.atlas import real_model"], []
    for value in ("", "1"):
        monkeypatch.setenv("SFT_REAL", value)
        found.append(page_inputs.inputs(cell, tmp_path, package, None))
    assert found[0]["SFT_REAL"] == "" and found[1]["SFT_REAL"] == "1"


def test_a_profile_of_the_readers_own_is_an_input_whatever_it_says(toy, tmp_path, monkeypatch):
    """None of its texts is a path, and some look like one."""
    monkeypatch.setenv("SFT_PROFILE", "mine.toml")  # in the root, and the kernel runs in book/
    states = [{}]
    for text in ("~5 km is how many miles?", "a" * 5000, "what is \\u0000?", "**"):
        (tmp_path / "mine.toml").write_text(f'text = "{text}"\n')
        states.append(page_inputs.inputs([], tmp_path / "book", toy, None))
        assert {name for name in states[-1] if "mine" in name} == {"profile mine.toml"}
        assert states[-1]["profile mine.toml"] != states[-2].get("profile mine.toml")


def test_a_model_in_an_installed_package_is_an_input(toy, tmp_path, monkeypatch):
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "tiny.gguf").write_text("GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SFT_PROFILE", "mine.toml")
    (tmp_path / "mine.toml").write_text('a = "carrier:tiny.gguf"\nb = "__main__:b.gguf"\n')
    found = page_inputs.inputs([], tmp_path / "book", toy, None)
    assert [name for name in found if "gguf" in name] == [
        f"{tmp_path.as_posix()}/carrier/tiny.gguf"
    ]


def test_installed_versions_are_inputs(toy, tmp_path, monkeypatch):
    before = page_inputs.inputs([], tmp_path, toy, None)
    assert {"python", "torch", "transformers", "trl", "datasets", "numpy", "pandas"} <= set(before)
    monkeypatch.setattr(page_inputs, "_version", lambda name: "0.0")
    after = page_inputs.inputs([], tmp_path, toy, None)
    assert {n for n in after if before[n] != after[n]} == set(page_inputs.PINNED)


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ModuleNotFoundError, match="'no_such_package'.*pip install -e"):
        page_inputs.Package("no_such_package")


MAPPED = """
import mmap, os, sys
import page_report, psutil
process = psutil.Process()
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
    before = page_report._memory(process)
    read = sum(view[::4096])
    mapped = page_report._memory(process)
    own = b"1" * 100_000_000
    print(mapped - before, page_report._memory(process) - mapped)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere mapped files are counted")
def test_memory_is_what_a_process_has_for_itself(tmp_path):
    """Not the pages of a file that it has mapped, as those of libraries are."""
    (tmp_path / "library").write_bytes(b"1" * 200_000_000)
    command = [sys.executable, "-c", MAPPED, tmp_path / "library"]
    environment = os.environ | {"PYTHONPATH": str(EXTENSION)}
    printed = subprocess.check_output(command, env=environment, text=True)
    mapped, own = map(float, printed.split())
    assert abs(mapped) < 20 and 80 < own < 120


def test_a_failure_names_the_last_cell_that_ran():
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    cells = [new_code_cell(execution_count=1), new_markdown_cell(), new_code_cell("exit()")]
    notebook = new_notebook(cells=cells)
    line = page_report.failure("book/x.md", notebook, RuntimeError("Kernel died\nand more"))
    assert line == "book/x.md, cell 1: RuntimeError: Kernel died"
    line = page_report.failure("book/x.md", new_notebook(), KeyError())
    assert line == "book/x.md, before its first cell: KeyError"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/mine/rows.jsonl, '/data/mine'", "rows.jsonl, '.'"),
        ("/srv/me/book/book and /srv/me/models/x", "book and ~/models/x"),
        ("/srv/me", "~"),
        ("/data/mine2/x /srv/data/mine/x http://h/data/mine/x", None),
        ("a\u202eb\x1b[1m\tc\n", "a\\u202eb\\x1b[1m\tc\n"),
    ],
)
def test_outputs_show_no_folder_of_the_machine_and_nothing_unseen(text, shown):
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    data = {"text/plain": text, "text/html": text, "application/x+json": text, "image/png": text}
    outputs = [new_output("stream", text=text), new_output("display_data", data)]
    value = {"expression": "x", "result": {"data": {"text/plain": text}}}
    cells = [new_code_cell(outputs=outputs), new_markdown_cell()]
    cells[1].metadata["user_expressions"] = [value]
    places = {Path("/srv/me"): "~", Path("/srv/me/book"): "", Path("/data/mine"): ""}
    page_runs.show(new_notebook(cells=cells), places)
    shown = text if shown is None else shown
    assert outputs[0].text == value["result"]["data"]["text/plain"] == shown
    assert outputs[1].data == dict.fromkeys(data, shown) | {"image/png": text}


@pytest.mark.weekly
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe with a name holds the first build")
def test_of_two_builds_at_once_the_second_waits_and_executes_nothing(book):
    os.mkfifo(book.root / "go")
    for name, number in (("01-sums", "01"), ("02-lazy", "02")):
        book.edit(f"book/{name}.md", f'print("{number}",', f'print("new {number}",')
    book.edit("book/01-sums.md", "add(20, 2) * 1000", 'open("../go").read()')
    first = book.start()
    wait_for(first, "book/01-sums.md: executing")  # the page is under way
    second = book.start()
    try:
        told = f"Another build works in this folder: process {first.pid}. Waiting for its end."
        assert "executing" not in wait_for(second, told)
        (book.root / "go").write_text("on")
        first_output = first.communicate(timeout=600)[0]
        output = second.communicate(timeout=600)[0]
    finally:
        first.kill()
        second.kill()
    assert (first.returncode, second.returncode) == (0, 0), first_output + output
    assert "executing" not in output
    assert "book/02-lazy.md: executing" in first_output
    assert book.report()["book/01-sums.md"]["cached"] is True
    assert "'on'" in book.html("01-sums")
