"""Typed numbers: which sentences are found, where in a page they are found, and what a build does.

The small books here execute nothing: what is glued stands in a notebook with stored outputs.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "book" / "_ext"
sys.path.insert(0, str(EXTENSION))

import typed_numbers  # noqa: E402


def numbers(text: str) -> list[str]:
    return [found for _, found, _ in typed_numbers.typed(text)]


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        # What is typed when one is tired.
        ("It is right in 97.8 % of them.", "97.8"),
        ("It is right in 97.8% of them.", "97.8%"),
        ("It answers 9 of 10.", "9, 10"),
        ("It was asked 1,725 questions.", "1,725"),
        ("The loss is 0.82 nats.", "0.82"),
        ("A change of −3.1 points.", "−3.1"),
        ("The rate is 1e-3.", "1e-3"),
        ("The rate is .5 at most.", "5"),
        ("It took (41 s).", "41"),
        ("In the 3rd epoch.", "3rd"),
        ("In 2020 it was new.", "2020"),
        # What is typed to get past the check.
        ("It is x3 as fast.", "x3"),
        ("It is 10× as fast.", "10×"),
        ("It is 10-fold.", "10-fold"),
        ("It is right in ½ of them.", "½"),
        ("It grows with x².", "x²"),
        ("H₂ is asked for.", "H₂"),
        ("It is right in ９７ of them.", "９７"),  # full width
        ("It is right in ٩٧ of them.", "٩٧"),  # Arabic
        ("It is right in Ⅳ of them.", "Ⅳ"),
        ("Step ⑩ is best.", "⑩"),
        ("It is number 1️⃣.", "1️⃣"),
        ("acc=97", "acc=97"),
        # Near misses of what is allowed.
        ("The 95 % of questions.", "95"),
        ("Right in 95 % confidently.", "95"),
        ("A 90 % interval.", "90"),
        ("A 99.95 % interval.", "99.95"),
        ("Chapter 5 shows it.", "5"),
        ("chapter 97 % done", "97"),
        ("chapters 97.8", "97.8"),
        ("Accuracy-97 % is high.", "Accuracy-97"),
        ("GPT-2 % of them.", "GPT-2"),
        ("GPT-½ is none.", "GPT-½"),
        ("GPT- 2 is none.", "2"),
        ("lower-97 is none.", "lower-97"),
        ("A model of 1.2M parameters.", "1.2M"),
        ("It read 6B tokens.", "6B"),
        ("It keeps 4 B a parameter.", "4"),
        ("A 12-bit number.", "12-bit"),
        ("float97 and bf3", "float97, bf3"),
        ("Python 97 %", "97"),
        ("torch 3.11", "3.11"),
        ("v0.978 is a share, v97 % too.", "v97"),
        ("CC BY 4.05", "4.05"),
        ("1.2.3 % of them", "1.2.3"),
        ("arXiv:97", "arXiv:97"),
        ("It got 97. That is high.", "97"),
        ("197. That is high.", "197"),
        ("12.5 is high.", "12.5"),
    ],
)
def test_found(sentence: str, found: str) -> None:
    assert numbers(sentence) == [found]


@pytest.mark.parametrize(
    "sentence",
    [
        "Nine of ten, two thirds, the first three rows.",
        "1. How many are there?",
        " 12. How many are there?",
        "Chapter 05 shows it, chapters 01 to 08 use it, chapters 03, 04 and 08–09 too.",
        "Qwen3-0.6B-Base, SmolLM2-135M, Qwen2.5-7B, GPT-2, Llama-3.1-8B and Qwen3.",
        "UTF-8, SHA-256 and Apache-2.0.",
        "float32, bfloat16, bf16, fp16 and int8, in 32-bit or 4-bit.",
        "At 0.6B and above, at 7B, published at 0.1 B or more, 175 B parameters.",
        "Jupyter Book 1.0.4, v2, v1.2, Python 3.11, PyTorch 2.6, TRL 1.14 and version 3.",
        "CC BY 4.0 or CC BY-SA 4.0.",
        "It is arXiv:2203.02155v1.",
        "A 95 % interval, 95% intervals, 95 % confidence.",
    ],
)
def test_allowed(sentence: str) -> None:
    assert numbers(sentence) == []


def test_a_citation_covers_its_sentence_and_no_other() -> None:
    cited = typed_numbers.CITED
    assert numbers(f"It was 97 % {cited}.") == []
    assert numbers(f"It was 97 %, i.e. Most of them, as Wei et al. Found on p. 7 {cited}.") == []
    assert numbers(f"It was 97 % {cited}. Here it is 98 %.") == ["98"]
    assert numbers(f"Here it is 98 %! It was 97 % {cited}.") == ["98"]
    assert numbers(f"(Here it is 98 %.) It was 97 % {cited}.") == ["98"]
    assert numbers(f"Here GPT-2 has 98 of them for GPT-2. It was 97 % {cited}.") == ["98"]


def test_a_sentence_is_told_as_it_reads() -> None:
    text = f"First.\nThe model\n{typed_numbers.hide('x = 5')} of GPT-2 had 97 %. Last."
    [(position, found, sentence)] = typed_numbers.typed(text)
    assert (found, sentence) == ("97", "The model x = 5 of GPT-2 had 97 %.")
    assert text[:position].count("\n") == 2


def glued(code: str) -> list[str]:
    cell = nbformat.v4.new_code_cell(code)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    return [found.numbers for found in typed_numbers.in_cells(notebook, "x.md")]


@pytest.mark.parametrize(
    "code",
    [
        'glue("share", "97.8 %")',
        'glue("share", 97.8)',
        'glue("share", value=97)',
        'results.glue("share", round(0.978, 2))',
        'glue("share", f"{97.8:.1f} %")',
        'glue("share", Measure(0.978, "%"))',
        'share = Measure(value=0.978, unit="%")',
        'claim("it-learns", "It learns 90 % of them.", share, at_least=0.9)',
    ],
)
def test_a_number_typed_into_a_call_that_glues_is_found(code: str) -> None:
    assert glued(code)
    assert ast.parse(glued(code)[0])  # the value, as code


@pytest.mark.parametrize(
    "code",
    [
        'glue("share", f"{100 * share:.1f} %")',
        'glue("share2", share / 3)',
        'glue("verdict", "agrees" if share > 0.9 else "differs")',
        'glue("none", "–")',
        'glue("model", "SmolLM2-135M")',
        'glue("seen", True)',
        'Measure(share, "%", digits=2, n=len(rows), seeds=(0, 1))',
        'claim("it-learns", "It learns most of them.", share, at_least=0.9)',
        "%time 97\nglue('share', 97)",  # no Python that can be read
    ],
)
def test_what_a_cell_computes_is_not(code: str) -> None:
    assert glued(code) == []


# Where in a page: each line of `FOUND_IN` has numbers from 50 on, and no other line has one.

FOUND_IN = """\
# Heading 51

Paragraph with *emphasis on 52* and **53**.
The next line has 54 and ` 55 % `, `5e-50`, and $56\\,\\%$ and $57 \\times 58$.

| header 59 | b |
|---|---|
| cell 60 | [61 of them](clean.md) |

- item
  - nested 62

> quoted 63

:::{admonition} Title 64
Admonition 65.
:::

![typed alt text 66](pixel.png)

:::{figure} pixel.png
:alt: alt text 67

Caption 68
:::

<div>Raw <b>HTML 69</b><img src="pixel.png" alt="70 of them"><style>a {width: 1px}</style></div>

Inline <b>71</b>, x{sup}`72`, {abbr}`SFT (73 letters)`, &#55;&#52;.

$$75.5$$

```{code-block} python
:caption: Caption 76
x = 1
```

Term
: Definition 77

A footnote.[^note]

[^note]: It says 78.

[A link with 79](https://example.org/80), [its tooltip](https://example.org "81 of them").

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

1. A list.
2. Its second item.

[01 Setup](01-setup.md), [chapter 01](01-setup.md), {doc}`01-setup`,
[TRL issue 1400](https://github.com/huggingface/trl/issues/1400).

In 2020 it was 42 % {cite}`smith2020`.

| a | b |
|---|---|
| 42 % {cite}`smith2020` | – |

Quoted: {glue:text}`shown.ipynb::share:s`.

```{glue:} share
:doc: shown.ipynb
```

<div style="width: 50%"><style>a {width: 1px}</style></div>

![A picture](pixel.png)

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
myst_substitutions = {{"typed_in_the_settings": "set to 82"}}
"""

BIB = "@misc{smith2020, title={A title of 1999}, author={Smith, A.}, year={2020}}\n"
CARD = "# Card\n\nMade in 2,400 updates.\n\n| updates |\n|---|\n| 2,400 |\n"


def shown() -> nbformat.NotebookNode:
    """A notebook with its outputs stored: a glued value, printed numbers, and typed ones."""
    new = nbformat.v4
    out = new.new_output("display_data", data={"text/plain": "'97.8 %'"})
    out.metadata["scrapbook"] = {"name": "share", "mime_prefix": ""}
    text = new.new_output("stream", name="stdout", text="97.8 %\n")
    table = new.new_output("display_data", data={"text/html": "<p>97.8 %</p>"})
    said = new.new_output("display_data", data={"text/markdown": "It has 97.8 %."})
    picture = new.new_output(
        "display_data",
        data={"image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg"/>'},
        metadata={"image/svg+xml": {"alt": "computed 97.8"}},
    )
    pictured = {"image": {"alt": "typed alt 83"}, "figure": {"caption": "typed caption 84"}}
    return new.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        cells=[
            new.new_markdown_cell("# Shown\n\nGlued: {glue:text}`share`.\n\n```{glue:} share\n```"),
            new.new_code_cell('glue("share", f"{share} %")', outputs=[out]),
            new.new_code_cell("share", outputs=[text, table, said, picture]),
            new.new_code_cell("picture", outputs=[picture], metadata={"mystnb": pictured}),
            new.new_code_cell("glue('typed', '85 %')", metadata={"tags": ["remove-cell"]}),
        ],
    )


@dataclass
class Book:
    """A book in a folder of its own."""

    root: Path

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf8")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    def build(self, builder: str = "html") -> subprocess.CompletedProcess[str]:
        return self.run("-m", "sphinx", "-b", builder, "-d", "_build/doctrees", ".", "_build/html")


def told(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines that the build says about typed numbers."""
    _, found, text = result.stdout.partition("ERROR: typed numbers in the prose of the book:\n")
    return text.partition(f"\n{typed_numbers.REMEDY}")[0].splitlines() if found else []


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Book:
    book = Book(tmp_path_factory.mktemp("book"))
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
def first(book: Book) -> subprocess.CompletedProcess[str]:
    """The first build, with every kind of typed number."""
    return book.build()


def test_the_build_fails_and_writes_the_whole_site(
    book: Book, first: subprocess.CompletedProcess[str]
) -> None:
    assert first.returncode == 1, first.stdout
    assert "build finished with problems" in first.stdout
    assert typed_numbers.REMEDY in first.stdout
    for page in ("index", "01-setup", "clean", "shown", "typed"):
        assert (book.root / "_build" / "html" / f"{page}.html").exists()
    assert "97.8 %" in (book.root / "_build" / "html" / "clean.html").read_text("utf8")


@pytest.mark.parametrize("number", [*range(50, 80), 81, 82])
def test_found_on_a_page(first: subprocess.CompletedProcess[str], number: int) -> None:
    lines = [line for line in told(first) if str(number) in line.partition(" in “")[0]]
    assert lines and all(line.startswith("typed.md") for line in lines), told(first)


def test_the_address_of_a_link_is_none(first: subprocess.CompletedProcess[str]) -> None:
    assert not any("80" in line for line in told(first))


def test_found_in_a_notebook(first: subprocess.CompletedProcess[str]) -> None:
    lines = [line for line in told(first) if line.startswith("shown.ipynb")]
    assert [number for number in (83, 84, 85) if str(number) not in "\n".join(lines)] == []
    assert len(lines) == 3, lines  # and nothing that was computed


def test_nothing_is_found_where_nothing_was_typed(first: subprocess.CompletedProcess[str]) -> None:
    files = {line.partition(":")[0] for line in told(first)}
    assert files == {"typed.md", "shown.ipynb"}


def test_the_line_is_told(first: subprocess.CompletedProcess[str]) -> None:
    assert "typed.md:1: 51 in “Heading 51”" in told(first)
    [line] = [line for line in told(first) if "54" in line]
    assert line.startswith("typed.md:4: 54, 55, 5e-50, ")


def test_a_warm_build_fails_too(book: Book, first: subprocess.CompletedProcess[str]) -> None:
    again = book.build()
    assert "no targets are out of date" in again.stdout
    assert again.returncode == 1
    assert told(again) == told(first)


def test_only_a_build_of_html_fails(book: Book, first: subprocess.CompletedProcess[str]) -> None:
    result = book.run("-m", "sphinx", "-b", "text", "-d", "_build/doctrees", ".", "_build/text")
    assert result.returncode == 0, result.stdout
    assert told(result) == []


def test_what_is_mended_or_gone_is_forgotten(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.write("conf.py", CONF)
    book.write("references.bib", "")
    book.write("index.md", "# Book\n\nIt has 97 % and\n90 %.\n\n```{toctree}\n:glob:\n*\n```\n")
    book.write("other.md", "# Other\n\nIt has 98 %.\n\n```{include} sft_utils/hand.md\n```\n")
    book.write("sft_utils/hand.md", "It has 99 %.\n")
    assert told(book.build()) == [
        "index.md:3: 97, 90 in “It has 97 % and 90 %.”",
        "other.md:3: 98 in “It has 98 %.”",
        "sft_utils/hand.md:2: 99 in “It has 99 %.”",  # MyST counts one too many there
    ]
    book.write("index.md", "# Book\n\n```{toctree}\n:glob:\n*\n```\n")
    assert [line.partition(":")[0] for line in told(book.build())] == [
        "other.md",
        "sft_utils/hand.md",
    ]
    (tmp_path / "other.md").unlink()
    result = book.build()
    assert (result.returncode, told(result)) == (0, []), result.stdout


def test_jupyter_book_exits_with_an_error(tmp_path: Path) -> None:
    book = Book(tmp_path)
    local = {"typed_numbers": str(EXTENSION)}
    execute = {"execute_notebooks": "off"}
    book.write(
        "_config.yml", yaml.safe_dump({"execute": execute, "sphinx": {"local_extensions": local}})
    )
    book.write("_toc.yml", "format: jb-book\nroot: index\nchapters:\n  - file: other\n")
    book.write("index.md", "# Book\n\nIt has 97 %.\n")
    book.write("other.md", "# Other\n\nIt has most of them.\n")
    command = ("-c", "from jupyter_book.cli.main import main; main()", "build", ".")
    result = book.run(*command)
    assert result.returncode != 0
    assert told(result) == ["index.md:3: 97 in “It has 97 %.”"]
    html = tmp_path / "_build" / "html"
    assert "It has 97 %." in (html / "index.html").read_text("utf8")
    assert "It has most of them." in (html / "other.html").read_text("utf8")
    book.write("index.md", "# Book\n\nIt has most of them.\n")
    assert book.run(*command).returncode == 0


def test_the_book_uses_the_check() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))
    assert config["sphinx"]["local_extensions"]["typed_numbers"] == "book/_ext"
