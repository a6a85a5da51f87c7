"""What lies in a model's folder, looked at before it is used: is it a model, whole and safe?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import is_lfs_pointer
from .hub import ModelLoadError
from .wording import names_of, short

if TYPE_CHECKING:
    import torch

_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}

#: What else a folder without a model is, by what lies in it, and what to give in its place.
_OTHERS = (
    ("checkpoint-*/config.json", "checkpoints of a training. Give the path of one of them"),
    ("*/config.json", "folders with models. Give the path of one of them"),
    (
        "pytorch_model_fsdp*/*.distcp",
        "weights in the shards that FSDP saves. Merge them: `accelerate merge-weights SHARDS OUT`, "
        "and save config and tokenizer there",
    ),
    (
        "zero_to_fp32.py",
        "weights in the shards that DeepSpeed saves. Merge them, in the folder: `python "
        "zero_to_fp32.py . OUT --safe_serialization`, and save config and tokenizer there",
    ),
    ("dataset_info.json", "a data set, which is the source of [data] in a profile"),
)


def check_folder(folder: Path, revision: str | None = None) -> None:
    """Raise if a local folder cannot be a whole, safe checkpoint."""
    if revision is not None:
        raise ModelLoadError(
            f"The folder {folder} has no revision {revision!r}: only models on the Hub do. Leave "
            "it out, or give the model's name on the Hub."
        )
    check_pointers(folder.iterdir())
    check_files(folder)
    for pattern, what in _OTHERS:
        found = sorted(folder.glob(pattern))
        if found and not any(folder.glob("*.safetensors")):
            raise ModelLoadError(
                f"The folder {folder} holds no model, but {what}: "
                f"{names_of(path.relative_to(folder).parts[0] for path in found)}."
            )
    if not (folder / "config.json").is_file():
        what = "a tokenizer alone" if any(folder.glob("tokenizer*")) else "no config.json"
        raise ModelLoadError(
            f"The folder {folder} holds {what}, so it is not a saved model: no config.json. "
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
    _check_headers(folder)


def check_pointers(files: Iterable[Path]) -> None:
    """Raise where a file is one of Git LFS's, which only says where the real one is."""
    for path in files:
        if path.is_file() and is_lfs_pointer(path):
            raise ModelLoadError(
                f"{path.name} in {path.parent} is not the file itself but Git LFS's pointer to it: "
                "the repository was cloned without Git LFS. Run `git lfs pull` there."
            )


def check_files(folder: Path) -> None:
    """Raise where a model's folder, on the Hub too, leads to other files than its own weights.

    Those are an adapter, whose config names another model, and an index that names files which are
    not safetensors or lie elsewhere.
    """
    if (folder / "adapter_config.json").is_file():
        base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise ModelLoadError(
            f"The folder {folder} holds an adapter (adapter_config.json) of the model "
            f"{short(base)}. Merge the two, and give the folder of the result: `peft."
            "AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()."
            "save_pretrained(OUT)`, with the tokenizer beside it."
        )
    if any(folder.glob("shard-*-model-*.safetensors")):
        raise ModelLoadError(
            f"The folder {folder} holds the shards of several processes (shard-*-model-*), which "
            "only those can read. Load them as they were saved, and save the model whole."
        )
    for index in folder.rglob("*.safetensors.index.json"):
        named = _read_json(index).get("weight_map")
        files = {str(file) for file in named.values()} if isinstance(named, dict) else {str(named)}
        foreign = sorted(file for file in files if not re.fullmatch(r"[^/\\:]+\.safetensors", file))
        if foreign:
            raise ModelLoadError(
                f"{index.name} in {index.parent} takes weights from {names_of(foreign)}. Read are "
                "safetensors files in the folder itself alone: other formats can run any code that "
                "they contain. Save or copy the model again, from whom you trust."
            )
        missing = sorted(file for file in files if not (index.parent / file).is_file())
        if missing and not (folder / "model.safetensors").is_file():
            raise ModelLoadError(
                f"{index.name} in {index.parent} names weights that are missing: "
                f"{names_of(missing)}. Copy or download them again."
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__} in place of an object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(
            f"{path.name} in {path.parent} cannot be read: {error}. Save or copy the model again."
        ) from error


def _check_headers(folder: Path) -> None:
    """Raise where a file of weights is shorter than it says, which safetensors does not name."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{file.name} in the folder {folder} is damaged or incomplete: {error}. Save or "
                "copy the model again."
            ) from error


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


def stored_weights(files: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in safetensors files, each with its name, one at a time."""
    from safetensors import safe_open

    for file in files:
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118, it is no mapping
                yield name, weights.get_tensor(name)


def check_numbers(source: str, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise where a weight, given with its name, is not a number or infinite."""
    for name, weight in weights:
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            count = int((~weight.isfinite()).sum())
            raise ModelLoadError(
                f"The weights of {source!r} are no numbers: {count} of {weight.numel()} in {name} "
                "are NaN or infinite, as after a training that diverged. Take an earlier "
                "checkpoint, or copy or download the model again."
            )
