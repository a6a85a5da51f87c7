"""Sphinx extension: a page executes when something that it depends on has changed, and only then.

By itself jupyter-cache compares the code cells of a page, so a page that calls a changed module
keeps its old outputs. Here each page gets a digest of all its inputs (see `page_inputs`). It is
written into the kernelspec, which jupyter-cache compares too; and a page whose digest differs
from that of the last build is read again, though its own file is the same.

Two builds at once in one folder would share Sphinx's environment, the cache and the site, so the
second waits until the first is done, and then finds its pages in the cache.

Also here: a page that quotes a value of another page is written again when the value changes;
a failing page is named together with its cell; every execution is timed; the downloadable
notebook holds its outputs even if they came from the cache; a page built with another profile than
the book's own says so, and the tag ``atlas`` is set for ``{only}`` where it is the book's own.

For myst-nb 1.4 with ``execute_notebooks: cache`` and ``raise_on_error: true``.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import myst_nb.core.execute.cache
from docutils import nodes
from filelock import FileLock, Timeout
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from jupyter_cache.executors.utils import single_nb_execution
from ledger import entries
from myst_nb.core.execute import NotebookClientCache
from myst_nb.core.read import create_nb_reader
from myst_nb.ext.glue.crossref import read_glue_cache
from myst_nb.ext.glue.utils import PendingGlueReference
from nbformat import NotebookNode
from page_inputs import Package, digest, inputs
from page_report import Execution, PeakMemory, failure, table
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError
from sphinx.util import logging
from sphinx.util.console import color_terminal, strip_colors

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


#: The profile whose models the book ships.
BOOKS_OWN = "atlas"

#: For these models. They are so small that a second thread gains nothing, and with one the order of
#: sums, and so every result, is the same on however many processors.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

#: What a cell prints in two pieces is one output, wherever the pieces happened to be cut; and
#: output that is late is waited for, or missed with an error, never dropped with a warning.
CLIENT_SETTINGS = {"coalesce_streams": True, "iopub_timeout": 60, "raise_on_iopub_timeout": True}


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

    def purge(self, app: Sphinx, env: BuildEnvironment, docname: str) -> None:
        """``env-purge-doc``: forget a page before it is read again, and the values it glued."""
        self.pages.pop(docname, None)
        self._output(docname, ".glue.json").unlink(missing_ok=True)

    def note_quotes(self, app: Sphinx, doctree: nodes.document) -> None:
        """``doctree-read``: note which values the page quotes from other pages."""
        quotes = {(node.refdoc, node.key) for node in doctree.findall(PendingGlueReference)}
        if quotes:
            self.pages.setdefault(app.env.docname, {})["quotes"] = sorted(quotes)

    def note_profile(self, app: Sphinx, doctree: nodes.document) -> None:
        """``doctree-read``: say under the title of an executed page how it was built."""
        profile = Path(os.environ.get("SFT_PROFILE") or BOOKS_OWN).stem
        title = next(doctree.findall(nodes.title), None)
        if (
            profile == BOOKS_OWN
            or title is None
            or "inputs" not in self.pages.get(app.env.docname, {})
        ):
            return
        text = (
            f"Built with the profile {profile}. A dash (–) stands where it has nothing to measure, "
            "and what the text says of the Atlas is about the models that come with the book."
        )
        title.parent.insert(
            title.parent.index(title) + 1, nodes.note("", nodes.paragraph("", text))
        )

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

    def inputs(self, docname: str, notebook: NotebookNode) -> dict[str, str]:
        """What the execution of the page depends on, as it is now."""
        root = Path(self.app.srcdir)
        pins = (folder / "constraints.txt" for folder in (root, root.parent))
        return inputs(
            [cell.source for cell in notebook.cells if cell.cell_type == "code"],
            Path(self.app.env.doc2path(docname)).parent,
            Package(self.app.config.honest_cache_package),
            next((file for file in pins if file.is_file()), None),
        )

    def changes(self, docname: str) -> str:
        """The inputs that changed since the last build, for people to read."""
        old, new = (pages.get(docname, {}).get("inputs", {}) for pages in (self.before, self.pages))
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
    def _unfinished(self) -> Path:
        """A file that is there while a build is under way."""
        return Path(self.app.doctreedir, "unfinished")

    def _output(self, docname: str, suffix: str) -> Path:
        """A file that myst-nb writes for a page."""
        return Path(self.app.env.mystnb_config.output_folder, docname + suffix)  # type: ignore

    def _is_outdated(self, docname: str) -> bool:
        known, env = self.pages[docname].get("inputs"), self.app.env
        if known is None:  # no page that executes
            return False
        if not self._output(docname, ".ipynb").exists():
            return True
        path, text = env.doc2path(docname), Path(env.doc2path(docname)).read_text(encoding="utf-8")
        configs = env.myst_config, env.mystnb_config  # type: ignore[attr-defined]
        reader = create_nb_reader(path, *configs, text)
        return reader is None or self.inputs(docname, reader.read(text)) != known


class PageClient(NotebookClientCache):
    """Myst-nb's client for one page, with the page's digest in its key and a report around it."""

    book: ClassVar[HonestCache]

    def start_client(self) -> None:
        """Take the page's outputs from the cache, or execute it."""
        self.logger.setLevel("WARNING")  # what is said below is enough
        notebook, docname = self.notebook, self.book.app.env.docname
        page, name = self.book.pages.setdefault(docname, {}), self.book.name(docname)
        page["inputs"] = self.book.inputs(docname, notebook)
        python = {"name": "python3", "display_name": "Python 3"}
        notebook.metadata.setdefault("kernelspec", python)["digest"] = digest(page["inputs"])
        cache = get_cache(self.nb_config.execution_cache_path or ".jupyter_cache")
        try:
            data = cache.match_cache_notebook(notebook).data
        except KeyError:
            self._execute(cache, docname, name, page)
        else:
            super().start_client()
            # `notebook` is what myst-nb will write for download: give it the outputs too.
            notebook.cells, notebook.metadata = self.notebook.cells, self.notebook.metadata
            page.update(seconds=data["execution_seconds"], peak_mb=data.get("peak_mb"))
            self.book.say(f"{name}: from cache")
        # Now, since myst-nb takes what is not shown out of the notebook that it writes.
        page["results"] = list(entries(notebook, name))

    def _execute(
        self, cache: JupyterCacheAbstract, docname: str, name: str, page: dict[str, Any]
    ) -> None:
        """Execute the page, tell how it went, and keep the result if it can be trusted."""
        self.book.say(f"{name}: executing{self.book.changes(docname)}")
        self.book.executed.add(docname)
        start = time.monotonic()
        with PeakMemory() as memory:
            try:
                super().start_client()
            except Exception as error:
                page.update(seconds=time.monotonic() - start, peak_mb=memory.mb)
                raise _page_error(name, self.notebook, error.__cause__ or error) from None
        result = self.exec_metadata
        assert result and result["runtime"] is not None
        page.update(seconds=result["runtime"], peak_mb=memory.mb)
        peak = f", {memory.mb:.0f} MB" if memory.mb else ""
        self.book.say(f"{name}: {result['runtime']:.1f} s{peak}")
        if not result["succeeded"]:  # possible only without `raise_on_error`
            page["inputs"] = {}
        elif self.book.inputs(docname, self.notebook) == page["inputs"]:
            data = {"execution_seconds": result["runtime"], "peak_mb": memory.mb}
            bundle = CacheBundleIn(self.notebook, str(self.path), data=data)
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        else:
            cache.remove_cache(cache.match_cache_notebook(self.notebook).pk)
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
    small = os.environ.get("SFT_PROFILE", "") in ("", BOOKS_OWN)
    if small:
        app.tags.add(BOOKS_OWN)
    for name, value in (KERNEL_SETTINGS | (ONE_THREAD if small else {})).items():
        os.environ.setdefault(name, value)
    app.add_config_value("honest_cache_package", "sft_utils", "env", [str])
    book = HonestCache(app)
    PageClient.book = book
    myst_nb.core.execute.NotebookClientCache = PageClient
    execution = partial(single_nb_execution, **CLIENT_SETTINGS)
    myst_nb.core.execute.cache.single_nb_execution = execution  # type: ignore[attr-defined]
    app.connect("env-get-outdated", book.outdated)
    app.connect("env-purge-doc", book.purge)
    app.connect("doctree-read", book.note_quotes)
    app.connect("doctree-read", book.note_profile)
    app.connect("env-updated", book.requote)
    app.connect("build-finished", book.finish)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
