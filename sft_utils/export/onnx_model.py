"""Write models as ONNX, and all that a browser needs to ask them, for the page of chapter 26.

What is written is a memo in the store of runs, as a fine-tuning is (see `training.runs`): the
graph of an architecture once, the files for a page once for the weights in them.
``python -m sft_utils.export.onnx_model`` makes those of the profile in use and prints their folder.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat import markup_tokens
from ..files import draft_folder, write_whole
from ..generation import render_prompt
from ..models import end_token_ids
from ..profiles import Profile, Question
from ..training import runs
from ..training.fingerprints import config_state

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: The most bytes of weights that a reader is asked to load for one model.
LARGEST = 64_000_000
#: How far an exported logit may be from PyTorch's, as a share of the largest logit.
TOLERANCE = 1e-4
_TRACED, _TRIED = 17, 40  # tokens: traced with one length, tried with another
_VERSIONS = ("torch", "transformers", "onnx", "onnxscript")


class ExportError(ValueError):
    """A model cannot be written for the browser. The message says why."""


def export_onnx(model: PreTrainedModel, path: str | Path, store: str | Path | None = None) -> None:
    """Write a model as ONNX: token ids in, the logits of the next token out.

    The input ``ids`` is int64 of shape (1, tokens), for any number of tokens up to the model's
    context; the output ``logits`` is float32 of shape (vocabulary,). The same weights give the
    same bytes. An adapter is merged into the weights, and the model stays as it is. ``store``
    keeps the graph, which takes seconds to trace, for the next model of the same architecture.

    Raises `ExportError` if the weights are more than `LARGEST` bytes, if the architecture cannot be
    exported, or if the file does not compute what the model does; no file is left then. Explained
    in chapter 26.
    """
    import onnx

    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST:
        raise ExportError(
            f"its weights are {size:,} bytes, and more than {LARGEST:,} are too many to load into "
            "a page"
        )
    try:
        plain = _plain(model)
        graph = onnx.load_from_string(_graph(plain, store))
        _fill(graph, plain.state_dict())
        text = graph.SerializeToString(deterministic=True)
        ids = list(range(_TRIED))
        found, expected = onnx_logits(text, ids), _logits(plain, ids)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"torch.onnx cannot write its architecture, {type(model).__name__}, for any number of "
            f"tokens ({type(error).__name__}: {reason[:200]})"
        ) from error
    worst = float(abs(found - expected).max() / abs(expected).max())
    if not worst <= TOLERANCE:
        raise ExportError(
            f"its exported logits differ from PyTorch's by {worst:.1%} of the largest"
        )
    write_whole(Path(path), text)


def onnx_logits(model: str | Path | bytes, ids: Sequence[int]) -> np.ndarray:
    """The logits of the token after ``ids``, computed by ONNX Runtime from a file or its bytes."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"ids": np.array([ids], dtype=np.int64)})[0])


def pack(
    profile: Profile,
    models: Iterable[tuple[str, PreTrainedModel, PreTrainedTokenizerBase]],
    store: str | Path | None = None,
) -> Path:
    """Return a folder with all that the page needs to ask the models, ``ask.json`` in it.

    ``models`` are triples of part, model and tokenizer, as `experiment.answering_models` gives
    them. A model that cannot be exported is listed under ``left_out``, with the reason. The folder
    is an entry of the store, named by what it was made from, and whole. Explained in chapter 26.
    """
    root = runs.store_folder(store)
    with draft_folder(root) as draft:
        key, described, left_out = hashlib.sha256(_code()), [], []
        for part, model, tokenizer in models:
            name = getattr(profile.models, "trainee" if part == "trained" else part)
            name = Path(name).name if Path(name).exists() else name
            try:
                described.append(_describe(profile, part, name, model, tokenizer, draft, store))
            except ExportError as error:
                left_out.append({"part": part, "name": name, "why": str(error)})
        document = {
            "max_new_tokens": profile.generation.max_new_tokens,
            "system": profile.prompt.system,
            "template_kwargs": profile.prompt.template_kwargs,
            "examples": [question.text for question in profile.questions if not question.system],
            "models": described,
            "left_out": left_out,
        }
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        (draft / "ask.json").write_text(text, encoding="utf-8")
        key.update(text.encode())  # names every file by what is in it
        entry = root / key.hexdigest()
        if not is_whole(entry):
            shutil.rmtree(entry, ignore_errors=True)
            os.replace(draft, entry)
        return entry


def is_whole(folder: Path) -> bool:
    """Whether a folder holds what `pack` put there, every file as it was."""
    if not (folder / "ask.json").is_file():
        return False
    document = json.loads((folder / "ask.json").read_text(encoding="utf-8"))
    return all(
        (folder / model[kind]["file"]).is_file()
        and _named(kind, (folder / model[kind]["file"]).read_bytes()) == model[kind]["file"]
        for model in document["models"]
        for kind in ("onnx", "tokenizer")
    )


def _describe(
    profile: Profile,
    part: str,
    name: str,
    model: Any,
    tokenizer: Any,
    folder: Path,
    store: str | Path | None,
) -> dict[str, Any]:
    """Write the files of one model; say of it what the page has to know."""
    files: dict[str, dict[str, Any]] = {}
    export_onnx(model, folder / "new", store)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.update(padding=None, truncation=None)  # left behind by the last call
    (folder / "new-tokenizer").write_text(json.dumps(backend, ensure_ascii=False), "utf-8")
    for kind, made in (("onnx", folder / "new"), ("tokenizer", folder / "new-tokenizer")):
        text = made.read_bytes()
        files[kind] = {"file": _named(kind, text), "bytes": len(text)}
        os.replace(made, folder / files[kind]["file"])
    question = profile.questions[0].text
    turns = Question(question).conversation(profile.prompt.system)
    prompt = render_prompt(tokenizer, turns, template_kwargs=profile.prompt.template_kwargs)
    special = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    return {
        "part": part,
        "name": name,
        "parameters": model.num_parameters(),
        **files,
        "template": tokenizer.chat_template,
        "special_tokens": special,
        "ends": end_token_ids(model, tokenizer),
        "markup": markup_tokens(tokenizer),
        "context": getattr(model.config.get_text_config(), "max_position_embeddings", None),
        # The page asks this of its own tokenizer and template before it trusts them.
        "check": {
            "question": question,
            "prompt": prompt,
            "ids": tokenizer(prompt, add_special_tokens=False)["input_ids"],
        },
    }


def _named(kind: str, text: bytes) -> str:
    ending = {"onnx": "onnx", "tokenizer": "json"}[kind]
    return f"{hashlib.sha256(text).hexdigest()[:16]}.{ending}"


def _plain(model: Any) -> Any:
    """The same weights in a model of their own, on the processor: a trainer changes `forward`."""
    import torch

    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    with torch.random.fork_rng():
        plain = type(model)(copy.deepcopy(model.config))
    plain.load_state_dict(model.state_dict())
    return plain.to("cpu", torch.float32).eval()


# --- The graph ---------------------------------------------------------------------------------


def _graph(model: Any, store: str | Path | None) -> bytes:
    """The ONNX graph of an architecture, its weights left out, from the store or traced."""
    config = config_state(model.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    key = hashlib.sha256(_code() + json.dumps([config, shapes], sort_keys=True).encode())
    entry = runs.store_folder(store) / key.hexdigest()
    for path in entry.glob("*.onnx"):
        if _named("onnx", text := path.read_bytes()) == path.name:
            return text
    text = _trace(model)
    shutil.rmtree(entry, ignore_errors=True)
    with draft_folder(entry.parent) as draft:
        (draft / _named("onnx", text)).write_bytes(text)
        os.replace(draft, entry)
    return text


def _trace(model: Any) -> bytes:
    import onnx
    import torch

    class NextToken(torch.nn.Module):
        """The model as a function of the ids alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any) -> Any:
            return self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, 0]

    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = torch.export.Dim("tokens", max=context)
    ids = torch.arange(_TRACED)[None]
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of the libraries to themselves
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            # Not optimized: ONNX Runtime does that when it loads the file, and each weight keeps
            # its name and its place.
            program: Any = torch.onnx.export(
                NextToken().eval(),
                (ids,),
                input_names=["ids"],
                output_names=["logits"],
                dynamic_shapes=({1: tokens},),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
        program.save(Path(folder, "model.onnx"), external_data=False)
        graph = onnx.load(Path(folder, "model.onnx"))
    _strip(graph)
    found = 0
    for tensor, values in _weights(graph, model.state_dict()):
        tensor.ClearField("raw_data")
        found += values.numel()
    if found < sum(parameter.numel() for parameter in model.parameters()):
        raise ValueError("some weights are not in the graph under their names")
    return graph.SerializeToString(deterministic=True)


def _strip(graph: Any) -> None:
    """Drop what the exporter noted for people who debug it: source lines, paths, shapes."""
    graph.graph.ClearField("value_info")
    parts = [graph, graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output]
    for part in (*parts, *graph.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _weights(graph: Any, state: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The model's own tensors among those of the graph, each with its values."""
    for tensor in graph.graph.initializer:
        name = tensor.name.removeprefix("model.")
        if name in state:
            yield tensor, state[name]


def _fill(graph: Any, state: dict[str, Any]) -> None:
    for tensor, values in _weights(graph, state):
        tensor.raw_data = values.contiguous().numpy().tobytes()


def _logits(model: Any, ids: Sequence[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].numpy()


def _code() -> bytes:
    """What else the files depend on: this module and the libraries."""
    from importlib.metadata import version

    return Path(__file__).read_bytes() + " ".join(map(version, _VERSIONS)).encode()


if __name__ == "__main__":
    from ..environment import quiet
    from ..experiment import answering_models
    from ..profiles import load_profile

    quiet()
    used = load_profile()
    print(pack(used, answering_models(used)))
