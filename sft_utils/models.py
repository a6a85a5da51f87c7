"""Load a model and its tokenizer, safely and in full, and know every token that ends its answer.

Explained in chapter 02.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import gguf_models, registry
from .chat import end_of_turn_id
from .environment import best_device
from .hub import ModelLoadError, explained, fetch, hub_offline
from .saved_models import (
    check_files,
    check_folder,
    check_numbers,
    check_pointers,
    check_weights,
)
from .wording import short

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "templates"

# A name of the Hub has 96 characters at the most; what ends in .gguf was meant as a file.
_HUB_NAME = re.compile(r"(?=.{1,96}$)(?!\.|.*\.gguf$)[\w.-]+(/[\w.-]+)?")
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>")

_OF_SAMPLING = (
    "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip


def resolve(source: str | Path) -> str:
    """Turn the name of a model into what ``from_pretrained`` understands.

    ``atlas-base`` and the other shipped checkpoints become the path of their folder, an existing
    folder becomes its own path, and any other name is returned unchanged, as a name on the Hub. A
    GGUF file (``model.gguf``, or ``package:model.gguf`` in an installed package) is converted once
    and becomes the path of that folder.

    Raises `ModelLoadError` for a path that does not exist, for an unknown Atlas checkpoint, and for
    a GGUF file that cannot be converted.
    """
    name = str(source)
    path = os.path.expanduser(name)
    if file := gguf_models.find(name):
        return str(gguf_models.converted(file, name))
    if os.path.isdir(path):
        return path
    if os.path.isfile(path):
        raise ModelLoadError(
            f"Cannot load a model from {name!r}: it is a file. Give the folder that holds "
            "config.json and model.safetensors, or a file that ends in .gguf."
        )
    shipped = registry.models()
    if name in shipped or re.fullmatch(r"atlas-[\w-]+", name):
        folder = shipped.get(name)
        if folder is None:
            raise ModelLoadError(
                f"{short(name)} is no checkpoint: the Atlas has {', '.join(shipped)}."
            )
        if not folder.is_dir():
            raise ModelLoadError(
                f"The checkpoint {name!r} is missing from this copy of the package ({folder}). "
                "Install the package again, or make the checkpoint anew with `make models`."
            )
        return str(folder)
    if isinstance(source, Path) or not _HUB_NAME.fullmatch(name):
        raise ModelLoadError(
            f"Cannot load a model from {short(name)}: there is no such folder or file. Check the "
            f"path (relative paths start at {os.getcwd()}), or give a Hub name such as "
            "'owner/model'."
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

    ``source`` is a checkpoint of the Atlas (``"atlas-base"``), a local folder, a GGUF file (see
    `resolve`), or a Hub name.
    ``device`` defaults to the GPU if there is one. ``chat_template`` is the path of a ``.jinja``
    file, or the name of one in ``sft_utils/templates``, and replaces the tokenizer's own; so does
    the template of ``chat_template_from``, the name or folder of another model.
    ``fallback_chat_template`` is used only if the tokenizer has none, as base models often do. Of
    several templates of a tokenizer, the one named ``default`` is its own. Each of
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
        snapshot = fetch(resolved, revision)
        check_files(snapshot)
        commit = snapshot.name
        # Otherwise a repository without safetensors is converted by a service on the Hub.
        os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if commit is not None:
        options["revision"] = commit

    with explained(str(source), commit):
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
        if commit is not None:
            model.config._commit_hash = commit  # is not saved with the config
        check_weights(str(source), report)
        check_numbers(str(source), model.named_parameters())
        check_vocabulary(str(source), model, tokenizer)
        templates = chat_template, fallback_chat_template, chat_template_from
        set_template(str(source), tokenizer, *templates)
        if stop_tokens:
            add_stop_tokens(str(source), model, tokenizer, stop_tokens)
        check_end_tokens(str(source), model, tokenizer)
        if tokenizer.pad_token_id is None:
            _choose_pad_token(str(source), model, tokenizer)
        settle_sampling(model.generation_config)
        model = model.to(device or best_device())
        check_causal(str(source), model)
    return model, tokenizer


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
            try:
                return path.read_text(encoding="utf-8-sig")  # drops the mark of some editors
            except UnicodeDecodeError as error:
                raise ModelLoadError(
                    f"The chat template {str(path)!r} is not text in UTF-8: {error}. Save it again "
                    "in UTF-8."
                ) from error
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
    """Give the tokenizer its template; return where it is from, None if it is its own.

    Raises `ModelLoadError` for a template that cannot be read or is not written in Jinja's syntax.
    """
    origin: str | Path | None
    _keep_default(tokenizer)
    if chat_template is not None:
        origin, text = chat_template, _read_template(chat_template)
    elif chat_template_from is not None:
        origin, text = chat_template_from, _template_of(chat_template_from)
    elif tokenizer.chat_template:
        origin, text = None, _only(source, tokenizer.chat_template)
    elif fallback is not None:
        origin, text = fallback, _read_template(fallback)
    else:
        return None
    _check_syntax(str(origin or source), text)
    tokenizer.chat_template = text
    if origin is not None and end_of_turn_id(tokenizer) is None:
        warnings.warn(
            f"The chat template {str(origin)!r} does not end an assistant's turn with "
            f"a token that the tokenizer of {source!r} knows as one token, so the model "
            "cannot learn to stop there.",
            stacklevel=3,
        )
    return origin


def _keep_default(tokenizer: PreTrainedTokenizerBase) -> None:
    """Of several templates that a tokenizer came with, keep the one that is named default."""
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", template)
    tokenizer.chat_template = (
        template.removeprefix("\ufeff") if isinstance(template, str) else template
    )


def _only(source: str | Path, template: Any) -> str:
    """The template that a tokenizer came with; it may be one of several without a default."""
    if isinstance(template, str):
        return template
    raise ModelLoadError(
        f"The tokenizer of {str(source)!r} has several chat templates "
        f"({', '.join(sorted(template))}) and none that is named default. Save the one to use as a "
        'file, and name it: chat_template = "FILE.jinja".'
    )


def _check_syntax(origin: str, template: str) -> None:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([], chat_template=template)  # no conversation: it is only compiled
    except TemplateSyntaxError as error:
        raise ModelLoadError(
            f"The chat template of {origin!r} is not written in Jinja's syntax, line "
            f"{error.lineno}: {error.message}. Mend it, or name another."
        ) from error


def _template_of(source: str | Path) -> str:
    """The chat template of another model, of which nothing but the tokenizer is read."""
    template: Any = load_tokenizer(source).chat_template
    if not template:
        raise ModelLoadError(
            f"The chat template is to be taken from {str(source)!r}, which has none. Name a model "
            "that was fine-tuned for chat."
        )
    return _only(source, template)


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer as it was saved, without the model's weights. Raises `ModelLoadError`.

    A model of the Hub is read from the cache, or fetched without its weights. Chapter 05.
    """
    from transformers import AutoTokenizer

    resolved = resolve(source)
    options = {}
    if Path(resolved).is_dir():
        check_pointers(Path(resolved).iterdir())
    else:
        options["revision"] = fetch(resolved, revision, weights=False).name
    with explained(str(source), options.get("revision")):
        tokenizer = AutoTokenizer.from_pretrained(
            resolved, local_files_only=True, trust_remote_code=False, **options
        )
        _keep_default(tokenizer)
    return tokenizer


def check_fit(source: str, folder: Path) -> None:
    """Raise where the weights in a folder do not fit its config. No weight is read."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with explained(source):
        _, report = auto.from_pretrained(
            folder,
            device_map="meta",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that the report lists them
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    check_weights(source, report)


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


def check_causal(source: str, model: Any) -> None:
    """Raise if a later token changes what the model expects at an earlier place, as BERT's does.

    In bfloat16 a change that is smaller than its rounding is not seen.
    """
    import torch

    if model.get_input_embeddings().weight.shape[0] < 2:
        return
    ids = torch.tensor([[0] * 8, [0] + [1] * 7], device=model.device)  # alike in their first token
    with torch.no_grad():
        one, other = (
            model(input_ids=row[None], return_dict=True, use_cache=False).logits[0, 0].float()
            for row in ids
        )
    # A mixture of experts differs by a few roundings, BERT by many.
    rounding = max(100 * torch.finfo(torch.float32).eps, 2 * torch.finfo(model.dtype).eps)
    if (one - other).abs().max() > rounding * one.abs().max():
        raise ModelLoadError(
            f"The model {source!r} is of the kind {model.config.model_type!r} and looks at the "
            "tokens after a place as well: it fills gaps, and cannot write text from left to "
            "right. Choose a causal language model, such as one of Llama or Qwen3."
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


def check_end_tokens(source: str, model: Any, tokenizer: Any) -> None:
    """Raise if nothing ends an answer: neither tokenizer, configs, template nor stop tokens."""
    if not end_token_ids(model, tokenizer):
        raise ModelLoadError(
            f"The model {source!r} names no token that ends an answer, and its chat template ends "
            "a turn with none, so it could never stop. Name one of its tokens: stop_tokens = "
            '["</s>"] in the table [prompt] of the profile, or load_model_and_tokenizer(..., '
            'stop_tokens=["</s>"]).'
        )


def settle_sampling(generation: GenerationConfig) -> None:
    """Make a generation config one that can be saved, where only ``do_sample`` is in the way.

    Many published ones have a temperature and do not say that answers are drawn: transformers loads
    them, and refuses to save them once anything else has changed. Nothing of them is lost; where
    ``do_sample`` is false, what draws no answer is.
    """
    try:
        generation.validate(strict=True)
    except ValueError as error:
        if "do_sample" not in str(error):
            return
        if generation.do_sample is None:
            generation.do_sample = True
        else:
            for name in _OF_SAMPLING:
                setattr(generation, name, None)


def context_of(model: Any) -> float:
    """The tokens that a model can read, infinite where its config does not say so."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


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
