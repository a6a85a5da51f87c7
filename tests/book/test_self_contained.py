"""The built site asks nothing of other hosts, and each page carries its policy, words and icons."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import sys
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import page_frame  # noqa: E402
import self_contained  # noqa: E402
from docutils import nodes  # noqa: E402

THEME_PAGE = """<html data-content_root="../"><head>
<meta charset="utf-8" />
<script>let a = 1;</script><script src="https://cdn.example/x.js"></script>
<link href="../_static/a.css" rel="stylesheet" /><link rel="next" href="b.html" />
</head><body><header id="pst-header" class="bd-header"><button>Search</button></header>
<button onclick="window.print()" class="x">p</button><pre>onclick="kept"</pre>
<div role="list" class="citation-list">
<div class="citation" role="doc-biblioentry">a</div></div>
</body></html>"""


@pytest.fixture(scope="module")
def pages(site):
    """Every HTML file of the site, by its path in it."""
    files = sorted(path for path in site.html.rglob("*.html") if "_static" not in path.parts)
    assert len(files) >= 15
    soups = [BeautifulSoup(path.read_text("utf8"), "html.parser") for path in files]
    return dict(zip((path.relative_to(site.html).as_posix() for path in files), soups, strict=True))


@pytest.fixture(scope="module")
def css(site):
    return (site.html / "_static" / "site.css").read_text("utf8")


def policy_of(soup):
    """The page's policy as directives, and what stands in the head before it."""
    [meta] = soup.find_all("meta", attrs={"http-equiv": "Content-Security-Policy"})
    parts = [part.split() for part in meta["content"].split(";")]
    return {name: sources for name, *sources in parts}, meta.find_previous_siblings()


def test_every_page_has_a_policy_that_names_its_scripts_and_holds(pages):
    for name, soup in pages.items():
        rules, before = policy_of(soup)
        assert [tag.name for tag in before] == ["meta"], name  # before anything that it rules
        assert rules["default-src"] == ["'none'"], name
        if soup.find("script"):
            assert "'unsafe-inline'" not in rules["script-src"], name
            assert not any(source.startswith(("http", "*")) for r in rules.values() for source in r)
        for script in soup.find_all("script", src=False):
            digest = base64.b64encode(hashlib.sha256(script.string.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in rules["script-src"], name
        handlers = [a for tag in soup.find_all(True) for a in tag.attrs if a.startswith("on")]
        assert handlers == [], name


def test_sheets_and_scripts_name_no_other_host(css, site, pages):
    sheets = [css, *(style.get_text() for soup in pages.values() for style in soup("style"))]
    for sheet in sheets:
        sources = re.findall(r"url\(\s*['\"]?([^)'\"]+)", sheet)
        files = [s for s in sources if not s.startswith(("data:", "#"))]
        assert [s for s in files if not (site.html / "_static" / s).is_file()] == []
        assert "@import" not in sheet
    for script in ("site.js", "search.js"):
        text = (site.html / "_static" / script).read_text("utf8")
        loads = r"(?:src|href|URL)\s*=\s*|fetch\(|import\(|importScripts\(|new (?:Worker|URL)\("
        assert re.findall(rf"(?:{loads})[\"'`](?:https?:)?//[^\"'`]*", text) == []


def test_the_icons_in_use_are_in_the_sheet_and_few_others(css, pages):
    used = set().union(*(self_contained.icons_of(str(soup)) for soup in pages.values()))
    styles = {"fa-solid", "fa-regular", "fa-brands", "fa-lg"}
    codes = {}
    for names, code in self_contained.ICON_RULE.findall(css):
        codes |= dict.fromkeys(re.findall(r"\.(fa-[\w-]+):", names), int(code, 16))
    assert used - styles - codes.keys() == set()
    fonts = [
        TTFont(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r"url\(data:font/woff;base64,([^)]+)\)", css)
    ]
    drawn = set().union(*(font.getBestCmap() for font in fonts))
    assert {codes[name] for name in used - styles} <= drawn
    assert len(drawn) < 70
    assert len(self_contained.ICON_RULE.findall(css)) < 40


def test_every_page_tells_its_title_its_words_a_picture_of_the_site_and_what_ran(pages, site):
    base = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))["html"]["baseurl"]
    seen = set()
    for name, soup in pages.items():
        [meta] = soup.find_all("meta", attrs={"name": "description"})
        assert 25 <= len(meta["content"]) <= page_frame.LENGTH and meta["content"] not in seen, name
        seen.add(meta["content"])
        if not name.startswith("book/"):
            continue
        tags = soup.find_all("meta", property=re.compile("^og:"))
        shown = {tag["property"].removeprefix("og:"): tag["content"] for tag in tags}
        assert shown["title"] == soup.find("h1").find(string=True)
        assert (shown["description"], shown["url"]) == (meta["content"], base + name)
        assert (site.html / shown["image"].removeprefix(base)).read_bytes()[1:4] == b"PNG"
        [ran] = soup.select("article .what-ran")
        page = site.page(Path(name).stem)
        if page.executes:
            assert f"{len(page.cells)} cells" in ran.get_text(), name
            assert re.search(r"\d+ s\b.*profile\s+atlas.*torch \d", ran.get_text(" "), re.S), name
        else:
            assert "No code runs" in ran.get_text(), name


def test_formulas_need_no_script(pages):
    formulas = [math for soup in pages.values() for math in soup.find_all("math")]
    assert formulas and all(math["aria-label"] for math in formulas)
    assert "mathjax@" not in "".join(map(str, pages.values()))


def test_the_address_of_the_site_leads_to_the_front_page(pages, site):
    soup = pages["index.html"]
    target = soup.find("meta", attrs={"http-equiv": "refresh"})["content"].partition("url=")[2]
    assert soup.find("a")["href"] == target == "book/index.html"
    assert (site.html / target).is_file()


# --- The parts by themselves ---------------------------------------------------------------------


def test_a_page_is_finished():
    text = self_contained.finish_page(THEME_PAGE, "../", "abc", extra="'wasm-unsafe-eval'")
    soup = BeautifulSoup(text, "html.parser")
    assert [s.get("src") for s in soup("script")] == [None, "../_static/site.js?v=abc"]
    [sheet] = soup.select("link[rel=stylesheet]")
    assert sheet["href"] == "../_static/site.css?v=abc"
    assert soup.select_one("link[rel=next]")["href"] == "b.html"
    assert "'wasm-unsafe-eval'" in policy_of(soup)[0]["script-src"]
    assert str(soup.button) == '<button class="x">p</button>'
    assert soup.pre.get_text() == 'onclick="kept"'
    assert not soup.select("[role]")


def test_another_layout_of_the_theme_is_an_error():
    with pytest.raises(ValueError, match="layout has changed"):
        self_contained.finish_page("<html><head></head></html>", "", "abc")


def test_a_missing_file_of_the_theme_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="bootstrap.js: 0 files"):
        self_contained.joined(tmp_path, ["bootstrap.js"])


@pytest.mark.parametrize(
    ("paragraphs", "description"),
    [
        (["A" * 50 + ". " + "B" * 50 + ". " + "C" * 90 + "."], "A" * 50 + ". " + "B" * 50 + "."),
        (["word " * 60], ("word " * 31).strip() + "…"),
        (["Short.", "And\nmore."], "Short. And more."),
    ],
)
def test_a_description_is_the_opening(paragraphs, description):
    document = nodes.section("", *(nodes.paragraph("", text) for text in paragraphs))
    assert page_frame.first_sentences(document) == description


def test_the_first_answer_is_escaped():
    answer = html.escape("<script>x</script>\n■ stopped, 2 tokens")
    table = (
        '<table class="sft-answers"><thead><tr><th>question</th><th>before</th><th>after</th></tr>'
        f"</thead><tbody><tr><td>Who &amp; why?</td><td>{answer}</td><td>{answer}</td></tr>"
        "</tbody></table>"
    )
    soup = BeautifulSoup(page_frame.side_by_side(table), "html.parser")
    assert soup.find("script") is None
    assert soup.select_one(".question").get_text() == "Who & why?"
    assert [who.get_text() for who in soup.select(".who")] == ["before", "after"]
    assert [end.get_text() for end in soup.select(".ending")] == ["■ stopped, 2 tokens"] * 2
