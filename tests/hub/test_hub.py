"""The profile `hub` against a Hub served on loopback: on a good day, and on every bad one."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from conftest import make_model
from hub.server import Fault, File
from lookalikes import qwen_template, rows, write_data
from safetensors.torch import load_file

from sft_utils.models import TEMPLATES

BASE, REFERENCE = "Qwen/Qwen3-0.6B-Base", "banghua/Qwen3-0.6B-SFT"
TRAINEE, DATA = "HuggingFaceTB/SmolLM2-135M", "banghua/DL-SFT-Dataset"
PARTS = {"base": BASE, "reference": REFERENCE, "trainee": TRAINEE}
WAYS_OUT = ("connect to the network", "HF_HOME", "SFT_PROFILE=atlas", "local")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the client forks")


def commit_of(hub, name, branch="main"):
    return hub.repositories[name].branches[branch]


def published(hub, name, path="model.safetensors") -> File:
    return hub.repositories[name].commits[commit_of(hub, name)][path]


def digest(file: Path) -> str:
    """What client.py makes of a model's weights, of which one is tied."""
    weights = load_file(file)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    found = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        found.update(name.encode())
        found.update(weight.float().numpy().tobytes())
    return found.hexdigest()


def next_commit(hub, name, folders, tmp_path, **changes) -> str:
    """Publish the model anew with its norms doubled, and files of other content."""
    from safetensors.torch import save_file

    folder = tmp_path / "next"
    shutil.copytree(folders[name], folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for path, text in changes.items():
        (folder / path).write_text(text)
    return hub.commit(name, folder)


def assert_refused(found, name, *words, kind="ModelLoadError"):
    """The error of the package, with the name and the remedy."""
    assert found.get("error") == kind, found
    for word in (repr(name), *words):
        assert word in found["message"], found["message"]


def assert_nothing_kept(client, pattern="*.incomplete"):
    assert [str(path) for path in client.home.rglob(pattern)] == []


def assert_whole(found, hub, name):
    assert found.get("weights") == digest(published(hub, name).content), found
    assert found["commit"] == commit_of(hub, name)


# --- Good days -------------------------------------------------------------------------------


@pytest.fixture
def everything(hub, folders):
    """What a load of all that the profile names must give."""

    def check(found):
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
        assert found["data"]["version"] == f"commit {commit_of(hub, f'datasets/{DATA}')}"
        assert found["data"]["rows"] == [row["messages"] for row in rows(100)]

    return check


def test_the_profile_is_downloaded_once(hub, client, everything):
    [found] = client.load(["profile", "hub"])
    everything(found)
    fetched = [request.path for request in hub.transfers]
    assert len(set(fetched)) == len(fetched)
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    for name in PARTS.values():
        of_model = {path.rpartition("/")[2] for path in fetched if path.startswith(f"/{name}/")}
        assert of_model - {"chat_template.jinja"} == wanted  # no README, no other format
    large = {file.sha256 for file in (published(hub, name) for name in PARTS.values())}
    large.add(published(hub, f"datasets/{DATA}", "data/train-00000-of-00001.parquet").sha256)
    assert {path.rpartition("/")[2] for path in fetched if "/stored/" in path} == large

    [found] = client.load(["profile", "hub"])
    everything(found)
    assert hub.transfers == []
    of_models = [r.path for r in hub.requests if r.path != "/" and "dataset" not in r.path]
    assert of_models == [f"/api/models/{name}/revision/main" for name in PARTS.values()]

    hub.down()
    try:
        [found] = client.load(["profile", "hub"])
    finally:
        hub.up()
    everything(found)


def test_offline_by_the_environment(hub, client, offline_client, everything):
    client.load(["profile", "hub"])
    shutil.copytree(client.home, offline_client.home, symlinks=True)
    [found] = offline_client.load(["profile", "hub"])
    everything(found)
    offline_client.forget()
    [found] = offline_client.load(["profile", "hub"])
    for part, name in PARTS.items():
        assert_refused(found[part], name, *WAYS_OUT, str(offline_client.home))
    assert_refused(found["data"], DATA, *WAYS_OUT, kind="DataError")
    assert hub.requests == []


def test_an_unreachable_hub_and_an_empty_cache(hub, client):
    hub.down()
    try:
        [found] = client.load(["profile", "hub"])
    finally:
        hub.up()
    for part, name in PARTS.items():
        assert_refused(found[part], name, *WAYS_OUT, str(client.home), hub.url, "cannot be reached")
    assert_refused(found["data"], DATA, *WAYS_OUT, "cannot be reached", kind="DataError")


def test_a_template_from_another_model_of_the_hub(hub, client):
    found = client.model(TRAINEE, chat_template_from=REFERENCE)
    assert found["template"] == qwen_template()
    assert not any(published(hub, REFERENCE).sha256 in r.path for r in hub.requests)


# --- Names and permissions -------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model(hub, client, status):
    """Its page and the list of its files are open to all, its files are not."""
    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
    hub.faults.append(Fault("/resolve/", status=status, headers=headers))
    found = client.model(BASE)
    assert_refused(found, BASE, "gated", f"{hub.url}/{BASE}", "Accept its terms", "hf auth login")
    assert hub.transfers == []


def test_names_that_the_hub_does_not_know(hub, client):
    no_model, no_revision, no_data = client.load(
        ["model", "owner/none", {}],
        ["model", BASE, {"revision": "v9"}],
        ["data", "owner/none", {}],
    )
    assert_refused(no_model, "owner/none", f"{hub.url} knows no model of that name", "private")
    assert_refused(no_revision, BASE, "no such revision", "v9", f"{hub.url}/{BASE}/commits")
    assert_refused(no_data, "owner/none", "hf auth login", kind="DataError")


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
    assert_refused(client.model(BASE), BASE, "no weights as safetensors", commit_of(hub, BASE))
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
    hub.faults.append(Fault("/api/models", status=status, headers=headers))
    assert_refused(client.model(BASE), BASE, f"{hub.url} answered {status}", wait)
    assert len(hub.requests) == 2


def test_a_hub_that_asks_to_wait_for_what_is_in_the_cache(hub, client):
    client.model(BASE)
    hub.faults.append(Fault("/api/models", status=503))
    assert_whole(client.model(BASE), hub, BASE)


@pytest.mark.parametrize("status", [429, 503])
def test_a_file_that_is_to_be_waited_for(hub, client, status):
    """huggingface_hub asks again, as long as it is told to wait and a second more."""
    headers = {"Retry-After": "0"}
    hub.faults.append(Fault("/config.json", "HEAD", status, headers, times=2))
    assert_whole(client.model(BASE), hub, BASE)
    assert [r.status for r in hub.requests if r.path.endswith("/config.json")][:2] == [status] * 2


def test_weights_that_are_to_be_waited_for(hub, client):
    hub.faults.append(Fault("/stored/", status=503, headers={"Retry-After": "1"}))
    assert_refused(client.model(BASE), BASE, "answered 503", "again in 1 s")
    assert_nothing_kept(client)
    hub.faults.clear()
    assert_whole(client.model(BASE), hub, BASE)


def test_a_file_that_cannot_be_had_is_not_done_without(hub, client):
    """transformers takes such a chat template for none, and another would be put in its place."""
    hub.faults.append(Fault("chat_template.jinja", status=403))
    found = client.model(BASE, fallback_chat_template="chatml.jinja")
    assert_refused(found, BASE, "answered 403", "hf auth login")
    hub.faults.clear()
    hub.down()
    try:
        found = client.model(BASE, fallback_chat_template="chatml.jinja")
    finally:
        hub.up()
    assert_refused(found, BASE, "not whole in the cache", "chat_template.jinja")
    found = client.model(BASE, fallback_chat_template="chatml.jinja")
    assert found["template"] == qwen_template()


# --- Broken downloads ------------------------------------------------------------------------


def test_a_connection_that_is_cut_is_taken_up_where_it_broke_off(hub, client, folders, tmp_path):
    """huggingface_hub writes by 10 MiB, so a file must be larger for a part of it to be kept."""
    folder = tmp_path / "large"
    shutil.copytree(folders[BASE], folder)
    make_model("qwen3", 90_000, tie_word_embeddings=True).save_pretrained(folder)
    hub.commit(BASE, folder)
    hub.faults.append(Fault("/stored/", cut=11_000_000, times=1))
    assert_whole(client.model(BASE), hub, BASE)
    assert [(r.range, r.status) for r in hub.requests if "/stored/" in r.path] == [
        (None, 200),
        (f"bytes={10 * 2**20}-", 206),
    ]


def test_a_download_that_was_given_up_starts_anew(hub, client):
    hub.faults += [
        Fault("/stored/", cut=50_000, times=1),
        Fault("/stored/", status=503, times=1),
    ]
    assert_refused(client.model(BASE), BASE, "answered 503", "Run this again")
    assert_nothing_kept(client)
    hub.down()
    try:
        assert_refused(client.model(BASE), BASE, "not whole in the cache", "model.safetensors")
    finally:
        hub.up()
    assert_whole(client.model(BASE), hub, BASE)
    assert [(r.path.rpartition("/")[2], r.range) for r in hub.transfers] == [
        (published(hub, BASE).sha256, None)
    ]


def test_a_file_that_is_shorter_than_announced(hub, client, tmp_path):
    file = published(hub, BASE)
    whole = file.content
    hub.damage(BASE, "model.safetensors", whole.read_bytes()[:-1000], tmp_path / "short")
    assert_refused(client.model(BASE), BASE, "broke off", "Run this again", str(file.size))
    assert_nothing_kept(client)
    file.content = whole
    assert_whole(client.model(BASE), hub, BASE)


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json"])
def test_bytes_that_do_not_match_the_announced_sum(hub, client, tmp_path, name):
    """huggingface_hub compares sizes only; a safetensors file with other numbers is a valid one."""
    file = published(hub, BASE, name)
    whole = file.content
    content = bytearray(whole.read_bytes())
    place = -3 if name == "model.safetensors" else content.index(b"0")  # the end token, to be 1
    content[place] ^= 1
    hub.damage(BASE, name, bytes(content), tmp_path / "damaged")
    found = client.model(BASE)
    assert_refused(found, BASE, name, "arrived damaged", commit_of(hub, BASE), "run this again")
    assert_nothing_kept(client, f"snapshots/*/{name}")
    assert_nothing_kept(client, f"blobs/{file.etag}")
    file.content = whole
    assert_whole(client.model(BASE), hub, BASE)


def test_a_copy_that_was_damaged_later(hub, client):
    """What is checked of it then is its form; that other numbers stand in it goes unnoticed."""
    client.model(BASE)
    [weights] = client.home.rglob("model.safetensors")
    weights.resolve().write_bytes(weights.read_bytes()[:-1000])
    found = client.model(BASE)
    folder = client.home / "hub" / "models--Qwen--Qwen3-0.6B-Base"
    assert_refused(found, BASE, commit_of(hub, BASE), f"To download it anew, delete {folder}")
    shutil.rmtree(folder)
    assert_whole(client.model(BASE), hub, BASE)


# --- A branch that moves ---------------------------------------------------------------------


def test_a_revision_that_moved_between_two_loads(hub, client, folders, tmp_path):
    before, old = commit_of(hub, BASE), digest(published(hub, BASE).content)
    assert client.model(BASE)["commit"] == before
    after = next_commit(hub, BASE, folders, tmp_path)
    moved, pinned = client.load(
        ["model", BASE, {}],
        ["model", BASE, {"revision": before}],
    )
    assert before != after
    assert_whole(moved, hub, BASE)
    assert (pinned["commit"], pinned["weights"]) == (before, old)
    assert moved["weights"] != old
    assert [r.path.rpartition("/")[2] for r in hub.transfers] == [published(hub, BASE).sha256]
    hub.down()
    try:
        moved, pinned = client.load(["model", BASE, {}], ["model", BASE, {"revision": before}])
    finally:
        hub.up()
    assert (moved["commit"], pinned["commit"]) == (after, before)


def test_a_revision_that_moves_during_a_load(hub, client, folders, tmp_path):
    """All files are those of the commit that was there first."""
    before = commit_of(hub, BASE)
    file, template = published(hub, BASE), "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    publish = Fault(
        "/resolve/",
        first=lambda: next_commit(
            hub, BASE, folders, tmp_path, **{"chat_template.jinja": template}
        ),
        times=1,
    )
    hub.faults.append(publish)
    found = client.model(BASE)
    assert commit_of(hub, BASE) != before
    assert found["commit"] == before
    assert found["template"] == qwen_template()
    assert found["weights"] == digest(file.content)


# --- Data ------------------------------------------------------------------------------------

PARQUET = "data/train-00000-of-00001.parquet"


def assert_data(found, count=120):
    assert found.get("rows") == [row["messages"] for row in rows(count)], found.get("message")


@pytest.mark.parametrize("status", [401, 403])
def test_gated_data(hub, client, status):
    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
    hub.faults.append(Fault("/resolve/", status=status, headers=headers))
    assert_refused(client.data(DATA), DATA, "gated", "hf auth login", kind="DataError")
    assert hub.transfers == []


def test_a_split_and_a_revision_that_are_not_there(hub, client):
    split, revision = client.load(
        ["data", DATA, {"split": "test"}], ["data", DATA, {"revision": "v9"}]
    )
    assert_refused(split, DATA, "'test'", "['train']", kind="DataError")
    assert_refused(revision, DATA, "v9", kind="DataError")


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_asks_to_wait_for_data(hub, client, status):
    hub.faults.append(Fault("/api/", status=status, headers={"Retry-After": "1"}, times=1))
    found = client.data(DATA)
    assert_refused(found, DATA, f"answered {status}", "again in 1 s", kind="DataError")


def test_data_that_is_cut_or_waited_for_arrives_whole(hub, client):
    hub.faults += [
        Fault("README", "HEAD", status=429, headers={"Retry-After": "0"}, times=1),
        Fault("/stored/", cut=1000, times=1),
    ]
    assert_data(client.data(DATA))


@pytest.mark.parametrize("damage", ["short", "other bytes"])
def test_damaged_data(hub, client, tmp_path, damage):
    """A file of the announced size is not compared with its sum: only what Parquet notices is."""
    file = published(hub, f"datasets/{DATA}", PARQUET)
    content = bytearray(file.content.read_bytes())
    if damage == "short":
        del content[-100:]
    else:
        content[500:600] = bytes(100)  # in a compressed page
    hub.damage(f"datasets/{DATA}", PARQUET, bytes(content), tmp_path / "damaged")
    assert_refused(client.data(DATA), DATA, "Cannot load the data set", kind="DataError")
    assert_nothing_kept(client)
    assert_nothing_kept(client, "*.arrow")


def test_damaged_data_can_be_had_again(hub, client, tmp_path):
    file = published(hub, f"datasets/{DATA}", PARQUET)
    whole = file.content
    content = bytearray(whole.read_bytes())
    content[500:600] = bytes(100)
    hub.damage(f"datasets/{DATA}", PARQUET, bytes(content), tmp_path / "damaged")
    folder = client.home / "hub" / "datasets--banghua--DL-SFT-Dataset"
    assert_refused(client.data(DATA), DATA, f"delete {folder}", kind="DataError")
    shutil.rmtree(folder)
    file.content = whole
    assert_data(client.data(DATA))


@pytest.fixture
def moved_data(hub, client, tmp_path):
    """The data of two commits, of which the cache has the second only; the first is returned."""
    first = commit_of(hub, f"datasets/{DATA}")
    write_data(tmp_path / "data", rows(60))
    hub.commit(f"datasets/{DATA}", tmp_path / "data")
    assert_data(client.data(DATA), 60)
    return first


def test_pinned_data(hub, client, moved_data):
    assert_data(client.data(DATA, revision=moved_data))


def test_pinned_data_that_the_cache_lacks(hub, client, moved_data):
    hub.down()
    try:
        found = client.data(DATA, revision=moved_data)
    finally:
        hub.up()
    assert_refused(found, DATA, moved_data, *WAYS_OUT, kind="DataError")


def test_gated_data_is_not_replaced_by_another_commit(hub, client, moved_data):
    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
    hub.faults.append(Fault("/resolve/", status=403, headers=headers))
    found = client.data(DATA, revision=moved_data)
    assert_refused(found, DATA, moved_data, "hf auth login", kind="DataError")
