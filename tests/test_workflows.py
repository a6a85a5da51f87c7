"""The workflows: actions pinned by hash, least permissions, and targets that exist."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import own_files

ROOT = Path(__file__).parents[1]
FILES = own_files(".github/workflows/*.yml")
#: The most that each job may do; every other job reads the repository.
WRITES = {("release", "tag"): {"contents": "write"},
          ("pages", "deploy"): {"pages": "write", "id-token": "write"},
          ("pages", "build"): {"contents": "read", "actions": "read"}}  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_workflow_may_do_the_least_and_names_what_exists(path):
    text = path.read_text("utf8")
    uses = re.findall(r"^\s*(?:- )?uses: (.*)$", text, re.MULTILINE)
    pinned = r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
    assert uses and [line for line in uses if not re.fullmatch(pinned, line)] == []

    workflow = yaml.safe_load(text)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "pull_request_target" not in workflow[True]  # YAML 1.1 reads `on` as a truth value
    for name, job in workflow["jobs"].items():
        assert job.get("permissions") == WRITES.get((path.stem, name)), name
        checkouts = [s for s in job["steps"] if s.get("uses", "").startswith("actions/checkout@")]
        assert {step["with"]["persist-credentials"] for step in checkouts} <= {False}
        # Nothing that others write reaches a shell.
        commands = "\n".join(step.get("run", "") for step in job["steps"])
        given = re.findall(r"\$\{\{(.*?)\}\}", commands)
        assert [v for v in given if not v.strip().startswith(("matrix.", "runner."))] == []

    targets = re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text("utf8"), re.M)
    called = re.findall(r"^\s*(?:- run: )?make ([a-z][\w-]*)", text, re.MULTILINE)
    matrix = workflow["jobs"].get("slow", {}).get("strategy", {}).get("matrix", {})
    assert {*called, *matrix.get("target", [])} <= set(targets)
