"""Results and claims, on a small book of its own: what it collects, writes, lists and refuses."""

from __future__ import annotations

import json
import sys

import jsonschema
import nbformat
import pytest
from book.small_book import EXTENSION, SmallBook
from bs4 import BeautifulSoup

sys.path.insert(0, str(EXTENSION))

import results_and_claims  # noqa: E402

CONF = f"""
import sys

sys.path.append({str(EXTENSION)!r})
extensions = ["myst_nb", "honest_cache", "inline_expressions", "results_and_claims"]
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "basic"
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
"""
HEADER = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n\n"
SCORES = """# Scores

It is right in {glue:text}`right` ({glue:text}`right_ci`), {glue:text}`asked` asked.

## The first part

```{code-cell} ipython3
from sft_utils.claims import claim
from sft_utils.results import Measure, glue

right = Measure(0.75, "%", n=1234, entities=40, low=0.7, high=0.8, seeds=(0, 1), run="abc")
glue("right", right)
glue("asked", Measure(12345))
```

## The second part

```{code-cell} ipython3
from sft_utils.results import note_run

glue("verdict", "agrees")
note_run("def", live=False)
glue("loss", "1.50 nats")
glue("seconds", "12 s")
glue("rows", 7)
claim("it-learns", "It learns <most> of them.", right, at_least=THRESHOLD)
```

- So **six** is {eval}`2 * 3`, and [half of it](lists.md) is {eval}`6 / 2:.0f`.
"""
LISTS = "# Lists\n\n```{results-list}\n```\n\n```{claims-list}\n```\n"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Built with a claim that holds; then again, unchanged; then with one that fails, twice."""
    book = SmallBook(tmp_path_factory.mktemp("ledger"))
    book.write("conf.py", CONF)
    book.write("index.md", "# Book\n\n```{toctree}\nscores\nlists\n```\n")
    book.write("lists.md", LISTS)
    html, runs, files, pages = book.root / "_build" / "html", [], [], []
    for threshold in (0.5, 0.5, 0.9, 0.9):
        book.write("scores.md", HEADER + SCORES.replace("THRESHOLD", str(threshold)))
        runs.append(book.build())
        files.append((html / "results.json").read_text("utf8"))
        pages.append({n: (html / f"{n}.html").read_text("utf8") for n in ("scores", "lists")})
    return runs, files, pages


def test_the_file_holds_every_number_with_what_belongs_to_it(book):
    document = json.loads(book[1][0])
    texts = [entry["text"] for entry in document["results"]]
    assert texts == ["75.0 %", "12,345", "agrees", "1.50 nats", "7", "6", "3"]
    assert document["version"] == 2
    assert document["results"][0] == {
        "name": "right", "text": "75.0 %", "value": 0.75, "unit": "%", "n": 1234, "entities": 40,
        "low": 0.7, "high": 0.8, "seeds": [0, 1], "run": "abc",
        "page": "scores.md", "cell": 1, "section": "The first part", "made": "live",
    }  # fmt: skip
    by_name = {entry["name"]: entry for entry in document["results"]}
    assert (by_name["loss"]["value"], by_name["loss"]["unit"]) == (1.5, "nats")
    assert (by_name["rows"]["value"], by_name["rows"]["section"]) == (7, "The second part")
    half = by_name["6 / 2:.0f"]
    assert (half["value"], half["sentence"]) == (3, "So six is 6, and half of it is 3.")
    assert [entry["name"] for entry in document["timings"]] == ["seconds"]


def test_what_follows_a_recorded_run_on_its_page_is_not_called_live(book):
    document = json.loads(book[1][0])
    assert {entry["name"]: entry["made"] for entry in document["results"]} == {
        "right": "live", "asked": "live", "verdict": "live",
        "loss": "live and recorded", "rows": "live and recorded",
        "2 * 3": "live and recorded", "6 / 2:.0f": "live and recorded",
    }  # fmt: skip
    assert document["claims"][0]["made"] == "live and recorded"
    assert document["runs"] == {"live": [], "recorded": ["def"]}


def test_the_file_follows_its_schema_and_the_schema_can_refuse(book):
    document = json.loads(book[1][0])
    schema = json.loads((EXTENSION / "results.schema.json").read_text("utf8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    for name, value in (("value", "75"), ("cell", -1), ("seeds", [0.5]), ("more", 1)):
        spoiled = json.loads(book[1][0])
        spoiled["results"][0][name] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoiled, schema)
    del document["claims"][0]["measure"]["n"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_a_claim_that_holds_is_shown_and_the_build_succeeds(book):
    runs, files, pages = book
    assert runs[0][0] == runs[1][0] == 0
    assert files[1] == files[0]  # a warm build writes the same file
    page = BeautifulSoup(pages[0]["scores"], "html.parser")
    assert "right in 75.0 % (70.0 to 80.0 %), 12,345 asked." in page.get_text()
    shown = page.find(id="claim-it-learns")
    assert shown.get_text() == (
        "✓ holds It learns <most> of them. 75.0 % (70.0 to 80.0 %); required: at least 50.0 %."
    )
    claim = json.loads(files[0])["claims"][0]
    assert (claim["claim"], claim["holds"], claim["margin"]) == ("it-learns", True, 0.25)


@pytest.mark.parametrize("time", [2, 3])
def test_a_claim_that_fails_fails_the_build_cold_and_warm(book, time):
    runs, files, pages = book
    assert runs[time][0] == 1
    told = "it-learns: “It learns <most> of them.” 75.0 %; required: at least 90 %\n"
    assert f"1 of 1 claims fail:\n  scores.md, cell 2, {told}" in runs[time][1]
    assert json.loads(files[time])["claims"][0]["holds"] is False
    assert "✗ FAILS" in pages[time]["scores"]  # and the site is there, whole


def test_the_lists_are_never_stale_and_link_back(book):
    for time, verdict in ((0, "holds"), (1, "holds"), (2, "FAILS"), (3, "FAILS")):
        results, claims = BeautifulSoup(book[2][time]["lists"], "html.parser").find_all("table")
        rows = {row.code.get_text(): row for row in results.tbody.find_all("tr")}
        assert set(rows) == {"right", "asked", "loss", "rows", "seconds", "2 * 3", "6 / 2:.0f"}
        cells = [cell.get_text() for cell in rows["right"].find_all("td")]
        assert cells[:8] == ["–", "75.0 %", "(70.0 to 80.0)", "1,234", "40", "0, 1", "abc", "live"]
        assert rows["2 * 3"].td.get_text() == "So six is 6, and half of it is 3."
        assert rows["right"].a["href"] == "scores.html#the-first-part"
        assert rows["rows"].a["href"] == "scores.html#the-second-part"
        (row,) = claims.tbody.find_all("tr")
        cells = [cell.get_text() for cell in row.find_all("td")]
        assert cells[0] == "it-learns" and cells[4] == verdict
        assert row.a["href"] == "scores.html#claim-it-learns"


def output(name, data, prefix=""):
    return nbformat.v4.new_output(
        "display_data",
        {prefix + kind: value for kind, value in data.items()},
        metadata={"scrapbook": {"name": name, "mime_prefix": prefix}},
    )


def test_figures_and_tables_are_no_results():
    cell = nbformat.v4.new_code_cell("", execution_count=1, outputs=[
        output("figure", {"text/plain": "Figure", "image/svg+xml": "<svg/>"}, "application/x/"),
        output("count", {"text/plain": "3"}, "application/x/"),
        nbformat.v4.new_output("stream", text="1"),
    ])  # fmt: skip
    found = list(results_and_claims.entries(nbformat.v4.new_notebook(cells=[cell]), "page.md"))
    assert [entry["name"] for entry in found] == ["count"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("'1,234'", (1234, "")), ("'97.5 %'", (0.975, "%")), ("'12 s'", (12, "s")),
     ("'3 of 10'", (None, None)), ("'1.2.3'", (None, None)), ("'v2'", (None, None))],
)  # fmt: skip
def test_a_number_written_as_text_is_a_number_and_other_text_stays_text(text, found):
    entry = results_and_claims._entry("name", {"text/plain": text})
    assert (entry.get("value"), entry.get("unit")) == found
