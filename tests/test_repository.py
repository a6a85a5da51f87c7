"""The files around the package agree: Makefile, README, pins, settings; no machine's traces."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import sft_utils

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text("utf8")
TARGETS = set(re.findall(r"^([a-z][\w-]*):(?!=)", MAKEFILE, re.MULTILINE))
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*arguments):
    """What make prints; ``PYTHON`` and the rest of the user's settings do not count."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    for name in ("PYTHON", "TORCH_INDEX"):
        environment.pop(name, None)
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


# --- Makefile -------------------------------------------------------------------------------------


def test_makefile_has_the_targets_that_are_promised():
    promised = "help install dev book test models lint format pins clean"
    assert set(promised.split()) <= TARGETS
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == TARGETS


@needs_make
def test_make_alone_lists_every_target_with_a_text():
    listed = dict(re.findall(r"^  make ([\w-]+) +(\S.*)$", make(), re.MULTILINE))
    assert set(listed) == TARGETS


@needs_make
def test_torch_comes_from_another_index_only_when_asked(tmp_path):
    venv = f"VENV={tmp_path}"
    assert "index-url" not in make("-n", "install", venv)
    asked = make("-n", "install", venv, f"TORCH_INDEX={PYTORCH_INDEX}")
    from_index = [line for line in asked.splitlines() if "index-url" in line]
    assert len(from_index) == 1
    assert from_index[0].endswith(
        f"install --no-deps --index-url {PYTORCH_INDEX} -c constraints.txt torch"
    )


@needs_make
@pytest.mark.parametrize(
    ("target", "extra", "last"),
    [
        ("book", "book", "/bin/jupyter-book build ."),
        ("test", "dev", "/bin/python -m pytest -n 2 --dist loadfile"),
        ("models", "book", "/bin/python -m sft_utils.atlas.pretrain"),
    ],
)
def test_a_target_installs_what_it_needs_first(tmp_path, target, extra, last):
    lines = [line.strip() for line in make("-n", target, f"VENV={tmp_path}").splitlines()]
    made = next(i for i, line in enumerate(lines) if line.endswith(f"-m venv {tmp_path}"))
    install = f"{tmp_path}/bin/python -m pip install -c constraints.txt -e '.[{extra}]'"
    assert made < lines.index(install)
    assert lines[-1].removeprefix("OMP_NUM_THREADS=1 ") == f"{tmp_path}{last}"


@needs_make
def test_a_change_of_pins_installs_again(tmp_path):
    stamp = tmp_path / ".installed"
    stamp.touch()
    assert "pip install" not in make("-n", "book", f"VENV={tmp_path}")
    os.utime(stamp, (0, 0))  # older than constraints.txt
    assert "pip install" in make("-n", "book", f"VENV={tmp_path}")


@needs_make
def test_pins_keep_the_comment_and_drop_the_build(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho alpha==1.0\necho torch==2.13.0+cpu\n")
    python.chmod(0o755)
    pins = tmp_path / "pins.txt"
    pins.write_text("# How to regenerate\nalpha==0.9\n")
    for name in (".installed", ".installed-dev"):
        (tmp_path / name).touch()
    make("pins", f"VENV={tmp_path}", f"PINS={pins}")
    assert pins.read_text() == "# How to regenerate\nalpha==1.0\ntorch==2.13.0\n"


def test_ci_can_be_run():
    run = ROOT / ".ci" / "run"
    text = run.read_text("utf8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    if sys.platform != "win32":
        assert os.access(run, os.X_OK)
    called = set(re.findall(r"\b(?:make|run) ([a-z][a-z-]*)\b", text.partition("\n\n")[2]))
    assert called == {"lint", "test", "weekly"} <= TARGETS


# --- Documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_commands_that_are_named_exist(document):
    text = (ROOT / document).read_text("utf8")
    code = re.findall(r"^```(?:bash|powershell)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    code += re.findall(r"`([^`\n]+)`", text)
    used = {name for part in code for name in re.findall(r"^make ([a-z]+)", part, re.MULTILINE)}
    assert used >= ({"book", "test"} if document == "README.md" else {"models", "pins", "test"})
    assert used <= TARGETS


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(document):
    text = (ROOT / document).read_text("utf8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [link for link in links if "://" not in link]
    missing = [link for link in local if not (ROOT / link).exists()]
    assert missing == []
    assert local or document == "CHANGELOG.md"


def test_the_layout_in_the_readme_is_the_real_one():
    text = (ROOT / "README.md").read_text("utf8")
    block = re.search(r"^## Layout\n\n```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    paths = [line.split()[0] for line in block[1].splitlines()]
    assert len(paths) == 8
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_repository_has_one_address():
    for document in ("README.md", "CONTRIBUTING.md", "LICENSE-PROSE", "_config.yml"):
        text = (ROOT / document).read_text("utf8")
        found = set(re.findall(r"github\.com/[\w-]*sft[\w-]*/[\w-]+", text))
        assert found == {"github.com/sft-executed/sft-executed"}, document


def test_licenses():
    assert PROJECT["license"] == "Apache-2.0"
    code = (ROOT / "LICENSE").read_text("utf8")
    assert code.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in code
    prose = (ROOT / "LICENSE-PROSE").read_text("utf8")
    assert "https://creativecommons.org/licenses/by/4.0/legalcode" in prose


# --- Versions -------------------------------------------------------------------------------------


def read_pins():
    lines = (ROOT / "constraints.txt").read_text("utf8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pairs = [line.split("==") for line in lines]
    pins = {canonicalize_name(name): Version(version) for name, version in pairs}
    assert len(pins) == len(pairs), "a package is pinned twice"
    return pins


def test_pins_are_exact_and_fit_the_ranges():
    pins = read_pins()
    required = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        required += extra
    requirements = [Requirement(line) for line in required]
    others = [r for r in requirements if canonicalize_name(r.name) != PROJECT["name"]]
    assert len(others) > 20
    assert [r.name for r in others if canonicalize_name(r.name) not in pins] == []
    unfit = [str(r) for r in others if pins[canonicalize_name(r.name)] not in r.specifier]
    assert unfit == []


def test_pins_are_for_any_platform():
    assert [name for name, version in read_pins().items() if version.local] == []


def test_one_version():
    assert sft_utils.__version__ == PROJECT["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf8")
    assert re.search(
        rf"^## \[{re.escape(PROJECT['version'])}\] - \d{{4}}-\d\d-\d\d$", changelog, re.M
    )


# --- Traces of a machine --------------------------------------------------------------------------

TRACES = re.compile(
    r"""(?<![\w.~-])/(?:root|home/\w+|Users/\w+)/     # somebody's home
      | \b[A-Za-z]:\\Users\\\w
      | file:/{3}
      | \bpypi\.org | \bpythonhosted\.org | \bjfrog\b | \bartifactory\b
    """,
    re.VERBOSE | re.IGNORECASE,
)
INDEX = re.compile(r"(?:--(?:extra-)?index-url|--find-links|TORCH_INDEX)[ =]+([^\s`'\"]+)")
SKIPPED = {"_build", "__pycache__", "build", "dist"}
TEXT = {".py", ".md", ".toml", ".csv", ".txt", ".yml", ".yaml", ".json", ".jsonl", ".jinja"}
TEXT |= {".bib", ".cfg", ".ini", ".ipynb", ".css", ".js", ".html", ".svg", ".sh", ""}


def traces(text, places=()):
    """What in ``text`` tells of one machine or of a package registry."""
    found = [match[0] for match in TRACES.finditer(text)]
    found += [place for place in places if re.search(rf"(?<![\w.]){re.escape(place)}\b", text)]
    allowed = {PYTORCH_INDEX, "$(TORCH_INDEX)", "URL", "{PYTORCH_INDEX}"}
    found += [url for url in INDEX.findall(text) if "://" in url and url not in allowed]
    return found


def own_files():
    tops = ["book", "sft_utils", "tests", "benchmarks", "docs", ".ci", ".binder"]
    files = [path for path in ROOT.iterdir() if path.is_file() and not path.is_symlink()]
    for top in tops:
        files += [path for path in (ROOT / top).rglob("*") if path.is_file()]
    for path in files:
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") for part in parts[1:])
        if path.suffix in TEXT and not hidden and not SKIPPED & set(parts):
            yield path


def test_no_file_has_traces_of_a_machine():
    places = [str(ROOT), sys.prefix, str(Path.home())]
    places = [place for place in places if len(place) > len("/repo")]
    found = {}
    for path in own_files():
        if path.name == ".git":  # in a worktree it is a file with a path in it
            continue
        if there := traces(path.read_text("utf8", "replace"), places):
            found[str(path.relative_to(ROOT))] = there
    assert found == {}


def test_the_search_covers_the_files_that_matter():
    names = {path.relative_to(ROOT).as_posix() for path in own_files()}
    assert names >= {
        "README.md",
        "Makefile",
        "constraints.txt",
        "pyproject.toml",
        ".ci/run",
        ".binder/requirements.txt",
        "sft_utils/models.py",
        "tests/test_repository.py",
    }


@pytest.mark.parametrize(
    "pieces",
    [
        ("see /ro", "ot/project/x"),
        ("/ho", "me/ann/x"),
        (r"C:\Us", r"ers\ann"),
        ("https://py", "pi.org/simple"),
        ("fi", "le:///x"),
        ("pip install --index-", "url https://example.org/simple torch"),
        ("built in /data/", "checkout/book"),
    ],
)
def test_a_planted_trace_is_found(pieces):
    assert traces("".join(pieces), places=["/data/" + "checkout"])


@pytest.mark.parametrize(
    "text",
    [
        f"make book TORCH_INDEX={PYTORCH_INDEX}",
        "the repository's root/ and home/ folders",
        "/data/checkouts",
    ],
)
def test_other_text_is_left_alone(text):
    assert traces(text, places=["/data/" + "checkout"]) == []
