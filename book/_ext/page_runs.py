"""Executes pages in kernels of their own, several at a time, ahead of Sphinx, which reads in order.

A page needs no other page to have run: what two pages share, a fine-tuning say, lies in the store
of runs, where the second waits for the first. So the pages of the book's own models, which take
one thread each, are executed as many at a time as the machine has room for.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import psutil
from inline_expressions import EvaluatingClient
from jupyter_cache.executors.utils import ExecutionResult
from jupyter_cache.utils import Timer
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from page_report import PeakMemory

from sft_utils.wording import visible

#: What a kernel may take, by the tests of the book, and some to spare: pages are not executed at
#: the same time where memory would be short.
KERNEL_BYTES = 1.5e9
MOST = 4  # more would wait for the longest page anyway

#: What a cell prints in two pieces is one output, wherever the pieces happened to be cut; and
#: output that is late is waited for, or missed with an error, never dropped with a warning. Times
#: in the cells would make them other cells for the cache. A kernel need not tell, at each start,
#: that it is reached without encryption: it is on this machine.
CLIENT_SETTINGS = {
    "coalesce_streams": True,
    "iopub_timeout": 60,
    "raise_on_iopub_timeout": True,
    "record_timing": False,
    "extra_arguments": ["--log-level=ERROR"],
}


def room() -> int:
    """How many kernels of one thread this machine can take at the same time."""
    share = getattr(os, "sched_getaffinity", None)  # the part of the cores that is ours
    cores = len(share(0)) if share else os.cpu_count() or 1
    memory = psutil.virtual_memory().available / KERNEL_BYTES
    return max(1, min(cores, int(memory), MOST))


@dataclass
class PageRun:
    """The execution of one page: under way, waiting for its turn, or done."""

    notebook: NotebookNode
    folder: Path
    settings: dict[str, Any]
    started: Callable[[], object]
    places: dict[Path, str] = field(default_factory=dict)
    scratch: str | None = None
    done: Future[ExecutionResult] = field(default_factory=Future)
    peak_mb: float | None = None
    client: NotebookClient | None = None

    @property
    def kernel(self) -> int | None:
        """The number of its kernel's process, while there is one."""
        provisioner = getattr(getattr(self.client, "km", None), "provisioner", None)
        return getattr(provisioner, "pid", None)

    def execute(self) -> None:
        """Execute the page's cells up to the first that fails; `done` gets how it went."""
        try:
            self.started()
            with PeakMemory(lambda: self.kernel) as memory:
                result = self._execute()
        except BaseException as error:  # a kernel that died: for whoever waits for the page
            self.done.set_exception(error)
        else:
            self.peak_mb = memory.mb
            self.done.set_result(result)

    def _execute(self) -> ExecutionResult:
        resources = {"metadata": {"path": str(self.folder)}}
        self.client = EvaluatingClient(
            self.notebook, resources=resources, **self.settings, **CLIENT_SETTINGS
        )
        timer, error, told = Timer(), None, None
        with timer:
            try:
                self.client.execute(env={**os.environ, "TMPDIR": self.scratch or gettempdir()})
            except (CellExecutionError, CellTimeoutError) as failed:
                error, told = failed, traceback.format_exc()
        show(self.notebook, self.places)
        return ExecutionResult(self.notebook, str(self.folder), timer.last_split, error, told)


def show(notebook: NotebookNode, places: dict[Path, str]) -> None:
    """Make the outputs and values of an executed page fit to be shown, however a cell wrote them.

    What cannot be seen is shown by its code (see `visible`), and a path that begins with one of the
    ``places`` of this machine by what stands for it: "~", or nothing.
    """

    def shown(text: str) -> str:
        for place in sorted(places, key=lambda place: -len(str(place))):
            name = places[place]
            text = re.sub(
                rf"(?<![\w./\\-]){re.escape(str(place))}(?:([/\\])|(?![\w.-]))",
                lambda found, name=name: (
                    name + (found[1] or "") if name else "" if found[1] else "."
                ),
                text,
            )
        return visible(text)

    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = shown(output.text)
        results = [
            entry["result"] for entry in cell.get("metadata", {}).get("user_expressions", ())
        ]
        for output in (*cell.get("outputs", ()), *results):
            for kind, value in output.get("data", {}).items():
                if isinstance(value, str) and not kind.endswith(("png", "jpeg", "pdf")):
                    output["data"][kind] = shown(value)


class PageRuns:
    """The executions of a build, begun in the order in which they are asked for."""

    def __init__(self) -> None:
        self._begun: dict[str, PageRun] = {}
        self._waiting: queue.SimpleQueue[PageRun] = queue.SimpleQueue()
        self._under_way: list[PageRun] = []
        self._workers: list[threading.Thread] = []
        self._stopped = False
        # A kernel that is killed, as one that takes its time to end, removes no temporary files.
        self._scratch = TemporaryDirectory(prefix="sft-build-", ignore_cleanup_errors=True)

    def begin(self, key: str, run: PageRun, at_once: int = 1) -> None:
        """Execute a page as soon as fewer than ``at_once`` are under way."""
        self._begun[key] = run
        run.scratch = self._scratch.name
        self._waiting.put(run)
        if len(self._workers) < at_once:
            # A daemon does not keep a build from ending that was interrupted.
            self._workers.append(threading.Thread(target=self._work, daemon=True))
            self._workers[-1].start()

    def take(self, key: str) -> PageRun | None:
        """The execution that was begun under this key, once."""
        return self._begun.pop(key, None)

    def stop(self) -> None:
        """Begin no other page, and end the kernels of those that are under way."""
        self._stopped = True
        for run in list(self._under_way):
            if run.kernel is not None:
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(run.kernel).kill()
        for worker in self._workers:
            worker.join(timeout=5)
        self._scratch.cleanup()

    def _work(self) -> None:
        while not self._stopped:
            with suppress(queue.Empty):
                run = self._waiting.get(timeout=0.2)
                self._under_way.append(run)
                run.execute()
                self._under_way.remove(run)
