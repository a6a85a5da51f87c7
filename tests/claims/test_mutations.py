"""Do the book's claims notice? Faults are planted, and exactly the expected claims must fail.

A claim that holds whatever goes wrong says nothing, and one that fails for any reason says
little. So chapters 07, 09, 10, 11 and 13 run once for each fault, cut down to what their claims
rest on, on a part of the scored questions (``worker.py``), with their trainings as they are. The
faults are in ``faults.py``; what each must break stands here, written by hand. `.ci/run` plants
five of them.
"""

from __future__ import annotations

import ast
import inspect
import os
from importlib import import_module

import pytest
from book.page_runner import Runner
from claims import faults
from claims.faults import FAULTS, PAGES
from claims.worker import ROOT, claims_of

CLAIMS = {page: claims_of(page) for page in PAGES}

EXPECTED: dict[str, set[str]] = {
    # Nothing is wrong, and nothing fails: thinning the questions alone breaks no claim.
    "none": set(),
    # --- the recipe
    "mask-off": {
        "training-learns-answers-only",  # what it is there for
        "training-brings-answers",  # most of the loss is on questions, and most of the learning
        "sft-answers",  # as on dev
        "sft-needs-truth",  # half learned, it is nearer to the control
        "sft-beats-guessing",  # and to guesses
    },
    "end-token-without-loss": {
        "sft-stops",  # nothing taught it where to end
        "training-brings-answers",  # an exact answer ends with its last word
        "sft-answers",  # as on dev
        "sft-needs-truth",  # none is exact, with true rows or false ones
        "sft-beats-guessing",  # guesses have no end to miss
        "rows-fit-without-pretraining",  # exact on its own rows needs the end too
        # sft-beats-prompting holds: the validation loss keeps the last weights, whose first
        # sentence has the value. Dev questions, of which none was exact, had kept earlier ones.
        "one-form-fits",  # the same
        "one-form-is-not-extracted",  # no model is exact
    },
    "one-epoch-less": {
        "training-goes-to-its-end",  # what it is there for
        "training-brings-answers",  # half of the updates bring half of the answers
        "sft-answers",  # as on dev
        "sft-beats-prompting",  # half learned, it is nearer to the controls
        "sft-needs-truth",
        "sft-beats-guessing",
    },
    "learning-rate-of-zero": {
        "training-lowers-loss",  # the weights stay, and so does the loss
        "training-brings-answers",  # and the answers
        "sft-answers",  # before and after are one model
        "sft-stops",  # the base does not stop
        "sft-beats-prompting",  # it is as wrong as when it is prompted
        "sft-needs-truth",  # true rows and false ones change nothing
        "sft-beats-guessing",  # guesses are better than the base in chat
        "cost-forgets-facts",  # nothing was learned, nothing lost
    },
    "trainee-from-random-weights": {
        "training-brings-answers",  # there are no facts to bring out
        "sft-answers",  # as on dev
        # sft-stops holds: the weights after the last update are kept, and they have learned to end.
        "sft-beats-prompting",  # neither way knows anything
        "sft-needs-truth",  # what is not known is guessed, with true rows or false ones
        "sft-beats-guessing",  # it guesses itself
        "cost-forgets-facts",  # it had nothing to forget
    },
    "trainee-not-copied": {
        "training-brings-answers",  # "before" is the trained model, on the dev questions
        "sft-answers",  # and on the others
        "sft-beats-prompting",  # so it is the trained model that is prompted
        "cost-forgets-facts",  # the same
        "sft-needs-truth",  # and the control with false answers begins from it
    },
    # --- the rows
    "answers-shuffled": {
        "training-brings-answers",  # the rows teach to answer falsely
        "sft-answers",  # as on dev
        "sft-beats-prompting",  # the base's few right values are as many
        "sft-needs-truth",  # the control is no worse: both learned from false rows
        "sft-beats-guessing",  # a few facts are right still, hardly more than guesses
    },
    # One row in thousands: no score shows it, and the check does.
    "test-entity-in-a-row": {"data-keeps-apart"},
    "held-out-wording-in-a-row": {"data-keeps-apart"},  # the same
    # --- the questions
    # The rows do ask these relations.
    "never-asked-from-asked-relations": {"never-asked-stays-hard"},
    "value-in-the-question": {"data-keeps-apart"},  # its third check
    # --- asking
    "other-template-for-asking": {
        # The small model answers most questions all the same: its claims hold.
        "reference-answers",  # in a markup that it never saw it does not answer
        "reference-follows-instructions",
        "reference-follows-up",
        "rows-fit-without-pretraining",  # nor do those that learned a few rows by heart
        "one-form-fits",
    },
    # It answers, in the form of a question without one.
    "system-message-left-out": {"reference-follows-instructions"},
    # "How about Peru?" alone does not say what is asked.
    "earlier-turns-left-out": {"reference-follows-up"},
    "padding-on-the-right": {
        "base-knows",  # all that is asked in batches is answered from a padding token
        "base-can-finish",
        "reference-answers",
        "reference-follows-instructions",
        "reference-follows-up",
        "reference-keeps-facts",
        "training-brings-answers",
        "sft-answers",
        "sft-beats-prompting",
        "sft-needs-truth",
        "sft-beats-guessing",
        "rows-fit-without-pretraining",
        "one-form-fits",
    },
    "answers-cut": {
        "reference-answers",  # no sentence is whole
        "reference-stops",  # and none has come to its end
        "reference-follows-instructions",  # single words are short enough, sentences are not
        "reference-follows-up",
        "training-brings-answers",
        "sft-answers",
        "sft-stops",
        "sft-beats-prompting",
        "sft-needs-truth",
        "sft-beats-guessing",
        "rows-fit-without-pretraining",
        "one-form-fits",
        "one-form-is-not-extracted",
    },
    "only-the-document-end-stops": {
        # The model without pretraining is no exception to it: it goes on too, but with markup,
        # which is no part of an answer.
        "reference-answers",  # it goes on after the end of its turn
        "reference-stops",
        "reference-follows-instructions",
        "reference-follows-up",
        "training-brings-answers",
        "sft-answers",
        "sft-stops",
        "sft-needs-truth",
        "sft-beats-guessing",
        "one-form-fits",
        "one-form-is-not-extracted",
    },
    "space-after-a-prompt": {
        "base-knows",  # no token of the corpus follows a space
        "reference-keeps-facts",  # the same
    },
    # --- scoring
    "scorer-always-right": {
        "base-does-not-answer",  # every answer is exact
        "base-can-finish",  # in chat as much as with the answer begun
        "reference-answers",  # before as much as after
        "training-brings-answers",
        "sft-answers",
        "sft-beats-prompting",  # and with every control
        "sft-needs-truth",
        "sft-beats-guessing",
        "rows-hold-no-other-facts",
        "one-form-is-not-extracted",
        "never-asked-stays-hard",
    },
    "scorer-always-wrong": {
        "base-can-finish",  # nothing is right, with the answer begun or not
        "reference-answers",
        "reference-follows-instructions",
        "reference-follows-up",
        "training-brings-answers",
        "sft-answers",
        "sft-beats-prompting",
        "sft-needs-truth",
        "sft-beats-guessing",
        "rows-fit-without-pretraining",
        "one-form-fits",
        "one-form-is-not-extracted",
    },
    # --- the models
    "reference-is-the-base": {
        "reference-answers",  # nothing was fine-tuned
        "reference-stops",
        "reference-follows-instructions",
        "reference-follows-up",
    },
    "base-is-the-reference": {
        "base-does-not-answer",  # it was fine-tuned to
        "base-runs-on",  # and to stop
        "base-can-finish",  # in chat it is right as often
        "reference-answers",  # before and after are one model
    },
    "base-read-one-form": {
        "base-knows",  # in other words than its own it cannot say its facts
        "base-can-finish",  # nor finish a sentence that it never read
        "one-form-is-not-extracted",  # both models of the comparison are the control
        "many-forms-fit-soonest",  # the same
    },
    # --- the controls
    "control-read-many-forms": {
        "one-form-is-not-extracted",  # both models of the comparison are the base
        "many-forms-fit-soonest",  # the same
    },
    "control-rows-not-shuffled": {"sft-needs-truth"},  # the control is as good as the trainee
    "blank-model-was-pretrained": {"rows-hold-no-other-facts"},  # its pretraining does
    "fits-end-at-once": {
        "rows-fit-without-pretraining",  # a few updates do not fit the rows
        "one-form-fits",  # the same
        "one-form-is-not-extracted",  # the base has not yet learned the form either
        "many-forms-fit-soonest",  # all three end at once
    },
    "labels-not-shifted": {
        "cheaper-step-is-the-same",  # what it is there for
        "rows-fit-without-pretraining",  # whoever learns to repeat a token answers nothing
        "one-form-fits",  # the same
        "one-form-is-not-extracted",  # no model is exact
    },
}


@pytest.fixture(scope="module")
def worker(shared, tmp_path_factory):
    """A process that runs faults one after another. All share their runs: most touch none."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    results = tmp_path_factory.mktemp("claims") / "outcomes.jsonl"
    worker = Runner(results, "-m", "claims.worker", PYTHONPATH=path, SFT_RUNS=str(shared / "runs"))
    yield worker
    worker.close()


@pytest.mark.weekly
@pytest.mark.parametrize("fault", EXPECTED)
def test_exactly_the_expected_claims_fail(worker, fault):
    found = worker.ask(fault)
    failed = {name: c for name, c in found["claims"].items() if not c["holds"]}
    print(f"{fault}, seconds by page: {found['seconds']}")  # shown if it fails, or with -rP
    for name, claim in failed.items():
        print(f"{name}: {claim['measure']['text']}")
    assert found["errors"] == {}
    # A claim that a page did not come to would not be missed otherwise.
    assert set(found["claims"]) == {c for page in FAULTS[fault].pages for c in CLAIMS[page]}
    assert set(failed) == EXPECTED[fault]


def test_every_fault_has_its_expectation_and_every_claim_fails_for_some_fault():
    assert list(EXPECTED) == list(FAULTS) and len(FAULTS) > 10
    assert all(CLAIMS.values())
    assert set().union(*EXPECTED.values()) == {name for names in CLAIMS.values() for name in names}


def test_faults_reach_into_modules_and_names_that_exist():
    """They are given as text: one that leads nowhere is told before a fault is planted."""
    reached = 0
    for node in ast.walk(ast.parse(inspect.getsource(faults))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("home", "swap"):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            for module, *names in [texts] if texts else []:
                found = import_module(f"sft_utils.{module}")
                assert found.__name__ in faults.MODULES
                assert all(hasattr(found, name) for name in names), texts
                reached += 1
    assert reached > 15
