"""What the package ships of the Atlas, by name, for `sft_utils.registry`.

``checkpoints/`` holds the models that ``make models`` re-creates.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

MODELS = {
    name: _FOLDER / "checkpoints" / name
    for name in ("atlas-base", "atlas-sft", "atlas-small", "atlas-base-1form")
}
ROWS = {"atlas-sft-data": _FOLDER / "atlas-sft-data.jsonl"}
