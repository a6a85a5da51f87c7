"""The built site: what its pages promise is there, whole, legible and true.

One cold build serves all tests (see ``built.py``). What a page claims, it claims itself, with its
threshold; that no claim failed is asserted here.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from book.built import Page
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


def is_shown(cell: Any, output: Any) -> bool:
    """Whether readers get an output, which what is glued need not be."""
    scrapbook = output.get("metadata", {}).get("scrapbook", {})
    return not tags(cell) & {"remove-cell", "remove-output"} and not scrapbook.get("mime_prefix")


# --- The build -----------------------------------------------------------------------------------


def test_the_table_of_contents_has_every_page_once(site):
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert toc["root"] == "book/index"
    assert sorted([toc["root"], *files]) == sorted(f"book/{page}" for page in PAGES)
    assert [file for file in files if re.match(r"book/\d", file)] == [f"book/{c}" for c in CHAPTERS]
    assert (site.html / "index.html").is_file()


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


def test_a_cold_build_executes_every_page_with_code_and_warns_of_nothing(site):
    if site.cold is None:
        pytest.skip("SFT_SITE names a site that was built before")
    assert re.findall(r"^.*\b(?:WARNING|ERROR): .*$", site.cold.output, re.MULTILINE) == []
    with_code = {name for name in PAGES if site.page(name).executes}
    assert site.cold.executions.keys() == with_code >= set(CHAPTERS)
    for name, run in site.cold.executions.items():
        assert run["cached"] is False, name
        assert f"book/{name}.md: executing" in site.cold.output
        assert f"book/{name}.md: {run['seconds']:.1f} s" in site.cold.output
    # Nothing half-written is left.
    runs = sorted({path.name for path in (site.root / ".runs").iterdir()} - {".locks"})
    assert (
        runs and [name for name in runs if not re.fullmatch(r"[0-9a-f]{64}(\.json)?", name)] == []
    )


def test_no_page_needs_much_memory(site):
    peaks = {name: run["peak_mb"] for name, run in site.executions().items()}
    assert peaks
    assert {name: peak for name, peak in peaks.items() if peak and peak > MEMORY_MB} == {}


# --- Every page ----------------------------------------------------------------------------------


@each_page
def test_readers_see_every_output(page):
    """What a cell shows is on the page: nothing blank, no table without rows."""
    assert [cell.execution_count for cell in page.cells] == list(range(1, len(page.cells) + 1))
    speaking = [c for c in page.cells if any(is_shown(c, output) for output in c.outputs)]
    shown = page.article.select("div.cell div.cell_output")
    assert len(shown) == len(speaking)
    for output in shown:
        text = output.get_text().strip()
        assert text not in ("", "None", "[]", "{}") or output.find(["svg", "img"])
        assert "Empty DataFrame" not in text
        assert all(table.select("tbody tr td") for table in output("table"))


#: What may end a cell and has no value.
SILENT = {"quiet", "silence", "glue", "set_option"}


@each_page
def test_a_cell_that_ends_with_a_value_shows_it(page):
    def ends_with_a_value(code: str) -> bool:
        last = ast.parse(code).body[-1]
        called = getattr(getattr(last, "value", None), "func", None)
        name = getattr(called, "id", getattr(called, "attr", ""))
        return isinstance(last, ast.Expr) and name not in SILENT

    assert [
        cell.source
        for cell in page.cells
        if not tags(cell) & {"remove-cell", "remove-output"}
        and not cell.outputs
        and ends_with_a_value(cell.source)
    ] == []


COMPLAINTS = re.compile(
    r"Traceback \(most recent call last\)|Warning"
    r"|\r(?!\n)|%\||\bit/s\b|\bs/it\b|\x1b\[|[█▏▎▍▌▋▊▉]{2}"  # a progress bar
)


@each_page
def test_no_cell_fails_or_complains(page):
    outputs = [output for cell in page.cells for output in cell.outputs]
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    texts = [output.text for output in outputs if output.output_type == "stream"]
    texts += [shown.get_text() for shown in page.article.select("div.cell_output")]
    assert [found[0] for text in texts if (found := COMPLAINTS.search(text))] == []


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
    links = [a["href"] for a in page.article.find_all("a", href=True)]
    sources = [link for link in links if re.search(r"\.(md|ipynb)(#|$)", link)]
    assert [link for link in sources if "://" not in link] == []


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


def test_a_warm_build_executes_nothing_and_its_notebooks_keep_their_outputs(site, again):
    assert again.code == 0, again.output[-6000:]
    assert again.executions.keys() == site.cold.executions.keys()
    assert [name for name, run in again.executions.items() if not run["cached"]] == []
    assert ": executing" not in again.output
    for name, run in again.executions.items():  # it tells of the execution that filled the cache
        assert run["seconds"] == pytest.approx(site.cold.executions[name]["seconds"])
        warm = Page(site, name)
        assert downloaded_outputs(warm) == [cell.outputs for cell in warm.cells]
        assert [cell.outputs for cell in site.page(name).cells] == downloaded_outputs(warm)


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


#: What pages find and none of their claims states: the quoted value, as a pattern.
FOUND = [
    ("01-setup", "setup_greedy", "the same"),
    ("01-setup", "setup_same_seed", "the same"),
    ("01-setup", "setup_other_seed", "other"),
    ("01-setup", "setup_base_ending", "was cut at the limit"),
    ("01-setup", "setup_reference_ending", "stopped by itself"),
    ("02-helpers", "helpers_prefix", "holds"),
    ("02-helpers", "helpers_end_learned", "is"),
    ("02-helpers", "helpers_left_same", r"(\d+) of \1"),
    ("02-helpers", "helpers_right_same", r"(?!(\d+) of \1$).+"),
    ("02-helpers", "helpers_ran_past", r"[1-9].*"),
    ("05-data", "data_over", "0"),
    ("07-training", "train_stopped_before", r"0 of \d+"),
    ("07-training", "train_stopped_after", r"(\d+) of \1"),
]


@pytest.mark.parametrize(("page", "key", "pattern"), FOUND, indirect=["page"])
def test_a_page_finds_what_it_says(page, key, pattern):
    assert re.fullmatch(pattern, page.glued[key])


def test_pages_agree_and_numbers_are_ordered(site, ledger):
    found = {e["name"]: e.get("value") for e in (*ledger["results"], *ledger["timings"])}
    assert found["config_rows"] == found["train_rows"]
    assert found["config_updates"] == found["train_updates"]
    assert found["data_headline_n"] == found["base_n"] == found["small_headline_n"] >= 300
    assert found["data_checks"] >= 5
    assert found["base_cloze_macro"] > found["base_cloze_common"] + 0.3
    assert found["config_moved_bf16"] < found["config_moved_fp32"] - 0.2
    assert found["config_act_checkpointed"] < found["config_act_first"]
    assert found["small_after_right"] >= found["small_after_exact"]


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
    "reference-answers": "exact", "reference-stops": "stops", "reference-keeps-facts": "facts",
    "training-brings-answers": "exact", "sft-answers": "exact", "sft-stops": "stops",
    "sft-beats-prompting": "right", "sft-needs-truth": "exact", "sft-beats-guessing": "exact",
    "sft-forgets": "facts", "cost-forgets-facts": "facts",
}  # fmt: skip


def test_a_threshold_is_four_standard_deviations_away(ledger):
    """Between the seeds of chapter 09, in this very build."""
    results = {entry["name"]: entry for entry in ledger["results"]}
    claims = {claim["claim"]: claim for claim in ledger["claims"]}
    for name, quantity in VARIES_WITH.items():
        sd = results[f"rep_{quantity}_sd"]["value"] / 100
        assert claims[name]["margin"] >= 4 * sd, (name, claims[name]["margin"], sd)


def test_runs_are_counted_by_whether_they_are_live(site, ledger):
    runs = {kind: set(found) for kind, found in ledger["runs"].items()}
    assert (
        len(runs["live"]) > 10
        and len(runs["recorded"]) == 4
        and not runs["live"] & runs["recorded"]
    )
    told = f"{len(runs['live'])} were made while this site was built, and 4 are recorded"
    assert told in site.page("index").text and told in site.page("results").text
    readme = (ROOT / "README.md").read_text("utf8")
    assert f"{len(runs['live'])} are made at each build and 4 are recorded" in " ".join(
        readme.split()
    )


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
