"""The built site: what its pages promise is there, whole, legible and true.

One cold build serves all tests (see ``built.py``). What a page claims, it claims itself, with its
threshold; that no claim failed is asserted here.
"""

from __future__ import annotations

import json
import re
import sys
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

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))

from profile_pages import resolve_only  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGES = [path.stem for path in own_files("book/*.md")]
WALKTHROUGH = (
    "01-setup", "02-helpers", "03-baseline", "04-sft-reference",
    "05-data", "06-config", "07-training", "08-evaluation",
)  # fmt: skip
MEASURED = (
    "09-base-knows", "10-scores", "11-controls", "12-replication", "13-cost",
    "14-at-135-million", "15-one-update", "25-machines", "26-ask",
)  # fmt: skip
CHAPTERS = WALKTHROUGH + MEASURED
MEMORY_MB = 1200
LINES = 400  # of a page of the walk-through, before its exercises

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
    runs = {path.name for path in (site.root / ".runs").iterdir()} - {".locks"}
    assert runs and all(re.fullmatch(r"[0-9a-f]{64}(\.json)?", name) for name in runs)


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


COMPLAINTS = re.compile(
    r"Traceback \(most recent call last\)|Warning"
    r"|\r(?!\n)|%\||\bit/s\b|\bs/it\b|\x1b\[|[█▏▎▍▌▋▊▉]{2}"  # a progress bar
)


@each_page
def test_no_cell_fails_or_complains_and_no_role_is_left_unread(page):
    outputs = [output for cell in page.cells for output in cell.outputs]
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    texts = [output.text for output in outputs if output.output_type == "stream"]
    texts += [shown.get_text() for shown in page.article.select("div.cell_output")]
    assert [found[0] for text in texts if (found := COMPLAINTS.search(text))] == []
    codes = [code.get_text() for code in page.article("code")]
    assert [code for code in codes if re.match(r"\{[a-z:]+\}", code)] == [], "a role in backticks"
    assert not page.soup.select(".problematic, .system-message, .system_message, .error-text")


GLUE = re.compile(r"\{glue:text\}`(?:([^`:]+)\.md::)?([^`:]+)(?::([^`:]*))?`")


@each_page
def test_every_quoted_value_is_there(site, page):
    """Each role became a value, and the value is the one that its page has glued now."""
    source = resolve_only(page.source, "atlas")
    quoted = GLUE.findall(source)
    shown = page.article.select("span.pasted-text")
    inline = [node.get_text() for node in shown if "inline-expression" in node["class"]]
    assert len(inline) == len(re.findall(r"\{eval\}`", source)) and all(map(str.strip, inline))
    pasted = [node.get_text() for node in shown if "inline-expression" not in node["class"]]
    assert len(pasted) == len(quoted)
    for (other, key, form), text in zip(quoted, pasted, strict=True):
        glued = site.page(other or page.name).glued
        assert key in glued, f"{other or page.name} glues no {key}"
        assert text.strip() and text.strip().lower() not in ("nan", "none", "–"), (key, text)
        if form in ("", "s"):
            plain = text.replace("’", "'")  # as a page sets an apostrophe
            assert " ".join(plain.split()) == " ".join(glued[key].split()), key


# --- Links ---------------------------------------------------------------------------------------


@cache
def anchors(path):
    soup = BeautifulSoup(path.read_text("utf8"), "html.parser")
    return {tag.get("id") or tag.get("name") for tag in soup.select("[id], a[name]")}


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


# --- What can be downloaded ----------------------------------------------------------------------


def downloaded_outputs(page: Any) -> list[Any]:
    """Of the page's cells; the first of a notebook installs the package."""
    cells = page.notebook("html", "_sources").cells
    return [cell.outputs for cell in cells if cell.cell_type == "code"][1:]


@each_chapter
def test_the_sidebar_names_a_chapter_and_its_notebook_to_download_holds_the_outputs(page):
    [current] = page.soup.select("nav.bd-links a.current")
    title = page.article.find("h1").find(string=True)
    assert " ".join(current.get_text().split()) == f"{page.name[:2]} {title}"
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


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_its_parts(name):
    source = (ROOT / "book" / f"{name}.md").read_text("utf8")
    places = [
        re.search(pattern, source, re.MULTILINE)
        for pattern in (
            r"^# ",
            r"^In this chapter we$",
            r"^\*\*Prerequisites:?\*\*",
            r"^```\{code-cell\}",
            r"At 0\.6B and above",
            r"published at 0\.1 B or more",
            r"^## Summary",
            r"^## Exercises",
            r"^## What.s next",
        )
    ]
    if name == "26-ask":  # it shows how the live page works, and has no experiment
        del places[4:6]
    elif name in WALKTHROUGH:  # an experiment is what the measured part has
        del places[5]
    assert None not in places, places
    starts = [match.start() for match in places if match]
    assert starts == sorted(starts)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_begins_quietly_and_its_cells_are_one_idea_each(name):
    """Twelve lines are the aim; a list of named arguments may need some more, a program more."""
    first, *cells = source_cells(name)
    of_its_own = {"14-at-135-million": "smollm2"}.get(name, "atlas")
    asked = "load_profile()" if name in WALKTHROUGH else f'load_profile("{of_its_own}")'
    assert "quiet()" in first.source and asked in first.source
    programs = 0
    for cell in cells:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        unshown = tags(cell) & {"hide-cell", "hide-input", "remove-cell", "remove-input"}
        programs += not unshown and len(lines) > 20
    assert programs <= (name in ("01-setup", "25-machines"))


@pytest.mark.parametrize("name", WALKTHROUGH)
def test_the_walk_through_knows_nothing_of_the_atlas(name):
    """It runs with any profile: what is about the Atlas stands in the text, in a block for it."""
    code = "\n".join(cell.source for cell in source_cells(name))
    assert "sft_utils.atlas" not in code
    assert not re.search(r"\bif [^\n]*\b(?:profile\.name|atlas)\b", code)
    source = (ROOT / "book" / f"{name}.md").read_text("utf8")
    assert len(source.partition("## Exercises")[0].splitlines()) <= LINES, "make it shorter"


def test_only_what_another_page_quotes_is_glued():
    """Beside what the build itself reads: which models were loaded, and where theirs are."""
    glued, quoted = {"setup_loaded", "ask_pack"}, {"setup_loaded", "ask_pack"}
    for name in PAGES:
        source = (ROOT / "book" / f"{name}.md").read_text("utf8")
        glued |= {f"{name}.{key}" for key in re.findall(r"\bglue\(\s*\"(\w+)\"", source)
                  if key not in glued}  # fmt: skip
        quoted |= {
            f"{other}.{key.removesuffix('_ci')}"
            for other, key in re.findall(r"\{glue:text\}`([\w-]+)\.md::(\w+)", source)
        }
        quoted |= {f"{other}.{key}" for key, other in re.findall(
            r"\{glue:\} (\w+)\n:doc: ([\w-]+)\.md", source)}  # fmt: skip
        assert "{glue:text}`" not in re.sub(r"\{glue:text\}`[\w-]+\.md::", "", source), name
    assert glued == quoted and len(glued) <= 40


# --- What the pages say --------------------------------------------------------------------------


#: What pages find and none of their claims states: by page and expression, whether it is so.
FOUND = {
    ("01-setup", "before.num_tokens"): lambda n: (
        n == load_profile("atlas").generation.max_new_tokens
    ),
    ("01-setup", "after.num_tokens"): lambda n: n < load_profile("atlas").generation.max_new_tokens,
    ("02-helpers", "run_on.count(end_of_turn_id(tokenizer))"): lambda n: n >= 1,
    ("05-data", "int((tokens_per_row > (limit or longest)).sum()):,"): lambda n: n == 0,
    ("10-scores", "len(checks)"): lambda n: n >= 5,
}


def test_pages_find_and_print_what_they_say(site, ledger):
    values = {(Path(e["page"]).stem, e["name"]): e.get("value") for e in ledger["results"]}
    assert [asked for asked, holds in FOUND.items() if not holds(values[asked])] == []
    # The cells that show what is the same: the prompt begins the row; the seed repeats a sample.
    for name, shown, expected in (
        ("02-helpers", '{"the prompt begins the row": begins}', ["True", "True"]),
        ("01-setup", '{"same answers": repeats}', ["True", "True", "False"]),
    ):
        [cell] = [cell for cell in site.page(name).cells if shown in cell.source]
        assert re.findall(r"True|False", cell.outputs[0].data["text/plain"]) == expected, name
    # The row of chapter 02 teaches the token that ends a turn.
    assert "<|im_end|>" in learned(site.page("02-helpers"))
    texts = [question.text for question in load_profile("atlas").questions]
    for name in ("01-setup", "03-baseline", "04-sft-reference", "07-training", "08-evaluation"):
        assert [text for text in texts if text not in site.page(name).text] == [], name


def learned(page):
    """The text that carries loss in the token view of a page."""
    return "".join(token.get_text() for token in page.article.select(".sft-loss span.loss i"))


def test_pages_agree_and_numbers_are_ordered(site, ledger):
    assert re.fullmatch(r"0 of \d+", site.page("07-training").glued["train_stopped_before"])
    assert re.fullmatch(r"(\d+) of \1", site.page("07-training").glued["train_stopped_after"])
    found = {e["name"]: e.get("value") for e in (*ledger["results"], *ledger["timings"])}
    at = {(e["page"][5:7], e["name"]): e.get("value") for e in ledger["results"]}
    assert at["06", 'choices["updates"][1]'] == at["07", "state.global_step"]
    assert at["09", "len(questions)"] == at["10", 'len(splits["headline-test"])']
    assert at["09", "len(questions)"] == found["small_headline_n"] >= 300
    assert at["09", 'percent(macro["mean"])'] > at["09", 'percent(macro["most_common"])'] + 0.3
    few, many = (at["15", f'megabytes.loc["activations"].iloc[{n}]:.1f'] for n in (-1, 0))
    assert few < many
    assert found["small_after_right"] >= found["small_after_exact"]
    assert found["base_fewshot_right"] > found["base_chat_right"]


def test_the_front_page_shows_before_and_after(site):
    """A table and a figure, with values of the measured part."""
    page = site.page("index")
    quoted = {other for other, _, _ in GLUE.findall(page.source)}
    assert quoted >= {"09-base-knows", "10-scores", "11-controls", "13-cost"}
    assert page.article.find("table") and page.article.find(["svg", "img"])


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


def test_every_number_of_the_prose_is_in_the_ledger(site, ledger):
    listed = {(e["page"], e["name"]) for e in (*ledger["results"], *ledger["timings"])}
    for name in CHAPTERS:
        source = resolve_only(site.page(name).source, "atlas")
        asked = {text for _, text in re.findall(r"\{eval\}(`+)(.+?)\1", source)}
        assert {text for text in asked if (f"book/{name}.md", text) not in listed} == set(), name
    assert len(listed) > 250


def test_scores_carry_what_they_need(ledger):
    """A share of answers has n, an interval and a run; a trained model's has its seed."""
    by_name = {entry["name"]: entry for entry in ledger["results"]}
    for name in ("base_cloze_all", "ref_headline_exact", "small_after_exact"):
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
    "cost-forgets-facts": "facts",
}  # fmt: skip


def test_a_threshold_is_four_standard_deviations_away(ledger):
    """Between the seeds of chapter 12, in this very build."""
    results = {entry["name"]: entry for entry in ledger["results"]}
    claims = {claim["claim"]: claim for claim in ledger["claims"]}
    for name, quantity in VARIES_WITH.items():
        sd = results[f"{quantity}_sd"]["value"] / 100
        assert claims[name]["margin"] >= 4 * sd, (name, claims[name]["margin"], sd)


def test_runs_are_counted_by_whether_they_are_live(site, ledger):
    runs = {kind: set(found) for kind, found in ledger["runs"].items()}
    assert len(runs["live"]) > 10 and len(runs["recorded"]) == 18
    assert not runs["live"] & runs["recorded"]
    told = f"{len(runs['live'])} were made while this site was built, and 18 are recorded"
    assert told in site.page("index").text and told in site.page("results").text
    readme = " ".join((ROOT / "README.md").read_text("utf8").split())
    assert f"{len(runs['live'])} are made at each build and 18 are recorded" in readme


@pytest.mark.parametrize("name", ["results", "claims"])
def test_the_lists_link_to_places_that_exist(site, ledger, name):
    page = site.page(name)
    rows = page.article.select("table tbody tr")
    wanted = ledger["claims"] if name == "claims" else [
        e for e in (*ledger["results"], *ledger["timings"]) if "value" in e
    ]  # fmt: skip
    assert len(rows) == len(wanted)
