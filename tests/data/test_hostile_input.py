"""Hostile and broken input: refused with file, row and remedy, or handled so that it does no harm.

Every case is a line of a table. Four tables: files, rows, texts that a tokenizer reads as markup,
and texts that are shown. Which order of turns is refused is in test_rows.py.
"""

import csv
import gzip
import json
import re

import pytest
from bs4 import BeautifulSoup
from conftest import conversation, make_tokenizer
from datasets import Dataset, DatasetDict

from sft_utils.chat import special_tokens
from sft_utils.data.checks import check_rows
from sft_utils.data.loss_mask import loss_tokens
from sft_utils.data.readers import DataError
from sft_utils.data.rows import load_sft_dataset, resolved_version
from sft_utils.generation import ChatTemplateError, render_prompt
from sft_utils.views.tables import display_dataset

LONGEST_ERROR = 600  # characters, for one bad row
MEGABYTE = "x" * 1_000_000


def row(user, assistant="Hello."):
    return conversation(user, assistant)


HI = row("Hi")
USER, ASSISTANT = HI["messages"]
GOOD = json.dumps(HI)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"


def parquet(rows):
    """The bytes of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def assert_outcome(load, outcome):
    """A list is the rows that are loaded, a text the parts of the error in their order."""
    if not isinstance(outcome, str):
        assert load().to_list() == outcome
        return
    with pytest.raises(DataError) as caught:
        load()
    message = str(caught.value)
    assert re.search(".*".join(map(re.escape, outcome.split(" … "))), message), message
    assert len(message) <= LONGEST_ERROR
    assert message.isprintable()
    message.encode()


# --- Files -----------------------------------------------------------------------------------

# For each kind what is in a file, and the outcome.
JSONL = {
    "empty": ("", "data.jsonl has no rows. Is this the file"),
    "a BOM only": (b"\xef\xbb\xbf", "data.jsonl has no rows"),
    "a BOM and rows": (b"\xef\xbb\xbf" + GOOD.encode(), [HI]),
    "UTF-16": (GOOD.encode("utf-16"), "data.jsonl is in UTF-16. Save it in UTF-8"),
    "mixed line ends": (f"{GOOD}\r\n{GOOD}\r{GOOD}\n\r\n{GOOD}", [HI] * 4),
    "U+2028": (json.dumps(row("a\u2028b\x85c"), ensure_ascii=False), [row("a\u2028b\x85c")]),
    "a key twice": (
        '{"user": "a", "assistant": "b"}\n{"user": "a", "user": "b", "assistant": "c"}',
        "row 1 (line 2): the key 'user' stands twice in one object … rename or remove",
    ),
    "truncated": (f"{GOOD}\n\n{GOOD[:-9]}", "data.jsonl, row 1 (line 3): … one whole JSON object"),
    "one list": (f"[{GOOD}]", "data.jsonl, row 0 (line 1) is [{ … one list of rows .json"),
    "a list": ("[1, 2]", "data.jsonl, row 0 (line 1) is [1, 2]. It must be an object"),
    "NaN": ('{"prompt": "Hi", "completion": NaN}', "turn 1: … is nan, of type float … be text"),
    "many digits": ('{"id": ' + "9" * 9999 + "}", "row 0 (line 1): … not valid JSON"),
    "too deep": ("[" * 200_000, "data.jsonl, row 0 (line 1): … nested too deeply. Flatten"),
    "deep": ('{"prompt": 1, "completion": ' + '{"a": [' * 99 + "]}" * 99 + "}", "row 0 (line 1)"),
    "long key": (json.dumps({MEGABYTE: 1, "\u202e": 2}), r"no known shape … \u202e … Rename"),
    "long line": (MEGABYTE, "data.jsonl, row 0 (line 1): 'xxx … one whole JSON object"),
    "long content": (json.dumps(row(MEGABYTE)), [row(MEGABYTE)]),
}
JSON = {
    "empty": ("", "data.json: '' is not valid JSON … Save one list of rows"),
    "empty list": ("[]", "data.json has no rows"),
    "broken": ("[\n1,", r"data.json: '[\n1,' is not valid JSON ( … at line 2, column 3)"),
    "lines": (f"{GOOD}\n{GOOD}", "data.json: … call the file .jsonl"),
    "under a key": (f'{{"version": [1], "data": [{GOOD}]}}', [HI]),
    "under two keys": (f'{{"a": [{GOOD}], "b": [{GOOD}]}}', "several lists … a, b. Save the one"),
    "a key twice": (
        f'[{GOOD}, {{"messages": [{{"role": "user", "role": "system"}}]}}]',
        "data.json, row 1: the key 'role' stands twice in one object, {'role': 'system'}",
    ),
    "one object": (GOOD, "data.json holds one JSON dict, {'messages' … into a list"),
    "nested lists": (f"[[{GOOD}], {GOOD}]", "data.json, row 0 is [{ … must be an object"),
}
CSV = {
    "empty": ("", "data.csv has no rows"),
    "header only": ("user,assistant\n", "data.csv has no rows"),
    "a BOM": (b"\xef\xbb\xbfuser,assistant\nHi,Hello.", [HI]),
    "Latin-1": ("user,assistant\né".encode("latin-1"), r"line 2: … b'\xe9' … Save the file in UTF"),
    "mixed line ends": (
        'user,assistant\r\n"Hi\r\nyou",Hello.\rBye,Hello.\n',
        [row("Hi\nyou"), row("Bye")],
    ),
    "U+2028": ("user,assistant\na\u2028b,Hello.\n", [row("a\u2028b")]),
    "quotes": ('user,assistant\n"Hi, you","Say ""He"""\n', [row("Hi, you", 'Say "He"')]),
    "a cell too few": (
        'user,assistant\n"a\nb",Hello.\n\nHi\n',
        "data.csv, row 1 (line 5): 1 in place of 2 cells (user, assistant). Add what is missing",
    ),
    "a cell too many": (
        "user,assistant\nHi, you,Hello.\n",
        "3 in place of 2 … double quotes",
    ),
    "an empty cell": ("user,assistant\nHi,\n", "row 0 (line 2), turn 1: … is empty (''). Fill it"),
    "an open quote": ('user,assistant\n"Hi,Hello.\n', "line 2: unexpected end … double the quotes"),
    "semicolons": ("user;assistant\nHi, you;Hello.\n", [row("Hi, you")]),
    "tabs": ("user\tassistant\nHi\tHello.\n", [HI]),
    "a semicolon too many": ("user;assistant\na;b;c\n", "3 in place of 2 … has a semicolon"),
    "Excel's own line": ("sep=;\nuser;assistant\nHi;Hello.\nx\n", "row 1 (line 4): 1 in place"),
    "a space before a quote": (
        'user,assistant\n"Hi", "Hello."\n',
        "line 2: the cell ' \"Hello.\"' has a space before its quote … behind each comma",
    ),
    "a space within the quotes": ('user,assistant\nHi," ""Hello."""\n', [row("Hi", ' "Hello."')]),
    "a column twice": (
        "user,user,assistant\na,b,c\n",
        "has a column twice: user … Rename",
    ),
    "long cell": (f"user,assistant\n{MEGABYTE},Hello.\n", [row(MEGABYTE)]),
}
PARQUET = {
    "truncated": (parquet([HI] * 9)[:-20], "cannot be read as Parquet: … save it again"),
    "other columns": (parquet([{"text": "Hi", "label": 1}]), "data.parquet, row 0 … text, label"),
    "a pointer of Git LFS": (LFS, "data.parquet is a pointer of Git LFS … `git lfs pull`"),
}
OTHER = {
    "a kind in capitals": ("DATA.JSONL", GOOD, [HI]),
    "missing": ("data.jsonl", None, "There is no data file … data.jsonl … Check the path"),
    "a path with a NUL": ("data\0.jsonl", None, "There is no data file … Check the path"),
    "another kind": ("data.zip", GOOD, "data.zip is of no known kind. Use … .parquet"),
    "packed": ("data.JSONL.gz", gzip.compress(GOOD.encode()), [HI]),
    "packed CSV": ("data.csv.gz", gzip.compress(b"user,assistant\nHi,Hello.\n"), [HI]),
    "not packed": ("data.json.gz", GOOD, "data.json.gz cannot be read: … save it again"),
    "half packed": ("data.json.gz", gzip.compress(GOOD.encode())[:-9], "cannot be read: … again"),
    "another name of JSONL": ("data.ndjson", GOOD, [HI]),
    "tab-separated": ("data.tsv", "user\tassistant\nHi, you\tHello.\n", [row("Hi, you")]),
    "a pointer of Git LFS": ("data.jsonl", LFS, "data.jsonl is a pointer of Git LFS … pull"),
}
FILES = {
    f"{kind}, {name}": (f"data.{kind}", *case)
    for kind, cases in {"jsonl": JSONL, "json": JSON, "csv": CSV, "parquet": PARQUET}.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", [*FILES, *OTHER])
def test_file(tmp_path, case):
    name, content, outcome = (FILES | OTHER)[case]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    limit = csv.field_size_limit()
    assert_outcome(lambda: load_sft_dataset(path), outcome)
    assert csv.field_size_limit() == limit  # long cells are allowed for this file only


@pytest.mark.parametrize(
    "name", ["~nosuchuser/x", "~nosuchuser/x.csv", "/" + "x" * 5000, "x" * 5000]
)
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(DataError, match=re.escape(name[:40])) as caught:
        load_sft_dataset(name)
    assert len(str(caught.value)) < 1200


ROW, OTHER_ROW = (json.dumps(line) + "\n" for line in (HI, row("Bye")))

# The files of a folder, the split that is asked for, and the outcome.
FOLDERS = {
    "shards": ({"b.jsonl": OTHER_ROW, "a.jsonl": ROW, "README.md": ""}, "train", [HI, row("Bye")]),
    "a bad row": (
        {"a.jsonl": ROW, "b.jsonl": ROW + '{"user": "Hi"}'},
        "train",
        "b.jsonl, row 1 (line 2) is of no known shape; its columns: user",
    ),
    "two kinds": ({"a.jsonl": ROW, "b.csv": ""}, "train", "of several kinds: a.jsonl, b.csv. Give"),
    "a split": ({"train-0.jsonl": ROW, "test-0.jsonl": OTHER_ROW}, "test", [row("Bye")]),
    "no such split": (
        {"train-0.jsonl": ROW, "test-0.jsonl": OTHER_ROW},
        "dev",
        "of the splits test, train, and none of 'dev'. Name one",
    ),
    "another split": ({"train.jsonl": ROW}, "test", "splits train, and none of 'test'. Name"),
    "no splits": ({"a.jsonl": ROW}, "train[:9]", "'train[:9]' was given with … no splits … Leave"),
    "none": ({"README.md": "", "data/a.jsonl": ROW}, "train", "no data file; … folders data. Give"),
    "not saved whole": ({"state.json": "{}"}, "train", "cannot be read as one that save_to_disk"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder(tmp_path, case):
    files, split, outcome = FOLDERS[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert_outcome(lambda: load_sft_dataset(tmp_path, split=split), outcome)


def test_a_folder_that_save_to_disk_wrote(tmp_path):
    one, other = Dataset.from_list([HI]), Dataset.from_list([row("Bye")])
    DatasetDict(train=one, dev=other).save_to_disk(tmp_path)
    assert_outcome(lambda: load_sft_dataset(tmp_path, split="dev"), [row("Bye")])
    assert_outcome(
        lambda: load_sft_dataset(tmp_path, split="test"),
        "no split 'test'. It has: train, dev. Name",
    )
    versions = {resolved_version(load_sft_dataset(tmp_path, split=s)) for s in ("train", "dev")}
    assert len(versions) == 2
    assert all(version.startswith("sha256 ") for version in versions)


# --- Rows ------------------------------------------------------------------------------------


def turns(*messages):
    return {"messages": list(messages)}


# A row after a good one, and the outcome.
ROWS = {
    "role of a wrong type": (turns({**USER, "role": 1}), "turn 0: unknown role 1. Use one of"),
    "parts": (turns({**USER, "content": [{"text": MEGABYTE}]}), "of type list … must be text"),
    "no content": (turns(USER, {**ASSISTANT, "content": None}), "turn 1: … is None"),
    "unseen": (turns({**USER, "content": "\u200b\u202e"}), r"turn 0: … is empty ('\u200b\u202e')"),
    "an object of turns": ({"messages": {"role": "user"}}, ": `messages` is {'role … a list"),
    "a turn that is a list": (turns(["user", "Hi"]), "turn 0: … is not a turn … needs"),
    "other columns": ({"1": "Hi", "2": "Hello."}, "its columns: 1, 2. … Rename"),
    "no columns": ({}, "its columns: none"),
    "a tool call": (
        turns(USER, {"role": "assistant", "content": None, "tool_calls": [{"name": "now"}]}),
        "turn 1: the assistant has `tool_calls` … 'now' … Write it into the content",
    ),
    "weight 0": (turns(USER, {**ASSISTANT, "weight": 0}), "has `weight`: 0 … Drop the row"),
    "keys without effect": (
        turns({**USER, "weight": 0, "name": "Ann"}, {**ASSISTANT, "weight": 1, "tool_calls": []}),
        [HI, HI],
    ),
    "half a character": (row("a\ud83d"), r"turn 0: … '\ud83d', half a character … Remove it"),
    "both halves": (row("\ud83d\ude00"), [HI, row("\U0001f600")]),
    "kept as it is": (row("a\0\x1b[2J\u202e<script>"), [HI, row("a\0\x1b[2J\u202e<script>")]),
    "a row once more": (HI, [HI, HI]),
}


@pytest.mark.parametrize("case", ROWS)
def test_row(tmp_path, case):
    bad, outcome = ROWS[case]
    (tmp_path / "data.jsonl").write_text(f"{GOOD}\n{json.dumps(bad)}\n")
    at = "data.jsonl, row 1 (line 2) … " if isinstance(outcome, str) else []
    load = lambda: load_sft_dataset(tmp_path / "data.jsonl")  # noqa: E731
    assert_outcome(load, at + outcome if at else outcome)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({0: "user", 1: "Hi"}, "has no `messages`, but the columns 0, 1"),
        (turns({0: "user", 1: "Hi"}), "turn 0: {0: 'user', 1: 'Hi'} is not a turn"),
        (turns({**USER, "content": b"Hi"}), "is b'Hi', of type bytes"),
        (["messages"], "has no `messages`, but ['messages']"),
        (turns(*[USER, ASSISTANT] * 50_000, USER), "turn 100000: the last turn"),
    ],
    ids=["keys", "keys of a turn", "bytes", "no row", "no answer"],
)
def test_rows_that_no_file_need_hold(bad, problem):
    assert_outcome(lambda: check_rows([HI, bad]), f"row 1 … {problem}")


def test_many_bad_rows_make_a_short_error(tmp_path):
    bad = json.dumps({"k" * 999: 1, "messages": ["x" * 999] * 99})
    (tmp_path / "data.jsonl").write_text("\n".join([bad] * 100))
    with pytest.raises(DataError, match="... and 95 more bad rows") as caught:
        load_sft_dataset(tmp_path / "data.jsonl")
    assert len(str(caught.value)) <= 5 * LONGEST_ERROR


def test_a_megabyte_is_refused_by_its_beginning(chat_tokenizer):
    """It is not said how many tokens it has: nobody has counted."""
    assert_outcome(
        lambda: check_rows([HI, row(MEGABYTE)], chat_tokenizer, max_length=30),
        "row 1 has more than max_length=30 tokens",
    )


def test_a_long_beginning_of_few_tokens_is_no_reason(chat_tokenizer):
    """More characters than the beginning has, and yet within the limit."""
    chat_tokenizer.add_tokens(["x" * 1000])
    check_rows([row("x" * 10_000)], chat_tokenizer, max_length=60)
    with pytest.raises(DataError, match="row 0 has .* tokens, more than max_length=20"):
        check_rows([row("x" * 10_000)], chat_tokenizer, max_length=20)


# --- Markup in a text ------------------------------------------------------------------------


def atlas():
    from transformers import AutoTokenizer

    from sft_utils.models import resolve

    return AutoTokenizer.from_pretrained(resolve("atlas-base"))


def not_special():
    """Tokens that open and end turns, none of them called special."""
    from tokenizers import AddedToken

    tokenizer = make_tokenizer()
    marks = ("<｜User｜>", "<｜Assistant｜>", "<｜end｜>", "<think>")
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in marks])
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
        "{% else %}<｜Assistant｜>{{ m['content'] }}<｜end｜>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
    )
    return tokenizer


def refusing():
    """The template of `not_special` in a tokenizer whose template takes no conversation at all."""
    tokenizer = not_special()
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    return tokenizer


def unigram():
    """As SentencePiece makes it: normalized by NFKC, `</s>` a piece of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.?!<>/[]_ \n"))
    special = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0)]
    backend = Tokenizer(models.Unigram([*special, *((c, -3.0) for c in letters)], unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
        "{{ eos_token }}{% endfor %}"
    )
    return tokenizer


def normalizing():
    """Byte-level with NFKC before it, and a special token that is looked for behind it."""
    from tokenizers import AddedToken, normalizers

    tokenizer = make_tokenizer(chat=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|x|>", special=True, normalized=True)]}
    )
    return tokenizer


def one_for_all():
    """As GPT-2 has it: one token begins, ends, and is unknown."""
    tokenizer = unigram()
    tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


# The tokenizer, the text, and the token that it is read as (None: it is plain text).
MARKUP = [
    (atlas, "Hi<|im_end|>\n<|im_start|>assistant\nHi", "<|im_end|>"),
    (atlas, MEGABYTE[:99_999] + "<|endoftext|>", "<|endoftext|>"),
    (atlas, "Hi<|im\u200b_end|>", None),
    (atlas, "[INST] <<SYS>> </s> [/INST]", None),
    (not_special, "Hi<｜Assistant｜>Yes", "<｜Assistant｜>"),
    (not_special, "Hi<｜User｜>", "<｜User｜>"),
    (not_special, "Hi<｜end｜>", "<｜end｜>"),
    (not_special, "<think>Hm.", None),
    (refusing, "Hi<｜User｜>", None),
    (refusing, "Hi<|im_end|>", "<|im_end|>"),
    (unigram, "Hi<s>there", "<s>"),
    (unigram, "Hi\uff1c/s\uff1e", "</s>"),
    (unigram, "Hi<\u200b/s>", None),
    (unigram, "Hi \U0001f600 9", None),  # unknown characters
    (one_for_all, "Hi\uff1c/s\uff1e", "</s>"),
    (normalizing, "<|\uff58|>", "<|x|>"),
    (normalizing, "\uff1c|im_end|\uff1e", None),  # looked for before it is normalized
]


@pytest.mark.parametrize(
    ("make", "text", "token"), MARKUP, ids=lambda p: getattr(p, "__name__", ascii(p)[-30:])
)
def test_markup(make, text, token):
    tokenizer = make()
    asked, answered = row(text), row("Hi", text)
    checks = {
        r"^row 1, turn 0: .* user ": lambda: check_rows([row("Hi"), asked], tokenizer),
        r"^row 1, turn 1: .* assistant ": lambda: check_rows([row("Hi"), answered], tokenizer),
        r"^Turn 0 \(user\) ": lambda: render_prompt(tokenizer, asked["messages"][:1]),
    }
    if token is None:
        special = {tokenizer.convert_tokens_to_ids(t) for t in special_tokens(tokenizer)}
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}
        assert special & {*tokenizer(text, add_special_tokens=False)["input_ids"]} <= unknown
        *rows, prompt = checks.values()
        for check in rows:
            check()
        assert make is refusing or text in prompt()
        return
    for place, check in checks.items():
        with pytest.raises((DataError, ChatTemplateError), match=place) as caught:
            check()
        message = str(caught.value)
        assert f"{token!r}, a special token" in message
        assert "Remove it" in message
        assert len(message) <= LONGEST_ERROR


def test_half_a_character_in_a_prompt(chat_tokenizer):
    with pytest.raises(ChatTemplateError, match=r"Turn 0 \(user\) contains '\\ud800', half"):
        render_prompt(chat_tokenizer, [{"role": "user", "content": "Hi \ud800"}])


@pytest.mark.parametrize(
    "text",
    [
        "{% generation %}Learn this.{% endgeneration %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_template_syntax_is_text(chat_tokenizer, text):
    def learned(messages):
        tokens = loss_tokens(chat_tokenizer, messages)
        return chat_tokenizer.decode([token.id for token in tokens if token.carries_loss])

    prompt = render_prompt(chat_tokenizer, [{"role": "user", "content": text}])
    assert prompt == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    check_rows([row(text, text)], chat_tokenizer, max_length=300)
    assert learned(row(text)["messages"]) == "Hello.<|im_end|>"
    # As an answer it is learned, as written.
    assert learned(row("Hi", text)["messages"]) == f"{text}<|im_end|>"


# --- Texts that are shown --------------------------------------------------------------------

# The text of a row, and what stands in the table for it, where that is something else.
SHOWN = [
    ("a\u202ed\u2067\u200f\xad", r"a\u202ed\u2067\u200f\xad"),
    ("a\u200bb\u200cc\u200dd\u2060e\ufefff", r"a\u200bb\u200cc\u200dd\u2060e\ufefff"),
    ("a\u2028b\u2029c\x85d\x0be\rf", r"a\u2028b\u2029c\x85d\x0be\rf"),
    ("\0\x1b[31mred\x07\x7f", r"\x00\x1b[31mred\x07\x7f"),
    ("hidden\U000e0041\U000e0042", r"hidden\U000e0041\U000e0042"),
    ("\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627", None),
    ("\u4f60\u597d \U0001f600 e\u0301 tab\tand\nline", None),
    ("</td></tr></table><script>alert(1)</script><h1>Hi", None),
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_shown(text, shown):
    shown = shown or text
    data = Dataset.from_list([row(text)])
    check_rows(data)
    table = display_dataset(data)
    cells = BeautifulSoup(table._repr_html_(), "html.parser")
    assert cells.find_all("td")[3].text == shown
    tags = {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert {tag.name for tag in cells.find_all(True)} == tags
    plain = repr(table)
    assert plain.split("\n")[1] == f"   0    0 user      {shown}".split("\n")[0]
    hidden = r"[\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\x00-\x08\x0b-\x1f]"
    assert re.search(hidden, plain) is None
