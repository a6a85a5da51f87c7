"""Loads the profile `hub` at full size from loopback, once, and prints what each model took.

    python benchmarks/full_size.py

It writes 2.7 GB into a temporary folder and the cache as much again. It is run by hand. Weights
are random, in bfloat16, of the real shapes; the tokenizers are the small ones of the tests. The
peak is read as Linux tells it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

# One process loads one model after another, twice: from the Hub, then from the cache.
LOAD = """
import re, sys, time
from pathlib import Path
import torch, transformers, datasets
from sft_utils import environment, load_model_and_tokenizer
from sft_utils.models import resolved_commit
environment.quiet()

def peak():  # of this process alone; getrusage begins with that of the one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20

print(f"imports: {peak():.2f} GiB")
for name in sys.argv[1:]:
    start = time.perf_counter()
    model, _ = load_model_and_tokenizer(name, device="cpu")
    seconds = time.perf_counter() - start
    count = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{name} at {resolved_commit(model)[:7]}: {count:.1f} M parameters, {model.dtype}, "
          f"{seconds:.1f} s, peak so far {peak():.2f} GiB", flush=True)
    del model
"""


def main() -> None:
    """Write the models, serve them, and load them in a process of their own."""
    import lookalikes
    from hub.server import PARTS, Hub

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        start = time.perf_counter()
        lookalikes.write_models(root, width=1)
        print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
        hub = Hub()
        for part, name in PARTS.items():
            print(name, hub.commit(name, root / part)[:7])
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(root / "home"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "*",
        }
        for title in ("from the Hub", "from the cache"):
            print(title, flush=True)
            hub.requests.clear()
            command = [sys.executable, "-c", LOAD, *PARTS.values()]
            subprocess.run(command, env=os.environ | environment, check=True)
            sent = sum(request.sent for request in hub.transfers)
            print(json.dumps({"requests": len(hub.requests), "GB": round(sent / 1e9, 2)}))
        hub.down()


if __name__ == "__main__":
    main()
