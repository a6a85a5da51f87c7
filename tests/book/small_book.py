"""A book of a few pages in a folder of its own, built by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "book" / "_ext"
SPHINX = ("-m", "sphinx", "-d", "_build/.doctrees", ".", "_build/html")  # starts the faster
JUPYTER_BOOK = ("-c", "from jupyter_book.cli.main import main; main()", "build", ".")
GUARD = 600  # seconds, against a hang


@dataclass
class SmallBook:
    """Its pages and builds."""

    root: Path

    def write(self, name: str, text: str) -> None:
        """Write one file of the book."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf8")

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a build and do not wait for it."""
        unset = {"SFT_PROFILE", "TQDM_DISABLE", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"}
        return subprocess.Popen(
            [sys.executable, *(command or SPHINX)],
            cwd=self.root,
            env={name: value for name, value in os.environ.items() if name not in unset}
            | {
                "PYTHONPATH": os.pathsep.join(map(str, (self.root, ROOT))),
                "PYTHONDONTWRITEBYTECODE": "1",
                "NO_COLOR": "1",
            }
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def build(self, *command: str, **environment: str) -> tuple[int, str]:
        """How a build ended, and what it said."""
        process = self.start(*command, **environment)
        output = process.communicate(timeout=GUARD)[0]
        return process.returncode, output
