"""What is told about the pages' execution: how long, how much memory, and where one failed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from nbformat import NotebookNode


@dataclass(frozen=True)
class Execution:
    """One page's execution, in this build or in the earlier one that filled the cache."""

    page: str
    seconds: float
    cached: bool
    """Whether this build only took it from the cache."""
    peak_mb: float | None
    """The most memory that its kernel ever held, in MB; None where that cannot be seen."""

    def as_dict(self) -> dict:
        """The form that ``execution.json`` holds."""
        return asdict(self)


class PeakMemory:
    """The peak memory of a kernel, while a ``with`` block runs; ``pid`` tells its process.

    Counted is what a process has for itself. The libraries' files that it has mapped are not: the
    system can drop them at any time, and how much of them counts as its memory depends on how the
    files came to be read, by a hundred MB for the same page. Linux keeps the high-water mark of
    every process, so that looking now and then is exact but for the last moment. On other systems
    it is the most that was seen when looking, mapped files included. Processes that a kernel starts
    (the workers of a data loader) are not counted.
    """

    mb: float | None = None

    def __init__(self, pid: Callable[[], int | None], interval: float = 0.1) -> None:
        self._done, self._pid = threading.Event(), pid
        self._thread = threading.Thread(target=self._watch, args=(interval,), daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self, interval: float) -> None:
        while not self._done.wait(interval):
            with suppress(psutil.Error, OSError):
                if (pid := self._pid()) is not None:
                    self.mb = max(self.mb or 0.0, _memory(psutil.Process(pid)))


def _memory(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status")
    kilobytes = re.findall(
        r"(VmHWM|RssFile):\s+(\d+) kB", status.read_text() if status.exists() else ""
    )
    found = {name: int(number) / 1024 for name, number in kilobytes}
    if found.keys() == {"VmHWM", "RssFile"}:
        return found["VmHWM"] - found["RssFile"]
    return process.memory_info().rss / 2**20


def failure(page: str, notebook: NotebookNode, error: BaseException) -> str:
    """One line that names the page, the cell (as ``In [7]`` counts them) and the exception."""
    counts = [cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code"]
    ran = [count for count in counts if count]
    kind = getattr(error, "ename", type(error).__name__)
    message = str(getattr(error, "evalue", error)).strip().partition("\n")[0]
    where = f"{page}, cell {ran[-1]}" if ran else f"{page}, before its first cell"
    return f"{where}: {kind}: {message}".removesuffix(": ")


def table(executions: list[Execution]) -> str:
    """The times of all pages, and their sum, as text."""
    width = max(len(run.page) for run in executions)
    lines = [f"{'page':{width}}  {'time':>10}  {'peak memory':>11}"]
    for run in executions:
        time = "from cache" if run.cached else f"{run.seconds:.1f} s"
        peak = "" if run.peak_mb is None else f"{run.peak_mb:.0f} MB"
        lines.append(f"{run.page:{width}}  {time:>10}  {peak:>11}".rstrip())
    fresh = [run.seconds for run in executions if not run.cached]
    lines.append(f"{len(fresh)} of {len(executions)} pages executed, in {sum(fresh):.1f} s")
    return "\n".join(lines)
