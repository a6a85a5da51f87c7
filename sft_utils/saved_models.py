"""What lies in a model's folder, looked at before it is used: is it a model, whole and safe?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .hub import ModelLoadError

_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def check_folder(folder: Path, revision: str | None = None) -> None:
    """Raise if a local folder cannot be a whole, safe checkpoint."""
    if revision is not None:
        raise ModelLoadError(
            f"The folder {folder} has no revision {revision!r}: only models on the Hub do. Leave "
            "it out, or give the model's name on the Hub."
        )
    if not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"The folder {folder} holds no config.json, so it is not a saved model. "
            "Give the folder that `model.save_pretrained(folder)` wrote."
        )
    if not any(folder.glob("tokenizer*")):
        raise ModelLoadError(
            f"The folder {folder} holds a model but no tokenizer. "
            "Save one beside it with `tokenizer.save_pretrained(folder)`."
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        if pickled:
            raise ModelLoadError(
                f"The folder {folder} holds only pickled weights ({', '.join(pickled)}). Opening "
                "a pickle can run any code that it contains, so they are not read. If you trust "
                "their author, convert them once: load them with transformers and call "
                "`model.save_pretrained(folder)`, which writes model.safetensors."
            )
        raise ModelLoadError(
            f"The folder {folder} holds no weights: model.safetensors is missing. "
            "Save or copy the model again."
        )


def check_weights(source: str, report: dict[str, Any]) -> None:
    """Raise unless every weight found its place, by what ``from_pretrained`` reports of a load."""
    problems = []
    for kind, what in (
        ("missing_keys", "are missing from the checkpoint and would have been random"),
        ("unexpected_keys", "are in the checkpoint and have no place in the model"),
    ):
        names = sorted(report[kind])
        if names:
            problems.append(f"{len(names)} weights {what}: {', '.join(names[:4])}"[:300])
    for name, in_file, in_model in sorted(report["mismatched_keys"]):
        problems.append(f"{name} is {tuple(in_file)} in the file, {tuple(in_model)} in the model")
    if problems:
        raise ModelLoadError(
            f"The weights of {source!r} do not match its config.json:\n  "
            + "\n  ".join(problems[:6])
            + "\nThe config, or a weight file, belongs to another model; save or copy both again."
        )
