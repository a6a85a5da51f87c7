"""Loads from the Hub in a process of its own, as a reader's notebook does.

    HF_ENDPOINT=http://127.0.0.1:1234 HF_HOME=cache python client.py < tasks

The libraries read their settings when they are imported, which takes seconds. So they are
imported once, and each task, a line of JSON, is done by a fork that has loaded nothing yet. It
writes what it loaded, or the error, into the file that the task names.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any


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
    from sft_utils import data, models

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            if kind == "data":
                dataset = data.load_sft_dataset(source, **options)
                version = data.resolved_version(dataset)
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
    template = {"fallback_chat_template": profile.prompt.chat_template}
    parts = ("base", "reference", "trainee")
    found = {part: load("model", getattr(profile.models, part), template) for part in parts}
    data = profile.data
    options = {"split": data.split, "rows": data.rows, "revision": data.revision}
    return found | {"data": load("data", data.source, options)}


def main() -> None:
    """Do each task of standard input in a fork."""
    stay_on_loopback()
    import datasets
    import huggingface_hub
    import torch
    import transformers

    # What a load would import, so that no fork has to.
    _ = datasets.load_dataset, torch.nn, transformers.AutoModelForCausalLM
    _ = transformers.AutoTokenizer, transformers.Qwen3ForCausalLM, transformers.LlamaForCausalLM
    from sft_utils import environment

    environment.quiet()
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            if task["offline"]:  # what the libraries make of HF_HUB_OFFLINE when imported
                huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
            try:
                steps = task["steps"]
                done = [load_named(s[1]) if s[0] == "profile" else load(*s) for s in steps]
                Path(task["answer"]).write_text(json.dumps(done))
            except BaseException:
                traceback.print_exc()  # the answer that is missing tells
            finally:
                sys.stderr.flush()
                os._exit(0)
        os.waitpid(child, 0)
        print("done", flush=True)


if __name__ == "__main__":
    main()
