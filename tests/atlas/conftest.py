"""The Atlas and what is made from it, once for all files of a process."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from sft_utils.atlas.questions import SPLITS, scored_questions
from sft_utils.atlas.sft_data import sft_rows
from sft_utils.atlas.world import load_world


@pytest.fixture(scope="session")
def world():
    return load_world()


@pytest.fixture(scope="session")
def chat_rows(world):
    """The rows of fine-tuning."""
    return sft_rows(world)


@pytest.fixture(scope="session")
def questions(world):
    """The scored questions by split."""
    return {split: scored_questions(split, world) for split in SPLITS}


class Names:
    """Finds entities' names as whole words, whatever their case, the longest where one holds
    another: Guinea-Bissau is not Guinea."""

    def __init__(self, world):
        self.by_word: dict[str, list[str]] = {}
        for entity in sorted(world.entities, key=lambda e: -len(e.name)):
            name = entity.name.lower()
            self.by_word.setdefault(re.match(r"[\w-]+", name)[0], []).append(name)

    def spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Start, end and lower-case name of each, from left to right."""
        lower, end = text.lower(), 0
        for word in re.finditer(r"[\w-]+", lower):
            start = word.start()
            for name in self.by_word.get(word[0], ()) if start >= end else ():
                after = lower[start + len(name) : start + len(name) + 1]
                if lower.startswith(name, start) and not re.match(r"[\w-]", after):
                    end = start + len(name)
                    yield start, end, name
                    break

    def found(self, text: str) -> list[str]:
        return [name for _, _, name in self.spans(text)]


@pytest.fixture(scope="session")
def names(world):
    return Names(world)
