"""The profile `hub` against a Hub served on loopback: on a good day, and on every bad one."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from hub.client import weights_digest
from hub.server import BASE, DATA, PARTS, REFERENCE, TRAINEE, Fault
from lookalikes import qwen_template, rows, write_data
from safetensors.torch import load_file

from sft_utils.models import TEMPLATES

PARQUET = "data/train-00000-of-00001.parquet"
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
WAYS_OUT = ("connect to the network", "HF_HOME", "SFT_PROFILE=atlas", "local")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the client forks")


def digest(file: Path) -> str:
    """That of a model's weights, of which one is tied."""
    weights = load_file(file)
    return weights_digest(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})


def next_commit(hub, folders, folder, **changes) -> str:
    """Publish the base anew with other weights, and files of other content."""
    shutil.copytree(folders[BASE], folder)
    shutil.copy(folders[REFERENCE] / "model.safetensors", folder)
    for path, text in changes.items():
        (folder / path).write_text(text)
    return hub.commit(BASE, folder)


def assert_refused(found, name, *words, kind="ModelLoadError"):
    """The error of the package, with the name and the remedy."""
    assert found.get("error") == kind, found
    for word in (repr(name), *words):
        assert word in found["message"], found["message"]


def assert_nothing_kept(client, pattern="*.incomplete"):
    assert [str(path) for path in client.home.rglob(pattern)] == []


def assert_whole(found, hub, name):
    assert found.get("weights") == digest(hub.published(name).content), found
    assert found["commit"] == hub.main[name]


# --- Good days -------------------------------------------------------------------------------


def assert_everything(found, hub):
    """What a load of all that the profile names must give."""
    for part, name in PARTS.items():
        assert_whole(found[part], hub, name)
        assert found[part]["dtype"] == "torch.float32"
        assert found[part]["name"] == name
        assert found[part]["ends"] == [0, 2]  # the base's tokenizer and config name only 0
        assert found[part]["warnings"] == []
    assert found["base"]["class"] == found["reference"]["class"] == "Qwen3ForCausalLM"
    assert found["base"]["weights"] != found["reference"]["weights"]
    assert found["base"]["template"] == found["reference"]["template"] == qwen_template()
    assert found["trainee"]["class"] == "LlamaForCausalLM"
    assert found["trainee"]["template"] == (TEMPLATES / "chatml.jinja").read_text()
    assert found["trainee"]["pad"] not in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert found["data"]["columns"] == ["messages"]
    assert found["data"]["version"] == f"commit {hub.main[f'datasets/{DATA}']}"
    assert found["data"]["rows"] == [row["messages"] for row in rows(100)]


def assert_nothing_to_be_had(found, *words):
    for part, name in PARTS.items():
        assert_refused(found[part], name, *WAYS_OUT, *words, "cannot be reached")
    assert_refused(found["data"], DATA, *WAYS_OUT, "cannot be reached", kind="DataError")


def test_the_profile_is_downloaded_once(hub, client):
    [found] = client.load(["profile", "hub"])
    assert_everything(found, hub)
    fetched = [request.path for request in hub.transfers]
    assert len(set(fetched)) == len(fetched)
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    for name in PARTS.values():
        of_model = {path.rpartition("/")[2] for path in fetched if path.startswith(f"/{name}/")}
        assert of_model - {"chat_template.jinja"} == wanted  # no README, no other format
    large = {file.sha256 for file in (hub.published(name) for name in PARTS.values())}
    large.add(hub.published(f"datasets/{DATA}", PARQUET).sha256)
    assert {path.rpartition("/")[2] for path in fetched if "/stored/" in path} == large

    [found] = client.load(["profile", "hub"])
    assert_everything(found, hub)
    assert hub.transfers == []
    of_models = [r.path for r in hub.requests if r.path != "/" and "dataset" not in r.path]
    assert of_models == [f"/api/models/{name}/revision/main" for name in PARTS.values()]

    [found] = client.load(["profile", "hub"], offline=True)
    assert_everything(found, hub)
    shutil.rmtree(client.home)
    [found] = client.load(["profile", "hub"], offline=True)
    assert_nothing_to_be_had(found, str(client.home))
    assert hub.requests == []


def test_an_unreachable_hub_and_an_empty_cache(hub, client):
    with hub.away():
        [found] = client.load(["profile", "hub"])
    assert_nothing_to_be_had(found, str(client.home), hub.url)


def test_a_template_from_another_model_of_the_hub(hub, client):
    found = client.model(TRAINEE, chat_template_from=REFERENCE)
    assert found["template"] == qwen_template()
    assert not any(hub.published(REFERENCE).sha256 in r.path for r in hub.requests)


# --- Names and permissions -------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_and_gated_data(hub, client, status):
    """Its page and the list of its files are open to all, its files are not."""
    hub.faults.append(Fault("/resolve/", status=status, headers=GATED))
    model, data = client.load(["model", BASE, {}], ["data", DATA, {}])
    assert_refused(model, BASE, "gated", f"{hub.url}/{BASE}", "Accept its terms", "hf auth login")
    assert_refused(data, DATA, "gated", "hf auth login", kind="DataError")
    assert hub.transfers == []


def test_names_that_the_hub_does_not_know(hub, client):
    no_model, no_revision, no_data, no_commit, no_split = client.load(
        ["model", "owner/none", {}],
        ["model", BASE, {"revision": "v9"}],
        ["data", "owner/none", {}],
        ["data", DATA, {"revision": "v9"}],
        ["data", DATA, {"split": "test"}],
    )
    assert_refused(no_model, "owner/none", f"{hub.url} knows no model of that name", "private")
    assert_refused(no_revision, BASE, "no such revision", "v9", f"{hub.url}/{BASE}/commits")
    assert_refused(no_data, "owner/none", "hf auth login", kind="DataError")
    assert_refused(no_commit, DATA, "v9", kind="DataError")
    assert_refused(no_split, DATA, "'test'", "['train']", kind="DataError")


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_not_accepted(hub, client, status):
    headers = {"X-Error-Message": "Invalid credentials in Authorization header"}
    hub.faults.append(Fault("/api/|/resolve/", status=status, headers=headers))
    assert_refused(client.model(BASE), BASE, f"answered {status}", "token", "hf auth login")


def test_a_listed_file_that_is_missing(hub, client):
    headers = {"X-Error-Code": "EntryNotFound"}
    hub.faults.append(Fault("chat_template.jinja", status=404, headers=headers))
    assert_refused(client.model(BASE), BASE, "a file of it is missing", "chat_template.jinja")


def test_no_safetensors(hub, client, folders, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(folders[BASE], folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.commit(BASE, folder)
    assert_refused(client.model(BASE), BASE, "no weights as safetensors", hub.main[BASE])
    assert not any("/stored/" in request.path for request in hub.requests)


# --- A Hub in trouble ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"Retry-After": "1"}, "there were too many requests. Run this again in 1 s"),
        (429, {"RateLimit": '"api";r=0;t=41'}, "Run this again in 41 s"),
        (503, {"Retry-After": "1"}, "it is out of order. Run this again in 1 s"),
        (500, {}, "Run this again later"),
    ],
)
def test_a_hub_that_asks_to_wait(hub, client, status, headers, wait):
    """The question that comes first is not repeated, so the answer is given at once."""
    hub.faults.append(Fault("/api/", status=status, headers=headers))
    assert_refused(client.model(BASE), BASE, f"{hub.url} answered {status}", wait)
    assert len(hub.requests) == 2
    assert_refused(client.data(DATA), DATA, f"answered {status}", wait, kind="DataError")


def test_a_hub_that_asks_to_wait_for_what_is_in_the_cache(hub, client):
    client.model(BASE)
    hub.faults.append(Fault("/api/models", status=503))
    assert_whole(client.model(BASE), hub, BASE)


def test_a_file_that_cannot_be_had_is_not_done_without(hub, client):
    """transformers takes such a chat template for none, and another would be put in its place."""
    hub.faults.append(Fault("chat_template.jinja", status=403))
    found = client.model(BASE, fallback_chat_template="chatml.jinja")
    assert_refused(found, BASE, "answered 403", "hf auth login")
    hub.faults.clear()
    with hub.away():
        found = client.model(BASE, fallback_chat_template="chatml.jinja")
    assert_refused(found, BASE, "not whole in the cache", "chat_template.jinja")
    found = client.model(BASE, fallback_chat_template="chatml.jinja")
    assert found["template"] == qwen_template()


# --- Broken downloads ------------------------------------------------------------------------


def test_a_download_that_was_given_up_starts_anew(hub, client):
    hub.faults += [
        Fault("/stored/", cut=50_000, times=1),
        Fault("/stored/", status=503, headers={"Retry-After": "1"}, times=1),
    ]
    assert_refused(client.model(BASE), BASE, "answered 503", "again in 1 s")
    assert_nothing_kept(client)
    with hub.away():
        assert_refused(client.model(BASE), BASE, "not whole in the cache", "model.safetensors")
    assert_whole(client.model(BASE), hub, BASE)
    assert [r.path.rpartition("/")[2] for r in hub.transfers] == [hub.published(BASE).sha256]


def test_a_file_that_is_shorter_than_announced(hub, client, tmp_path):
    file = hub.published(BASE)
    with hub.damaged(file, file.content.read_bytes()[:-1000], tmp_path):
        assert_refused(client.model(BASE), BASE, "broke off", "Run this again", str(file.size))
    assert_nothing_kept(client)
    assert_whole(client.model(BASE), hub, BASE)


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json"])
def test_bytes_that_do_not_match_the_announced_sum(hub, client, tmp_path, name):
    """huggingface_hub compares sizes only; a safetensors file with other numbers is a valid one."""
    file = hub.published(BASE, name)
    content = bytearray(file.content.read_bytes())
    place = -3 if name == "model.safetensors" else content.index(b"0")  # the end token, to be 1
    content[place] ^= 1
    with hub.damaged(file, bytes(content), tmp_path):
        found = client.model(BASE)
    assert_refused(found, BASE, name, "arrived damaged", hub.main[BASE], "run this again")
    assert_nothing_kept(client, f"snapshots/*/{name}")
    assert_nothing_kept(client, f"blobs/{file.etag}")
    assert_whole(client.model(BASE), hub, BASE)


@pytest.mark.weekly  # it waits for a server that is asked again and again
def test_what_was_not_compared_is_compared_before_it_is_used(hub, client, tmp_path):
    """The file arrives damaged, and the list of sums does not arrive."""
    file = hub.published(BASE)
    content = bytearray(file.content.read_bytes())
    content[-3] ^= 1
    no_list = Fault("/tree/", status=503)
    hub.faults.append(Fault("/stored/", first=lambda: hub.faults.append(no_list), times=1))
    with hub.damaged(file, bytes(content), tmp_path):
        assert_refused(client.model(BASE), BASE, "answered 503")
        assert_refused(client.model(BASE), BASE, "answered 503")
    hub.faults.clear()
    with hub.away():
        found = client.model(BASE)
    assert_refused(found, BASE, "not compared yet", "model.safetensors", "connect to the network")
    assert_refused(client.model(BASE), BASE, "model.safetensors arrived damaged", hub.main[BASE])
    assert_whole(client.model(BASE), hub, BASE)
    assert_nothing_kept(client, ".compared.json")


def test_an_adapter_and_an_index_that_leads_elsewhere(hub, client, folders, tmp_path):
    adapter = {"adapter_config.json": json.dumps({"base_model_name_or_path": "owner/secret"})}
    next_commit(hub, folders, tmp_path / "adapter", **adapter)
    assert_refused(client.model(BASE), "owner/secret", "holds an adapter", "merge_and_unload")
    index = {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "../evil.bin"}})}
    next_commit(hub, folders, tmp_path / "index", **index)
    found = client.model(BASE)
    assert (
        found["error"] == "ModelLoadError" and "takes weights from ../evil.bin" in found["message"]
    )


def test_a_name_that_the_hub_does_not_know_leaves_nothing(hub, client):
    client.model("owner/none")
    assert_nothing_kept(client, "models--owner--none")


def test_a_copy_that_was_damaged_later(hub, client):
    """What is checked of it then is its form; that other numbers stand in it goes unnoticed."""
    client.model(BASE)
    [weights] = client.home.rglob("model.safetensors")
    weights.resolve().write_bytes(weights.read_bytes()[:-1000])
    found = client.model(BASE)
    folder = client.home / "hub" / "models--Qwen--Qwen3-0.6B-Base"
    assert_refused(found, BASE, hub.main[BASE], f"To download it anew, delete {folder}")
    shutil.rmtree(folder)
    assert_whole(client.model(BASE), hub, BASE)


# --- A branch that moves ---------------------------------------------------------------------


def test_a_revision_that_moved_between_two_loads(hub, client, folders, tmp_path):
    before, old = hub.main[BASE], digest(hub.published(BASE).content)
    assert client.model(BASE)["commit"] == before
    after = next_commit(hub, folders, tmp_path / "next")
    moved, pinned = client.load(
        ["model", BASE, {}],
        ["model", BASE, {"revision": before}],
    )
    assert before != after
    assert_whole(moved, hub, BASE)
    assert (pinned["commit"], pinned["weights"]) == (before, old)
    assert moved["weights"] != old
    assert [r.path.rpartition("/")[2] for r in hub.transfers] == [hub.published(BASE).sha256]
    with hub.away():
        moved, pinned = client.load(["model", BASE, {}], ["model", BASE, {"revision": before}])
    assert (moved["commit"], pinned["commit"]) == (after, before)


def test_a_revision_that_moves_during_a_load(hub, client, folders, tmp_path):
    """All files are those of the commit that was there first."""
    before = hub.main[BASE]
    file, template = hub.published(BASE), "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    changes = {"chat_template.jinja": template}
    publish = partial(next_commit, hub, folders, tmp_path / "next", **changes)
    hub.faults.append(Fault("/resolve/", first=publish, times=1))
    found = client.model(BASE)
    assert hub.main[BASE] != before
    assert found["commit"] == before
    assert found["template"] == qwen_template()
    assert found["weights"] == digest(file.content)


# --- Data ------------------------------------------------------------------------------------


def assert_data(found, count=120):
    assert found.get("rows") == [row["messages"] for row in rows(count)], found.get("message")


def test_data_that_is_cut_or_waited_for_arrives_whole(hub, client):
    hub.faults += [
        Fault("README", "HEAD", status=429, headers={"Retry-After": "0"}, times=1),
        Fault("/stored/", cut=1000, times=1),
    ]
    assert_data(client.data(DATA))


@pytest.mark.parametrize("damage", ["short", "other bytes"])
def test_damaged_data_can_be_had_again(hub, client, tmp_path, damage):
    """A file of the announced size is not compared with its sum: only what Parquet notices is."""
    file = hub.published(f"datasets/{DATA}", PARQUET)
    content = bytearray(file.content.read_bytes())
    if damage == "short":
        del content[-100:]
    else:
        content[500:600] = bytes(100)  # in a compressed page
    with hub.damaged(file, bytes(content), tmp_path):
        found = client.data(DATA)
    assert_refused(found, DATA, "Cannot load the data set", kind="DataError")
    assert_nothing_kept(client)
    assert_nothing_kept(client, "*.arrow")
    folder = client.home / "hub" / "datasets--banghua--DL-SFT-Dataset"
    if damage != "short":  # what is short is downloaded anew by itself
        assert f"delete {folder}" in found["message"]
        shutil.rmtree(folder)
    assert_data(client.data(DATA))


def test_pinned_data_is_not_replaced_by_another_commit(hub, client, tmp_path):
    """Of two commits the cache has the second only, and the first is asked for."""
    first = hub.main[f"datasets/{DATA}"]
    write_data(tmp_path / "data", rows(60))
    hub.commit(f"datasets/{DATA}", tmp_path / "data")
    assert_data(client.data(DATA), 60)
    with hub.away():
        assert_data(client.data(DATA), 60)
        found = client.data(DATA, revision=first)
    assert_refused(found, DATA, first, *WAYS_OUT, kind="DataError")
    hub.faults.append(Fault("/resolve/", status=403, headers=GATED))
    found = client.data(DATA, revision=first)
    assert_refused(found, DATA, first, "hf auth login", kind="DataError")
    hub.faults.clear()
    assert_data(client.data(DATA, revision=first))
