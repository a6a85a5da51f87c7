"""The built site: what its pages promise is there, whole, legible and true.

One cold build serves all tests (see ``conftest.py``). What a page claims is asserted here with its
direction and a margin, on the values that its prose quotes: see `CLAIMS`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import own_files
from myst_nb.core.read import read_myst_markdown_notebook

from sft_utils.profiles import load_profile

ROOT = Path(__file__).parents[2]
PAGES = [path.stem for path in own_files("book/*.md")]
CHAPTERS = (
    "01-setup", "02-helpers", "03-baseline", "04-sft-reference",
    "05-data", "06-config", "07-training", "08-evaluation",
    "09-replication", "10-cost", "11-machines", "12-ask",
)  # fmt: skip
TRAINING = CHAPTERS[5:]
MEMORY_MB = 1200

each_page = pytest.mark.parametrize("page", PAGES, indirect=True)
each_chapter = pytest.mark.parametrize("page", CHAPTERS, indirect=True)


# --- Reading cells -------------------------------------------------------------------------------


def source_cells(name: str) -> list[Any]:
    """The code cells of a page's source."""
    path = ROOT / "book" / f"{name}.md"
    notebook = read_myst_markdown_notebook(path.read_text("utf8"), path=path)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def is_visible(output: Any) -> bool:
    """Whether an output shows something: text, an image, or a table that has rows."""
    if output.output_type == "stream":
        return bool(output.text.strip())
    if output.output_type == "error":
        return True
    scrapbook = output.metadata.get("scrapbook")
    if scrapbook and scrapbook["mime_prefix"]:  # glued and not displayed
        return False
    if "text/html" in output.data:
        soup = BeautifulSoup(output.data["text/html"], "html.parser")
        tables = soup.find_all("table")
        if tables:
            return any(table.select("tbody tr td") for table in tables)
        return bool(soup.get_text().strip() or soup.find(["svg", "img", "canvas", "video"]))
    plain = output.data.get("text/plain", "").strip()
    image = any(mime.startswith("image/") for mime in output.data)
    return (
        image
        or bool(plain)
        and plain not in ("None", "[]", "{}")
        and "Empty DataFrame" not in plain
    )


def output_text(output: Any) -> str:
    """The text of an output, as people read it."""
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join(output.traceback)
    if "text/html" in output.data:
        soup = BeautifulSoup(output.data["text/html"], "html.parser")
        for hidden in soup(["style", "script"]):
            hidden.decompose()
        return soup.get_text()
    return output.data.get("text/markdown", output.data.get("text/plain", ""))


# --- Which cells must show something: a rule, not a list -----------------------------------------

PRINTING = {"print", "display", "pp", "pprint"}
CHANGING = {"append", "extend", "insert", "update", "add", "remove", "clear", "sort", "reverse"}
NO_VALUE = CHANGING | {"set_option"}


def functions(code: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(code) if isinstance(node, ast.FunctionDef)]


def calls(node: ast.AST) -> set[str]:
    """The names of the functions that are called in a piece of code, functions inside it aside."""
    found, todo = set(), [node]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Call):
            found.add(called(node))
        todo += [
            child
            for child in ast.iter_child_nodes(node)
            if not isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda)
        ]
    return found


def called(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def prints(function: ast.FunctionDef, printing: set[str]) -> bool:
    """Whether calling it prints, whatever it is given."""
    for statement in function.body:
        if isinstance(statement, ast.If | ast.Try):
            if any(isinstance(node, ast.Return) for node in ast.walk(statement)):
                return False  # it may end here
        elif calls(statement) & printing:
            return True
    return False


def returns_nothing(function: ast.FunctionDef) -> bool:
    if function.returns is not None:
        return isinstance(function.returns, ast.Constant) and function.returns.value is None
    return not any(
        isinstance(node, ast.Return | ast.Yield) and node.value for node in ast.walk(function)
    )


@cache
def package_functions() -> tuple[frozenset[str], frozenset[str]]:
    """Functions of the package that print, and those that return nothing."""
    found = [
        function
        for path in own_files("sft_utils/**/*.py")
        for function in functions(ast.parse(path.read_text("utf8")))
    ]
    printing = {f.name for f in found if prints(f, {"print"})}
    silent = {f.name for f in found if returns_nothing(f)}
    return frozenset(printing), frozenset(
        silent - {f.name for f in found if not returns_nothing(f)}
    )


class Speakers:
    """Which cells of a page must show something, as far as reading the code tells.

    A cell must if it prints or displays, in whatever function of the page or of the package, or
    if it ends with an expression that has a value. What only imports, assigns, defines or glues
    need not. An ``if`` is taken to hold, unless it is an ``if not``: pages guard with it what
    another profile may not have.
    """

    def __init__(self, sources: list[str]) -> None:
        own = [function for source in sources for function in functions(ast.parse(source))]
        printing, silent = package_functions()
        self.printing = PRINTING | printing
        self.silent = set(NO_VALUE | silent)
        for _ in own:
            self.printing |= {f.name for f in own if prints(f, self.printing)}
        for function in own:
            (self.silent.add if returns_nothing(function) else self.silent.discard)(function.name)

    def must(self, source: str) -> bool:
        body = ast.parse(source).body
        if any(self.speaks(statement) for statement in body):
            return True
        if not body or not isinstance(body[-1], ast.Expr) or source.rstrip().endswith(";"):
            return False
        value = body[-1].value
        return not (isinstance(value, ast.Call) and called(value) in self.silent)

    def speaks(self, node: ast.stmt) -> bool:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return False
        if isinstance(node, ast.If):
            refused = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
            return any(map(self.speaks, node.orelse if refused else node.body))
        if isinstance(node, ast.Try):
            inside = node.body + [part for handler in node.handlers for part in handler.body]
            return any(map(self.speaks, inside))
        if isinstance(node, ast.For | ast.While | ast.With):
            return any(map(self.speaks, node.body))
        shown = any(
            called(call) == "glue"
            and any(k.arg == "display" and getattr(k.value, "value", 0) for k in call.keywords)
            for call in ast.walk(node)
            if isinstance(call, ast.Call)
        )
        return shown or bool(calls(node) & self.printing)


@pytest.mark.parametrize(
    ("cell", "must"),
    [
        ("x = 1", False),
        ("import json\nfrom a import b", False),
        ("def f():\n    print(1)", False),
        ("x = 1\nx", True),
        ("x = 1\nx;", False),
        ("x.head()", True),
        ("print(1)", True),
        ("for i in (1, 2):\n    print(i)", True),
        ("if atlas_only(profile):\n    display(x)", True),
        ("if not atlas:\n    print('none')", False),
        ("if not atlas:\n    print('none')\nelse:\n    display(x)", True),
        ("try:\n    f()\nexcept ValueError as error:\n    print(error)", True),
        ("glue('a', 1)", False),
        ("glue('a', 1, display=True)", True),
        ("quiet()", False),
        ("rows.append(1)", False),
        ("torch.manual_seed(0)", True),
        ("before = test_model_with_questions(model, tokenizer, questions)", True),
        ("display_dataset(rows)", True),
        ("show(1)", True),
        ("x = show(1)", True),
        ("note(1)", False),
    ],
)
def test_the_rule_says_which_cells_must_show_something(cell, must):
    page = "def show(x):\n    print(x)\n\ndef note(x):\n    x.y = 1"
    assert Speakers([page]).must(cell) is must


# --- The build -----------------------------------------------------------------------------------


def toc_files() -> list[str]:
    """The pages of ``_toc.yml`` in its order, the first one first."""

    def walk(node: Any):
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield value
                elif isinstance(value, list):
                    yield from walk(value)
        elif isinstance(node, list):
            for item in node:
                yield from walk(item)

    return list(walk(yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))))


def test_the_table_of_contents_has_every_page_once():
    files = toc_files()
    assert files[0] == "book/index"
    assert sorted(files) == sorted(f"book/{page}" for page in PAGES)
    assert [file for file in files if re.match(r"book/\d", file)] == [f"book/{c}" for c in CHAPTERS]


@each_chapter
def test_the_sidebar_names_a_chapter_by_number_and_title(page):
    """The text says "chapter 07", and this is where readers look for it."""
    [current] = page.soup.select("nav.bd-links a.current")
    title = page.article.find("h1").find(string=True)
    assert " ".join(current.get_text().split()) == f"{page.name[:2]} {title}"


def test_the_build_succeeds(site):
    if site.cold is None:
        assert site.executions(), "the build of SFT_SITE did not come to its end"
        return
    assert site.cold.code == 0, site.cold.output[-6000:]


def test_the_build_has_no_warnings(site):
    if site.cold is None:
        pytest.skip("SFT_SITE names a site that was built before")
    warnings = re.findall(r"^.*\b(?:WARNING|ERROR): .*$", site.cold.output, re.MULTILINE)
    assert warnings == []


def test_a_cold_build_executes_every_page_with_code_and_tells_how_long(site):
    if site.cold is None:
        pytest.skip("SFT_SITE names a site that was built before")
    with_code = {name for name in PAGES if site.page(name).executes}
    assert with_code >= set(CHAPTERS)
    assert site.cold.executions.keys() == with_code
    for name, run in site.cold.executions.items():
        assert run["cached"] is False, name
        assert f"book/{name}.md: executing" in site.cold.output
        assert f"book/{name}.md: {run['seconds']:.1f} s" in site.cold.output


def test_no_page_needs_much_memory(site):
    peaks = {name: run["peak_mb"] for name, run in site.executions().items()}
    assert peaks
    assert {name: peak for name, peak in peaks.items() if peak and peak > MEMORY_MB} == {}


def test_a_build_leaves_nothing_half_written(site):
    if site.cold is None:
        pytest.skip("SFT_SITE names a site that was built before")
    runs = sorted({path.name for path in (site.root / ".runs").iterdir()} - {".locks"})
    assert runs and [name for name in runs if not re.fullmatch(r"[0-9a-f]{64}", name)] == []


# --- Every page ----------------------------------------------------------------------------------


def test_every_page_of_the_table_of_contents_is_there(site):
    missing = [file for file in toc_files() if not (site.html / f"{file}.html").is_file()]
    assert missing == []
    assert (site.html / "index.html").is_file()


@each_page
def test_every_cell_that_speaks_shows_something(page):
    speakers = Speakers([cell.source for cell in page.cells])
    silent = [
        f"cell {number}: {cell.source}"
        for number, cell in enumerate(page.cells, 1)
        if speakers.must(cell.source)
        and not tags(cell) & {"remove-cell", "remove-output"}
        and not any(is_visible(output) for output in cell.outputs)
    ]
    assert silent == []
    assert [cell.execution_count for cell in page.cells] == list(range(1, len(page.cells) + 1))


@each_page
def test_no_output_is_empty(page):
    """What a cell shows, it shows: no table without rows, no blank line for an answer."""
    empty = [
        f"cell {number}: {cell.source}"
        for number, cell in enumerate(page.cells, 1)
        for output in cell.outputs
        if not is_visible(output) and "scrapbook" not in output.get("metadata", {})
    ]
    assert empty == []


@each_page
def test_readers_see_every_output(page):
    expected = sum(
        any(is_visible(output) for output in cell.outputs)
        for cell in page.cells
        if not tags(cell) & {"remove-cell", "remove-output"}
    )
    shown = page.article.select("div.cell div.cell_output")
    assert len(shown) == expected
    blank = [s for s in shown if not s.get_text().strip() and not s.find(["svg", "img"])]
    assert blank == []


@each_page
def test_no_cell_fails_or_complains(page):
    for number, cell in enumerate(page.cells, 1):
        for output in cell.outputs:
            where = f"{page.name}, cell {number}"
            assert output.output_type != "error", where
            assert output.get("name") != "stderr", f"{where}: {output.text[:500]}"
            text = output_text(output)
            assert "Traceback (most recent call last)" not in text, where
            assert "Warning" not in text, f"{where}: {text[:500]}"


DEBRIS = re.compile(r"\r(?!\n)|%\||\bit/s\b|\bs/it\b|\x1b\[|[█▏▎▍▌▋▊▉]{2}")


@each_page
def test_no_progress_bars(page):
    for number, cell in enumerate(page.cells, 1):
        for output in cell.outputs:
            found = DEBRIS.search(output_text(output))
            assert not found, f"{page.name}, cell {number}: {found and found[0]!r}"
    for shown in page.article.select("div.cell_output"):
        found = DEBRIS.search(shown.get_text())
        assert not found, found and found[0]


@each_page
def test_the_page_has_no_marks_of_something_unresolved(page):
    prose = BeautifulSoup(str(page.article), "html.parser")
    for other in prose(["script", "style", "pre", "code"]):
        other.decompose()
    text = prose.get_text(" ")
    raw = [
        code.get_text()
        for code in page.article("code")
        if re.match(r"\{[a-z:]+\}", code.get_text())
    ]
    assert raw == [], "a role inside backticks is shown as it is written"
    assert not re.search(r"\{[a-z:]+\}`", text), "a role that was not read"
    assert not re.search(r"[Uu]nresolved|unknown document|undefined label|\[\?\]|\?\?\?", text)
    marks = page.soup.select(".problematic, .system-message, .system_message, .error-text")
    assert [mark.get_text() for mark in marks] == []


GLUE = re.compile(r"\{glue:text\}`(?:([^`:]+)\.md::)?([^`:]+)(?::([^`:]*))?`")


@each_page
def test_every_quoted_value_is_there(site, page):
    """Each role became a value, and the value is the one that its page has glued now."""
    other_profiles = r"^(`{3,})\{only\} not atlas\n.*?^\1$"
    source = re.sub(other_profiles, "", page.source, flags=re.DOTALL | re.MULTILINE)
    quoted = GLUE.findall(source)
    pasted = [node.get_text() for node in page.article.select("span.pasted-text")]
    assert len(pasted) == len(quoted)
    for (other, key, form), text in zip(quoted, pasted, strict=True):
        glued = site.page(other or page.name).glued
        assert key in glued, f"{other or page.name} glues no {key}"
        assert text.strip() and text.strip().lower() not in ("nan", "none", "–"), (key, text)
        if form in ("", "s"):
            plain = text.replace("’", "'")  # as a page sets an apostrophe
            assert " ".join(plain.split()) == " ".join(glued[key].split()), key


@each_page
def test_every_quoted_figure_is_there(site, page):
    for name, options in re.findall(r"```\{glue:\w*\} (\S+)\n(.*?)```", page.source, re.DOTALL):
        other = re.search(r":doc: (\S+)\.md", options)
        assert name in site.page(other[1] if other else page.name).glued
    wanted = len(re.findall(r"```\{glue:\w*\} \S+", page.source))
    shown = page.article.select("figure, img, svg, table.sft-answers, .asked")
    assert len(shown) >= wanted


# --- Links, images -------------------------------------------------------------------------------


@cache
def anchors(path: Path) -> frozenset[str]:
    soup = BeautifulSoup(path.read_text("utf8"), "html.parser")
    return frozenset(
        [tag["id"] for tag in soup.find_all(id=True)]
        + [tag["name"] for tag in soup.find_all("a", attrs={"name": True})]
    )


def broken(page: Any, site: Any) -> list[str]:
    """The page's links to places in the site that are not there."""
    found = []
    for tag, attribute in (("a", "href"), ("link", "href"), ("img", "src"), ("script", "src")):
        for node in page.soup.find_all(tag, attrs={attribute: True}):
            url = urlsplit(node[attribute])
            if url.scheme or url.netloc or node[attribute] in ("#", ""):
                continue
            target = page.path
            if url.path:
                target = (page.path.parent / unquote(url.path)).resolve()
            if target.is_dir():
                target /= "index.html"
            if not target.is_file() or not target.is_relative_to(site.html.resolve()):
                found.append(node[attribute])
            elif url.fragment and target.suffix == ".html":
                if unquote(url.fragment) not in anchors(target):
                    found.append(node[attribute])
    return sorted(set(found))


@each_page
def test_links_within_the_site_lead_somewhere(site, page):
    assert broken(page, site) == []


@each_page
def test_the_prose_links_to_pages_and_not_to_sources(page):
    links = [a["href"] for a in page.article.find_all("a", href=True)]
    assert [
        link for link in links if re.search(r"\.(md|ipynb)(#|$)", link) and "://" not in link
    ] == []


@each_page
def test_images_are_told_in_words(page):
    """Alt text, a label, or for a drawing in a labeled figure the label of the figure."""

    def words(node: Any) -> str:
        for inside in (node, *node.parents):
            for attribute in ("alt", "aria-label"):
                if inside.has_attr(attribute):
                    return inside[attribute]
            if inside.name == "article":
                break
        title = node.find("title")
        return title.get_text() if title else ""

    images = page.article.find_all(["img", "svg", "canvas"])
    hidden = [n for n in images if n.get("aria-hidden") == "true"]
    untold = [str(n)[:200] for n in images if n not in hidden and len(words(n).split()) < 3]
    assert untold == []
    assert all(img.has_attr("alt") for img in page.soup.find_all("img"))


# --- What can be downloaded ----------------------------------------------------------------------


def downloaded_outputs(page: Any) -> list[Any]:
    return [c.outputs for c in page.notebook("html", "_sources").cells if c.cell_type == "code"]


@each_chapter
def test_the_notebook_to_download_holds_its_outputs(page):
    link = page.soup.select_one(f'a[href$="_sources/book/{page.name}.ipynb"]')
    assert link is not None, "the page offers no notebook"
    assert downloaded_outputs(page) == [cell.outputs for cell in page.cells]


def test_a_warm_build_executes_nothing(site, again):
    assert again.code == 0, again.output[-6000:]
    assert again.executions.keys() == site.cold.executions.keys()
    assert [name for name, run in again.executions.items() if not run["cached"]] == []
    assert ": executing" not in again.output
    for name, run in again.executions.items():  # it tells of the execution that filled the cache
        assert run["seconds"] == pytest.approx(site.cold.executions[name]["seconds"])


@each_chapter
def test_after_a_warm_build_the_notebook_holds_its_outputs(page, again):
    assert again.code == 0
    speakers = Speakers([cell.source for cell in page.cells])
    outputs = downloaded_outputs(page)
    assert outputs == [cell.outputs for cell in page.notebook().cells if cell.cell_type == "code"]
    must = [speakers.must(cell.source) for cell in page.cells]
    lost = [
        cell.source
        for cell, needed, shown in zip(page.cells, must, outputs, strict=True)
        if needed and not tags(cell) & {"remove-cell", "remove-output"} and not shown
    ]
    assert lost == []


# --- The sources of the pages --------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_no_page_imports_trl_where_it_does_not_train(name):
    imported = set()
    for cell in source_cells(name):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert name in TRAINING or "trl" not in imported


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_its_parts(name):
    source = (ROOT / "book" / f"{name}.md").read_text("utf8")
    places = [
        re.search(pattern, source, re.MULTILINE)
        for pattern in (
            r"^# ",
            r"\{glue:text\}`",  # the opening: an effect, in figures that a cell found
            r"^In this chapter we$",
            r"^\*\*Prerequisites:?\*\*",
            r"^\*\*Time to run:?\*\*.*\{glue:text\}`",
            r"^```\{code-cell\}",
            r"At 0\.6B and above:",
            r"published at 0\.1 B or more",
            r"^## Summary",
            r"^## Exercises",
            r"^## What.s next",
        )
    ]
    if name == "12-ask":  # it shows how the live page works, and has no experiment
        del places[6:8]
    assert None not in places, places
    starts = [match.start() for match in places if match]
    assert starts == sorted(starts)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_cell_is_one_idea(name):
    """Twelve lines are the aim; a list of named arguments may need some more."""
    long = {
        number: len(lines)
        for number, cell in enumerate(source_cells(name), 1)
        if not tags(cell) & {"hide-cell", "hide-input", "remove-cell", "remove-input"}
        and len(lines := [line for line in cell.source.splitlines() if line.strip()]) > 20
    }
    assert long == {}


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_first_cell_is_quiet_and_takes_the_profile(name):
    first = source_cells(name)[0].source
    always_the_atlas = name == "11-machines"
    asked = 'load_profile("atlas")' if always_the_atlas else "load_profile()"
    assert "quiet()" in first and asked in first


# --- What the pages say --------------------------------------------------------------------------

PROFILE = load_profile("atlas")


ASKING = ("01-setup", "03-baseline", "04-sft-reference", "07-training", "08-evaluation")


@pytest.mark.parametrize("page", ASKING, indirect=True)
def test_every_question_is_printed(page):
    missing = [question.text for question in PROFILE.questions if question.text not in page.text]
    assert missing == []


@pytest.mark.parametrize(
    "page", ["03-baseline", "04-sft-reference", "08-evaluation"], indirect=True
)
def test_all_four_scores_are_told(page):
    text = page.text.lower()
    for score in ("exact", "right value", "value anywhere", "stops"):
        assert score in text, score
    assert "interval" in text
    assert "clustered" in text or "entities, not questions" in text or "whole entities" in text


class Values(dict):
    """What a page glued. Remembers what was asked for, so that a failure can show it."""

    def __init__(self, glued: dict[str, str]) -> None:
        super().__init__(glued)
        self.used: dict[str, str] = {}

    def __getitem__(self, key: str) -> str:
        self.used[key] = super().__getitem__(key)
        return self.used[key]

    def number(self, key: str) -> float:
        """The first number of a value; a percentage as a share."""
        match = re.search(r"[-−]?\d[\d,]*(?:\.\d+)?", self[key])
        assert match, f"{key} is {self[key]!r}: no number"
        number = float(match[0].replace(",", "").replace("−", "-"))
        return number / 100 if "%" in self[key] else number

    def all_of(self, key: str) -> bool:
        """Whether "10 of 10" is all of them."""
        part, _, whole = self[key].partition(" of ")
        return part == whole != "0"


#: The page, what it claims, and how its own values show it.
CLAIMS: list[tuple[str, str, Callable[[Values], bool]]] = [
    ("01-setup", "greedy decoding repeats", lambda v: v["setup_greedy"] == "the same"),
    ("01-setup", "a seed repeats", lambda v: v["setup_same_seed"] == "the same"),
    ("01-setup", "another seed does not", lambda v: v["setup_other_seed"] == "other"),
    ("01-setup", "the base runs on", lambda v: v["setup_base_ending"] == "was cut at the limit"),
    (
        "01-setup",
        "the reference stops",
        lambda v: v["setup_reference_ending"] == "stopped by itself",
    ),
    ("02-helpers", "a prompt begins its row", lambda v: v["helpers_prefix"] == "holds"),
    ("02-helpers", "the end of a turn is learned", lambda v: v["helpers_end_learned"] == "is"),
    (
        "02-helpers",
        "padding on the left changes no answer",
        lambda v: v.all_of("helpers_left_same"),
    ),
    (
        "02-helpers",
        "padding on the right does",
        lambda v: not v.all_of("helpers_right_same"),
    ),
    (
        "02-helpers",
        "with the wrong end token it runs past its end",
        lambda v: v.number("helpers_ran_past") >= 1,
    ),
    ("03-baseline", "n is large enough", lambda v: v.number("base_n") >= 300),
    ("03-baseline", "the base does not answer", lambda v: v.number("base_chat_exact") <= 0.05),
    ("03-baseline", "the base does not stop", lambda v: v.number("base_chat_stops") <= 0.05),
    ("03-baseline", "yet it knows the facts", lambda v: v.number("base_cloze_all") >= 0.95),
    ("03-baseline", "of every relation", lambda v: v.number("base_cloze_macro") >= 0.97),
    (
        "03-baseline",
        "far above the most common answers",
        lambda v: v.number("base_cloze_macro") > v.number("base_cloze_common") + 0.3,
    ),
    ("04-sft-reference", "it answers", lambda v: v.number("ref_headline_exact") >= 0.90),
    ("04-sft-reference", "rightly", lambda v: v.number("ref_headline_right") >= 0.93),
    ("04-sft-reference", "and stops", lambda v: v.number("ref_headline_stops") >= 0.99),
    ("04-sft-reference", "as told", lambda v: v.number("ref_instruction_exact") >= 0.85),
    ("04-sft-reference", "in conversation", lambda v: v.number("ref_followup_exact") >= 0.85),
    ("04-sft-reference", "and has kept the facts", lambda v: v.number("ref_cloze") >= 0.95),
    ("05-data", "no fault is found in the splits", lambda v: v.number("data_faults") == 0),
    ("05-data", "they were looked for", lambda v: v.number("data_checks") >= 5),
    ("05-data", "the headline has questions", lambda v: v.number("data_headline_n") >= 300),
    (
        "05-data",
        "a part of the tokens carries loss",
        lambda v: 0.05 < v.number("data_loss_share") < 0.8,
    ),
    ("05-data", "no row is over the limit", lambda v: v.number("data_over") == 0),
    (
        "06-config",
        "bfloat16 weights stay where they are",
        lambda v: v.number("config_moved_bf16") < v.number("config_moved_fp32") - 0.2,
    ),
    ("06-config", "a peak was measured", lambda v: v.number("config_peak_mb") > 1),
    (
        "06-config",
        "checkpointing saves activations",
        lambda v: v.number("config_act_checkpointed") < v.number("config_act_first"),
    ),
    (
        "07-training",
        "the loss falls",
        lambda v: v.number("train_loss_after") < 0.6 * v.number("train_loss_before"),
    ),
    (
        "07-training",
        "answers get better",
        lambda v: v.number("train_dev_after") > v.number("train_dev_before") + 0.5,
    ),
    ("07-training", "it ran on at first", lambda v: v["train_stopped_before"].startswith("0 of ")),
    ("07-training", "and stops afterwards", lambda v: v.all_of("train_stopped_after")),
    (
        "08-evaluation",
        "fine-tuning brings answers",
        lambda v: v.number("small_after_exact") - v.number("small_before_exact") > 0.5,
    ),
    ("08-evaluation", "most are exact", lambda v: v.number("small_after_exact") >= 0.80),
    (
        "08-evaluation",
        "an exact answer has the right value",
        lambda v: v.number("small_after_right") >= v.number("small_after_exact"),
    ),
    ("08-evaluation", "it stops", lambda v: v.number("small_after_stops") >= 0.98),
    ("08-evaluation", "n is large enough", lambda v: v.number("small_headline_n") >= 300),
]


@pytest.mark.parametrize(
    ("page", "holds"),
    [(page, holds) for page, _, holds in CLAIMS],
    ids=[f"{page[:2]}: {says}" for page, says, _ in CLAIMS],
    indirect=["page"],
)
def test_claim(page, holds):
    values = Values(page.glued)
    assert holds(values), f"{page.name} says otherwise: {values.used}"


#: The same figure on two pages.
SAME = [
    ("06-config", "config_rows", "07-training", "train_rows"),
    ("06-config", "config_updates", "07-training", "train_updates"),
    ("05-data", "data_headline_n", "03-baseline", "base_n"),
    ("05-data", "data_headline_n", "08-evaluation", "small_headline_n"),
]


@pytest.mark.parametrize(("first", "key", "second", "other"), SAME)
def test_pages_agree(site, first, key, second, other):
    values = [
        Values(site.page(name).glued).number(k) for name, k in ((first, key), (second, other))
    ]
    assert values[0] == values[1]


def test_the_front_page_shows_before_and_after(site):
    """A table and a figure, with values of chapters 03, 04 and 08."""
    page = site.page("index")
    quoted = {other for other, _, _ in GLUE.findall(page.source)}
    assert quoted >= {"03-baseline", "04-sft-reference", "08-evaluation"}
    assert page.article.find("table") and page.article.find(["svg", "img"])
    commands = "\n".join(block.get_text() for block in page.article.find_all("pre"))
    assert "make book" in commands and "make test" in commands


def test_the_cards_page_lists_the_executions(site):
    page = site.page("cards")
    assert "{nb-exec-table}" in page.source
    rows = [row.get_text(" ") for row in page.article.select("table tr")]
    for name in CHAPTERS:
        assert any(f"book/{name}" in row for row in rows), name
    for model in ("atlas-base", "atlas-sft", "atlas-small", "atlas-base-1form"):
        assert model in page.text


def test_the_search_index_knows_the_pages(site):
    index = (site.html / "searchindex.js").read_text("utf8")
    names = json.loads(index[index.index("(") + 1 : index.rindex(")")])["docnames"]
    assert set(names) >= {f"book/{page}" for page in PAGES}


# --- The ledger ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ledger(site):
    return json.loads((site.html / "results.json").read_text("utf8"))


def test_every_number_that_pages_glue_is_in_the_ledger(site, ledger):
    listed = {(e["page"], e["name"]) for e in (*ledger["results"], *ledger["timings"])}
    for name in CHAPTERS:
        page = site.page(name)
        quoted = set(re.findall(r"\{glue:text\}`([\w-]+)(?::[^`]*)?`", page.source))
        missing = {
            key
            for key in quoted
            if not key.endswith("_ci") and (f"book/{name}.md", key) not in listed
        }
        assert missing == set(), name
    assert len(listed) > 250


def test_scores_carry_what_they_need(ledger):
    """A share of answers has n, an interval and a run; a trained model's has its seed."""
    by_name = {entry["name"]: entry for entry in ledger["results"]}
    for name in ("base_cloze_all", "ref_headline_exact", "small_after_exact", "small_difference"):
        entry = by_name[name]
        assert entry["n"] >= 300 and entry["entities"] > 50
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert entry["run"], name
    assert by_name["small_after_exact"]["seeds"] == [0]
    assert not by_name["small_after_exact"]["run"].startswith("weights")
    assert by_name["base_cloze_all"]["run"].startswith("weights")


def test_all_claims_hold(ledger):
    assert [claim["claim"] for claim in ledger["claims"] if not claim["holds"]] == []
    assert len(ledger["claims"]) > 30


#: The quantity of the replicates that a claim's measure varies with. Other claims count or compare
#: what no seed changes.
VARIES_WITH = {
    "reference-answers": "exact", "reference-stops": "stops", "reference-keeps-facts": "cloze",
    "training-brings-answers": "exact", "sft-answers": "exact", "sft-stops": "stops",
    "sft-beats-prompting": "right_value", "sft-needs-truth": "exact",
    "sft-beats-guessing": "exact", "sft-forgets": "cloze", "cost-forgets-facts": "cloze",
}  # fmt: skip


def test_a_threshold_is_four_standard_deviations_away(ledger):
    record = json.loads((ROOT / "sft_utils/atlas/replication.json").read_text("utf8"))
    claims = {claim["claim"]: claim for claim in ledger["claims"]}
    for name, quantity in VARIES_WITH.items():
        sd = record["spread"][quantity]["sd"]
        assert claims[name]["margin"] >= 4 * sd, (name, claims[name]["margin"], sd)


@pytest.mark.parametrize("name", ["results", "claims"])
def test_the_lists_link_to_places_that_exist(site, ledger, name):
    page = site.page(name)
    rows = page.article.select("table tbody tr")
    wanted = ledger["claims"] if name == "claims" else [
        e for e in (*ledger["results"], *ledger["timings"]) if "value" in e
    ]  # fmt: skip
    assert len(rows) == len(wanted)
    ids: dict[str, set[str]] = {}
    for row in rows:
        target, _, anchor = row.find("a")["href"].partition("#")
        if target not in ids:
            text = (site.html / "book" / target).read_text("utf8")
            ids[target] = set(re.findall(r'\bid="([^"]+)"', text))
        assert not anchor or anchor in ids[target], (target, anchor)
