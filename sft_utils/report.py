"""What a command says, line by line, and which of the lines are problems."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .chat import ChatTemplateError
from .data.readers import DataError
from .hub import ModelLoadError
from .profiles import ProfileError
from .redaction import redact_text
from .wording import cut

#: Errors of the package, whose messages are whole.
PROBLEMS = (ProfileError, ModelLoadError, DataError, ChatTemplateError)


@dataclass
class Report:
    """The lines that were said, and how many of them are problems.

    Files in ``folder``, that of the profile, are named as the profile names them.
    """

    say: Callable[[str], None] = print
    problems: int = 0
    folder: Path | None = None

    def line(self, name: str, text: str) -> None:
        """Say one thing, and nothing secret. A text of several lines is said under one name."""
        if self.folder is not None:
            text = text.replace(f"{self.folder}{os.sep}", "")
        text = redact_text(text.replace(f"{Path.home()}{os.sep}", f"~{os.sep}"))
        for part in text.strip().split("\n"):
            self.say(f"{name:<10} {part.strip()}".rstrip())
            name = ""

    def problem(self, error: object) -> None:
        """Say what stands in the way of a build."""
        self.problems += 1
        self.line("PROBLEM", str(error))

    @contextlib.contextmanager
    def attempt(self, what: str = "") -> Iterator[None]:
        """Make a problem of whatever is raised in the block: a build would end in a traceback."""
        try:
            yield
        except Exception as error:
            known = isinstance(error, PROBLEMS)
            text = str(error) if known else cut(f"{type(error).__name__}: {error}", 400)
            self.problem(f"{what}: {text}" if what else text)
