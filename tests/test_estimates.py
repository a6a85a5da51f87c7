"""How long it will take: the counts are exact, and the trials change nothing."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_tokenizer

from sft_utils import estimates
from sft_utils.estimates import Lengths, answers_ahead, duration, measured_rate


@pytest.fixture(scope="module")
def asked():
    return make_model("llama"), make_tokenizer(chat=True)


def profile(questions, limit=50):
    return SimpleNamespace(
        questions=[SimpleNamespace(text=f"Number {n}?") for n in range(questions)],
        generation=SimpleNamespace(max_new_tokens=limit),
        prompt=SimpleNamespace(template_kwargs={}, system=None),
        data=SimpleNamespace(source="mine.jsonl"),
    )


@pytest.mark.parametrize(("questions", "batches"), [(3, 4), (16, 4), (33, 6)])
def test_answers_are_counted_in_batches(asked, questions, batches, monkeypatch):
    clock = iter([10.0, 10.5])  # a trial takes half a second
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(estimates, "TRIAL", 5)
    before = torch.get_rng_state()
    said = answers_ahead(*asked, profile(questions), scored=48, times=4)
    count = 4 * (questions + 48)
    assert said.startswith(f"Ahead: {count} answers of up to 50 tokens each, about ")
    steps = 500 / float(re.search(r"([\d.]+) ms", said)[1])  # some may end before
    assert 1 <= steps <= 5
    assert f"about {duration(batches * 50 * 0.5 / steps)} if none" in said
    assert torch.equal(torch.get_rng_state(), before)


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
