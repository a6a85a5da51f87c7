"""Typed numbers: which sentences are found, where in a page they are found, and what a build does.

The small books here execute nothing: what is glued stands in a notebook with stored outputs.
"""

from __future__ import annotations

import ast
import sys

import nbformat
import pytest
import yaml
from book.small_book import EXTENSION, JUPYTER_BOOK, SPHINX, SmallBook
from conftest import ROOT

sys.path.insert(0, str(EXTENSION))

import typed_numbers  # noqa: E402


def numbers(text: str) -> list[str]:
    return [found for _, found, _ in typed_numbers.typed(text)]


#: What is found, between bars.
FOUND = """
    It is right in |97.8|% of them.
    It was asked |1,725| questions.
    A change of |−3.1| points.
    It took (|41| s), of which |3| minutes were waiting.
    It is right in |½| of them.
    It is right in |９７| % of them, full width.
    The |95| % of questions.
    A |90| % interval.
    chapter |97| % done
    Accuracy-|97| % is high.
    A model of |1.2|M parameters, |4| million tokens.
    A model of |1.2| million parameters, a corpus of |135| million tokens.
    It keeps |4| B a parameter.
    torch |3.11|
    It answers |9| of |10|, and |61| of them twice.
    A loss of |0.22|, at |3e-4|, in |2,178| rows.
    |12| epochs, |3|×, |45| percentage points, |16|-GB cards
    |60|
    p = |0.03|, and p < 0.05 or p = 0.05; |80| % of the power.
"""


@pytest.mark.parametrize("line", FOUND.strip().splitlines())
def test_found(line):
    parts = line.strip().split("|")
    assert numbers("".join(parts)) == [", ".join(parts[1::2])]


ALLOWED = """
    Nine of ten, two thirds, the first three rows.
    12. How many are there?
    Chapter 05 shows it, chapters 01 to 08 use it, chapter 5 and chapters 03, 04 and 08–12 too.
    Labels are 0 or 1, the mask is -100, the exit status 137, page 7, the year 2024.
    Qwen3-0.6B-Base, SmolLM2-135M, Qwen2.5-7B, GPT-2, Llama-3.1-8B and Qwen3.
    UTF-8, SHA-256, Apache-2.0, CC BY 4.0 or CC BY-SA 4.0, and arXiv:2203.02155v1.
    float32, bfloat16, bf16, fp16 and int8, in 32-bit or 4-bit.
    At 0.6B and above, at 7B, published at 0.1 B or more, 175 B parameters, at 135 million.
    At 135 M (instruct, Q4).
    Jupyter Book 1.0.4, v2, v1.2, Python 3.11, PyTorch 2.6, TRL 1.14 and version 3.
    A 95 % interval, 95% intervals, 95 % confidence, a sign test at p < 0.05, 80 % power.
    Seed 0 and seeds 1, 2 and 3.
    The first 1 of the mask, a format of 16 bits.
"""


@pytest.mark.parametrize("sentence", ALLOWED.strip().splitlines())
def test_allowed(sentence):
    assert numbers(sentence) == []


def test_a_citation_covers_its_sentence_and_no_other():
    cited = typed_numbers.CITED
    assert numbers(f"It was 97 % {cited}.") == []
    assert numbers(f"It was 97 %, i.e. Most of them, as Wei et al. Found on p. 7 {cited}.") == []
    assert numbers(f"It was 97 % {cited}. Here it is 98 %.") == ["98"]
    assert numbers(f"Here it is 98 %! It was 97 % {cited}.") == ["98"]
    assert numbers(f"(Here it is 98 %.) It was 97 % {cited}.") == ["98"]
    assert numbers(f"Here GPT-2 has 98 of them for GPT-2. It was 97 % {cited}.") == ["98"]


def test_a_sentence_is_told_as_it_reads():
    text = f"First.\nThe model\n{typed_numbers.hide('x = 5')} of GPT-2 had 97 %. Last."
    [(position, found, sentence)] = typed_numbers.typed(text)
    assert (found, sentence) == ("97", "The model x = 5 of GPT-2 had 97 %.")
    assert text[:position].count("\n") == 2


def glued(code: str) -> list[str]:
    cell = nbformat.v4.new_code_cell(code)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    return [found.numbers for found in typed_numbers.in_cells(notebook, "x.md")]


TYPED = """
    glue("share", "97.8 %")
    results.glue("share", round(0.978, 2))
    glue("share", f"{97.8:.1f} %")
    share = Measure(value=0.978, unit="%")
    claim("it-learns", "It learns 90 % of them.", share, at_least=0.9)
"""
COMPUTED = """
    glue("share", f"{100 * share:.1f} %")
    glue("verdict", "agrees" if share > 0.9 else "differs")
    glue("model", "SmolLM2-135M")
    glue("seen", True)
    claim("it-learns", "It learns most of them.", share, at_least=0.9)
    %time glue("share", 97)  # no Python that can be read
"""


@pytest.mark.parametrize("code", TYPED.strip().splitlines())
def test_a_number_typed_into_a_call_that_glues_is_found(code):
    assert glued(code.strip())
    assert ast.parse(glued(code.strip())[0])  # the value, as code


@pytest.mark.parametrize("code", COMPUTED.strip().splitlines())
def test_what_a_cell_computes_is_not(code):
    assert glued(code.strip()) == []


# Where in a page: each line of `FOUND_IN` has numbers from 50 on, and no other line has one.

FOUND_IN = """\
# Heading 51 %

Paragraph with *emphasis on 52 %* and **53** %.
The next line has 54 % and ` 55 % `, `5.0e-50`, and $56\\,\\%$ and $57 \\times 5$ of 58 %.

| header 59 % | b |
|---|---|
| 60 | [61 of them](clean.md) |

- item
  - nested 62 %

![typed alt text 66 %](pixel.png)

:::{figure} pixel.png
:alt: alt text 67 %

Caption 68 %
:::

<div>Raw <b>HTML 69 %</b><img src="pixel.png" alt="70 of them"><style>a {width: 1px}</style></div>

Inline <b>71</b> %, x {sup}`72 %`, {abbr}`SFT (73 rows)`, &#55;&#52; %.

$$75.5$$

```{code-block} python
:caption: Caption 76 %
x = 1
```

[A link with 63 %](https://example.org/80), [its tooltip](https://example.org "64 of them").

{{ typed_in_the_settings }}
"""

CLEAN = """\
# Clean

Code `x = 5`, `[1, 2]` and `ignore_index=-100`, a formula $x^2 + 1$, an
address <https://example.org/2024/5>, a [link](https://example.org/7).

$$\\beta_2 = 0.999 x$$

```python
x = 5
```

<!-- 5 comments -->
% 6 comments

**1.** An exercise.

[01 Setup](01-setup.md), [chapter 01](01-setup.md), {doc}`01-setup`,
[TRL issue 1400](https://github.com/huggingface/trl/issues/1400).

In 2020 it was 42 % {cite}`smith2020`.

Quoted: {glue:text}`shown.ipynb::share:s`.

```{glue:} share
:doc: shown.ipynb
```

<div style="width: 50%"><style>a {width: 1px}</style></div>

A footnote.[^note]

[^note]: It says so.

```{include} sft_utils/atlas/checkpoints/toy/README.md
```

```{bibliography}
```
"""

CONF = f"""
import sys

sys.path.append({str(EXTENSION)!r})
extensions = ["myst_nb", "sphinxcontrib.bibtex", "typed_numbers"]
bibtex_bibfiles = ["references.bib"]
exclude_patterns = ["_build", "sft_utils"]
html_theme = "basic"
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
myst_substitutions = {{"typed_in_the_settings": "set to 65 %"}}
"""

BIB = "@misc{smith2020, title={A title of 1999}, author={Smith, A.}, year={2020}}\n"
CARD = "# Card\n\nMade in 2,400 updates.\n\n| updates |\n|---|\n| 2,400 |\n"


def shown() -> nbformat.NotebookNode:
    """A notebook with its outputs stored: a glued value, printed numbers, and typed ones."""
    new = nbformat.v4
    out = new.new_output("display_data", data={"text/plain": "'97.8 %'"})
    out.metadata["scrapbook"] = {"name": "share", "mime_prefix": ""}
    text = new.new_output("stream", name="stdout", text="97.8 %\n")
    picture = new.new_output(
        "display_data",
        data={"image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg"/>'},
        metadata={"image/svg+xml": {"alt": "computed 97.8"}},
    )
    pictured = {"image": {"alt": "typed alt 83 %"}, "figure": {"caption": "typed caption 84 %"}}
    return new.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        cells=[
            new.new_markdown_cell("# Shown\n\nGlued: {glue:text}`share`.\n\n```{glue:} share\n```"),
            new.new_code_cell('glue("share", f"{share} %")', outputs=[out]),
            new.new_code_cell("share", outputs=[text, picture]),
            new.new_code_cell("picture", outputs=[picture], metadata={"mystnb": pictured}),
            new.new_code_cell("glue('typed', '85 %')", metadata={"tags": ["remove-cell"]}),
        ],
    )


def told(output):
    """The lines that a build says about typed numbers."""
    _, found, text = output.partition("ERROR: typed numbers in the prose of the book:\n")
    return text.partition(f"\n{typed_numbers.REMEDY}")[0].splitlines() if found else []


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    book = SmallBook(tmp_path_factory.mktemp("book"))
    book.write("conf.py", CONF)
    book.write("references.bib", BIB)
    book.write("sft_utils/atlas/checkpoints/toy/README.md", CARD)
    book.write("01-setup.md", "# Setup\n")
    book.write("clean.md", CLEAN)
    book.write("pixel.png", "")
    nbformat.write(shown(), book.root / "shown.ipynb")
    book.write("index.md", "# Book\n\n```{toctree}\n01-setup\nclean\nshown\ntyped\n```\n")
    book.write("typed.md", FOUND_IN)
    return book


@pytest.fixture(scope="module")
def first(book):
    """The first build, with every kind of typed number."""
    return book.build()


def test_the_build_fails_and_writes_the_whole_site(book, first):
    code, output = first
    assert code == 1, output
    assert "build finished with problems" in output
    assert typed_numbers.REMEDY in output
    for page in ("index", "01-setup", "clean", "shown", "typed"):
        assert (book.root / "_build" / "html" / f"{page}.html").exists()
    assert "97.8 %" in (book.root / "_build" / "html" / "clean.html").read_text("utf8")


def test_each_is_told_with_its_place_and_nothing_else_is(first):
    files: dict[str, str] = {}
    for line in told(first[1]):
        file, _, rest = line.partition(":")
        files[file] = files.get(file, "") + rest.partition(" in “")[0] + "\n"
    assert files.keys() == {"typed.md", "shown.ipynb"}  # and not what was computed, or is clean
    missing = [n for n in range(50, 77) if str(n) not in files["typed.md"]]
    assert missing == [] and "80" not in files["typed.md"]  # the address of a link
    assert [n for n in (83, 84, 85) if str(n) not in files["shown.ipynb"]] == []
    assert files["shown.ipynb"].count("\n") == 3
    assert "typed.md:1: 51 in “Heading 51 %”" in told(first[1])
    assert "4: 54, 55, 5.0e-50, " in files["typed.md"]


def test_a_warm_build_fails_too(book, first):
    code, output = book.build()
    assert "no targets are out of date" in output
    assert code == 1 and told(output) == told(first[1])


def test_only_a_build_of_html_fails(book, first):
    code, output = book.build(*SPHINX[:-1], "_build/text", "-b", "text")
    assert (code, told(output)) == (0, []), output


@pytest.mark.weekly
def test_what_is_mended_or_gone_is_forgotten(tmp_path):
    book = SmallBook(tmp_path)
    book.write("conf.py", CONF)
    book.write("references.bib", "")
    book.write("index.md", "# Book\n\nIt has 97 % and\n90 %.\n\n```{toctree}\n:glob:\n*\n```\n")
    book.write("other.md", "# Other\n\nIt has 98 %.\n\n```{include} sft_utils/hand.md\n```\n")
    book.write("sft_utils/hand.md", "It has 99 %.\n")
    assert told(book.build()[1]) == [
        "index.md:3: 97, 90 in “It has 97 % and 90 %.”",
        "other.md:3: 98 in “It has 98 %.”",
        "sft_utils/hand.md:2: 99 in “It has 99 %.”",  # MyST counts one too many there
    ]
    book.write("index.md", "# Book\n\n```{toctree}\n:glob:\n*\n```\n")
    assert [line.partition(":")[0] for line in told(book.build()[1])] == [
        "other.md",
        "sft_utils/hand.md",
    ]
    (tmp_path / "other.md").unlink()
    code, output = book.build()
    assert (code, told(output)) == (0, []), output


@pytest.mark.weekly
def test_jupyter_book_exits_with_an_error(tmp_path):
    book = SmallBook(tmp_path)
    local = {"typed_numbers": str(EXTENSION)}
    book.write("_config.yml", yaml.safe_dump({"sphinx": {"local_extensions": local}}))
    book.write("_toc.yml", "format: jb-book\nroot: index\n")
    book.write("index.md", "# Book\n\nIt has 97 %.\n")
    code, output = book.build(*JUPYTER_BOOK)
    assert code != 0
    assert told(output) == ["index.md:3: 97 in “It has 97 %.”"]
    book.write("index.md", "# Book\n\nIt has most of them.\n")
    assert book.build(*JUPYTER_BOOK)[0] == 0


def test_the_book_uses_the_check():
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))
    assert config["sphinx"]["local_extensions"]["typed_numbers"] == "book/_ext"
