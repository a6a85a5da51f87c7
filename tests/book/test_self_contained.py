"""The built site asks nothing of other hosts, and each page carries its policy, words and icons."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from book.small_book import EXTENSION, JUPYTER_BOOK, SmallBook
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import page_frame  # noqa: E402
import self_contained  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx.errors import ExtensionError  # noqa: E402

#: A book of two pages with the settings that make a page of the theme.
SMALL_BOOK = {
    "_config.yml": f"""
title: Small
only_build_toc_files: true
execute: {{execute_notebooks: "off"}}
bibtex_bibfiles: [book/works.bib]
html: {{baseurl: https://host.example/small/}}
sphinx:
  extra_extensions: [notfound.extension, sphinxext.opengraph]
  config: {{ogp_social_cards: {{enable: false}}}}
  local_extensions: {{page_frame: {EXTENSION}, self_contained: {EXTENSION}}}
""",
    "_toc.yml": "format: jb-book\nroot: book/index\nchapters: [{file: book/next}]\n",
    "book/works.bib": "@misc{work, title={Work}, author={A B}, year={2020}}\n",
    "book/index.md": """---
script_src: "'wasm-unsafe-eval'"
---
# Front

Cited {cite}`work` & "quoted".

```html
<p onclick="kept">
```

```{raw} html
<svg><title>A drawing</title></svg><script src="https://cdn.example/x.js"></script>
```

```{bibliography}
```
""",
    "book/next.md": "# Next\n\nMore.\n",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The pages of a small book, by their paths."""
    book = SmallBook(tmp_path_factory.mktemp("small"))
    for name, text in SMALL_BOOK.items():
        book.write(name, text)
    code, output = book.build(*JUPYTER_BOOK, PYTHONPATH=str(ROOT))
    assert code == 0, output
    html = book.root / "_build" / "html"
    return {
        name: BeautifulSoup((html / name).read_text("utf8"), "html.parser")
        for name in ("book/index.html", "search.html", "404.html")
    }


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
        assert {tag.name for tag in before} == {"meta"}, name  # before anything that it rules
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


def loaded(soup):
    """What the page asks for, without the digests; None is a script in the page."""
    tags = soup.select("script, link[rel=stylesheet], link[rel=preload], link[rel=icon]")
    urls = [tag.get("src") or tag.get("href") for tag in tags]
    return [url and re.sub(r"\?v=[0-9a-f]{12}$", "", url) for url in urls]


def test_a_page_asks_for_the_files_of_the_site_alone(small):
    soup, files = small["book/index.html"], ["_static/site.css", "_static/site.js"]
    icon = "_static/favicon.svg"
    assert loaded(soup) == [None, *(f"../{file}" for file in (*files, icon))]
    assert loaded(small["search.html"]) == [
        None, *files, "_static/search.js", "searchindex.js", icon
    ]  # fmt: skip
    assert small["search.html"].select_one("#search-results")
    assert soup.select_one("link[rel=next]")["href"] == "next.html"
    assert "'wasm-unsafe-eval'" in policy_of(soup)[0]["script-src"]


def test_a_page_keeps_what_its_policy_and_the_search_allow(small):
    soup = small["book/index.html"]
    assert soup.select_one("button.btn-fullscreen-button")
    assert [a for tag in soup.find_all(True) for a in tag.attrs if a.startswith("on")] == []
    assert 'onclick="kept"' in soup.pre.get_text()
    assert [str(title) for title in soup.svg] == ['<title class="nohighlight">A drawing</title>']
    assert soup.select_one(".citation-list .citation")
    assert not soup.select(
        "[role=list], [role=doc-biblioentry], #pst-header *, #ethical-ad-placement"
    )


def test_a_link_to_a_page_shows_its_words(small):
    tags = small["book/index.html"].find_all("meta", property=True)
    shown = {tag["property"]: tag["content"] for tag in tags}
    assert shown == {
        "og:title": "Front",
        "og:type": "website",
        "og:url": "https://host.example/small/book/index.html",
        "og:site_name": "Small",
        "og:description": "Cited [B20] & “quoted”. A B. Work. 2020.",
    }


def test_the_page_for_no_address_works_at_any_depth(small):
    soup = small["404.html"]
    links = [tag[name] for name in ("href", "src", "action") for tag in soup.select(f"[{name}]")]
    own = [link for link in links if not link.startswith(("https://host.example/", "#"))]
    assert len(own) > 8
    assert [link for link in own if not link.startswith("/small/")] == []
    assert soup.html["data-content_root"] == "/small/"
    assert soup.select_one("article a")["href"] == "/small/book/index.html"


def test_another_layout_of_the_theme_is_an_error(tmp_path):
    page = '<html><script src="_static/scripts/pydata-sphinx-theme.js"></script></html>'
    (tmp_path / "a.html").write_text(page)
    app = SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path)
    with pytest.raises(ExtensionError, match="a.html loads .* layout has changed"):
        self_contained.write_assets(app, None)


def test_a_missing_file_of_the_theme_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="bootstrap.js: 0 files"):
        self_contained.joined(tmp_path, ["bootstrap.js"])


@pytest.mark.parametrize(
    ("paragraphs", "description"),
    [
        (["A" * 50 + ". " + "B" * 50 + ". " + "C" * 90 + "."], "A" * 50 + ". " + "B" * 50 + "."),
        (["word " * 60], ("word " * 31).strip() + "…"),
        (["Short.", "And\nmore."], "Short. And more."),
        (["首都" * 200], "首都" * 79 + "首…"),
        (["首都是北京。" * 40], "首都是北京。" * 26),
        (["See https://host.example/" + "a" * 200], "See https://host.example/" + "a" * 134 + "…"),
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
