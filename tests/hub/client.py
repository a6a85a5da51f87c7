"""Loads from the Hub in a process of its own, as a reader's notebook does.

    HF_ENDPOINT=http://127.0.0.1:1234 HF_HOME=cache python client.py answers.jsonl < tasks

The libraries read their settings when they are imported, which takes seconds. So they are
imported once, and each task, a line of JSON, is done by a fork that has loaded nothing yet.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import socket
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from book.page_runner import serve


def stay_on_loopback() -> None:
    """Let no name but the Hub's be looked up."""
    look_up = socket.getaddrinfo

    def guarded(host: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(f"a test looked up {name!r}")
        return look_up("127.0.0.1", *args, **options)

    socket.getaddrinfo = guarded


def load(kind: str, source: str, options: dict[str, Any]) -> dict[str, Any]:
    """What was loaded, in short, or the error."""
    from sft_utils import models
    from sft_utils.data import rows

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            if kind == "data":
                dataset = rows.load_sft_dataset(source, **options)
                version = rows.resolved_version(dataset)
                columns = dataset.column_names
                return {"columns": columns, "rows": dataset["messages"][:], "version": version}
            model, tokenizer = models.load_model_and_tokenizer(source, **options)
        except Exception as error:
            return {"error": type(error).__name__, "message": str(error)}
    return {
        "class": type(model).__name__,
        "commit": models.resolved_commit(model),
        "weights": weights_digest(model.state_dict()),
        "dtype": str(model.dtype),
        "template": tokenizer.chat_template,
        "name": tokenizer.name_or_path,
        "ends": models.end_token_ids(model, tokenizer),
        "pad": tokenizer.pad_token,
        "warnings": [str(warning.message) for warning in warned],
    }


def weights_digest(weights: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.float().numpy().tobytes())
    return digest.hexdigest()


def load_named(profile_name: str) -> dict[str, Any]:
    """Everything that a profile names, part by part."""
    from sft_utils import load_profile

    profile = load_profile(profile_name)
    template = {"fallback_chat_template": profile.prompt.fallback_chat_template}
    parts = ("base", "reference", "trainee")
    found = {part: load("model", getattr(profile.models, part), template) for part in parts}
    data = profile.data
    options = {"split": data.split, "rows": data.rows, "revision": data.revision}
    return found | {"data": load("data", data.source, options)}


def in_a_fork(offline: bool, steps: list[list[Any]]) -> list[dict[str, Any]]:
    """Do the steps of a task."""
    import datasets
    import huggingface_hub

    if offline:  # what the libraries make of HF_HUB_OFFLINE when imported
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return [load_named(step[1]) if step[0] == "profile" else load(*step) for step in steps]


def answer(line: str) -> dict[str, Any]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as fork:
        return {"done": fork.submit(in_a_fork, **json.loads(line)).result()}


def main() -> None:
    """Do each task of standard input in a fork."""
    stay_on_loopback()
    import datasets
    import torch
    import transformers

    # What a load would import, so that no fork has to.
    _ = datasets.load_dataset, torch.nn, transformers.AutoModelForCausalLM
    _ = transformers.AutoTokenizer, transformers.Qwen3ForCausalLM, transformers.LlamaForCausalLM
    from sft_utils import environment

    environment.quiet()
    serve(answer)


if __name__ == "__main__":
    main()
