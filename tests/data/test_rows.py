"""Rows: loaded whole, refused with the place and the remedy, and the very ids that carry loss."""

import hashlib
import json
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from datasets import Dataset

from sft_utils.atlas import shipped
from sft_utils.data.checks import check_rows
from sft_utils.data.duplicates import near_duplicates
from sft_utils.data.loss_mask import loss_tokens, sequence_lengths
from sft_utils.data.readers import DataError
from sft_utils.data.rows import load_sft_dataset, read_sft_dataset, resolved_version
from sft_utils.views.tables import display_dataset


def turn(role, content):
    return {"role": role, "content": content}


def row(*contents, roles=("user", "assistant")):
    """Turns of the given contents, user and assistant by turns."""
    return {"messages": [turn(roles[i % len(roles)], text) for i, text in enumerate(contents)]}


KENYA = row("What is the capital of Kenya?", "It is Nairobi.")
PERU = row("What is the capital of Peru?", "It is Lima.")
LONG = row("Hi", "Hello.", "Which animal is the largest?", "It is the blue whale.")


def dataset(*rows):
    return Dataset.from_list(list(rows))


# --- Loading ---------------------------------------------------------------------------------


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        Dataset.from_list(rows).to_parquet(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    write(path, [KENYA, LONG])
    assert load_sft_dataset(path).to_list() == [KENYA, LONG]
    assert load_sft_dataset(str(path), rows=1).to_list() == [KENYA]
    assert load_sft_dataset(path, rows=9).num_rows == 2


def test_csv(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('system,user,assistant\nBe kind.,"Hi, you","Hello\nyou"\n,Bye,So long\n')
    assert load_sft_dataset(path).to_list() == [
        {
            "messages": [
                turn("system", "Be kind."),
                turn("user", "Hi, you"),
                turn("assistant", "Hello\nyou"),
            ]
        },
        row("Bye", "So long"),
    ]


def test_a_seed_takes_a_sample_and_none_the_first_rows(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [row(f"Question {i}", f"Answer {i}") for i in range(50)]
    write(path, rows)
    assert load_sft_dataset(path, rows=5).to_list() == rows[:5]
    sample = load_sft_dataset(path, rows=5, seed=1).to_list()
    assert sample == load_sft_dataset(path, rows=5, seed=1).to_list()
    assert sample != rows[:5]
    assert all(r in rows for r in sample)


def test_the_atlas_by_its_name(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    write(path, [KENYA])
    monkeypatch.setitem(shipped.ROWS, "atlas-sft-data", path)
    assert load_sft_dataset("atlas-sft-data").to_list() == [KENYA]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "a.jsonl",
            json.dumps(KENYA) + "\n\n{oops",
            r"a.jsonl, row 1 \(line 3\): '{oops' is not valid JSON \(.* at column 2\)",
        ),
        ("a.json", "[\n1,", r"a.json: '\[\\n1,' is not valid JSON \(.* at line 2, column 3\)"),
        ("a.json", "{}", "a.json holds one JSON dict, {}, not a list"),
        (
            "a.csv",
            "ask,say\nHi,Hello\n",
            r"a.csv, row 0 \(line 2\) is of no known shape; its columns: ask, say. .* say",
        ),
        ("a.txt", "Hi", "a.txt is of no known kind"),
        (
            "a.jsonl",
            '{"text": "Hi"}',
            r"a.jsonl, row 0 \(line 1\) holds a text and no conversation; its columns: text",
        ),
        ("a.jsonl", '"Hi"', r"a.jsonl, row 0 \(line 1\) is 'Hi'"),
        ("a.jsonl", "\n", "a.jsonl has no rows"),
        (
            "a.csv",
            "user,assistant\n\nHi\n",
            r"a.csv, row 0 \(line 3\): 1 in place of 2 cells \(user, assistant\)",
        ),
    ],
)
def test_bad_files(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=problem):
        load_sft_dataset(tmp_path / name)


def test_every_bad_row_of_a_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(r) for r in (KENYA, row("Hi"), PERU, row("Hi", ""))]
    path.write_text(f"{lines[0]}\n{lines[1]}\n\n{lines[2]}\n{lines[3]}\n")
    with pytest.raises(DataError) as caught:
        load_sft_dataset(path)
    assert [
        line.partition(" has")[0].partition(":")[0] for line in str(caught.value).split("\n")
    ] == [
        "a.jsonl, row 1 (line 2)",
        "a.jsonl, row 3 (line 5), turn 1",
    ]


@pytest.mark.parametrize("source", ["nowhere.jsonl", "./nowhere", "/nowhere/data.csv"])
def test_missing_file(source):
    with pytest.raises(DataError, match="There is no data file"):
        load_sft_dataset(source)


def test_unreachable_hub():
    with pytest.raises(DataError, match="'owner/data-not-cached'") as caught:
        load_sft_dataset("owner/data-not-cached")
    for way_out in ("connect", "HF_HOME", "SFT_PROFILE=atlas", "local .jsonl"):
        assert way_out in str(caught.value)


def test_rows_below_one(tmp_path):
    write(tmp_path / "a.jsonl", [KENYA])
    with pytest.raises(DataError, match="rows=0"):
        load_sft_dataset(tmp_path / "a.jsonl", rows=0)


def test_a_revision_is_the_hubs(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", [KENYA])
    with pytest.raises(DataError, match="revision='v1' was given with the file a.jsonl"):
        load_sft_dataset(tmp_path / "a.jsonl", revision="v1")
    with pytest.raises(DataError, match=r"split='dev' was given with a.jsonl, which has no spl"):
        load_sft_dataset(tmp_path / "a.jsonl", split="dev")
    asked = hub(monkeypatch, [KENYA])
    commits = {"v1": SimpleNamespace(resolved="c0ffee")}
    monkeypatch.setattr(
        "huggingface_hub.HfApi.resolve_revision",
        lambda self, name, *, revision, **options: commits[revision],
    )
    load_sft_dataset("owner/data", split="test", revision="v1")
    assert asked == [("owner/data", {"split": "test", "revision": "c0ffee"})]


# --- Shapes of rows --------------------------------------------------------------------------


def hub(monkeypatch, rows):
    """A data set on a Hub of our own; what it was asked for is written down."""
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return dataset(*rows)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


def part(text):
    return {"type": "text", "text": text}


HI = row("Hi", "Hello.")
SHARED = {
    "conversations": [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello."},
    ]
}
KIND = row("Be kind.", "Hi", "Hello.", roles=("system", "user", "assistant"))
SHAPES = {
    "messages": (KIND, KIND),
    "texts": ({"prompt": "Hi", "completion": "Hello."}, row("Hi", "Hello.")),
    "texts with system": ({"system": "Be kind.", "prompt": "Hi", "completion": "Hello."}, KIND),
    "empty system": ({"system": "", "prompt": "Hi", "completion": "Hello."}, row("Hi", "Hello.")),
    "no system": ({"system": None, "user": "Hi", "assistant": "Hello."}, row("Hi", "Hello.")),
    "lists of turns": (
        {"prompt": LONG["messages"][:3], "completion": LONG["messages"][3:], "id": 7},
        LONG,
    ),
    "user and assistant": ({"user": "Hi", "assistant": "Hello."}, row("Hi", "Hello.")),
    "ShareGPT": (SHARED, KIND),
    "ShareGPT, other names": (
        {
            "conversations": [
                {"from": "user", "value": "Hi", "weight": 0.0},
                {"from": "chatgpt", "value": "Hello.", "weight": 1.0},
                {"from": "human", "value": "Bye", "weight": None},
                {"from": "assistant", "value": "So long.", "weight": None},
            ]
        },
        row("Hi", "Hello.", "Bye", "So long."),
    ),
    "ShareGPT, a name of its own": (
        {"conversation": [{"from": "Human", "value": "Hi"}, {"from": "bing", "value": "Hello."}]},
        row("Hi", "Hello."),
    ),
    "half ShareGPT": (
        {"conversations": [{"role": "human", "value": "Hi"}, {"role": "GPT", "value": "Hello."}]},
        row("Hi", "Hello."),
    ),
    "parts": (
        {"messages": [turn("user", [part("H"), part("i")]), turn("assistant", [part("Hello.")])]},
        row("Hi", "Hello."),
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        row("Add.\n\n1 and 2", "3"),
    ),
    "Alpaca, no input": (
        {"instruction": "Hi", "input": " ", "output": "Hello."},
        row("Hi", "Hello."),
    ),
    "Dolly": (
        {"instruction": "Hi", "context": "", "response": "Hello.", "category": "talk"},
        row("Hi", "Hello."),
    ),
    "a question about a text": (
        {"Question": "Who?", "context": "Ann sang.", "Answer": "Ann."},
        row("Who?\n\nAnn sang.", "Ann."),
    ),
    "system_prompt": ({"system_prompt": "Be kind.", "query": "Hi", "response": "Hello."}, KIND),
    "chosen text": (
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."},
        row("Hi", "Hello."),
    ),
    "chosen text with the prompt": (
        {"prompt": "Q: Hi", "chosen": "Q: Hi\nHello.", "rejected": "Q: Hi\nNo."},
        row("Q: Hi", "Hello."),
    ),
    "chosen turns": (
        {"prompt": [turn("user", "Hi")], "chosen": [turn("assistant", "Hello.")]},
        row("Hi", "Hello."),
    ),
    "chosen conversation": (
        {"prompt": "Hi", "chosen": KIND["messages"], "rejected": KIND["messages"]},
        KIND,
    ),
    "two shapes that say the same": ({"problem": "Hi", "solution": "Hello.", **HI}, HI),
    "tools that are none": ({**KIND, "tools": "[]", "images": []}, KIND),
    "conversations of messages": ({"conversations": KIND["messages"]}, KIND),
    "system beside messages": ({"system": "Be kind.", **row("Hi", "Hello.")}, KIND),
    "the same system twice": ({"system": "Be kind.", **KIND}, KIND),
}


@pytest.mark.parametrize("source", [".jsonl", ".json", ".parquet", "hub"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_from_anywhere(tmp_path, monkeypatch, shape, source):
    given, expected = SHAPES[shape]
    if source == "hub":
        hub(monkeypatch, [given, given])
        found = load_sft_dataset("owner/data")
    else:
        write(tmp_path / f"data{source}", [given, given])
        found = load_sft_dataset(tmp_path / f"data{source}")
    assert found.column_names == ["messages"]
    assert found.to_list() == [expected, expected]


def test_the_version_of_a_file_is_its_sum(tmp_path):
    path = tmp_path / "data.jsonl"
    write(path, [KENYA] * 9)
    version = "sha256 " + hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    dataset = load_sft_dataset(path)
    parts = dataset.train_test_split(test_size=2, seed=0)
    for part in (
        dataset,
        dataset.select([1]),
        load_sft_dataset(path, rows=3, seed=1),
        parts["train"],
    ):
        assert resolved_version(part) == version
    write(path, [KENYA] * 8)
    assert resolved_version(load_sft_dataset(path)) != version


def test_the_version_is_unknown_without_a_cache(monkeypatch):
    hub(monkeypatch, [KENYA])
    assert resolved_version(load_sft_dataset("owner/data")) == ""


def test_rows_of_a_file_may_differ_in_shape(tmp_path):
    rows = [given for given, _ in SHAPES.values()]
    write(tmp_path / "data.jsonl", rows)
    expected = [row for _, row in SHAPES.values()]
    assert load_sft_dataset(tmp_path / "data.jsonl").to_list() == expected
    # A table has every column in every row, and nothing in the cells of the others.
    rows = [KENYA, {"prompt": "Hi", "completion": "Hello."}, SHARED]
    empty = dict.fromkeys(("messages", "prompt", "completion", "conversations"))
    write(tmp_path / "data.parquet", [{**empty, **r} for r in rows])
    found = load_sft_dataset(tmp_path / "data.parquet").to_list()
    assert found == [KENYA, row("Hi", "Hello."), KIND]


def test_a_sample_from_the_hub(monkeypatch):
    rows = [row(f"Question {i}", f"Answer {i}") for i in range(50)]
    hub(monkeypatch, [{**r, "id": i} for i, r in enumerate(rows)])
    assert load_sft_dataset("owner/data", rows=3).to_list() == rows[:3]
    sample = load_sft_dataset("owner/data", rows=3, seed=1).to_list()
    assert sample != rows[:3]
    assert all(r in rows for r in sample)


ALPACA = [{"id": n, "instruction": "Hi", "input": text, "output": "Hello."} for n, text in
          enumerate(("", "you", " "))]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "columns", "read_as", "not_used"),
    [
        (
            ALPACA,
            {},
            "Alpaca rows (instruction + input -> user, output -> assistant)",
            "columns id (3 rows)",
        ),
        (
            ALPACA,
            {"prompt": "instruction", "completion": "output"},
            "rows (instruction -> user, output -> assistant)",
            "columns id (3 rows), input (1 row)",
        ),
        (
            [{"a": "Hi", "b": "you", "c": "Hello."}],
            {"prompt": "a", "input": "b", "completion": "c"},
            "rows (a + b -> user, c -> assistant)",
            "no column",
        ),
        (
            [SHARED, SHARED, {**KENYA, "meta": {}}],
            {},
            "2 as ShareGPT rows (conversations -> turns); 1 as rows of turns (messages -> turns)",
            "no column",
        ),
        (
            [{"": 7, "system_prompt": "", "Prompt": "Hi", "chosen": "Hello.", "rejected": "No."}],
            {},
            "preference rows (system_prompt -> system, Prompt -> user, chosen -> assistant; no "
            "rejected answer is learned)",
            "columns (no name) (1 row), rejected (1 row)",
        ),
    ],
)
def test_what_was_made_of_the_columns_is_told(tmp_path, rows, columns, read_as, not_used):
    write(tmp_path / "data.jsonl", rows)
    reading = read_sft_dataset(tmp_path / "data.jsonl", columns=columns)
    assert (reading.read_as, reading.not_used) == (read_as, not_used)
    assert reading.first == rows[0]


def test_of_a_table_what_is_not_needed_is_counted_and_not_read(tmp_path):
    """Dates beyond Python's, for one: no Python value can hold them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    days, tags = pa.array([4_000_000, None], pa.date32()), [["a"], []]
    table = pa.table({"user": ["Hi"] * 2, "day": days, "assistant": ["Hello."] * 2, "tags": tags})
    pq.write_table(table, tmp_path / "data.parquet")
    Dataset(table).save_to_disk(tmp_path / "saved")
    for source in ("data.parquet", "saved"):
        reading = read_sft_dataset(tmp_path / source)
        assert reading.dataset.to_list() == [HI, HI]
        assert reading.not_used == "columns day (1 row), tags (1 row)"
        assert reading.first["day"] == "(not read)"
    pq.write_table(
        table.rename_columns(["user", "image", "assistant", "tags"]), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="a.parquet has something in `image` in 1 rows. The answer"):
        load_sft_dataset(tmp_path / "a.parquet")
    pq.write_table(table.select(["day", "tags"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="b.parquet, row 0 is of no known .*columns: day, tags. It"):
        load_sft_dataset(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        ({"question": "Hi", "answer": "Hello."}, {"prompt": "question", "completion": "answer"}),
        ({"question": "Hi", "completion": "Hello."}, {"prompt": "question"}),
        ({"chat": row("Hi", "Hello.")["messages"]}, {"messages": "chat"}),
        ({"chat": SHARED["conversations"][1:]}, {"conversations": "chat"}),
        ({**KENYA, "prompt": "Hi", "completion": "Hello."}, {"prompt": "prompt"}),
        ({**row("Hi", "Hello."), **SHARED}, {"messages": "messages"}),
        ({"messages": 5, "a": "Hi", "b": "Hello."}, {"prompt": "a", "completion": "b"}),
    ],
)
def test_columns_by_other_names(tmp_path, given, columns):
    write(tmp_path / "data.jsonl", [given])
    found = load_sft_dataset(tmp_path / "data.jsonl", columns=columns)
    assert found.to_list() == [row("Hi", "Hello.")]


def test_a_system_column_by_another_name(tmp_path):
    (tmp_path / "data.csv").write_text("who,question,answer\nBe kind.,Hi,Hello.\n,Hi,Hello.\n")
    columns = {"system": "who", "prompt": "question", "completion": "answer"}
    found = load_sft_dataset(tmp_path / "data.csv", columns=columns)
    assert found.to_list() == [KIND, row("Hi", "Hello.")]


@pytest.mark.parametrize("source", ["data.jsonl", "owner/data"])
@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (
            {"prompt": "qestion"},
            "has no column 'qestion', which `columns` gives for 'prompt'; the nearest is "
            "'question'. It has: answer, question.",
        ),
        ({"promt": "question"}, "'promt' is no name that is known here; the nearest is 'prompt'"),
        ({"prompt": "answer", "completion": "answer"}, "to each a column of its own"),
        ({"prompt": "question", "messages": "answer"}, "describes no row"),
    ],
)
def test_columns_that_cannot_be(tmp_path, monkeypatch, source, columns, problem):
    rows = [{"question": "Hi", "answer": "Hello."}]
    write(tmp_path / "data.jsonl", rows)
    hub(monkeypatch, rows)
    with pytest.raises(DataError) as caught:
        load_sft_dataset(tmp_path / source if "." in source else source, columns=columns)
    assert problem in str(caught.value)
    if "no column" in problem:
        assert str(caught.value).startswith(source)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"Text": "Hi", "label": 1},
            " holds a text and no conversation; its columns: Text, label.",
        ),
        (
            {"prompt": "Add", "input": "1", "output": "1"},
            " is of no known shape; its columns: prompt",
        ),
        ({"prompt": "Hi", "id": 1}, " is of no known shape; its columns: prompt, id. It needs"),
        (
            {**KENYA, "prompt": "Hi", "completion": "Hello."},
            " is of two shapes at once: messages and prompt + completion; its columns: messages, "
            'prompt, completion. Say which counts, as in columns={"messages": "messages"}',
        ),
        ({"conversations": "Hi"}, ": `conversations` is 'Hi'. It must be a list of turns"),
        ({"messages": "[{}]"}, ": `messages` is '[{}]'. It must be a list of turns, not a t"),
        ({"prompt": "Hi", "completion": "No.", "label": False}, " has `label` false: by it"),
        ({"prompt": "Hi", "completion": ["Hello."]}, ", turn 1: 'Hello.' is not a turn"),
        ({"prompt": 5, "completion": "Hello."}, ", turn 0: the content of the user is 5, of type"),
        ({"conversations": [{"from": "bot", "value": "Hi"}]}, ", turn 0: unknown role 'bot'"),
        (
            {
                "conversations": [
                    *SHARED["conversations"],
                    {"from": "function_call", "value": "f()"},
                ]
            },
            ", turn 3: 'function_call' speaks: a tool, or a call of one. Only texts",
        ),
        (
            {"question": "Hi", "answer": "Hello.", "response": "Yes."},
            " is of two shapes at once: question + answer and question + response; its columns: "
            'question, answer, response. Say which counts, as in columns={"prompt": "question", '
            '"completion": "answer"}, or drop',
        ),
        (
            {"messages": [turn("user", [{"type": "image_url", "image_url": "x"}])]},
            ", turn 0: a part of the content is of type 'image_url'",
        ),
        ({"prompt": "Bye", "chosen": LONG["messages"]}, ": `chosen` begins before the answer and"),
        ({"chosen": "Human: Hi", "rejected": "Human: Hi"}, ": `chosen` is 'Human: Hi'. It must be"),
        (
            {**KENYA, "tools": [{"name": "f"}]},
            " has something in `tools`: [{'name': 'f'}]. The answ",
        ),
        ({**KENYA, "functions": "[f]"}, " has something in `functions`: '[f]'"),
        ({**KENYA, "history": [["a", "b"]]}, " has something in `history`"),
        ({"instruction": "Hi", "input": 5, "output": "Hello."}, " has 5 where texts are joined"),
        ({"system": "a", "system_prompt": "b", **KENYA}, " has two system messages: 'b' in a colu"),
        ({"conversations": [{"from": ["x"], "value": "Hi"}]}, ", turn 0: unknown role ['x']"),
        ({"system": "Be brief.", **KIND}, " has two system messages: 'Be brief.' in a column"),
    ],
)
def test_rows_of_no_clear_shape(tmp_path, monkeypatch, given, problem):
    write(tmp_path / "data.jsonl", [KENYA, given])
    with pytest.raises(DataError) as caught:
        load_sft_dataset(tmp_path / "data.jsonl")
    assert str(caught.value).startswith(f"data.jsonl, row 1 (line 2){problem}")
    hub(monkeypatch, [given])
    with pytest.raises(DataError) as caught:
        load_sft_dataset("owner/data")
    assert str(caught.value).startswith(f"owner/data, row 0{problem}")


# --- Checking --------------------------------------------------------------------------------


def test_good_rows_pass(chat_tokenizer):
    tool = {"messages": [*KENYA["messages"][:1], turn("tool", "Nairobi"), turn("assistant", "OK")]}
    check_rows(dataset(KENYA, LONG, tool, KIND), chat_tokenizer, max_length=66)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"text": "Hi"}, "row 1 has no `messages`, but the columns text. Build one"),
        ({"messages": []}, r"row 1: `messages` is \[\]. It must be a list"),
        ({"messages": "Hi"}, "row 1: `messages` is 'Hi'"),
        ({"messages": None}, "row 1: `messages` is None"),
        ({"messages": [{"from": "human"}]}, "row 1, turn 0: {'from': 'human'} is not a turn"),
        (
            row("Hi", "Hello", roles=("human", "gpt")),
            "row 1, turn 0: unknown role 'human'. Use one of: system, user, assistant, tool",
        ),
        (row("Hi", ""), r"row 1, turn 1: the content of the assistant is empty \(''\)"),
        (row(" \n", "Hello"), r"row 1, turn 0: the content of the user is empty \(' \\n'\)"),
        (row("Hi", 42), "row 1, turn 1: .* assistant is 42, of type int. It must be text"),
        (row("Hi", None), "row 1, turn 1: .* is None, of type NoneType"),
        (row("Hi", ["Hello"]), "row 1, turn 1: .* of type list"),
        (row("Hi"), "row 1 has no assistant turn, only user: nothing to learn"),
        (row("Hi", "x" * 99 + "\x00" * 99, 5), r"row 1, turn 2: .* is 5"),
    ],
)
def test_bad_rows(bad, problem):
    with pytest.raises(DataError, match=problem):
        check_rows([KENYA, bad])


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        ("assistant user assistant", ", turn 0: the first to speak is the assistant"),
        ("system assistant", ", turn 1: the first to speak is the assistant"),
        ("tool assistant", ", turn 0: the first to speak is the tool"),
        ("user system assistant", ", turn 1: a system turn after the first place"),
        ("system system user assistant", ", turn 1: a system turn after the first place"),
        ("user user assistant", ", turn 1: two turns of the user in a row"),
        ("user assistant assistant", ", turn 2: two turns of the assistant in a row"),
        ("user assistant user", ", turn 2: the last turn is the user's, and its answer is missing"),
        ("user assistant tool", ", turn 2: the last turn is the tool's"),
        ("system user", " has no assistant turn, only system, user: nothing to learn"),
        ("system", " has no assistant turn, only system"),
        ("system user assistant user assistant", None),
        ("user assistant tool tool assistant", None),
    ],
)
def test_order_of_turns(roles, problem):
    rows = [KENYA, row(*roles.upper().split(), roles=roles.split())]
    if problem is None:
        check_rows(rows)
        return
    with pytest.raises(DataError) as caught:
        check_rows(rows)
    assert str(caught.value).startswith(f"row 1{problem}")


def test_a_row_that_the_chat_template_refuses(chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    )
    check_rows([KENYA], chat_tokenizer, max_length=99)
    with pytest.raises(DataError, match=r"row 1: .* refuses this .*system, .*: no system here\."):
        check_rows([KENYA, KIND], chat_tokenizer, max_length=99)


def test_long_values_are_shortened():
    with pytest.raises(DataError) as caught:
        check_rows([row("Hi", ["x" * 1000])])
    assert "['xxx" in str(caught.value)
    assert len(str(caught.value)) < 200


def test_only_the_first_five_bad_rows_are_listed():
    with pytest.raises(DataError) as caught:
        check_rows([KENYA, *[row("Hi")] * 7])
    lines = str(caught.value).split("\n")
    assert [line.split()[1] for line in lines[:5]] == ["1", "2", "3", "4", "5"]
    assert lines[5:] == ["... and 2 more bad rows"]


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>"])
def test_markup_in_a_row(chat_tokenizer, token):
    bad = row("Hi", f"Hello{token}")
    check_rows([bad])
    with pytest.raises(DataError, match=r"row 0, turn 1: .* special token") as caught:
        check_rows([bad], chat_tokenizer)
    assert repr(token) in str(caught.value)


def test_longer_than_max_length(chat_tokenizer):
    length = sequence_lengths(dataset(KENYA), chat_tokenizer)[0]
    check_rows([KENYA], chat_tokenizer, max_length=length)
    with pytest.raises(
        DataError, match=f"row 0 has {length} tokens, .*Nairobi.*Raise max_length to {length}"
    ):
        check_rows([KENYA], chat_tokenizer, max_length=length - 1)
    with pytest.raises(ValueError, match="give the tokenizer"):
        check_rows([KENYA], max_length=10)


# --- Showing ---------------------------------------------------------------------------------


class Cells(HTMLParser):
    """Reads a table back as a browser would."""

    def __init__(self):
        super().__init__()
        self.rows, self.tags = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_every_turn_is_shown_whole_and_escaped():
    evil = row("<script>alert(1)</script> & <b>", "a\n\nb" + "x" * 500)
    table = display_dataset(dataset(LONG, evil, KENYA), rows=2)
    cells = Cells()
    cells.feed(table._repr_html_())
    shown = [[text.strip("\n") for text in line] for line in cells.rows]
    assert shown == [
        ["row", "turn", "role", "content"],
        ["0", "0", "user", "Hi"],
        ["0", "1", "assistant", "Hello."],
        ["0", "2", "user", "Which animal is the largest?"],
        ["0", "3", "assistant", "It is the blue whale."],
        ["1", "0", "user", "<script>alert(1)</script> & <b>"],
        ["1", "1", "assistant", "a\n\nb" + "x" * 500],
    ]
    assert cells.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "2 of 3 rows" in table._repr_html_()


def test_plain_text():
    assert repr(display_dataset(dataset(KENYA))) == (
        " row turn role      content\n"
        "   0    0 user      What is the capital of Kenya?\n"
        "   0    1 assistant It is Nairobi.\n"
        "1 of 1 rows"
    )


def test_the_lines_of_a_content_stay_under_it_in_plain_text():
    forged = row("Hi\n   1    0 user      Bye", "Hello.")
    assert repr(display_dataset(dataset(forged))).split("\n")[1:4] == [
        "   0    0 user      Hi",
        "                       1    0 user      Bye",
        "   0    1 assistant Hello.",
    ]


# --- Which tokens carry loss -----------------------------------------------------------------


def test_the_very_tokens_that_carry_loss(chat_tokenizer):
    tokens = loss_tokens(chat_tokenizer, [turn("system", "It is"), *LONG["messages"]])
    ids = [token.id for token in tokens]
    assert chat_tokenizer.decode(ids) == (
        "<|im_start|>system\nIt is<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nWhich animal is the largest?<|im_end|>\n"
        "<|im_start|>assistant\nIt is the blue whale.<|im_end|>\n"
    )
    assert "".join(token.text for token in tokens) == chat_tokenizer.decode(ids)
    answers = [chat_tokenizer(text)["input_ids"] for text in ("Hello.", "It is the blue whale.")]
    carrying = [token.id for token in tokens if token.carries_loss]
    assert carrying == [*answers[0], 2, *answers[1], 2]
    # Each run of them follows the opening of an assistant's turn and precedes its line break.
    flags = "".join("x" if token.carries_loss else "." for token in tokens)
    spans = [span for span in flags.split(".") if span]
    assert [len(span) for span in spans] == [len(answer) + 1 for answer in answers]
    assert tokens[flags.rindex("x") + 1].text == "\n"


def test_they_are_those_that_trl_trains_on(chat_tokenizer, qwen, tmp_path):
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        assistant_only_loss=True,
        activation_checkpointing=False,
    )
    trainer = SFTTrainer(qwen, config, train_dataset=dataset(LONG), processing_class=chat_tokenizer)
    prepared = trainer.train_dataset[0]
    tokens = loss_tokens(chat_tokenizer, LONG["messages"])
    assert prepared["input_ids"] == [token.id for token in tokens]
    assert prepared["labels"] == [t.id if t.carries_loss else -100 for t in tokens]


def test_a_known_template_without_markers_gets_trls(tokenizer):
    from importlib.resources import files

    templates = files("trl") / "chat_templates"
    tokenizer.chat_template = (templates / "qwen3.jinja").read_text()
    tokens = loss_tokens(tokenizer, KENYA["messages"])
    text = tokenizer.decode([token.id for token in tokens if token.carries_loss])
    assert text == "<think>\n\n</think>\n\nIt is Nairobi.<|im_end|>\n"


def test_an_unknown_template_without_markers(tokenizer):
    tokenizer.name_or_path = "owner/model"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match=r"'owner/model' has no \{% generation %\} markers"):
        loss_tokens(tokenizer, KENYA["messages"])
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="'owner/model' has no chat template"):
        loss_tokens(tokenizer, KENYA["messages"])


# --- Measuring -------------------------------------------------------------------------------


def test_sequence_lengths(chat_tokenizer):
    lengths = sequence_lengths(dataset(KENYA, LONG), chat_tokenizer)
    texts = [
        chat_tokenizer.apply_chat_template(r["messages"], tokenize=False) for r in (KENYA, LONG)
    ]
    assert lengths.tolist() == [len(chat_tokenizer(text)["input_ids"]) for text in texts]
    assert (lengths.name, lengths.index.name) == ("tokens", "row")


def test_near_duplicates():
    shouted = row("WHAT is the capital of Kenya", "It is Nairobi!!")
    tagged = row("What is the capital of Kenya?", "It is Nairobi. Really.")
    found = near_duplicates(dataset(KENYA, PERU, shouted, LONG, tagged), threshold=0.8)
    assert list(zip(found["row"], found["other"], strict=True)) == [(0, 2), (0, 4), (2, 4)]
    # Seven runs of three words in common, one more in the third.
    assert found["similarity"].tolist() == [1.0, 7 / 8, 7 / 8]
    assert found["text"][0] == "What is the capital of Kenya? It is Nairobi."
    assert near_duplicates(dataset(KENYA, PERU)).empty


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.8, 1.0])
def test_near_duplicates_are_those_of_all_pairs(threshold):
    """Prefix filtering skips pairs, never a similar one."""
    import random

    from sft_utils.data.duplicates import _word_runs

    draw = random.Random(0)
    words = "a b c d e".split()
    rows = [row(" ".join(draw.choices(words, k=draw.randint(1, 9))), "yes") for _ in range(60)]
    runs = [_word_runs(" ".join(m["content"] for m in r["messages"])) for r in rows]
    expected = {
        (i, j)
        for j in range(60)
        for i in range(j)
        if len(runs[i] & runs[j]) / len(runs[i] | runs[j]) >= threshold
    }
    found = near_duplicates(dataset(*rows), threshold)
    assert set(zip(found["row"], found["other"], strict=True)) == expected
    assert found["similarity"].is_monotonic_decreasing


@pytest.mark.parametrize("threshold", [0, -1, 1.1])
def test_near_duplicates_threshold(threshold):
    with pytest.raises(ValueError, match=f"threshold={threshold}"):
        near_duplicates(dataset(KENYA), threshold)
