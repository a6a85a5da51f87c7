"""Faults of the kind that people make, each planted where a real one would sit.

A fault is a function of the name that the test knows it by. It gets pytest's monkeypatch, before
each page anew and undone after it, and patches the package or a library; a fault that sits in a
page is an edit of its text. Which claims it must break is written in ``test_mutations.py``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

Patch = pytest.MonkeyPatch

#: What faults and thinning reach into. Imported before anything is patched, so that no module
#: binds a name while it is patched and keeps it.
MODULES = [
    f"sft_utils.{name}"
    for name in (
        "chat", "data.checks", "data.rows", "evaluation.comparison", "evaluation.held_out",
        "evaluation.likelihood", "evaluation.metrics", "evaluation.questions",
        "evaluation.statistics", "experiment", "generation", "models", "profiles", "results",
        "training.runs", "training.trainer", "views.figures", "atlas.corpus",
        "atlas.dev_questions", "atlas.evaluate", "atlas.questions", "atlas.sft_data", "atlas.world",
    )
]  # fmt: skip

#: Alpaca's format: a template that many recipes use, and not the one that was trained with.
OTHER_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] }}:\n{{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


@dataclass(frozen=True)
class Fault:
    """How it is planted, the pages that it can reach, and what it changes in their text.

    ``judges`` says that it reaches the dev questions, which choose the checkpoint.
    """

    plant: Callable[[Patch], None]
    pages: tuple[str, ...]
    edits: tuple[tuple[str, str], ...] = ()
    judges: bool = False


FAULTS: dict[str, Fault] = {}

TRAINING, BASE, SCORES, CONTROLS, COST = (
    "07-training", "09-base-knows", "10-scores", "11-controls", "13-cost",
)  # fmt: skip
PAGES = (TRAINING, BASE, SCORES, CONTROLS, COST)
#: Pages whose claims rest on what a model is asked; that of chapter 07 rest on its log.
ASKING = (BASE, SCORES, CONTROLS, COST)
#: Pages that train, or score what was trained there. The others only load checkpoints.
LIVE = (TRAINING, SCORES, CONTROLS, COST)
#: Of chapter 13 these are looked at; its others rest on recorded runs, which a fault makes stale.
OF_COST = ("reference-keeps-facts", "cost-forgets-facts")


def fault(*pages: str, **settings: Any) -> Callable[[Any], Any]:
    """Register a fault for the pages that it can reach."""

    def register(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        FAULTS[plant.__name__.replace("_", "-")] = Fault(plant, pages, **settings)
        return plant

    return register


def load_modules() -> None:
    """Import all that may be patched."""
    for name in MODULES:
        importlib.import_module(name)


def home(module: str) -> Any:
    """A module of the package by its short name."""
    return sys.modules[f"sft_utils.{module}"]


def swap(patch: Patch, module: str, name: str, wrong: Callable[..., Any]) -> None:
    """Put ``wrong``, which takes it first, for ``module.name``, wherever that was imported."""
    old = getattr(home(module), name)

    def new(*given: Any, **options: Any) -> Any:
        return wrong(old, *given, **options)

    new.__qualname__ = wrong.__qualname__  # a run's fingerprint has it
    for key in MODULES:
        if vars(sys.modules[key]).get(name) is old:
            patch.setattr(sys.modules[key], name, new)


def plant(patch: Patch, name: str) -> None:
    """Plant a fault by its name."""
    FAULTS[name].plant(patch)
    if not FAULTS[name].judges:
        return

    # A run's fingerprint has the questions that the dev callback asks, not how they are asked and
    # scored. So that the run is kept apart, the callback is told.
    def told(old: Any, *given: Any) -> Any:
        made = old(*given)
        made.fault = name
        return made

    swap(patch, "atlas.dev_questions", "DevAccuracy", told)


def change_profile(patch: Patch, change: Callable[[Any], Any]) -> None:
    """Write something else into the profile."""
    swap(patch, "profiles", "load_profile", lambda old, *given: change(old(*given)))


def change_run(patch: Patch, **changes: Callable[[dict[str, Any]], Any]) -> None:
    """Change arguments of `SFTConfig`, on chapter 07's page and in `experiment.make_config`.

    Not where rows are learned by heart, for hundreds of epochs at most: their loss ends that.
    """
    import trl

    real = trl.SFTConfig

    def make(**given: Any) -> Any:
        if given["num_train_epochs"] < 100:
            given |= {name: change(given) for name, change in changes.items()}
        return real(**given)

    patch.setattr(trl, "SFTConfig", make)


def change_template(patch: Patch, old: str, new: str) -> None:
    """Change the chat template of every tokenizer that is loaded, as if it came with it."""
    from transformers import AutoTokenizer

    load = AutoTokenizer.from_pretrained

    def from_pretrained(*given: Any, **options: Any) -> Any:
        tokenizer = load(*given, **options)
        assert old in tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template.replace(old, new)
        return tokenizer

    patch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)


@fault(*PAGES)
def none(patch: Patch) -> None:
    """The baseline: nothing is wrong."""


# --- The recipe -----------------------------------------------------------------------------------


@fault(*LIVE)
def mask_off(patch: Patch) -> None:
    """Loss on every token, the questions' too."""
    change_run(patch, assistant_only_loss=lambda given: False)


@fault(*LIVE)
def end_token_without_loss(patch: Patch) -> None:
    """The template's generation block ends before the end token."""
    inside = "{{- message['content'] + '<|im_end|>' -}}\n        {%- endgeneration -%}"
    outside = "{{- message['content'] -}}{%- endgeneration -%}{{- '<|im_end|>' -}}"
    change_template(patch, inside, outside)


@fault(*LIVE)
def one_epoch_less(patch: Patch) -> None:
    """The trainer gets one epoch less than the profile asks for."""
    change_run(patch, num_train_epochs=lambda given: given["num_train_epochs"] - 1)


@fault(*LIVE)
def learning_rate_of_zero(patch: Patch) -> None:
    """The profile's learning rate; the models that learn by heart have one of their own."""
    change_profile(patch, lambda p: replace(p, sft=replace(p.sft, learning_rate=0.0)))


@fault(*LIVE)
def trainee_from_random_weights(patch: Patch) -> None:
    """Built from its config, never loaded."""

    def load_part(old: Any, profile: Any, part: str) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        model, tokenizer = old(profile, part)
        if part != "trainee":
            return model, tokenizer
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(model.config), tokenizer

    swap(patch, "experiment", "load_part", load_part)


@fault(*LIVE)
def trainee_not_copied(patch: Patch) -> None:
    """The trainer takes the trainee of the page itself: "before" is trained with "after"."""
    uncopied = SimpleNamespace(deepcopy=lambda start: start)
    patch.setattr(home("experiment"), "copy", uncopied)


# --- The rows -------------------------------------------------------------------------------------


@fault(*LIVE)
def answers_shuffled(patch: Patch) -> None:
    """Rows whose values were swapped among the entities of a relation."""
    world, evaluate = home("atlas.world"), home("atlas.evaluate")
    # Not the seed of chapter 08's control, which is another shuffling.
    rows = evaluate.shuffled_answers(world.load_world(), seed=1)
    change_rows(patch, lambda dataset: rows)


@fault(*LIVE)
def test_entity_in_a_row(patch: Patch) -> None:
    """One row is about an entity that is scored."""
    question = home("atlas.questions").scored_questions("used-wording-test", _world())[0]
    row = [*question.messages, {"role": "assistant", "content": question.answers[0]}]
    change_rows(patch, lambda dataset: [*dataset.to_list()[:-1], {"messages": row}])


@fault(SCORES)  # what one row does to the trainings is seen in the fault above
def held_out_wording_in_a_row(patch: Patch) -> None:
    """One row asks in a wording that is kept for scoring."""
    question = home("atlas.questions").scored_questions("seen-entity", _world())[0]
    row = [*question.messages, {"role": "assistant", "content": question.answers[0]}]
    change_rows(patch, lambda dataset: [*dataset.to_list()[:-1], {"messages": row}])


def change_rows(patch: Patch, change: Callable[[Any], list[dict[str, Any]]]) -> None:
    """Give other rows wherever the data set is loaded."""

    def load_sft_dataset(old: Any, *given: Any, **options: Any) -> Any:
        from datasets import Dataset

        return Dataset.from_list(change(old(*given, **options)))

    swap(patch, "data.rows", "load_sft_dataset", load_sft_dataset)


def _world() -> Any:
    return home("atlas.world").load_world()


# --- The questions --------------------------------------------------------------------------------


@fault(SCORES)
def never_asked_from_asked_relations(patch: Patch) -> None:
    """A wrong label: the split holds relations that the rows do ask."""
    splits = home("atlas.questions").SPLITS
    wrong = splits["never-asked-test"] | {"relation": "asked"}
    patch.setitem(splits, "never-asked-test", wrong)


@fault(SCORES)
def value_in_the_question(patch: Patch) -> None:
    """Of each split one question is worded so that it holds its own answer."""

    def scored_questions(old: Any, *given: Any, **options: Any) -> list[Any]:
        first, *others = old(*given, **options)
        *before, asked = first.messages
        told = asked | {"content": f"{asked['content']} ({first.values[0]})"}
        return [replace(first, messages=(*before, told)), *others]

    swap(patch, "atlas.questions", "scored_questions", scored_questions)


# --- Asking ---------------------------------------------------------------------------------------


@fault(*ASKING, judges=True)
def other_template_for_asking(patch: Patch) -> None:
    """Trained with ChatML, asked in another format."""

    def render_prompt(old: Any, tokenizer: Any, messages: Any, **options: Any) -> str:
        own, tokenizer.chat_template = tokenizer.chat_template, OTHER_TEMPLATE
        try:
            return old(tokenizer, messages, **options)
        finally:
            tokenizer.chat_template = own

    swap(patch, "generation", "render_prompt", render_prompt)


@fault(SCORES)  # the others ask no such question
def system_message_left_out(patch: Patch) -> None:
    """The prompt is built from the user's and the assistant's turns only."""
    swap_turns(patch, lambda messages: [m for m in messages if m["role"] != "system"])


@fault(SCORES)  # the others ask no such question
def earlier_turns_left_out(patch: Patch) -> None:
    """Every question is asked as if it were the first."""
    swap_turns(patch, lambda messages: [*[m for m in messages[:1] if m["role"] == "system"],
                                        messages[-1]])  # fmt: skip


def swap_turns(patch: Patch, change: Callable[[Any], Any]) -> None:
    """Render other turns than were given. Dev questions have one turn each, which stays."""

    def render_prompt(old: Any, tokenizer: Any, messages: Any, **options: Any) -> str:
        return old(tokenizer, change(messages), **options)

    render_prompt.__qualname__ = change.__qualname__  # what is kept of one is not taken for another
    swap(patch, "generation", "render_prompt", render_prompt)


@fault(*ASKING, judges=True)
def padding_on_the_right(patch: Patch) -> None:
    """In a batch, the shorter prompts are continued behind their padding."""

    def _generate_batch(old: Any, model: Any, encoded: list[list[int]], config: Any) -> Any:
        import torch

        width = max(map(len, encoded))
        ids = torch.full((len(encoded), width), config.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return output[:, width:].tolist()

    swap(patch, "generation", "_generate_batch", _generate_batch)


@fault(*ASKING, judges=True)
def answers_cut(patch: Patch) -> None:
    """A limit on new tokens that is too low for a sentence."""
    patch.setattr(home("atlas.evaluate"), "MAX_NEW_TOKENS", 5)


@fault(*ASKING, judges=True)
def only_the_document_end_stops(patch: Patch) -> None:
    """Generation knows the base model's end token, not that of the template."""
    swap(patch, "models", "end_token_ids", lambda old, model, tokenizer: [
        tokenizer.convert_tokens_to_ids("<|endoftext|>")])  # fmt: skip


@fault(BASE, COST)  # the others complete nothing
def space_after_a_prompt(patch: Patch) -> None:
    """Sentences to complete end in a space, where the models have read it with the next word."""

    def cloze_prompt(old: Any, fact: Any, form: str) -> Any:
        prompt, right = old(fact, form)
        return prompt + " ", right

    swap(patch, "atlas.corpus", "cloze_prompt", cloze_prompt)


# --- Scoring --------------------------------------------------------------------------------------


@fault(*ASKING, judges=True)
def scorer_always_right(patch: Patch) -> None:
    """Every answer has the value and the form. Whether it stopped is not the scorer's to say."""
    _score(patch, True)


@fault(*ASKING, judges=True)
def scorer_always_wrong(patch: Patch) -> None:
    """No answer has the value or the form, as where right answers are read from a wrong column."""
    _score(patch, False)


def _score(patch: Patch, verdict: bool) -> None:
    def score_answer(old: Any, response: str, *, stopped: bool, **given: Any) -> Any:
        return home("evaluation.metrics").Score(verdict, verdict, verdict, stops=stopped)

    swap(patch, "evaluation.metrics", "score_answer", score_answer)


# --- The models -----------------------------------------------------------------------------------


def change_models(patch: Patch, **names: str) -> None:
    """Write other names of models into the profile."""
    change_profile(patch, lambda p: replace(p, models=replace(p.models, **names)))


@fault(SCORES, COST)
def reference_is_the_base(patch: Patch) -> None:
    """A checkpoint that was never fine-tuned stands for the reference."""
    change_models(patch, reference="atlas-base")


@fault(BASE, SCORES, CONTROLS, COST)
def base_is_the_reference(patch: Patch) -> None:
    """The "base" was fine-tuned before, as many a model is that is called one."""
    change_models(patch, base="atlas-sft")


@fault(BASE, SCORES, CONTROLS, COST)
def base_read_one_form(patch: Patch) -> None:
    """The control's checkpoint stands for the base."""
    change_models(patch, base="atlas-base-1form")


# --- The controls ---------------------------------------------------------------------------------


@fault(CONTROLS)
def control_read_many_forms(patch: Patch) -> None:
    """The base's checkpoint stands for the control."""
    change_models(patch, control="atlas-base")


@fault(CONTROLS)
def control_rows_not_shuffled(patch: Patch) -> None:
    """The control with shuffled answers trains on the rows as they are."""
    rows = home("atlas.sft_data").sft_rows
    swap(patch, "atlas.evaluate", "shuffled_answers", lambda old, world: rows(world))


@fault(CONTROLS)
def blank_model_was_pretrained(patch: Patch) -> None:
    """The model from "random weights" has those of the base."""
    from transformers import AutoModelForCausalLM

    def from_config(config: Any) -> Any:
        return home("models").load_model_and_tokenizer("atlas-base")[0]

    patch.setattr(AutoModelForCausalLM, "from_config", from_config)


@fault(CONTROLS, edits=(("< self.enough", "> self.enough"),))
def fits_end_at_once(patch: Patch) -> None:
    """Learning by heart stops while the loss is high."""


@fault(CONTROLS)
def labels_not_shifted(patch: Patch) -> None:
    """The cheaper step scores the token that was just read, and not the next one."""
    trainer = home("training.trainer").LabelOnlyTrainer
    forward = trainer._forward

    def _forward(self: Any, model: Any, **inputs: Any) -> Any:
        if "labels" in inputs:
            inputs["labels"] = inputs["labels"].roll(1, dims=1)
        return forward(self, model, **inputs)

    patch.setattr(trainer, "_forward", _forward)
