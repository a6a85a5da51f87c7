"""Rows that say the same, and questions that stand among the rows. Explained in chapter 05."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


def same_text(text: str) -> str:
    """A text without case, white space and form of Unicode: what two texts share that ask the same.

    Neither what is not seen (a zero-width space) nor full-width letters make a difference.
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return re.sub(r"[\s\xad\u200b-\u200f\u2060\ufeff]+", "", plain)


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
