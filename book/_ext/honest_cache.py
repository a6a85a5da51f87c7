"""Sphinx extension: a page executes when something that it depends on has changed, and only then.

By itself jupyter-cache compares the code cells of a page, so a page that calls a changed module
keeps its old outputs. Here each page gets a digest of all its inputs (see `page_inputs`). It is
written into the kernelspec, which jupyter-cache compares too; and a page whose digest differs
from that of the last build is read again, though its own file is the same.

Pages are executed several at a time, before Sphinx comes to read them (see `page_runs`).

Two builds at once in one folder would share Sphinx's environment, the cache and the site, so the
second waits until the first is done, and then finds its pages in the cache.

Also here: a page that quotes a value of another page is written again when the value changes;
the search finds the terms of pages that are not written again; a failing page is named together
with its cell; every execution is timed; the downloadable notebook holds its outputs even if they
came from the cache.

For myst-nb 1.4 with ``execute_notebooks: cache`` and ``raise_on_error: true``.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sys
import time
from concurrent.futures import wait
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import myst_nb.core.execute
from docutils import nodes
from filelock import FileLock, Timeout
from inline_expressions import annotate, attach, values
from jupyter_cache.executors.utils import ExecutionResult
from myst_nb.core.execute import NotebookClientBase
from myst_nb.core.read import create_nb_reader
from myst_nb.ext.glue.crossref import read_glue_cache
from myst_nb.ext.glue.utils import PendingGlueReference
from nbformat import NotebookNode
from page_cache import PageCache
from page_inputs import Package, digest, inputs, own_models, profile_file, profile_in_use
from page_report import Execution, failure, table
from page_runs import PageRun, PageRuns, room
from profile_pages import resolve_only
from results_and_claims import entries
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError
from sphinx.util import logging
from sphinx.util.console import color_terminal, strip_colors
from sphinx.util.index_entries import split_index_msg

LOGGER = logging.getLogger(__name__)

#: Set for every kernel, unless the reader has set them: no progress bars in the outputs, and no
#: threads that spin while they wait, which slows everything where processors are few.
KERNEL_SETTINGS = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    # One GPU: with several the trainer would take as many times the rows for each update.
    "CUDA_VISIBLE_DEVICES": "0",
}


#: For these models. They are so small that a second thread gains nothing, and with one the order of
#: sums, and so every result, is the same on however many processors.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class PageError(SphinxError):
    """A page failed. The message names the page, the cell and the exception."""

    category = "A page failed"


class HonestCache:
    """The handlers of the extension, in the order in which Sphinx calls them.

    What has to outlive a build is in ``env.honest_cache``: for every page its ``inputs``, the
    ``seconds`` and ``peak_mb`` of its execution, the ``results`` that its cells stored, and the
    values that it ``quotes``.
    """

    def __init__(self, app: Sphinx) -> None:
        self.app = app
        self.before: dict[str, dict] = {}
        self.executed: set[str] = set()
        self.runs = PageRuns()
        self._cache: PageCache | None = None

    @property
    def pages(self) -> dict[str, dict[str, Any]]:
        """What is known of each page, by its docname."""
        if not hasattr(self.app.env, "honest_cache"):
            self.app.env.honest_cache = {}  # type: ignore[attr-defined]
        return self.app.env.honest_cache  # type: ignore[attr-defined]

    def outdated(
        self, app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], _: set[str]
    ) -> list[str]:
        """``env-get-outdated``: the pages whose inputs are not those of the last build."""
        self.before = dict(self.pages)
        if self._unfinished.exists():  # the last build was interrupted: trust nothing of it
            return list(env.found_docs - added)
        self._unfinished.touch()
        return [
            docname
            for docname in (self.pages.keys() & env.found_docs) - added - changed
            if self._is_outdated(docname)
        ]

    def begin(self, app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
        """``env-before-read-docs``: begin to execute what will not be found in the cache."""
        for docname in sorted(docnames):
            notebook = self._read(docname)
            if notebook is None:
                continue
            found = self.mark(docname, notebook)
            try:
                self.cache.match_cache_notebook(notebook)
            except KeyError:
                self._begin(docname, notebook, found)

    def outcome(self, docname: str, notebook: NotebookNode) -> ExecutionResult:
        """Wait for the execution of a page, begun before or, if need be, now.

        The outputs go into ``notebook``.
        """
        page = self.pages[docname]
        run = self.runs.take(self._key(notebook))
        run = run or self._begin(docname, notebook, page["inputs"])
        while not wait([run.done], timeout=1).done:  # in between, an interrupt is heard
            pass
        notebook.cells, notebook.metadata = run.notebook.cells, run.notebook.metadata
        page["peak_mb"] = run.peak_mb
        return run.done.result()

    def purge(self, app: Sphinx, env: BuildEnvironment, docname: str) -> None:
        """``env-purge-doc``: forget a page before it is read again, and the values it glued."""
        self.pages.pop(docname, None)
        self._output(docname, ".glue.json").unlink(missing_ok=True)

    def note_quotes(self, app: Sphinx, doctree: nodes.document) -> None:
        """``doctree-read``: note which values the page quotes from other pages."""
        quotes = {(node.refdoc, node.key) for node in doctree.findall(PendingGlueReference)}
        if quotes:
            self.pages.setdefault(app.env.docname, {})["quotes"] = sorted(quotes)

    def requote(self, app: Sphinx, env: BuildEnvironment) -> list[str]:
        """``env-updated``: the pages to write because a value that they quote has changed.

        Values are put into the text when pages are written, and all pages have been read, and
        so executed, before the first is written.
        """
        read_glue_cache.cache_clear()
        folder, changed = env.mystnb_config.output_folder, []  # type: ignore[attr-defined]
        for docname, page in self.pages.items():
            values = [read_glue_cache(folder, doc).get(key) for doc, key in page.get("quotes", ())]
            state = hashlib.sha256(json.dumps(values).encode()).hexdigest()
            if values and page.get("quoted") != state:
                page["quoted"] = state
                changed.append(docname)
        return changed

    def keep_terms(self, app: Sphinx) -> list[Any]:
        """``html-collect-pages``: give the search the terms of pages that are not written now.

        Sphinx 7 reads the words of such pages from the last search index, and not the terms.
        """
        indexer = getattr(app.builder, "indexer", None)
        for docname, marks in app.env.get_domain("index").entries.items():  # type: ignore
            found = {
                (term, target, main)
                for kind, value, target, main, _ in marks
                for term in split_index_msg(kind, value)
            }
            if indexer is not None:
                indexer._index_entries.setdefault(docname, sorted(found))
        return []

    def finish(self, app: Sphinx, error: Exception | None) -> None:
        """``build-finished``: the table of times, and ``execution.json`` of a whole build."""
        runs = [
            Execution(
                self.name(docname), page["seconds"], docname not in self.executed, page["peak_mb"]
            )
            for docname, page in sorted(self.pages.items())
            if "seconds" in page
        ]
        if runs:
            LOGGER.info("\n%s", table(runs))
        if error is None:
            report = json.dumps([run.as_dict() for run in runs], indent=1)
            Path(app.outdir, "execution.json").write_text(report + "\n", encoding="utf-8")
            self._unfinished.unlink(missing_ok=True)

    def mark(self, docname: str, notebook: NotebookNode) -> dict[str, str]:
        """Write the digest of the page's inputs where jupyter-cache looks; return the inputs."""
        python = {"name": "python3", "display_name": "Python 3"}
        found = self.inputs(docname, notebook)
        notebook.metadata.setdefault("kernelspec", python)["digest"] = digest(found)
        return found

    def inputs(self, docname: str, notebook: NotebookNode) -> dict[str, str]:
        """What the execution of the page depends on, as it is now."""
        root = Path(self.app.srcdir)
        pins = (folder / "constraints.txt" for folder in (root, root.parent))
        file = Path(self.app.env.doc2path(docname))
        asked = annotate(notebook, self.app.env.myst_config, file)  # type: ignore[attr-defined]
        expressions = {"expressions": digest({"all": json.dumps(sorted(asked))})} if asked else {}
        return expressions | inputs(
            [cell.source for cell in notebook.cells if cell.cell_type == "code"],
            file.parent,
            Package(self.app.config.honest_cache_package),
            next((file for file in pins if file.is_file()), None),
        )

    def changes(self, docname: str, new: dict[str, str]) -> str:
        """The inputs that changed since the last build, for people to read."""
        old = self.before.get(docname, {}).get("inputs", {})
        names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f" (changed: {', '.join(names[:3])}{more})" if old and names else ""

    def name(self, docname: str) -> str:
        """The page's file, as people call it: ``book/04-x.md``."""
        return Path(self.app.env.doc2path(docname)).relative_to(self.app.srcdir).as_posix()

    def say(self, text: str) -> None:
        """One line, at once, past Sphinx's own progress line."""
        LOGGER.info("%s%s", "\x1b[2K" if color_terminal() else "", text)

    @property
    def cache(self) -> PageCache:
        """Where executed pages are kept."""
        if self._cache is None:
            config = self.app.env.mystnb_config  # type: ignore[attr-defined]
            self._cache = PageCache(config.execution_cache_path)
        return self._cache

    @property
    def _unfinished(self) -> Path:
        """A file that is there while a build is under way."""
        return Path(self.app.doctreedir, "unfinished")

    def _output(self, docname: str, suffix: str) -> Path:
        """A file that myst-nb writes for a page."""
        return Path(self.app.env.mystnb_config.output_folder, docname + suffix)  # type: ignore

    def _is_outdated(self, docname: str) -> bool:
        known = self.pages[docname].get("inputs")
        if known is None:  # no page that executes
            return False
        if not self._output(docname, ".ipynb").exists():
            return True
        notebook = self._read(docname)
        return notebook is None or self.inputs(docname, notebook) != known

    def _read(self, docname: str) -> NotebookNode | None:
        """A page's cells, as myst-nb reads them; None for a page that does not execute."""
        env = self.app.env
        path, text = env.doc2path(docname), Path(env.doc2path(docname)).read_text(encoding="utf-8")
        configs = env.myst_config, env.mystnb_config  # type: ignore[attr-defined]
        reader = create_nb_reader(path, *configs, text)
        return reader and reader.read(resolve_only(text, profile_in_use()))

    def _begin(self, docname: str, notebook: NotebookNode, found: dict[str, str]) -> PageRun:
        """Execute a copy of the page's notebook, with the inputs ``found``, when its turn comes."""
        told = f"{self.name(docname)}: executing{self.changes(docname, found)}"
        folder = Path(self.app.env.doc2path(docname)).parent
        config = self.app.env.mystnb_config  # type: ignore[attr-defined]
        settings = {
            "timeout": config.execution_timeout,
            "allow_errors": config.execution_allow_errors,
        }
        own = profile_file(folder, Package(self.app.config.honest_cache_package))
        places = {Path.home(): "~", Path(self.app.srcdir): ""} | ({own.parent: ""} if own else {})
        places = {place: name for place, name in places.items() if place != Path(place.anchor)}
        run = PageRun(deepcopy(notebook), folder, settings, lambda: self.say(told), places)
        self.runs.begin(self._key(notebook), run, room() if own_models() else 1)
        return run

    def _key(self, notebook: NotebookNode) -> str:
        """What an execution rests on: cells and digest, as jupyter-cache hashes them."""
        return self.cache.create_hashed_notebook(notebook)[1]


class PageClient(NotebookClientBase):
    """Myst-nb's client for one page, with the page's digest in its key and a report around it."""

    book: ClassVar[HonestCache]

    def start_client(self) -> None:
        """Take the page's outputs from the cache, or execute it."""
        self.logger.setLevel("WARNING")  # what is said below is enough
        notebook, docname = self.notebook, self.book.app.env.docname
        page, name = self.book.pages.setdefault(docname, {}), self.book.name(docname)
        page["inputs"] = self.book.mark(docname, notebook)
        try:
            record = self.book.cache.match_cache_notebook(notebook)
        except KeyError:
            self._execute(docname, name, page)
        else:
            _, kept = self.book.cache.merge_match_into_notebook(notebook)
            # `notebook` is what myst-nb will write for download, too.
            notebook.cells, notebook.metadata = kept.cells, kept.metadata
            page.update(seconds=record.data["execution_seconds"], peak_mb=record.data["peak_mb"])
            attach(notebook, record.data["expressions"])
            self.book.say(f"{name}: from cache")
        self.exec_metadata = {
            "mtime": time.time(), "runtime": page["seconds"], "succeeded": True, "error": None,
            "method": self.nb_config.execution_mode, "traceback": None,
        }  # fmt: skip
        # Now, since myst-nb takes what is not shown out of the notebook that it writes.
        page["results"] = list(entries(notebook, name))
        page["expressions"] = values(notebook)
        lines = zip(notebook.cells, notebook.metadata.get("source_map", ()), strict=False)
        page["cells"] = [line for cell, line in lines if cell.cell_type == "code"]

    def _execute(self, docname: str, name: str, page: dict[str, Any]) -> None:
        """Execute the page, tell how it went, and keep the result if it can be trusted."""
        self.book.executed.add(docname)
        start = time.monotonic()
        try:
            result = self.book.outcome(docname, self.notebook)
            if result.err is not None:
                raise result.err
        except Exception as error:
            page.update(seconds=time.monotonic() - start, peak_mb=None)
            raise _page_error(name, self.notebook, error) from None
        page["seconds"] = result.time
        peak = f", {page['peak_mb']:.0f} MB" if page["peak_mb"] else ""
        self.book.say(f"{name}: {result.time:.1f} s{peak}")
        if self.book.inputs(docname, self.notebook) == page["inputs"]:
            data = {"execution_seconds": page["seconds"], "peak_mb": page["peak_mb"],
                    "expressions": values(self.notebook)}  # fmt: skip
            self.book.cache.keep(str(self.path), self.notebook, data)
        else:
            page["inputs"] = {}
            self.book.say(f"{name}: what it depends on was edited meanwhile; not kept in the cache")


def _page_error(name: str, notebook: NotebookNode, error: BaseException) -> PageError:
    """Show the failed cell, now, and name it in the very last line that the build prints."""
    line = failure(name, notebook, error)
    print(strip_colors(str(error)), file=sys.stderr, flush=True)
    # Jupyter Book ends with a long traceback of its own; this comes after it.
    atexit.register(print, line, file=sys.stderr, flush=True)
    return PageError(line)


def take_turn(folder: Path) -> FileLock:
    """Wait until no other process builds into ``folder``, and tell which one does.

    The lock is the system's: it goes with its process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / "build.lock"), folder / "build.pid"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        other = owner.read_text("utf8") if owner.exists() else "unknown"
        LOGGER.info("Another build works in this folder: process %s. Waiting for its end.", other)
        lock.acquire()
    owner.write_text(str(os.getpid()), "utf8")
    return lock


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers, and put `PageClient` where myst-nb looks its client up."""
    lock = take_turn(Path(app.doctreedir))  # before Sphinx reads what the last build left there
    app.connect("build-finished", lambda app, error: lock.release(), priority=1000)
    for name, value in (KERNEL_SETTINGS | (ONE_THREAD if own_models() else {})).items():
        os.environ.setdefault(name, value)
    app.add_config_value("honest_cache_package", "sft_utils", "env", [str])
    book = HonestCache(app)
    PageClient.book = book
    myst_nb.core.execute.NotebookClientCache = PageClient  # type: ignore[misc,assignment]
    app.connect("env-get-outdated", book.outdated)
    app.connect("env-before-read-docs", book.begin)
    app.connect("env-purge-doc", book.purge)
    app.connect("doctree-read", book.note_quotes)
    app.connect("env-updated", book.requote)
    app.connect("html-collect-pages", book.keep_terms)
    app.connect("build-finished", lambda app, error: book.runs.stop())
    app.connect("build-finished", book.finish)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
