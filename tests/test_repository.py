"""The files around the package agree: Makefile, README, pins, settings; no machine's traces."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import copy_tree, own_files
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
    """What make prints; the settings of a make around it do not count."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


# --- Makefile -------------------------------------------------------------------------------------


@needs_make
def test_make_alone_lists_every_target_with_a_text():
    listed = dict(re.findall(r"^  make ([\w-]+) +(\S.*)$", make(), re.MULTILINE))
    assert set(listed) == TARGETS
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony[1].split()) == TARGETS


# --- Documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_commands_that_are_named_exist(document):
    text = (ROOT / document).read_text("utf8")
    code = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
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
    assert len(paths) == 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_repository_has_one_address():
    named = ("README.md", "CONTRIBUTING.md", "LICENSE-PROSE", "_config.yml", "CITATION.cff")
    for document in named:
        text = (ROOT / document).read_text("utf8")
        found = set(re.findall(r"github\.com/[\w-]*sft[\w-]*/[\w-]+", text))
        assert found == {"github.com/sft-executed/sft-executed"}, document


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


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    assert sft_utils.__version__ == citation["version"] == PROJECT["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf8")
    date = citation["date-released"]
    assert re.search(rf"^## \[{re.escape(PROJECT['version'])}\] - {date}$", changelog, re.M)


# --- Whose files --------------------------------------------------------------------------------

#: What a reader may have beside the repository's files.
READERS_OWN = ("notes.md", "book/13-mine.md", "book/mine/page.md", ".github/workflows/mine.yml")


def plant(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def git(root, *arguments):
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@needs_git
def test_own_files_are_what_git_tracks(tmp_path):
    plant(tmp_path, "a.md", "gone.md", "book/ü b.md", ".ci/run")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    (tmp_path / "gone.md").unlink()
    plant(tmp_path, *READERS_OWN)
    names = [path.relative_to(tmp_path).as_posix() for path in own_files(root=tmp_path)]
    assert names == [".ci/run", "a.md", "book/ü b.md"]
    assert own_files("**/*.md", tmp_path) == [tmp_path / "a.md", tmp_path / "book/ü b.md"]


@needs_git
def test_in_a_downloaded_archive_all_files_are_own(tmp_path):
    """In somebody's own repository too, which tracks none of them."""
    git(tmp_path, "init")
    root = tmp_path / "archive"
    plant(root, *READERS_OWN)
    plant(root, ".venv/a.py", "_build/b.html", "sft_utils/__pycache__/c.pyc", ".runs/d", "e.tmp")
    names = {path.relative_to(root).as_posix() for path in own_files(root=root)}
    assert names == set(READERS_OWN)


@pytest.mark.weekly
@needs_git
def test_files_of_the_readers_own_fail_no_test(tmp_path):
    """The tests that look at the repository's files, in a copy with others beside them."""
    copy_tree(tmp_path)
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    plant(tmp_path)
    notebooks = "tests/book/test_launch_notebooks.py::"
    looking = [
        "tests/test_repository.py::test_no_file_has_traces_of_a_machine",
        "tests/test_repository.py::test_links_to_files_lead_somewhere",
        "tests/test_workflows.py",
        "tests/test_profiles.py::test_a_shipped_profile_asks_each_question_once_and_names_todays_arguments",
        f"{notebooks}test_every_page_that_executes_has_a_notebook_and_no_other",
        f"{notebooks}test_the_notebook_is_in_step_with_its_page_and_executed",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *looking],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:]


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
TEXT = {".py", ".md", ".toml", ".csv", ".txt", ".yml", ".yaml", ".json", ".jsonl", ".jinja"}
TEXT |= {".bib", ".cfg", ".ini", ".ipynb", ".css", ".js", ".html", ".svg", ".sh", ""}


def traces(text, places=()):
    """What in ``text`` tells of one machine or of a package registry."""
    found = [match[0] for match in TRACES.finditer(text)]
    found += [place for place in places if re.search(rf"(?<![\w.]){re.escape(place)}\b", text)]
    allowed = {PYTORCH_INDEX, "$(TORCH_INDEX)", "URL", "{PYTORCH_INDEX}"}
    found += [url for url in INDEX.findall(text) if "://" in url and url not in allowed]
    return found


def texts():
    return [path for path in own_files() if path.suffix in TEXT]


def test_no_file_has_traces_of_a_machine():
    places = [str(ROOT), sys.prefix, str(Path.home())]
    places = [place for place in places if len(place) > len("/repo")]
    found = {}
    for path in texts():
        if there := traces(path.read_text("utf8", "replace"), places):
            found[str(path.relative_to(ROOT))] = there
    assert found == {}


def test_the_search_covers_the_files_that_matter():
    names = {path.relative_to(ROOT).as_posix() for path in texts()}
    assert names >= {"README.md", "Makefile", "constraints.txt", ".ci/run", "sft_utils/models.py"}


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
    places = ["/data/" + "checkout"]
    assert traces("".join(pieces), places)
    assert traces(f"root/ and home/ of /data/checkouts, TORCH_INDEX={PYTORCH_INDEX}", places) == []
