"""Each page links to its twin on another profile, if there is one, and to none if there is none."""

from __future__ import annotations

import json
from urllib.parse import urljoin

import pytest
from book.small_book import SPHINX, SmallBook
from bs4 import BeautifulSoup
from conftest import ROOT

LOADED = "Qwen/Qwen3-0.6B-Base at 1a2b3c4, <data> at 5d6e7f8"


@pytest.fixture
def source(tmp_path):
    """Two pages of text, one in a folder."""
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
        "extensions = ['other_profile']\nroot_doc = 'index'\nexclude_patterns = ['_build']\n"
    )
    (tmp_path / "book").mkdir()
    (tmp_path / "index.rst").write_text("Front\n=====\n\n.. toctree::\n\n   book/03-baseline\n")
    (tmp_path / "book" / "03-baseline.rst").write_text("The base model\n==============\n\nText.\n")
    return tmp_path


@pytest.fixture
def other(source):
    """A site of another profile, with a twin of one page."""
    return write_twin(source, "hub")


def write_twin(source, profile):
    folder = source / "_build" / profile
    (folder / "book").mkdir(parents=True)
    (folder / "book" / "03-baseline.html").write_text("<h1>The base model</h1>")
    stored = [{"name": "setup_loaded", "text": LOADED}]
    (folder / "results.json").write_text(json.dumps({"profile": profile, "results": stored}))
    (folder / "built.txt").write_text("2026-11-02\n")
    return folder


def build(source, **environment):
    return SmallBook(source).build(*SPHINX, "-E", **environment)


def links(source, page):
    soup = BeautifulSoup((source / "_build" / "html" / page).read_text("utf8"), "html.parser")
    return soup.select("p.sft-twin")


def test_without_another_site_nothing_is_linked(source):
    assert build(source)[0] == 0
    assert links(source, "book/03-baseline.html") == []
    assert not (source / "_build" / "html" / "hub").exists()


def test_a_page_links_to_its_twin_with_models_revisions_and_date(source, other):
    code, output = build(source)
    assert code == 0, output
    [line] = links(source, "book/03-baseline.html")
    assert line.find_previous_sibling("h1") is not None
    assert f"(profile hub, 2026-11-02: {LOADED})" in line.get_text()
    target = urljoin("book/03-baseline.html", line.a["href"])
    assert target == "hub/book/03-baseline.html"
    assert (source / "_build" / "html" / target).read_text() == "<h1>The base model</h1>"
    assert links(source, "index.html") == []  # it has no twin there


def test_a_page_links_to_each_of_its_twins(source, other):
    write_twin(source, "smollm2")
    assert build(source)[0] == 0
    found = links(source, "book/03-baseline.html")
    assert [line.a["href"] for line in found] == [
        f"../{profile}/book/03-baseline.html" for profile in ("hub", "smollm2")
    ]
    assert "(profile smollm2, 2026-11-02: " in found[1].get_text()
    assert (source / "_build" / "html" / "smollm2" / "built.txt").is_file()
    assert build(source, SFT_PROFILE="smollm2")[0] == 0  # is a twin itself
    assert links(source, "book/03-baseline.html") == []


@pytest.mark.parametrize("file", ["results.json", "built.txt"])
def test_a_site_that_does_not_say_what_it_is_fails_the_build(source, other, file):
    (other / file).write_text("{}")
    code, output = build(source)
    assert code != 0
    assert "does not say what was built there" in output and "built.txt" in output
