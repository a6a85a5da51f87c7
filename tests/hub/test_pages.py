"""Chapters 01 to 08 with the profile ``hub``, through the real clients, from a Hub on loopback.

The models have the true architectures and chat templates, at small widths. Marked ``profiles``,
since it takes minutes: ``make profiles``.
"""

from __future__ import annotations

import os

import pytest
from book.test_other_profile import REPORT, Runner

pytestmark = [
    pytest.mark.profiles,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the client forks"),
]


def start(hub, folder, **settings):
    """A process that runs pages with the profile ``hub`` and a cache in the folder."""
    online = {
        "SFT_PROFILE": "hub",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "*",
    }
    return Runner(folder, "hub", **online | settings)


def told(result):
    """What a page printed, and the plain texts that it showed or stored."""
    shown = [
        text for cell in result["cells"] for o in cell["outputs"] for text in o["data"].values()
    ]
    return "".join(cell["stdout"] for cell in result["cells"]) + "\n".join(shown)


def run(runner, page):
    result = runner.run(page)
    errors = [(cell["source"], cell["error"]) for cell in result["cells"] if cell["error"]]
    assert errors == []
    assert len(result["cells"]) == result["of"] > 3
    return result


def test_the_pages_report_on_the_models_of_the_hub(hub, tmp_path):
    named = {name: repository.branches["main"] for name, repository in hub.repositories.items()}
    runner = start(hub, tmp_path)
    with runner.process:
        pages = {page: run(runner, page) for page in REPORT}
        runner.process.kill()
    for name, commit in named.items():
        assert commit[:7] in told(pages["01-setup"]), name
    models = {name for name in named if not name.startswith("datasets/")}
    assert {name for page in pages.values() for name in page["loaded"]} == models
    assert hub.requests

    hub.requests.clear()
    again = start(hub, tmp_path, HF_HUB_OFFLINE="1")
    with again.process:
        second = run(again, "07-training")
        again.process.kill()
    assert hub.requests == []  # a second build needs no network
    fingerprint = [text for text in told(second).split() if len(text) == 64][:1]
    assert fingerprint and fingerprint[0] in told(pages["07-training"])
