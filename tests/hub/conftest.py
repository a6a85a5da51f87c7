"""The models and data of the profile `hub`, served on loopback, and a reader's process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lookalikes
import pytest
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
    running_hub.repositories.clear()
    running_hub.faults.clear()
    for name, folder in folders.items():
        running_hub.commit(name, folder)
    running_hub.requests.clear()
    return running_hub


class Client:
    """A process with the Hub's address and a cache of its own."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.home, self.folder = hub, folder / "home", folder
        self.log = folder / "log"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("HF_", "SFT_"))
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, HERE / "client.py"],
                env=inherited
                | {
                    "HF_ENDPOINT": hub.url,
                    "HF_HOME": str(self.home),
                    "NO_PROXY": "*",
                    "OMP_NUM_THREADS": "1",
                    "TOKENIZERS_PARALLELISM": "false",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def forget(self) -> None:
        """Empty the cache."""
        shutil.rmtree(self.home, ignore_errors=True)

    def load(self, *steps: list, offline: bool = False) -> list[dict]:
        """Load in a fresh process, and forget what was requested before."""
        assert self.process.stdin and self.process.stdout
        self.hub.requests.clear()
        answer = self.folder / "answer.json"
        answer.unlink(missing_ok=True)
        task = {"steps": steps, "answer": str(answer), "offline": offline}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "done\n" or not answer.is_file():
            pytest.fail(f"the client ended.\n{self.log.read_text()[-3000:]}")
        return json.loads(answer.read_text())

    def model(self, name: str, **options) -> dict:
        [found] = self.load(["model", name, options])
        return found

    def data(self, name: str, **options) -> dict:
        [found] = self.load(["data", name, options])
        return found

    def close(self) -> None:
        with self.process:
            self.process.kill()


@pytest.fixture(scope="session")
def running_client(running_hub, tmp_path_factory):
    client = Client(running_hub, tmp_path_factory.mktemp("client"))
    yield client
    client.close()


@pytest.fixture
def client(running_client, hub):
    running_client.forget()
    return running_client
