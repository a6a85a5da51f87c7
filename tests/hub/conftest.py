"""The models and data of the profile `hub`, served on loopback, and a reader's process."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import lookalikes
import pytest
from book.page_runner import Runner
from hub.server import DATA, PARTS, Hub

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """What is published at the start of each test, by name."""
    root = tmp_path_factory.mktemp("published")
    lookalikes.write_models(root, width=1 / 32)
    for name in PARTS:
        (root / name / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
        (root / name / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (root / "trainee" / "onnx").mkdir()  # as in the real one; nobody needs them
    (root / "trainee" / "onnx" / "model.onnx").write_bytes(b"another format")
    (root / "trainee" / "onnx" / "config.json").write_text("{}")
    lookalikes.write_data(root / "data", lookalikes.rows(120))
    return {name: root / part for part, name in PARTS.items()} | {f"datasets/{DATA}": root / "data"}


@pytest.fixture(scope="session")
def running_hub():
    hub = Hub()
    yield hub
    hub.down()


@pytest.fixture
def hub(running_hub, folders):
    """The Hub as it is on a good day, with nothing asked yet."""
    running_hub.commits.clear()
    running_hub.faults.clear()
    for name, folder in folders.items():
        running_hub.commit(name, folder)
    running_hub.requests.clear()
    return running_hub


class Client(Runner):
    """A process with the Hub's address and a cache of its own."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.home = hub, folder / "home"
        path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
        away = {"NO_PROXY": "*", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "PYTHONPATH": path}
        online = {"HF_ENDPOINT": hub.url, "HF_HOME": str(self.home)}
        super().__init__(folder / "answers.jsonl", HERE / "client.py", **online | away)

    def load(self, *steps: list, offline: bool = False) -> list[dict]:
        """Load in a fresh process, and forget what was requested before."""
        self.hub.requests.clear()
        return self.ask(json.dumps({"steps": steps, "offline": offline}))["done"]

    def model(self, name: str, **options) -> dict:
        return self.load(["model", name, options])[0]

    def data(self, name: str, **options) -> dict:
        return self.load(["data", name, options])[0]


@pytest.fixture(scope="session")
def running_client(running_hub, tmp_path_factory):
    client = Client(running_hub, tmp_path_factory.mktemp("client"))
    yield client
    client.close()


@pytest.fixture
def client(running_client, hub):
    shutil.rmtree(running_client.home, ignore_errors=True)
    return running_client
