"""Chat data: load it, check every row, show it, and see which tokens carry loss.

Explained in chapter 05.
"""

from __future__ import annotations

import csv
import html
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_utils.environment import hub_offline, hub_reachable
from sft_utils.models import special_tokens

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")

_FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")

Messages = list[dict[str, Any]]


class DataError(ValueError):
    """A data set, or a row of it, cannot be used. The message names the place and the remedy."""


class LossToken(NamedTuple):
    """One token of a rendered conversation."""

    text: str
    id: int
    carries_loss: bool


# --- Loading ---------------------------------------------------------------------------------


def load_sft_dataset(
    source: str | Path,
    *,
    split: str = "train",
    rows: int | None = None,
    seed: int | None = None,
) -> Dataset:
    """Load chat rows with a ``messages`` column, and check them. Explained in chapter 05.

    ``source`` is ``"atlas-sft-data"``, a local file, or the name of a data set on the Hub. In a
    ``.jsonl``, ``.json`` or ``.parquet`` file every row has ``messages``: a list of
    ``{"role": ..., "content": ...}``. A ``.csv`` file has columns named ``user`` and
    ``assistant``, and ``system`` if you like. ``split`` is the Hub's; a file has only one.

    ``rows`` keeps the first so many, or with ``seed`` a random sample of that size.

    Raises `DataError` if the data cannot be found or read, or for a bad row (see `check_rows`).
    """
    from datasets import Dataset

    name = str(source)
    if name == "atlas-sft-data":
        from sft_utils import atlas

        source = atlas.sft_data_path()
    path = Path(source).expanduser()
    if path.is_file():
        found: Any = _read_file(path)
    elif isinstance(source, Path) or path.suffix in _FILE_KINDS or name.startswith((".", "/", "~")):
        raise DataError(
            f"There is no data file {name!r}. Check the path (relative paths start at "
            f"{Path.cwd()}), or give the name of a data set on the Hub, such as 'owner/data'."
        )
    else:
        found = _read_hub(name, split)
    if rows is not None and rows < 1:
        raise DataError(f"rows={rows}: ask for at least one row, or for all with rows=None.")
    check_rows(found)
    dataset = Dataset.from_list(found) if isinstance(found, list) else found
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    return dataset if rows is None else dataset.select(range(min(rows, len(dataset))))


def _read_file(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        from datasets import Dataset

        return Dataset.from_parquet(str(path), keep_in_memory=True).to_list()
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix == ".jsonl":
            return list(_json_lines(path, text))
        if path.suffix == ".json":
            found = json.loads(text)
            if isinstance(found, list):
                return found
            raise DataError(f"{path.name} holds one JSON {type(found).__name__}, not a list.")
    except json.JSONDecodeError as error:
        raise DataError(f"{path.name} is not valid JSON: {error}. Save it again.") from error
    if path.suffix == ".csv":
        return [_csv_row(path, row) for row in csv.DictReader(text.splitlines(keepends=True))]
    raise DataError(f"{path.name} is of no known kind. Use one of: {', '.join(_FILE_KINDS)}.")


def _json_lines(path: Path, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path.name}, line {number}: {_short(line)} is not valid JSON ({error.msg}). "
                    "Each line must hold one whole JSON object."
                ) from error


def _csv_row(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    if "user" not in row or "assistant" not in row:
        raise DataError(
            f"{path.name} has the columns {', '.join(map(str, row))}; a CSV file needs `user` and "
            "`assistant`, and may have `system`. Rename them."
        )
    roles = [role for role in ("system", "user", "assistant") if role != "system" or row.get(role)]
    return {"messages": [{"role": role, "content": row[role]} for role in roles]}


def _read_hub(name: str, split: str) -> Dataset:
    from datasets import load_dataset

    reachable = hub_reachable()
    try:
        with hub_offline(not reachable):
            return load_dataset(name, split=split)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if reachable:
            raise DataError(
                f"Cannot load the data set {name!r}, split {split!r}, from the Hub. Check both "
                f"names and, if it is gated, log in with `hf auth login`.\n{reason}"
            ) from error
        raise DataError(
            f"Cannot load the data set {name!r}: it is no local file, it is not in the cache, and "
            "the Hub cannot be reached. Ways out: connect to the network; set HF_HOME to a cache "
            "that holds it; set SFT_PROFILE=atlas for the data that ships with the book; or give "
            f"the path of a local .jsonl file.\n{reason}"
        ) from error


# --- Checking --------------------------------------------------------------------------------


def check_rows(
    dataset: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
) -> None:
    """Raise `DataError` unless every row can be trained on. Explained in chapter 05.

    A row is good if it has ``messages``, each turn has a role of `ROLES` and some text, and one
    turn at least is the assistant's. With ``tokenizer``, no text may contain a special token: it
    would be read as markup. With ``max_length`` too (in tokens), a rendered row must fit: trainers
    cut what is too long, and what they cut is the answer.

    The error lists the first five bad rows, counted from 0, with turn, value and remedy.
    """
    if max_length is not None and tokenizer is None:
        raise ValueError("max_length is counted in tokens: give the tokenizer as well.")
    problems = []
    count = -1
    for count, row in enumerate(dataset):
        problem = _row_problem(row, tokenizer, max_length)
        if problem:
            problems.append(f"row {count}{problem}")
    if count < 0:
        raise DataError("The data set has no rows.")
    if problems:
        more = f"\n... and {len(problems) - 5} more bad rows" if len(problems) > 5 else ""
        raise DataError("\n".join(problems[:5]) + more)


def _row_problem(row: Any, tokenizer: Any, max_length: int | None) -> str | None:
    """The first problem of a row, or None."""
    if not isinstance(row, Mapping) or "messages" not in row:
        what = f"the columns {', '.join(row)}" if isinstance(row, Mapping) else _short(row)
        return (
            f" has no `messages`, but {what}. Build one for each row: "
            '[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}].'
        )
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        return f": `messages` is {_short(messages)}. It must be a list of turns."
    for turn, message in enumerate(messages):
        problem = _turn_problem(message, tokenizer)
        if problem:
            return f", turn {turn}: {problem}"
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(message["role"] for message in messages)
        return f" has no assistant turn, only {roles}: nothing to learn. Add the answer or drop it."
    if max_length is not None:
        length = len(_token_ids(tokenizer, messages))
        if length > max_length:
            return (
                f" has {length} tokens, more than max_length={max_length}, so the end of "
                f"{_short(messages[-1]['content'])} would be cut off. "
                f"Raise max_length to {length}, or shorten or drop the row."
            )
    return None


def _turn_problem(message: Any, tokenizer: Any) -> str | None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        return f"{_short(message)} is not a turn. It needs `role` and `content`."
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"unknown role {_short(role)}. Use one of: {', '.join(ROLES)}."
    if not isinstance(content, str):
        return (
            f"the content of the {role} is {_short(content)}, of type {type(content).__name__}. "
            "It must be text."
        )
    if not content.strip():
        return f"the content of the {role} is empty ({_short(content)}). Fill it or drop the row."
    for token in special_tokens(tokenizer) if tokenizer else ():
        if token in content:
            return (
                f"the content of the {role} contains {token!r}, a special token of the tokenizer, "
                f"in {_short(content)}. Remove it: the model would read it as markup."
            )
    return None


def _short(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


# --- Showing ---------------------------------------------------------------------------------


class DatasetTable:
    """The turns of some rows as a table: HTML in a page, plain text elsewhere."""

    def __init__(self, turns: list[tuple[int, int, str, str]], total: int) -> None:
        self.turns = turns
        self.caption = f"{len({turn[0] for turn in turns})} of {total} rows"

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col">{name}</th>' for name in ("row", "turn", "role", "content")
        )
        body = "\n".join(
            f"<tr><td>{row}</td><td>{turn}</td><td>{html.escape(role)}</td>"
            f'<td style="text-align: left; white-space: pre-wrap">{html.escape(content)}</td></tr>'
            for row, turn, role, content in self.turns
        )
        return (
            f'<table class="sft-dataset"><caption>{self.caption}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
        )

    def __repr__(self) -> str:
        lines = [f"{'row':>4} {'turn':>4} {'role':<9} content"]
        lines += [f"{row:>4} {turn:>4} {role:<9} {text}" for row, turn, role, text in self.turns]
        return "\n".join([*lines, self.caption])


def display_dataset(dataset: Dataset, rows: int = 3) -> DatasetTable:
    """Return a table of every turn of the first ``rows`` rows, whole and escaped.

    Explained in chapter 05.
    """
    turns = [
        (number, turn, str(message["role"]), str(message["content"]))
        for number in range(min(rows, len(dataset)))
        for turn, message in enumerate(dataset[number]["messages"])
    ]
    return DatasetTable(turns, len(dataset))


# --- Measuring -------------------------------------------------------------------------------


def loss_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template_kwargs: dict[str, Any] | None = None,
) -> list[LossToken]:
    """Return each token of a conversation and whether loss falls on it with assistant-only loss.

    What carries loss is what the chat template writes between ``{% generation %}`` and
    ``{% endgeneration %}``. A well-known template without these markers is replaced by TRL's
    version with them, as `SFTTrainer` does. Explained in chapter 05.

    Raises `DataError` if there are no markers and TRL knows no version with them.
    """
    template = tokenizer.chat_template
    name = tokenizer.name_or_path or "this model"
    if not template:
        raise DataError(f"The tokenizer of {name!r} has no chat template. Set one first.")
    if not re.search(r"\{%-?\s*generation\s*-?%\}", template):
        from trl.chat_template_utils import get_training_chat_template

        try:
            template = get_training_chat_template(tokenizer)
        except ValueError as error:
            raise DataError(
                f"The chat template of {name!r} has no {{% generation %}} markers, so it does not "
                "tell which tokens are the assistant's. Put {% generation %} and "
                "{% endgeneration %} around what the assistant writes, its end token included; "
                "templates/chatml.jinja in this package shows how."
            ) from error
    encoded: Any = tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **(template_kwargs or {}),
    )
    return [
        LossToken(str(tokenizer.decode([token])), token, bool(mask))
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ]


def sequence_lengths(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: dict[str, Any] | None = None,
) -> pd.Series:
    """Return the tokens of every rendered row, counted, by row. Explained in chapter 05."""
    import pandas as pd

    lengths = [
        len(_token_ids(tokenizer, messages, template_kwargs)) for messages in dataset["messages"]
    ]
    return pd.Series(lengths, name="tokens").rename_axis("row")


def _token_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template_kwargs: dict[str, Any] | None = None,
) -> list[int]:
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, **(template_kwargs or {})
    )
    return encoded["input_ids"]


def near_duplicates(dataset: Dataset, threshold: float = 0.8) -> pd.DataFrame:
    """Return the pairs of rows that say nearly the same, most similar first.

    The text of a row is that of its user and assistant turns, without case and punctuation;
    similarity is the Jaccard index of the two sets of three-word runs, between 0 and 1, and pairs
    of at least ``threshold`` (above 0) are returned. Columns: ``row``, ``other``, ``similarity``,
    ``text``, ``other_text``. Explained in chapter 05.

    The result is exact, yet few pairs are compared: two sets as similar as ``threshold`` cannot
    but share one of their rarest members (prefix filtering, Chaudhuri et al., 2006).
    """
    import pandas as pd

    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: it must lie above 0 and be at most 1.")
    texts = [
        " ".join(m["content"] for m in messages if m["role"] in ("user", "assistant"))
        for messages in dataset["messages"]
    ]
    runs = [_word_runs(text) for text in texts]
    frequency = Counter(run for row in runs for run in row)
    holders: dict[str, list[int]] = defaultdict(list)
    found = []
    for row, own in enumerate(runs):
        rarest = sorted(own, key=lambda run: (frequency[run], run))
        prefix = rarest[: len(own) - math.ceil(threshold * len(own)) + 1]
        for other in sorted({other for run in prefix for other in holders[run]}):
            similarity = len(own & runs[other]) / len(own | runs[other])
            if similarity >= threshold:
                found.append((other, row, similarity, texts[other], texts[row]))
        for run in prefix:
            holders[run].append(row)
    found.sort(key=lambda pair: (-pair[2], pair[:2]))
    return pd.DataFrame(found, columns=["row", "other", "similarity", "text", "other_text"])


def _word_runs(text: str, length: int = 3) -> set[str]:
    words = re.findall(r"\w+", text.casefold())
    return {" ".join(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}
