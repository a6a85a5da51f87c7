"""Chapters 01 to 08 with the profile ``hub``, through the real clients, from a Hub on loopback.

The models have the true architectures and chat templates, at small widths. Marked ``weekly``,
since it takes minutes.
"""

from __future__ import annotations

import json
import os
from contextlib import closing

import pytest
from book.test_other_profile import PAGES, run, start
from conftest import readme_profile

pytestmark = [
    pytest.mark.weekly,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the client forks"),
]


def on_the_hub(hub, folder, profile="hub", offline="0"):
    """A process that runs pages with the profile and a cache in the folder."""
    online = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "NO_PROXY": "*"}
    return start(folder, "runner", SFT_PROFILE=str(profile), HF_HUB_OFFLINE=offline, **online)


def told(result):
    """What a page printed, and the plain texts that it showed or stored."""
    shown = [
        text for cell in result["cells"] for o in cell["outputs"] for text in o["data"].values()
    ]
    return "".join(cell["stdout"] for cell in result["cells"]) + "\n".join(shown)


def test_the_pages_report_on_the_models_of_the_hub(hub, tmp_path):
    named = dict(hub.main)
    with closing(on_the_hub(hub, tmp_path)) as runner:
        pages = {page: run(runner, page) for page in PAGES}
    for name, commit in named.items():
        assert commit[:7] in told(pages["01-setup"]), name
    models = {name for name in named if not name.startswith("datasets/")}
    assert {name for page in pages.values() for name in page["loaded"]} == models
    assert hub.requests

    hub.requests.clear()
    with closing(on_the_hub(hub, tmp_path, offline="1")) as again:
        second = run(again, "07-training")
    assert hub.requests == []  # a second build needs no network
    fingerprint = [text for text in told(second).split() if len(text) == 64][:1]
    assert fingerprint and fingerprint[0] in told(pages["07-training"])


def test_the_example_of_the_readme_is_built_as_it_is_written(hub, tmp_path):
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(60)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines), encoding="utf8")
    (tmp_path / "mine.toml").write_text(readme_profile(), encoding="utf8")
    with closing(on_the_hub(hub, tmp_path, tmp_path / "mine.toml")) as runner:
        pages = {page: run(runner, page) for page in PAGES if not page.startswith("04")}
    assert pages["07-training"]["loaded"] == ["HuggingFaceTB/SmolLM2-135M"]
    assert "What is" in told(pages["08-evaluation"])
