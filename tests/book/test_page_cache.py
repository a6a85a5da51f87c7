"""What is damaged in the cache of executed pages is thrown away, named once, and made again."""

from __future__ import annotations

import html
import os
import re
import sqlite3
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from book.small_book import EXTENSION, SmallBook
from nbformat.v4 import new_code_cell, new_notebook, new_output

sys.path.insert(0, str(EXTENSION))

import page_cache  # noqa: E402

DATA: dict[str, Any] = {"execution_seconds": 1.5, "peak_mb": None, "expressions": [[1, "n", {}]]}
NAMES = ("a%20b", "a b", "why? #2 & more", 'it\'s "mine"', "книга-北京", "%", "file:x?mode=ro")


def page(source: str = "1 + 1") -> nbformat.NotebookNode:
    output = new_output("execute_result", {"text/plain": "2 · ⚑"}, execution_count=1)
    return new_notebook(cells=[new_code_cell(source, outputs=[output], execution_count=1)])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(page_cache, "warn", found.append)
    return found


@pytest.fixture
def cache(tmp_path: Path) -> page_cache.PageCache:
    """With two pages."""
    cache = page_cache.PageCache(tmp_path / "cache")
    cache.keep("book/01.md", page(), DATA)
    cache.keep("book/02.md", page("2 + 2"), DATA)
    return cache


def entry(cache: page_cache.PageCache) -> Path:
    return cache._get_notebook_path_cache(cache.create_hashed_notebook(page())[1])


def reopened(cache: page_cache.PageCache) -> page_cache.PageCache:
    cache.db.dispose()
    return page_cache.PageCache(cache.path)


def execute(database: Path, sql: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(sql)
    connection.close()


def rewrite(file: Path, data: str) -> None:
    """Other data in the database beside the entry whose notebook is ``file``."""
    execute(file.parents[2] / "global.db", f"UPDATE nbcache SET data = {data}")


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_may_have_any_name(tmp_path: Path, name: str, said: list[str]) -> None:
    cache = page_cache.PageCache(tmp_path / name / "cache")
    with pytest.raises(KeyError):
        cache.match_cache_notebook(page())
    cache.keep("book/01.md", page(), DATA)
    again = reopened(cache)
    assert again.match_cache_notebook(page()).data.items() >= DATA.items()
    assert again.merge_match_into_notebook(page())[1].cells[0].outputs == page().cells[0].outputs
    assert [path.name for path in tmp_path.iterdir()] == [name] and said == []


ENTRIES = {
    "the notebook is truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "the notebook is empty": lambda file: os.truncate(file, 0),
    "an output is another": lambda file: file.write_bytes(file.read_bytes().replace(b"2 ", b"3 ")),
    "the notebook is no text": lambda file: file.write_bytes(b"\xff" * 100),
    "the notebook is missing": lambda file: file.unlink(),
    "the notebook is a folder": lambda file: (file.unlink(), file.mkdir()),
    "the entry is a file": lambda file: (file.unlink(), file.parent.rmdir(), file.parent.touch()),
    "a value is another": lambda file: rewrite(file, "replace(data, '1.5', '2.5')"),
    "there are no values": lambda file: rewrite(file, "'null'"),
    "the sum is missing": lambda file: rewrite(file, "'{}'"),
}  # fmt: skip


@pytest.mark.parametrize("how", ENTRIES)
def test_a_damaged_entry_is_thrown_away(cache: page_cache.PageCache, how: str, said: Any) -> None:
    file = entry(cache)
    ENTRIES[how](file)
    cache = reopened(cache)
    for _ in range(2):
        with pytest.raises(KeyError):
            cache.match_cache_notebook(page())
    [told] = said
    assert told.startswith(f"book/01.md: its entry in the cache, {file.parent}, is damaged (")
    assert not os.path.lexists(file.parent)
    cache.keep("book/01.md", page(), DATA)
    assert reopened(cache).match_cache_notebook(page())


def test_half_an_entry_without_a_record_is_in_nobodys_way(tmp_path: Path, said: list[str]) -> None:
    cache = page_cache.PageCache(tmp_path)
    entry(cache).parent.mkdir(parents=True)
    cache.keep("book/01.md", page(), DATA)
    assert cache.match_cache_notebook(page()) and said == []


def overwrite(file: Path, start: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(data)


DATABASES = {
    "empty": lambda file: os.truncate(file, 0),
    "half written": lambda file: os.truncate(file, file.stat().st_size // 2),
    "no database": lambda file: file.write_text("no database" * 1000),
    "damaged within": lambda file: overwrite(file, 4096, os.urandom(4096)),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "of another version": lambda file: execute(file, "ALTER TABLE nbcache DROP COLUMN data"),
    "unreadable values": lambda file: execute(file, "UPDATE nbcache SET data = '{oops'"),
}


@pytest.mark.parametrize("how", DATABASES)
def test_a_damaged_database_is_thrown_away(cache: Any, how: str, said: list[str]) -> None:
    cache.db.dispose()
    DATABASES[how](cache.path / "global.db")
    cache = reopened(cache)
    with pytest.raises(KeyError):
        cache.match_cache_notebook(page())
    [told] = said
    assert told.startswith(f"The cache {cache.path} is damaged (")
    cache.keep("book/01.md", page(), DATA)
    assert reopened(cache).match_cache_notebook(page())


@pytest.mark.weekly
def test_a_database_that_another_process_writes_is_not_damaged(cache: Any, said: list[str]) -> None:
    cache.db.dispose()
    with sqlite3.connect(cache.path / "global.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Exception, match="database is locked"):
            page_cache.PageCache(cache.path).match_cache_notebook(page())
    other.close()
    assert said == [] and cache.match_cache_notebook(page())


def test_a_page_that_cannot_be_kept_costs_a_warning(
    cache: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        cache.keep("book/01.md", page(), DATA)
    [told] = said
    assert told.startswith("book/01.md could not be kept in the cache") and "No space left" in told
    with pytest.raises(KeyError):
        reopened(cache).match_cache_notebook(page())
    assert reopened(cache).match_cache_notebook(page("2 + 2"))


CONF = f"""
import sys

sys.path.append({str(EXTENSION)!r})
extensions = ["myst_nb", "honest_cache", "inline_expressions"]
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "basic"
nb_execution_mode = "cache"
"""
PAGE = """---
file_format: mystnb
kernelspec:
  name: python3
  display_name: Python 3
---

# Page

```{code-cell} ipython3
import os, tempfile

n = 6 * 7
with open("scratch", "w") as file:
    print(tempfile.mkdtemp(), file=file)
print(f"{os.getcwd()}, {os.getcwd()}/rows\\u202e.jsonl, {os.path.expanduser('~/models')}")
```

It is {eval}`n`, in {eval}`os.getcwd() + "/here"`.
"""


@pytest.mark.weekly
def test_a_build_in_a_folder_of_any_name_mends_its_cache(tmp_path: Path) -> None:
    root = tmp_path / "a%20b #1? 'ж'"
    root.mkdir()
    book = SmallBook(root)
    book.write("conf.py", CONF)
    book.write("index.md", PAGE)
    cache, page = root / "_build" / ".jupyter_cache", root / "_build" / "html" / "index.html"

    def built() -> str:
        book.write("index.md", (root / "index.md").read_text("utf8") + "\nMore.\n")
        code, output = book.build()
        assert code == 0, output
        said = html.unescape(re.sub("<[^>]*>", "", page.read_text("utf8")))
        assert "It is 42, in here." in said and r"., rows\u202e.jsonl, ~/models" in said
        return output

    assert "index.md: executing" in built()
    scratch = Path((root / "scratch").read_text().strip())
    assert scratch.parent.name.startswith("sft-build-") and not scratch.parent.exists()
    assert "index.md: from cache" in built()
    [file] = cache.glob("executed/*/base.ipynb")
    os.truncate(file, 100)
    output = built()
    assert output.count("is damaged") == 1 and f"WARNING: {root / 'index.md'}: its entry" in output
    assert "index.md: executing" in output
    os.truncate(cache / "global.db", 5000)
    output = built()
    assert output.count("is damaged") == 1 and f"WARNING: The cache {cache} is damaged" in output
    assert "index.md: from cache" in built()
