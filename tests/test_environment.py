"""Seeds, versions, the device, a quiet output, and a Hub that is asked once."""

import random
import sys
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, run_alone

from sft_utils import environment, hub


def test_one_seed_for_all_three_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    environment.seed_everything(1)
    first = draw()
    other = draw()
    environment.seed_everything(1)
    assert draw() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_versions():
    table = environment.versions()
    assert table.loc["trl", "version"] == version("trl")
    assert table.index[0] == "python"


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = environment.describe_device()
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["memory_gib"] > 0.1
    assert found["name"]
    assert environment.CPU_MODE is True
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert environment.CPU_MODE is False


@pytest.mark.parametrize(
    ("device", "capability", "flags", "bf16", "because"),
    [
        ("cuda", 8, {}, True, "This GPU multiplies bfloat16 itself"),
        ("cuda", 7, {"amx_bf16": True}, False, "This GPU has no bfloat16 of its own"),
        ("mps", 0, {"amx_bf16": True}, False, "Some Apple GPUs only imitate bfloat16"),
        ("cpu", 9, {"amx_bf16": True}, False, "This processor multiplies bfloat16 itself, but"),
        ("cpu", 9, {"amx_bf16": False, "cpu_name": "like bf16"}, False, "This processor has no"),
    ],
)
def test_the_arithmetic_is_by_what_pytorch_says_of_the_machine(
    monkeypatch, device, capability, flags, bf16, because
):
    gpu = SimpleNamespace(major=capability, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: device == "mps")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    chosen = environment.arithmetic()
    assert chosen.bf16 is bf16
    assert chosen.reason.startswith(because)


def test_an_emulated_bfloat16_does_not_count(monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "best_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how))
    assert environment.arithmetic().bf16 is False
    assert asked == [{"including_emulation": False}]


def test_the_random_state_of_every_device_is_put_back(monkeypatch):
    states = {"mps": "before"}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states["mps"])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: states.update(mps=state))
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), environment.torch_random_state():
        torch.rand(1)
        states["mps"] = "drawn from"
        raise ZeroDivisionError
    assert states["mps"] == "before"
    assert torch.equal(torch.get_rng_state(), before)


QUIET = """
import logging, sys
import datasets, transformers
from sft_utils import quiet

sys.stderr = sys.stdout
for told in (True, False):
    for name in ("transformers", "datasets"):
        assert logging.getLogger(name).isEnabledFor(logging.WARNING) is told
    quiet()
datasets.Dataset.from_list([{"a": 1}]).map(lambda row: row)
"""


def test_quiet():
    """In a process of its own: what it changes is for good."""
    assert run_alone(sys.executable, "-c", QUIET, cwd=ROOT) == ""


def test_offline_mode_is_believed(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: 1 / 0)
    assert not hub.hub_reachable()


def test_a_hub_that_cannot_be_reached_is_found_out(monkeypatch):
    """Nothing can listen at port 0."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:0")
    assert not hub.hub_reachable(timeout=2)


def test_a_hub_that_answers(monkeypatch):
    from huggingface_hub import constants

    class Session:
        def head(self, url, timeout):
            assert (url, timeout) == (constants.ENDPOINT, 5.0)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    assert hub.hub_reachable()


def test_offline_for_a_block_only(monkeypatch):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with hub.hub_offline():
        assert constants.HF_HUB_OFFLINE
        assert datasets.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with hub.hub_offline(False):
        assert not datasets.config.HF_HUB_OFFLINE
