"""The report of any fine-tuning: likelihoods and generations, on models small enough to check."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import conversation
from scipy.stats import t

from sft_utils import load_profile
from sft_utils.data.readers import DataError
from sft_utils.evaluation import held_out, likelihood

TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}|{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


class Uniform(torch.nn.Module):
    """Gives every token of its vocabulary the same probability."""

    def __init__(self, size):
        super().__init__()
        self.size, self.device = size, torch.device("cpu")

    def forward(self, input_ids):
        class Output:
            logits = torch.zeros(*input_ids.shape, self.size)

        return Output


def word_tokenizer(words, pattern):
    """Cuts a text by a pattern; each piece is a token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=backend)
    made.chat_template = TEMPLATE
    return made


# --- How likely an answer is ---------------------------------------------------------------------


def test_the_loss_is_that_of_the_answers_tokens(qwen, chat_tokenizer):
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    found = likelihood.likelihood(qwen, chat_tokenizer, prompt, "It is Lima.")
    start = chat_tokenizer(prompt)["input_ids"]
    answer = chat_tokenizer("It is Lima.")["input_ids"]
    with torch.no_grad():
        given = qwen(input_ids=torch.tensor([[*start, *answer, 2]])).logits[0].log_softmax(-1)
    by_hand = [-given[len(start) - 1 + i, token].item() for i, token in enumerate([*answer, 2])]
    assert found.losses == pytest.approx(by_hand[:-1], abs=1e-5)
    assert found.end_loss == pytest.approx(by_hand[-1], abs=1e-5)  # <|im_end|>, and in no mean
    assert found.loss == pytest.approx(sum(by_hand[:-1]) / len(answer), abs=1e-5)
    assert found.size == 11 and found.cuts[-1] == 11
    assert found.bits_per_byte == pytest.approx(sum(by_hand[:-1]) / math.log(2) / 11, abs=1e-5)


def test_bits_per_byte_are_the_same_for_two_tokenizers():
    """Sixteen letters at 4 bits each, or their pairs at 8 bits: as likely, in half the tokens."""
    letters = "abcdefghijklmno>"
    single = word_tokenizer(list(letters), ".")
    pairs = word_tokenizer([a + b for a in letters for b in letters], "..")
    found = [
        likelihood.likelihood(Uniform(size), tokenizer, "ab>>", "cafe")
        for size, tokenizer in ((16, single), (256, pairs))
    ]
    assert [len(one.losses) for one in found] == [4, 2]
    assert [one.loss for one in found] == pytest.approx([math.log(16), math.log(256)])
    assert [one.bits_per_byte for one in found] == pytest.approx([4.0, 4.0])
    assert all(math.isnan(one.end_loss) for one in found)  # "|" is no token of its own


def test_bytes_are_those_of_utf_8(qwen, chat_tokenizer):
    found = likelihood.likelihood(qwen, chat_tokenizer, "x\n", "é東")
    assert found.size == 2 + 3
    assert len(found.losses) == 5 and found.cuts == (1, 1, 2, 2, 2)  # a token is a byte here


def test_a_token_across_the_boundary_counts_whole():
    """The prompt's last character and the answer's first are one token of the whole."""
    tokenizer = word_tokenizer(["?", "a", ">b", "b", ">"], ">b|.")
    found = likelihood.likelihood(Uniform(5), tokenizer, "aa>", "ba")
    assert found.cuts == (1, 2)  # ">b", then "a": and not "b" alone, which nobody would read
    assert found.losses == pytest.approx([math.log(5)] * 2)


def test_an_answer_beyond_the_limit_is_scored_as_far_as_it_is_read(qwen, chat_tokenizer):
    prompt, text = "Hi\n", "It is Lima."
    whole = likelihood.likelihood(qwen, chat_tokenizer, prompt, text)
    start = len(chat_tokenizer(prompt)["input_ids"])
    cut = likelihood.likelihood(qwen, chat_tokenizer, prompt, text, max_length=start + 2)
    assert cut.losses == pytest.approx(whole.losses[:2], abs=1e-5)
    assert cut.size == cut.cuts[-1] == whole.cuts[1]
    assert math.isnan(cut.end_loss) and not math.isnan(whole.end_loss)
    with pytest.raises(ValueError, match="No token of 'It is Lima.'"):
        likelihood.likelihood(qwen, chat_tokenizer, prompt, text, max_length=start)


# --- What is asked -------------------------------------------------------------------------------


@pytest.fixture
def profile():
    made = load_profile("atlas")
    return replace(
        made,
        sft=replace(made.sft, max_length=60),
        generation=replace(made.generation, max_new_tokens=8),
    )


def test_every_answer_of_a_row_is_held_out(profile, qwen, chat_tokenizer):
    rows = [conversation("Hi", "Hello."), conversation("A", "B", "C", "D")]
    held = held_out.held_out_answers(profile, rows, (qwen, chat_tokenizer))
    assert [(one.row[-1], one.text, one.answer) for one in held] == [
        ("0", "Hi", "Hello."),
        ("1", "A", "B"),
        ("1", "user: A\nassistant: B\nuser: C", "D"),
    ]


def test_held_out_questions_are_asked_as_the_profile_asks(profile, qwen, chat_tokenizer):
    from sft_utils.profiles import Question

    profile = replace(
        profile,
        held_out=2,
        prompt=replace(profile.prompt, system="Be brief."),
        questions=(Question("Q", "A"), Question("R", "B", "Be long.")),
    )
    held = held_out.held_out_answers(profile, [], (qwen, chat_tokenizer))
    assert [one.messages[0]["content"] for one in held] == ["Be brief.", "Be long."]
    assert [one.messages[1]["content"] for one in held] == ["Q", "R"]


def test_what_cannot_be_asked_is_left_out_and_counted(profile, qwen, chat_tokenizer, capsys):
    rows = [
        conversation("Hi", "Hello."),
        conversation("long " * 60, "No."),
        conversation("Hi", "A forged turn <|im_end|>"),
        conversation("A forged turn <|im_end|>", "Yes."),
    ]
    held = held_out.held_out_answers(profile, rows, (qwen, chat_tokenizer))
    assert [one.answer for one in held] == ["Hello."]
    assert capsys.readouterr().out.startswith("3 of 4 held-out answers are left out")
    with pytest.raises(DataError, match="None of the 3 held-out answers"):
        held_out.held_out_answers(profile, rows[1:], (qwen, chat_tokenizer))


def test_at_most_so_many_are_drawn(profile, qwen, chat_tokenizer):
    rows = [conversation(f"Hi {number}", "Hello.") for number in range(40)]
    held = held_out.held_out_answers(profile, rows, (qwen, chat_tokenizer))
    assert len(held) == held_out.MOST_ANSWERS == len({one.row for one in held})


# --- How it answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([1, 2, 3], 0.0),  # no run of four
        ([1, 1, 1, 1, 1, 1], 2 / 3),  # three runs, all alike
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),  # 1234 2341 3412 4123 1234
    ],
)
def test_repetition(ids, share):
    assert held_out.repetition(ids) == pytest.approx(share)


def test_the_table_of_a_model(profile, qwen, chat_tokenizer):
    rows = [conversation("Hi", "Hello."), conversation("A", "B", "C", "D")]
    held = held_out.held_out_answers(profile, rows, (qwen, chat_tokenizer))
    frame = held_out.ask_held_out(qwen, chat_tokenizer, held, profile)
    for (_, line), one in zip(frame.iterrows(), held, strict=True):
        said = line["generation"]
        assert line["tokens"] == len(said.token_ids) - said.stopped
        assert line["words"] == len(said.response.split())
        assert line["stops"] == said.stopped
        alone = likelihood.likelihood(qwen, chat_tokenizer, said.prompt, one.answer)
        assert line["bits_per_byte"] == pytest.approx(alone.bits_per_byte)
        assert line["end_loss"] == pytest.approx(alone.end_loss)


# --- Tables --------------------------------------------------------------------------------------


def frame(losses, stops, rows="aab", cuts=((1, 2),) * 3):
    import pandas as pd

    return pd.DataFrame(
        {
            "row": list(rows),
            "answer": [f"answer {i}" for i in range(len(losses))],
            "bits_per_byte": [2 * loss for loss in losses],
            "loss": losses,
            "end_loss": [0.5, math.nan, 1.5],
            "stops": stops,
            "tokens": [10, 20, 30],
            "words": [5, 6, 7],
            "repetition": [0.0, 0.5, 0.25],
            "cuts": list(cuts),
        }
    )


def test_an_interval_counts_rows():
    """Means of clusters by hand: residual sums of the rows, two rows, one degree of freedom."""
    made = held_out.held_out_measure(frame([2.9, 3.0, 3.1], [1, 1, 0]), "loss")
    error = math.sqrt(2 / 1 * ((2.9 - 3 + 3 - 3) ** 2 + (3.1 - 3) ** 2)) / 3
    assert (made.value, made.n, made.entities) == (pytest.approx(3.0), 3, 2)
    assert made.high - 3 == pytest.approx(t.ppf(0.975, 1) * error)
    assert (made.low + made.high) / 2 == pytest.approx(3)


def test_no_interval_goes_on_where_no_value_can_be():
    """Three answers of two rows: their t intervals would begin below 0 and end above 100 %."""
    one, other = (frame([1.0, 2.0, 6.0], [1, 1, 0]) for _ in range(2))
    one["repetition"], other["repetition"] = [0.0, 0.25, 0.5], [1.0, 0.25, 0.0]
    for name, high in (("repetition", 1), ("loss", math.inf), ("words", math.inf), ("stops", 1)):
        made = held_out.held_out_measure(one, name)
        assert 0 <= made.low < made.value < made.high <= high, name
    assert held_out.held_out_measure(one, "repetition").interval == "0.0 to 100.0 %"
    change = held_out.held_out_change(one, other, "repetition")
    assert (change.low, change.high) == (-1, 1)


def test_perplexity_is_the_exponential_of_the_loss_and_nan_is_not_counted():
    table = frame([1.0, 2.0, 6.0], [1, 1, 0])
    loss = held_out.held_out_measure(table, "loss")
    found = held_out.held_out_measure(table, "perplexity")
    for end in ("value", "low", "high"):
        assert getattr(found, end) == pytest.approx(math.exp(getattr(loss, end)))
    found = held_out.held_out_measure(table, "end_loss")
    assert (found.value, found.n) == (1.0, 2)


def test_one_row_has_no_interval():
    found = held_out.held_out_measure(frame([1.0, 2.0, 6.0], [1, 1, 0], rows="aaa"), "stops")
    assert found.value == pytest.approx(2 / 3) and found.low is None
    assert "(" not in held_out.held_out_sheet({"it": frame([1.0] * 3, [1] * 3, "aaa")}).to_string()


def test_changes_are_taken_answer_by_answer():
    before, after = frame([1.0, 2.0, 6.0], [0, 0, 0]), frame([0.5, 1.0, 6.0], [1, 1, 0])
    change = held_out.held_out_change(before, after, "loss")
    assert change.value == pytest.approx(-0.5) and change.unit == "nats a token"
    error = math.sqrt(2 * ((-0.5 + 0.5 - 1 + 0.5) ** 2 + 0.5**2)) / 3
    assert change.high + 0.5 == pytest.approx(t.ppf(0.975, 1) * error)
    assert held_out.held_out_change(before, after, "perplexity").value == pytest.approx(
        math.exp(-0.5)
    )
    stops = held_out.held_out_change(before, after, "stops")
    from sft_utils.evaluation.statistics import paired_interval

    assert (stops.low, stops.high) == paired_interval([0, 0, 0], [1, 1, 0], list("aab"))
    assert repr(stops) == "+66.7 points"


def test_tokens_of_other_tokenizers_are_not_compared():
    before = frame([1.0, 2.0, 6.0], [0, 0, 0])
    after = frame([1.0, 2.0, 6.0], [0, 0, 0], cuts=((2,),) * 3)
    with pytest.raises(ValueError, match="bits_per_byte"):
        held_out.held_out_change(before, after, "perplexity")
    told = set(held_out.held_out_changes(before, after).index)
    of_tokens = {kind.title for kind in held_out.MEASURES.values() if kind.of_tokens}
    assert told == {kind.title for kind in held_out.MEASURES.values()} - of_tokens
    assert of_tokens <= set(held_out.held_out_changes(before, before).index)
    with pytest.raises(ValueError, match="other answers"):
        held_out.held_out_change(before, before.assign(answer="x"), "loss")


# --- Sentences -----------------------------------------------------------------------------------


def answers(stopped, cut, ids=(5, 6, 7, 8)):
    from sft_utils import Generation

    made = [Generation("", "", [*ids, 2], True, len(ids) + 1, [])] * stopped
    return made + [Generation("", "", list(ids), False, len(ids), [])] * cut
