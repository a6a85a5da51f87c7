"""How long it will take: the counts are exact, and the trials change nothing."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_tokenizer

from sft_utils import estimates
from sft_utils.estimates import (
    Lengths,
    answering_step,
    duration,
    measured_rate,
    page_times,
)


@pytest.fixture(scope="module")
def asked():
    return make_model("llama"), make_tokenizer(chat=True)


def profile(questions, limit=50, reference=None):
    return SimpleNamespace(
        questions=[SimpleNamespace(text=f"Number {n}?") for n in range(questions)],
        generation=SimpleNamespace(max_new_tokens=limit),
        prompt=SimpleNamespace(template_kwargs={}, system=None),
        models=SimpleNamespace(reference=reference),
    )


def test_a_trial_of_answering_is_told_a_token(asked, monkeypatch):
    clock = iter([10.0, 10.5])  # a trial takes half a second
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(estimates, "TRIAL", 5)
    before = torch.get_rng_state()
    step = answering_step(*asked, profile(3))
    assert 0.1 <= step <= 0.5  # some answers may end before
    assert torch.equal(torch.get_rng_state(), before)


def test_pages_are_told_by_the_answers_and_the_training_that_they_have():
    times = page_times(profile(10), training=600, updates=300, step=0.01)
    # Of ten questions: two, five, two and twenty-two answers each, in batches of 64 of 50 tokens.
    assert times == {"01": 60 + 0.5, "03": 0.5, "07": 600 + 0.5, "08": 0.01 * 50 * 5}
    more = page_times(profile(10, reference="b"), training=600, updates=10, step=0.01)
    assert list(more) == ["01", "03", "04", "07", "08"]
    assert more["01"] == 600.5 and more["08"] == 0.01 * 50 * 6


def test_a_trial_of_training_changes_no_weight():
    model = make_model("llama").eval()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = SimpleNamespace(bf16=False, train_batch_size=2)
    rate = measured_rate(config, model, Lengths([20, 30, 40], 3))
    assert 0 < rate < math.inf
    assert not model.training
    assert all(torch.equal(weights[name], new) for name, new in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_the_trial_computes_in_the_numbers_of_the_run(monkeypatch):
    seen = set()
    model = make_model("llama")
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, given, result: seen.add(result.dtype))
    lengths = Lengths([8], 1)
    measured_rate(SimpleNamespace(bf16=False, train_batch_size=1), model, lengths)
    assert seen == {torch.float32}
    measured_rate(SimpleNamespace(bf16=True, train_batch_size=1), model, lengths)
    assert seen == {torch.float32, torch.bfloat16}


def test_times_in_words():
    said = ["1 s", "99 s", "2 minutes", "100 minutes", "1.7 hours"]
    assert [duration(s) for s in (0.2, 99, 100, 5999, 6000)] == said
