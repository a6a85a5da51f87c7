"""Load a model and its tokenizer, safely and in full, and know every token that ends its answer.

Explained in chapter 02.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import registry
from .chat import end_of_turn_id
from .environment import best_device
from .hub import ModelLoadError, fetch, hub_offline, load_error

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "templates"

_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>")

_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def resolve(source: str | Path) -> str:
    """Turn the name of a model into what ``from_pretrained`` understands.

    ``atlas-base`` and the other shipped checkpoints become the path of their folder, an existing
    folder becomes its own path, and any other name is returned unchanged, as a name on the Hub.

    Raises `ModelLoadError` for a path that does not exist and for an unknown Atlas checkpoint.
    """
    name = str(source)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise ModelLoadError(
            f"Cannot load a model from {name!r}: it is a file. "
            "Give the folder that holds config.json and model.safetensors."
        )
    shipped = registry.models()
    if name in shipped or re.fullmatch(r"atlas-[\w-]+", name):
        folder = shipped.get(name)
        if folder is None:
            raise ModelLoadError(f"{name!r} is no checkpoint: the Atlas has {', '.join(shipped)}.")
        if not folder.is_dir():
            raise ModelLoadError(
                f"The checkpoint {name!r} is missing from this copy of the package ({folder}). "
                "Install the package again, or make the checkpoint anew with `make models`."
            )
        return str(folder)
    if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name[0] == ".":
        raise ModelLoadError(
            f"Cannot load a model from {name!r}: there is no such folder. Check the path "
            f"(relative paths start at {os.getcwd()}), or give a Hub name such as 'owner/model'."
        )
    return name


def load_model_and_tokenizer(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    chat_template: str | Path | None = None,
    fallback_chat_template: str | Path | None = None,
    chat_template_from: str | Path | None = None,
    stop_tokens: Sequence[str] = (),
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer. Explained in chapter 02.

    ``source`` is a checkpoint of the Atlas (``"atlas-base"``), a local folder, or a Hub name.
    ``device`` defaults to the GPU if there is one. ``chat_template`` is the path of a ``.jinja``
    file, or the name of one in ``sft_utils/templates``, and replaces the tokenizer's own;
    ``fallback_chat_template`` is used only if the tokenizer has none, as base models often do; so
    is ``chat_template_from``, the name or folder of a model whose template is taken. Each of
    ``stop_tokens`` joins what `end_token_ids` finds. ``revision`` is a branch, tag or commit of
    the model on the Hub.

    ``dtype`` is float32 unless you ask otherwise. Left alone, the weights would arrive in the
    checkpoint's type, usually bfloat16, which keeps 8 significant bits: a fine-tuning step is so
    small that most bfloat16 weights round back to where they were and never move.

    Weights are read from safetensors files only, and code from a model's repository is never run.
    Every weight must find its place: a checkpoint that lacks one, or has one too many, is an error.
    A model of the Hub is downloaded whole, all files of one commit (see `resolved_commit`), and
    each is compared with the sum that the Hub keeps of it; after that the cache is enough.

    Raises `ModelLoadError` and says what to do about it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch_dtype = _torch_dtype(dtype)
    for path in (chat_template, fallback_chat_template):
        if path is not None:
            _read_template(path)  # before the long part: is it there?
    resolved = resolve(source)
    local = Path(resolved).is_dir()
    if local:
        check_folder(Path(resolved), revision)
        commit = None
    else:
        commit = fetch(resolved, revision).name
        # Otherwise a repository without safetensors is converted by a service on the Hub.
        os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if commit is not None:
        options["revision"] = commit

    try:
        with hub_offline(commit is not None):  # all that is needed is there
            tokenizer = AutoTokenizer.from_pretrained(resolved, **options)
            auto: Any = AutoModelForCausalLM  # typed as if it always returned a lone model
            model, report = auto.from_pretrained(
                resolved,
                dtype=torch_dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # so that the report lists them; they raise below
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        raise load_error(str(source), True, True, error, commit) from error

    if commit is not None:
        model.config._commit_hash = commit  # is not saved with the config
    _check_weights(str(source), report)
    check_vocabulary(str(source), model, tokenizer)
    set_template(str(source), tokenizer, chat_template, fallback_chat_template, chat_template_from)
    if tokenizer.pad_token_id is None:
        _choose_pad_token(str(source), model, tokenizer)
    if stop_tokens:
        add_stop_tokens(str(source), model, tokenizer, stop_tokens)
    return model.to(device or best_device()), tokenizer


def resolved_commit(model: PreTrainedModel) -> str | None:
    """Return the commit on the Hub that `load_model_and_tokenizer` took the model from.

    None if it came from a folder. A branch moves, a commit never changes: put it into a profile
    as the ``revision`` of the model to get the same files again. Explained in chapter 01.
    """
    return getattr(model.config, "_commit_hash", None)


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of every token that ends an answer, sorted.

    Tokenizer, model config and generation config each name an end token, and in base models they
    often disagree; the chat template may end a turn with yet another. Stopping at only one of
    them is how a fine-tuned model comes to run on. Explained in chapter 02.
    """
    found: set[int] = set()
    for holder in (tokenizer, model.config, model.generation_config):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    end_of_turn = end_of_turn_id(tokenizer)
    if end_of_turn is not None:
        found.add(end_of_turn)
    return sorted(found)


def _torch_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    import torch

    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelLoadError(
            f"Unknown dtype {dtype!r}. Use 'float32', 'bfloat16', 'float16', or 'auto' for the "
            "type that the checkpoint was saved in."
        )
    return found


def _read_template(chat_template: str | Path) -> str:
    for path in (Path(chat_template).expanduser(), TEMPLATES / chat_template):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    shipped = ", ".join(sorted(path.name for path in TEMPLATES.glob("*.jinja")))
    raise ModelLoadError(
        f"There is no chat template {str(chat_template)!r}. "
        f"Give the path of a .jinja file, or one of those shipped here: {shipped}."
    )


def set_template(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | Path | None,
    fallback: str | Path | None,
    chat_template_from: str | Path | None,
) -> str | Path | None:
    """Give the tokenizer its template; return where it is from, None if it is its own."""
    if chat_template is not None:
        origin, text = chat_template, _read_template(chat_template)
    elif tokenizer.chat_template:
        return None
    elif fallback is not None:
        origin, text = fallback, _read_template(fallback)
    elif chat_template_from is not None:
        origin, text = chat_template_from, _template_of(chat_template_from)
    else:
        return None
    tokenizer.chat_template = text
    if end_of_turn_id(tokenizer) is None:
        warnings.warn(
            f"The chat template {str(origin)!r} does not end an assistant's turn with "
            f"a token that the tokenizer of {source!r} knows as one token, so the model "
            "cannot learn to stop there.",
            stacklevel=3,
        )
    return origin


def _template_of(source: str | Path) -> str:
    """The chat template of another model, of which nothing but the tokenizer is read."""
    tokenizer = load_tokenizer(source)
    if not tokenizer.chat_template:
        raise ModelLoadError(
            f"The chat template is to be taken from {str(source)!r}, which has none. Name a model "
            "that was fine-tuned for chat."
        )
    return tokenizer.get_chat_template()


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer as it was saved, without the model's weights. Raises `ModelLoadError`.

    A model of the Hub is read from the cache, or fetched without its weights. Chapter 05.
    """
    from transformers import AutoTokenizer

    resolved = resolve(source)
    options = {}
    if not Path(resolved).is_dir():
        options["revision"] = fetch(resolved, revision, weights=False).name
    try:
        return AutoTokenizer.from_pretrained(
            resolved, local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:
        raise load_error(str(source), True, True, error, options.get("revision")) from error


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


def _check_weights(source: str, report: dict[str, Any]) -> None:
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


def check_vocabulary(source: str, model: Any, tokenizer: Any) -> None:
    """Raise if the tokenizer has ids that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        raise ModelLoadError(
            f"The tokenizer of {source!r} has token ids up to {largest}, but the model has only "
            f"{rows} embeddings. They belong to different models, or tokens were added without "
            "`model.resize_token_embeddings(len(tokenizer))`."
        )


def add_stop_tokens(source: str, model: Any, tokenizer: Any, stop_tokens: Sequence[str]) -> None:
    """Note them in the model's generation config, where `end_token_ids` looks."""
    found = set(end_token_ids(model, tokenizer))
    for text in stop_tokens:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ModelLoadError(
                f"The stop token {text!r} is {len(ids)} tokens of {source!r}, and an answer can "
                "end at a single token only. Name a token of its vocabulary, or leave it out."
            )
        found.update(ids)
    model.generation_config.eos_token_id = sorted(found)


def _choose_pad_token(source: str, model: Any, tokenizer: Any) -> None:
    """Give the tokenizer a pad token that does not also end answers, where it has one.

    A collator that hides padding from the loss by its id would hide the end token with it, and
    the model would never learn to stop.
    """
    ends = set(end_token_ids(model, tokenizer))
    vocabulary = tokenizer.get_vocab()
    spare = [
        token.content
        for _, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token.content not in (tokenizer.chat_template or "")
    ]
    for token in (*_PAD_NAMES, tokenizer.unk_token, "<|endoftext|>", *spare):
        if token in vocabulary and vocabulary[token] not in ends | {tokenizer.bos_token_id}:
            tokenizer.pad_token = token
            return
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(min(ends))
    warnings.warn(
        f"The tokenizer of {source!r} has no pad token and no token to spare for it, so "
        f"{tokenizer.pad_token!r}, which ends an answer, pads as well. Use a collator that masks "
        "padding by position, as TRL's does, not by id.",
        stacklevel=3,
    )
