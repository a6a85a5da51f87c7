"""A trained model's ``README.md``: its use, data, training, scores and limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models import resolve
from ..redaction import without_secrets
from ..results import Measure
from ..training.arguments import (
    dtype_of,
    kept_update,
    lora_arguments,
    own_metric,
    run_arguments,
)
from .serving import serving_commands
from .trl_script import code, filled, versions_of, yaml_line

MISSING = "–"  # in a cell of a table where there is nothing

if TYPE_CHECKING:
    from trl import SFTTrainer


def model_card(
    trainer: SFTTrainer,
    *,
    name: str,
    start: str | Path,
    data: str,
    results: Mapping[str, Measure],
    limits: Sequence[str],
    rows: tuple[int, int],
    before: Mapping[str, Measure] | None = None,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    no_modelfile: str | None = None,
) -> str:
    """Return the model's ``README.md``: how to use it, data, training, scores, limits.

    ``rows`` counts those for training and those for validation; the other arguments are those of
    `take_away`; ``no_modelfile`` says why Ollama cannot be told the chat template. No number is
    typed: each comes from the trainer or from a `Measure`, and the head is what the Hub reads.
    Raises ``TypeError`` and ``ValueError`` as `take_away` does.
    """
    from huggingface_hub import EvalResult, ModelCardData

    before = before or {}
    _check_card(name, results, limits, before)
    source, started = _shown(data), _shown(str(start))
    head = ModelCardData(
        model_name=name,
        # The Hub makes links of these two, so only what is there is named.
        base_model=None if Path(resolve(start)).is_dir() else str(start),
        datasets=[data] if source == data and re.fullmatch(r"[\w.-]+/[\w.-]+", data) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["trl", "sft"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=source,
                dataset_name=source,
                metric_type=re.sub(r"\W+", "_", what.lower()).strip("_"),
                metric_name=what,
                metric_value=_with_interval(measure),
            )
            for what, measure in results.items()
        ],
    )
    args, state = trainer.args, trainer.state
    model: Any = trainer.model
    kept = f"The weights are those after the last of {state.global_step:,} updates."
    chosen = kept_update(trainer)
    if chosen is not None:
        kept = (
            f"The weights are those after update {chosen:,} of {state.global_step:,}, chosen by "
            f"`{args.metric_for_best_model}`."
        )
    settings = run_arguments(trainer) | lora_arguments(trainer)
    if own_metric(args):
        settings["metric_for_best_model"] = args.metric_for_best_model
        settings["greater_is_better"] = args.greater_is_better
    runs = sorted({measure.run for measure in results.values() if measure.run})
    lines = [
        "---",
        head.to_yaml(),
        "---",
        "",
        f"# {name}",
        "",
        f"`{started}` after supervised fine-tuning: {model.num_parameters():,} parameters, "
        f"{dtype_of(trainer)}.",
        "",
        "## Use",
        "",
        "```python",
        *_example(name, system, template_kwargs or {}),
        "```",
        "",
        "In the folder that holds this one as `model`, each of these serves it or takes it on:",
        "",
        "```sh",
        *serving_commands(name, not no_modelfile),
        "```",
        "",
        *([f"There is no Modelfile for Ollama: {no_modelfile}.", ""] if no_modelfile else []),
        "## Data",
        "",
        f"`{source}`: {rows[0]:,} conversations to train on, {rows[1]:,} for validation.",
        "",
        "## Training",
        "",
        kept,
        f"Trained by `{type(trainer).__name__}` of {versions_of('trl', 'transformers', 'torch')}, "
        f"on {args.device.type}, with these arguments where they differ from the defaults:",
        "",
        "```yaml",
        *(yaml_line(key, value) for key, value in settings.items()),
        "```",
        "",
        "## Scores",
        "",
        "| score | value | 95 % interval | n | before training |",
        "|---|---|---|---|---|",
        *(_score_line(what, measure, before.get(what)) for what, measure in results.items()),
        "",
        *(f"Fingerprint of the run or of the weights: `{run}`.\n" for run in runs),
        "## Limits",
        "",
        *(f"- {sentence}" for sentence in limits),
        f"- One run, with seed {args.seed}: another seed gives other weights and other scores.",
        "- The licenses of the starting model and of the data hold for this model too.",
    ]
    return "\n".join(lines) + "\n"


def _example(name: str, system: str | None, template_kwargs: Mapping[str, Any]) -> list[str]:
    """Code that asks the model as it was asked here; the template knows where an answer begins."""
    turns = {"system": system} if system is not None else {}
    turns |= {"user": "..."}
    options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'source = "{name}"  # on the Hub, or the path of this folder',
        "tokenizer = AutoTokenizer.from_pretrained(source)",
        "model = AutoModelForCausalLM.from_pretrained(source)",
        "messages = [",
        *(f'    {{"role": "{role}", "content": {code(text)}}},' for role, text in turns.items()),
        "]",
        "prompt = tokenizer.apply_chat_template(",
        "    messages,",
        *filled(options | without_secrets(dict(template_kwargs))),
        ")",
        "answer = model.generate(**prompt, max_new_tokens=256, do_sample=False)",
        'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], '
        "skip_special_tokens=True))",
    ]


def _score_line(what: str, measure: Measure, before: Measure | None) -> str:
    cells = (what, repr(measure), measure.interval or MISSING, measure.n or MISSING,
             _with_interval(before) if before else MISSING)  # fmt: skip
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _with_interval(measure: Measure) -> str:
    interval = f" (95 % interval: {measure.interval})" if measure.interval else ""
    return f"{measure!r}{interval}"


def _shown(source: str) -> str:
    """A name as it is, a path by its last part: where it lay is nobody's business."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() else source


def _check_card(
    name: str,
    results: Mapping[str, Measure],
    limits: Sequence[str],
    before: Mapping[str, Measure],
) -> None:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"name {name!r}: give a name for the Hub, 'model' or 'owner/model'.")
    for which, scores in (("results", results), ("before", before)):
        for what, measure in scores.items():
            if not isinstance(measure, Measure):
                raise TypeError(
                    f"{which}[{what!r}] is {measure!r}. Give a Measure, with n and its interval."
                )
            if what not in results:
                raise ValueError(
                    f"before[{what!r}] has no partner in results, which has: {', '.join(results)}. "
                    "Give both the same name."
                )
    if not results or not limits or isinstance(limits, str):
        raise ValueError(
            "A card needs scores and limits: give `results` with one Measure at least, and "
            "`limits` as a list of one sentence at least."
        )
