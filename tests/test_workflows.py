"""The workflows: actions pinned by hash, least permissions, and commands that exist."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text("utf8"), re.M))
#: The most that each job may do; every other job reads the repository.
WRITES = {("release", "tag"): {"contents": "write"},
          ("pages", "deploy"): {"pages": "write", "id-token": "write"},
          ("pages", "build"): {"contents": "read", "actions": "read"}}  # fmt: skip


def load(path):
    found = yaml.safe_load(path.read_text("utf8"))
    found["on"] = found.pop(True)  # YAML 1.1 takes the key for a truth value
    return found


def jobs():
    for path in FILES:
        for name, job in load(path)["jobs"].items():
            yield path, name, job


def commands(job):
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_there_are_workflows():
    assert {path.stem for path in FILES} == {"test", "pages", "weekly", "hub", "release"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_action_is_pinned_by_hash_and_says_its_version(path):
    uses = re.findall(r"^\s*(?:- )?uses: (.*)$", path.read_text("utf8"), re.MULTILINE)
    assert uses
    for line in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_version_everywhere():
    found = re.findall(r"uses: (\S+)@(\S+)", "".join(path.read_text("utf8") for path in FILES))
    versions = {}
    for action, commit in found:
        versions.setdefault(action, set()).add(commit)
    assert {action: found for action, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_permissions_are_the_least(path):
    workflow = load(path)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "pull_request_target" not in workflow["on"]
    for name, job in workflow["jobs"].items():
        allowed = WRITES.get((path.stem, name))
        assert job.get("permissions") == allowed, name
        assert job["timeout-minutes"] <= 360
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_nothing_that_others_write_reaches_a_shell():
    for path, name, job in jobs():
        for given in re.findall(r"\$\{\{(.*?)\}\}", commands(job)):
            assert given.strip().startswith(("matrix.", "runner.")), (path.stem, name, given)


def test_targets_that_are_called_exist():
    called = {t for *_, job in jobs() for t in re.findall(r"^make ([\w-]+)", commands(job), re.M)}
    assert called >= {"lint", "weekly", "book", "install", "dev"}
    assert called <= TARGETS
    assert any(".ci/run" in commands(job) for *_, job in jobs())


def test_the_tests_run_on_each_system_and_python():
    [job] = [job for path, name, job in jobs() if (path.stem, name) == ("test", "test")]
    matrix = job["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert set(load(ROOT / ".github/workflows/test.yml")["on"]) == {"push", "pull_request"}
    assert "jupyter-book build ." in commands(job)
    [cache] = [step["with"] for step in job["steps"] if "actions/cache@" in step.get("uses", "")]
    assert {"_build/.jupyter_cache", ".runs"} == set(cache["path"].split())
    assert all(part in cache["key"] for part in ("book/**", "sft_utils/**", "constraints.txt"))


def test_a_version_without_a_release_gets_one():
    release = load(ROOT / ".github/workflows/release.yml")
    assert release["on"] == {"push": {"branches": ["main"]}}
    [pattern] = re.findall(r"sed -n '(.*?)' pyproject.toml", commands(release["jobs"]["tag"]))
    found = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf8"), re.M)
    assert pattern == r's/^version = "\(.*\)"$/\1/p' and len(found) == 1


def test_the_newest_versions_are_tried_each_week():
    weekly = load(ROOT / ".github/workflows/weekly.yml")
    assert weekly["on"]["schedule"]
    scratch = weekly["jobs"]["scratch"]
    assert scratch["strategy"]["matrix"]["versions"] == ["pinned", "newest"]
    assert not any("actions/cache@" in step.get("uses", "") for step in scratch["steps"])
    upgrade = re.search(r"--upgrade(.*?)\n *\.venv", commands(scratch), re.DOTALL)
    assert {"transformers", "trl", "datasets", "torch"} <= set(upgrade[1].split())


def test_the_hub_is_built_by_hand_and_each_month_and_then_published():
    hub = load(ROOT / ".github/workflows/hub.yml")
    assert set(hub["on"]) == {"schedule", "workflow_dispatch"}
    [build] = hub["jobs"].values()
    assert "make book SFT_PROFILE=hub" in commands(build)
    assert "_build/html/built.txt" in commands(build)
    [kept] = [s["with"]["name"] for s in build["steps"] if "upload-artifact@" in s.get("uses", "")]
    pages = load(ROOT / ".github/workflows/pages.yml")
    assert pages["on"]["workflow_run"]["workflows"] == [hub["name"]]
    assert f"--name {kept} --dir _build/hub" in commands(pages["jobs"]["build"])
