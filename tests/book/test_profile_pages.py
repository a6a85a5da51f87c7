"""What a build with another profile has, where it goes, and what it says of itself."""

from __future__ import annotations

import html
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from book.small_book import EXTENSION, JUPYTER_BOOK, SmallBook
from bs4 import BeautifulSoup
from docutils.core import publish_doctree, publish_from_doctree

sys.path.insert(0, str(EXTENSION))

import profile_pages  # noqa: E402
import typed_numbers  # noqa: E402

PROFILE = '[models]\nbase = "a"\ntrainee = "b"\n'
PAGES = {
    "index": """# Front

Read [what it knows](09-knows.md#facts), [the reference](04-reference.md) and [data](05-data.md).

```{only} atlas
Our own: {glue:text}`09-knows.md::n:s`.
```

::::{only} not atlas
Yours.

:::{note}
Nested.
:::
::::
""",
    "04-reference": "# The reference\n\nText.\n",
    "05-data": "# Data\n\n[Back](index.md)\n",
    "09-knows": "# What it knows\n\n(facts)=\n## Facts\n\nText.\n",
    "claims": "# Claims\n\nText.\n",
}


@pytest.fixture
def book(tmp_path):
    book = SmallBook(tmp_path)
    for name, text in PAGES.items():
        book.write(f"book/{name}.md", text)
    chapters = [{"file": f"book/{name}"} for name in list(PAGES)[1:]]
    parts = [
        {"caption": "All", "chapters": chapters[:3]},
        {"caption": "Lists", "chapters": chapters[3:]},
    ]
    toc = {"format": "jb-book", "root": "book/index", "parts": parts}
    book.write("_toc.yml", yaml.safe_dump(toc))
    config = {
        "title": "Small", "only_build_toc_files": True, "html": {"baseurl": "https://book.example/"},
        "execute": {"execute_notebooks": "off"},
        "sphinx": {"local_extensions": {"profile_pages": str(EXTENSION)}},
    }  # fmt: skip
    book.write("_config.yml", yaml.safe_dump(config))
    return book


def links(book, folder):
    soup = BeautifulSoup((book.root / folder / "book/index.html").read_text("utf8"), "html.parser")
    return [a["href"] for a in soup.select("article p a.reference")], soup.article.get_text()


@pytest.mark.parametrize("reference", [True, False])
def test_another_profile_has_the_walk_through_in_a_folder_of_its_own(book, reference):
    text = PROFILE + ('reference = "c"\n' if reference else "")
    book.write("mine 2.toml", text)
    code, output = book.build(*JUPYTER_BOOK, SFT_PROFILE="mine 2.toml")
    assert code == 0 and "WARNING" not in output, output
    site = "_build/profiles/mine 2/html"
    assert f"The pages of the profile mine 2 are here: {book.root / site}" in output
    pages = {path.stem for path in (book.root / site / "book").glob("*.html")}
    assert pages == {"index", "05-data"} | ({"04-reference"} if reference else set())
    targets, said = links(book, site)
    fourth = "04-reference.html" if reference else "https://book.example/book/04-reference.html"
    assert targets == ["https://book.example/book/09-knows.html#facts", fourth, "05-data.html"]
    assert "Yours." in said and "Nested." in said and "Our own" not in said
    assert not list((book.root / "_build" / "html").glob("*.html"))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("мой 2.toml", "мой 2"), ("a b.toml", "a b"), ("..toml", "profile"), ("...toml", "profile"),
        (". .toml", "profile"), ("CON.toml", "CON"), ("a<b>:*?.toml", "a_b____"), ("x.", "x"),
        (80 * "ж" + ".toml", 60 * "ж"), ("hub", "hub"),
    ],
)  # fmt: skip
def test_a_profile_has_a_folder_of_its_own(tmp_path, monkeypatch, name, folder):
    """Whatever its file is called; another file of that name has another one, each time."""
    monkeypatch.setenv("SFT_PROFILE", name)
    files = [tmp_path / place / name for place in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.touch()
    parent = tmp_path / "_build" / "profiles"
    first, second = (profile_pages.own_folder(parent, file) for file in files)
    assert first == parent / folder and second.name.startswith(f"{folder}-")
    again = [profile_pages.own_folder(parent, file) for file in files]
    assert again == [first, second] and {*parent.iterdir()} == {first, second}
    files[0].unlink()  # it was moved, say: the folder is free
    assert profile_pages.own_folder(parent, files[1].rename(files[0])) == first
    assert profile_pages.own_folder(tmp_path / "other", None) == tmp_path / "other" / folder


def test_the_books_own_has_every_page(book):
    book.write(
        "book/index.md",
        PAGES["index"].replace("Our own: {glue:text}`09-knows.md::n:s`.", "Our own."),
    )
    code, output = book.build(*JUPYTER_BOOK)
    assert code == 0, output
    assert {p.stem for p in (book.root / "_build/html/book").glob("*.html")} == set(PAGES)
    targets, said = links(book, "_build/html")
    assert targets[0] == "09-knows.html#facts"
    assert "Our own." in said and "Yours." not in said


def test_what_is_left_of_a_text_keeps_its_lines():
    text = "one\n```{only} atlas\ntwo\n```\n:::{only} not atlas\n`three`\n:::\nfour\n"
    assert profile_pages.resolve_only(text, "atlas", unwrap=True).split() == ["one", "two", "four"]
    for profile in ("atlas", "mine.toml"):
        left = profile_pages.resolve_only(text, profile)
        assert left.count("\n") == text.count("\n")
        assert left.splitlines()[-1] == "four" and left.splitlines().index("four") == 7
    assert "two" in profile_pages.resolve_only(text, "atlas")
    assert "three" not in profile_pages.resolve_only(text, "atlas")
    other = "```{only} smollm2\nfive\n```\n"
    left = [profile_pages.resolve_only(other, name) for name in ("smollm2", "x/smollm2", "atlas")]
    assert ["five" in text for text in left] == [True, False, False]


@pytest.mark.parametrize(
    "name", ["a_b*", "<b>", "lr=1e-4, 3 epochs. 50 %", "`5`", "{glue:text}`x`", "atlas"]
)
def test_any_file_may_be_a_profile(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is told on the page, as it is, and no part of it is a number that was typed."""
    monkeypatch.setenv("SFT_PROFILE", f"runs.v2/{name}.toml")
    env = SimpleNamespace(docname="page", honest_cache={"page": {"inputs": {}}})
    builder = SimpleNamespace(get_target_uri=lambda docname: f"{docname}.html")
    app: Any = SimpleNamespace(
        env=env, builder=builder, config=SimpleNamespace(html_baseurl="https://book.example/"),
        outdir=tmp_path / "html", doctreedir=tmp_path / ".doctrees",
    )  # fmt: skip
    document = publish_doctree("Title\n=====\n\nProse.\n")
    profile_pages.ProfilePages(app).note_profile(app, document)
    said = f"Built with the profile {name}. With the book's own models"
    assert said in document.astext()
    assert list(typed_numbers.in_prose(document, "", "page.md")) == []
    shown = publish_from_doctree(document, writer_name="html5").decode()
    assert said in html.unescape(re.sub(r"<[^>]+>", "", shown))
