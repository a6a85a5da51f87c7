"""Expressions in the prose, on a small book: their places, when they are computed, errors."""

from __future__ import annotations

import json
import sys

import pytest
from book.small_book import EXTENSION, SmallBook
from bs4 import BeautifulSoup
from conftest import thinned
from myst_parser.config.main import MdParserConfig

sys.path.insert(0, str(EXTENSION))

from inline_expressions import find, split  # noqa: E402

CONF = f"""
import sys

sys.path.append({str(EXTENSION)!r})
extensions = ["myst_nb", "honest_cache", "inline_expressions", "results_and_claims"]
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "basic"
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 5
myst_enable_extensions = ["colon_fence", "deflist"]
"""
HEADER = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n\n"
PAGE = """# A page of {eval}`6 * 7`

It ends with {eval}`n`.

```{code-cell} ipython3
from sft_utils.results import Measure

n = 3
right = Measure(0.75, "%", n=1234, low=0.7, high=0.8, seeds=(0, 1), run="abc")
table = {"a:b": 1}
```

First {eval}`n`, and {eval}`right` of them right ({eval}`right.interval`), {eval}`1 / n:.2f` each.
Sliced: {eval}`"abcdef"[1:3]`, keyed: {eval}`table["a:b"]`, markup: {eval}`"<b>*x*</b>"`.
Unseen: {eval}`"a\\u202e\\x1b[1mb\\r\\n  c"`, none: {eval}`float("nan")`, {eval}`"None"`.
Long: {eval}`"9" * 9999`.

(second)=
## Part {eval}`n + 1`

:::{admonition} About {eval}`n * 10`
Inside {eval}`n * 11`, and deeper:

```{note}
{eval}`n * 12`
```
:::

| what | value |
|---|---|
| cell | {eval}`n * 13` |

```text
{eval}`not an expression`
```

```{code-cell} ipython3
n = 7
n
```

Then {eval}`n`.
"""


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    book = SmallBook(tmp_path_factory.mktemp("inline"))
    book.write("conf.py", CONF)
    book.write("index.md", "# Book\n\n```{toctree}\npage\n```\n")
    book.write("page.md", HEADER + PAGE)
    return book


def words(book, name="page"):
    html = (book.root / "_build" / "html" / f"{name}.html").read_text("utf8")
    return " ".join(BeautifulSoup(html, "html.parser").get_text(" ").split()).replace(" ,", ",")


@pytest.fixture(scope="module")
def built(book):
    """Built four times: cold, unchanged, with other prose, with another expression."""
    said, texts = [], []
    for page in (
        PAGE,
        PAGE,
        PAGE.replace("\n\n", "\n\n" + 20 * "More.\n\n", 1).replace(
            "Then", "A new line.\n\nAfterwards"
        ),
        PAGE.replace("1 / n:.2f", "1 / n:.3f"),
    ):
        book.write("page.md", HEADER + page)
        code, output = book.build()
        assert code == 0, output
        said.append("executing" in output)
        texts.append(words(book))
    return said, texts, json.loads((book.root / "_build" / "html" / "results.json").read_text())


def test_values_stand_in_every_kind_of_place(built):
    text = built[1][0]
    for told in (
        "A page of 42", "It ends with 7", "First 3", "75.0 % of them right", "70.0 to 80.0 %",
        "0.33 each",
        "Sliced: bc", "keyed: 1", "markup: <b>*x*</b>", "Part 4",
        r"Unseen: a\u202e\x1b[1mb c, none: nan, None .", f"Long: {497 * '9'}... .",
        "About 30", "Inside 33", "36", "cell 39", "not an expression", "Then 7",
    ):  # fmt: skip
        assert told in text, told


def test_an_expression_executes_the_page_and_prose_does_not(built):
    said, texts, _ = built
    assert said == [True, False, False, True]
    assert texts[1] == texts[0]
    assert "Afterwards 7" in texts[2] and "First 3" in texts[2]
    assert "0.333 each" in texts[3]


def test_a_measure_brings_what_belongs_to_it(built):
    [right] = [entry for entry in built[2]["results"] if entry["name"] == "right"]
    assert (right["text"], right["n"], right["seeds"], right["run"]) == (
        "75.0 %", 1234, [0, 1], "abc",
    )  # fmt: skip
    assert right["page"] == "page.md" and right["cell"] == 1


@pytest.mark.parametrize(
    ("prose", "told"),
    thinned(every=7, cases=[
        (
            "It is {eval}`missing + 1`.",
            "page.md, cell 1: NameError: line 15, {eval}`missing + 1`: name 'missing'",
        ),
        (
            "It is {eval}`None`.",
            "page.md, cell 1: ValueError: line 15, {eval}`None`: its value is None.",
        ),
        ("It is {eval}`10 ** 5000`.", "ValueError: line 15, {eval}`10 ** 5000`: Exceeds the limit"),
        ("It is {eval}`1 +`.", "SyntaxError: line 15, {eval}`1 +`: '1 +' is no expression."),
        (
            "It is {eval}`__import__('os')._exit(3)`.",
            "page.md, cell 1: DeadKernelError: Kernel died",
        ),
        (
            "It is {eval}`__import__('time').sleep(9)`.",
            "page.md, cell 1: CellTimeoutError: The exp",
        ),
        ("![alt {eval}`n`](x.png)", "page.md: {eval}`n` is in the text of an image"),
    ]),
)  # fmt: skip
def test_what_cannot_be_computed_stops_the_build(book, prose, told):
    page = f"# Page\n\n```{{code-cell}} ipython3\nn = 1\n```\n\nFine.\n{prose}\n"
    book.write("page.md", HEADER + page)
    code, output = book.build()
    assert code != 0 and told in output
    book.write("page.md", HEADER + PAGE)


def test_a_page_without_code_has_no_expressions(book):
    book.write("index.md", "# Book of {eval}`1`\n\n```{toctree}\npage\n```\n")
    code, output = book.build()
    assert code != 0 and "index, line 1: {eval}`1` was not computed" in output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", ("x", "")), ("x:.2f", ("x", ".2f")), ("s[3:7]", ("s[3:7]", "")),
        ('d["a:b"]', ('d["a:b"]', "")), ("s[3:7]:>5", ("s[3:7]", ">5")),
        ("(lambda: 1)()", ("(lambda: 1)()", "")), ("{1: 2}[1]", ("{1: 2}[1]", "")),
    ],
)  # fmt: skip
def test_a_format_follows_the_expression(text, expected):
    assert split(text) == expected


def test_code_and_comments_hold_no_expressions():
    text = "`{eval}`x``\n\n```python\n{eval}`a`\n```\n\n% {eval}`b`\n\n{eval}`c` ``{eval}`d` ``\n"
    assert find(text, MdParserConfig()) == ["c"]
