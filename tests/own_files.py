"""Which files are the repository's own, and not a reader's that lie beside them."""

import fnmatch
import functools
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What builds and tools leave, where no checkout says which files are the repository's.
LEFT_OUT = (".git", ".venv", ".runs", "_build", "build", "dist", "*.egg-info", "__pycache__",
            ".*_cache", ".ipynb_checkpoints", "*.py[co]", "*.tmp", "*.new")  # fmt: skip


@functools.cache
def _own(root: Path) -> tuple[Path, ...]:
    if (root / ".git").exists() and shutil.which("git"):  # not a folder in somebody's checkout
        command = ["git", "ls-files", "--cached", "-z"]
        listed = subprocess.run(command, cwd=root, capture_output=True)
        if listed.returncode == 0:
            names = {os.fsdecode(name) for name in listed.stdout.split(b"\0") if name}
            return tuple(sorted(root / name for name in names if (root / name).is_file()))
    found = []
    for folder, folders, names in os.walk(root):
        kept = [
            name
            for name in (*folders, *names)
            if not any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT)
        ]
        folders[:] = [name for name in folders if name in kept]
        found += [Path(folder, name) for name in names if name in kept]
    return tuple(sorted(found))


def own_files(pattern: str | None = None, root: Path = ROOT) -> list[Path]:
    """The files of the repository, or those of them that a glob pattern finds.

    In a checkout they are what git tracks: what else lies there is the reader's own. In a
    downloaded archive they are all. A new file counts when it has been added: ``git add``.
    """
    if pattern is None:
        return list(_own(root))
    own = set(_own(root))
    return sorted(path for path in root.glob(pattern) if path in own)


def copy_tree(folder: Path, *patterns: str) -> None:
    """Copy the repository's own files, or those that the patterns find, into a folder."""
    for path in {path for pattern in patterns or (None,) for path in own_files(pattern)}:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
