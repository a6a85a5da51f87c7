"""Side by side, paired and blind: exact values on tables that are written out here."""

import html
from types import SimpleNamespace

import pandas as pd
import pytest

from sft_utils.evaluation.comparison import (
    by_relation,
    change,
    in_words,
    paired_difference,
    paired_sheet,
    percent,
    score_rows,
    score_sheet,
    share,
)
from sft_utils.evaluation.likelihood import follow_answer
from sft_utils.evaluation.questions import (
    SCORERS,
    ask_questions,
    question_scores,
)
from sft_utils.evaluation.statistics import mean_interval, paired_interval, proportion_interval
from sft_utils.generation import Generation
from sft_utils.views.blind import blind_sheet
from sft_utils.views.tables import answer_table, marked


@pytest.fixture(autouse=True)
def made_by_a_run(monkeypatch):
    """Stubs have no weights to hash."""
    monkeypatch.setattr(
        "sft_utils.atlas.evaluate.origin", lambda model: {"run": "run", "seeds": (0,)}
    )


def frame(exact, entities=None, relations=None, right=None):
    n = len(exact)
    return pd.DataFrame(
        {
            "question": [f"q{i}" for i in range(n)],
            "entity": entities or [f"e{i}" for i in range(n)],
            "relation": relations or ["capital"] * n,
            "right": right or [f"v{i}" for i in range(n)],
            "exact": exact,
            "stops": [True] * n,
        }
    )


def answer(text, stopped=True, tokens=3):
    return Generation("prompt", text, [5] * tokens, stopped, tokens, [1])


def questions(*answers):
    return [SimpleNamespace(text=f"Q{i}?", answer=a) for i, a in enumerate(answers)]


# --- Pairs


def test_a_pair_counts_what_was_gained_and_lost():
    before = frame([True, True, False, False, False, False, False, False])
    after = frame([True, False, True, True, True, True, True, False])
    pair = paired_difference(before, after, "exact")
    assert (pair.both, pair.gained, pair.lost, pair.neither) == (1, 5, 1, 1)
    assert pair.difference == pytest.approx(4 / 8)
    # Two-sided binomial: 2 * (1 + 6) / 2**6.
    assert pair.p_value == pytest.approx(14 / 64)
    assert pair.low <= pair.difference <= pair.high


def test_the_paired_interval_counts_entities():
    clusters = [f"e{i // 10}" for i in range(400)]
    gained = [i // 10 % 2 == 0 for i in range(400)]
    pair = paired_difference(frame([False] * 400, clusters), frame(gained, clusters), "exact")
    assert (pair.low, pair.high) == paired_interval([False] * 400, gained, clusters)
    same = paired_difference(frame(gained), frame(gained), "exact")
    assert (same.difference, same.p_value) == (0.0, 1.0) and same.low < 0 < same.high


@pytest.mark.parametrize("column", ["question", "entity"])
def test_other_questions_cannot_be_paired(column):
    before, after = frame([True, False]), frame([True, False])
    after[column] = after[column].tolist()[::-1]
    with pytest.raises(ValueError, match=f"'{column}'.*same questions in the same order"):
        paired_difference(before, after, "exact")


def test_the_paired_sheet_is_in_points():
    sheet = paired_sheet(frame([False] * 20), frame([True] * 15 + [False] * 5), ["exact", "stops"])
    assert sheet.loc["exact answer", "difference, points"] == "+75.0"
    assert sheet.loc["exact answer", "McNemar's p, Holm"] == "< 0.001"
    assert sheet.loc["stops by itself", "McNemar's p, Holm"] == "1.000"
    counts = sheet.loc["exact answer", ["right in both", "gained", "lost", "in neither"]]
    assert counts.tolist() == [0, 15, 0, 5]


def test_the_paired_sheet_raises_p_by_the_number_of_scores():
    before, after = frame([False] * 9), frame([True] * 7 + [False] * 2)  # p is 2 / 2**7
    after["stops"] = False  # 9 lost: p is 2 / 2**9
    alone = paired_sheet(before, after, ["stops"])["McNemar's p, Holm"]
    both = paired_sheet(before, after, ["exact", "stops"])["McNemar's p, Holm"]
    assert alone.tolist() == ["0.004"] and both.tolist() == ["0.016", "0.008"]


# --- Scores of several models


def test_percent_and_share():
    assert percent(0.9314) == "93.1 %"
    assert percent(1, digits=0) == "100 %"
    table = frame([True, False, False, False])
    table.attrs |= {"run": "abc", "seeds": (3,), "other": 1}
    measure = share(table, "exact")
    assert repr(measure) == "25.0 %" and measure.value == 0.25
    assert (measure.n, measure.entities, measure.run, measure.seeds) == (4, 4, "abc", (3,))
    assert 0 <= measure.low < 0.25 < measure.high < 1


def test_a_change_is_paired_and_in_points():
    before, after = frame([True] + [False] * 9), frame([True] * 4 + [False] * 6)
    measure, pair = change(before, after, "exact"), paired_difference(before, after, "exact")
    assert repr(measure) == "+30.0 points"
    assert (measure.value, measure.low, measure.high) == (pair.difference, pair.low, pair.high)


def test_score_rows_keep_the_order_of_scores_and_labels():
    table = score_rows({"z": frame([True, False]), "a": frame([True, True])}, ["stops", "exact"])
    assert table["score"].tolist() == ["stops", "stops", "exact", "exact"]
    assert table["label"].tolist() == ["z", "a", "z", "a"]
    assert table["mean"].tolist() == [1.0, 1.0, 0.5, 1.0]
    assert table["n"].tolist() == [2] * 4


def test_the_score_sheet_shows_mean_interval_and_n():
    entities = ["e", "e", "f", "f"]
    sheet = score_sheet({"m": frame([True, True, False, False], entities)}, ["exact"])
    # Two entities say next to nothing.
    assert sheet.loc["m", "exact answer"] == "50.0 % (0.5 to 99.5)"
    assert sheet.loc["m", ["questions", "entities"]].tolist() == [4, 2]


def test_by_relation_compares_with_the_most_common_answer():
    relations = ["class"] * 4 + ["capital"] * 2
    right = ["bird", "bird", "bird", "fish", "Oslo", "Lima"]
    model = frame([True, True, False, True, False, True], None, relations, right)
    table = by_relation(model, "exact").set_index("relation")
    assert table["mean"].tolist() == [0.75, 0.5]
    assert table["most_common"].tolist() == [0.75, 0.5]
    assert table["n"].tolist() == [4, 2]
    common = frame([False, True, False, False, False, False], None, relations, right)
    table = by_relation(model, "exact", common).set_index("relation")
    assert table["most_common"].tolist() == [0.25, 0.0]


def test_figures_are_told_in_words():
    table = score_rows({"m": frame([True, False])}, ["exact", "stops"])
    assert in_words(table) == "m, exact answer: 50 %; m, stops by itself: 100 %"
    relations = by_relation(frame([True, False], None, None, ["Oslo", "Oslo"]), "exact")
    assert in_words(relations) == "capital: 50 %, most common answer 100 %"


# --- Side by side


def test_an_answer_shows_how_it_ended():
    assert marked(answer("and so on", stopped=False, tokens=1)) == "and so on\n✂ cut at 1 token"


def test_the_answer_table_escapes_and_pairs():
    table = answer_table(
        questions("Oslo", None),
        {"base": [answer("<b>x</b>"), answer("y")], "new": [answer("z")] * 2},
    )
    assert table.columns == ("question", "right value", "base", "new")
    assert table.rows[1][:2] == ("Q1?", "–")
    assert "&lt;b&gt;x&lt;/b&gt;" in table._repr_html_()
    assert "<b>" not in table._repr_html_()
    assert "base: y" in repr(table)


def test_what_cannot_be_seen_is_shown_by_its_code_in_every_table():
    hostile, shown = "It is\u202e\x1b[31m\u200b\ud800 6\r.", r"It is\u202e\x1b[31m\u200b\ud800 6\r."
    given = [answer(hostile)]
    asked = [SimpleNamespace(text=hostile, answer=hostile)]
    sheet = blind_sheet(asked, {hostile: given, "other": given}, seed=0).sheet
    for table in (answer_table(asked, {hostile: given}), sheet):
        for text in (repr(table), html.unescape(table._repr_html_())):
            assert text.count(shown) >= 3
            assert not set(text) & set("\u202e\x1b\u200b\ud800\r")


def test_right_values_only_where_there_are_some_and_every_answer():
    assert answer_table(questions(None), {"base": [answer("x")]}).columns == ("question", "base")
    with pytest.raises(ValueError, match="'base' has 1 answers to 2 questions"):
        answer_table(questions(None, None), {"base": [answer("x")]})


# --- The blind sheet


def blind(seed=0, n=40):
    answers = {"old": [answer("o")] * n, "new": [answer("n")] * n}
    return blind_sheet(questions(*["x"] * n), answers, seed=seed)


def test_the_blind_sheet_shuffles_by_seed_and_hides_names_and_right_values():
    sheet = blind()
    assert set(sheet.key) == {("old", "new"), ("new", "old")}
    assert blind().key == sheet.key != blind(seed=1).key
    assert "right value" not in sheet.sheet.columns
    assert not {"old", "new"} & set(sheet.sheet._repr_html_().split())
    for row, (a, b) in zip(sheet.sheet.rows, sheet.key, strict=True):
        assert (row[2][0], row[3][0]) == (a[0], b[0])


def test_votes_are_counted_by_the_key():
    sheet = blind(n=5)
    for_new = ["AB"[pair.index("new")] for pair in sheet.key]
    counts = sheet.count(" ".join([*for_new[:4], "="]))
    assert (counts["new"], counts["old"], counts["ties"]) == (4, 0, 1)
    assert counts["p_value"] == pytest.approx(2 / 16)
    assert sheet.count("=====")["p_value"] == 1.0


def test_wrong_votes_and_one_model_are_an_error():
    for votes in ("AB", "ABABX"):
        with pytest.raises(ValueError, match="give 5 letters"):
            blind(n=5).count(votes)
    with pytest.raises(ValueError, match="not 1"):
        blind_sheet(questions("x"), {"old": [answer("o")]}, seed=0)


# --- Prompts, probabilities, profiles


def test_following_an_answer_shows_the_models_own_probabilities(model, chat_tokenizer):
    import torch

    prompt, text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "It is Lima."
    table = follow_answer(model, chat_tokenizer, prompt, text)
    start = chat_tokenizer(prompt)["input_ids"]
    ids = chat_tokenizer(text)["input_ids"]
    assert table["token"].tolist() == [chat_tokenizer.decode([i]) for i in ids] + ["(end)"]
    with torch.no_grad():
        given = model(torch.tensor([start + ids])).logits[0, len(start) - 1 :].softmax(-1)
    end_of_turn = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert table["next"][0] == pytest.approx(float(given[0, ids[0]]), abs=1e-6)
    assert table["end"].tolist() == pytest.approx(given[:, end_of_turn].tolist(), abs=1e-6)
    assert table["end"].iloc[-1] == table["next"].iloc[-1]
    likeliest = given[0].argmax().item()
    assert likeliest != end_of_turn and table["likeliest"][0] == chat_tokenizer.decode([likeliest])


def test_the_end_is_named_where_it_is_likeliest(qwen, chat_tokenizer):
    import torch

    with torch.no_grad():
        qwen.lm_head.weight.zero_()  # every logit 0: all tokens equally likely, the first one wins
    table = follow_answer(qwen, chat_tokenizer, "<|im_start|>", "ab")
    assert table["next"].tolist() == pytest.approx([1 / 300] * len(table))
    qwen.generation_config.eos_token_id = [0, 2]  # now the first token ends an answer
    table = follow_answer(qwen, chat_tokenizer, "<|im_start|>", "ab")
    assert set(table["likeliest"]) == {"(end)"}
    assert table["end"].tolist() == pytest.approx([2 / 300] * len(table))


def test_questions_are_asked_as_the_profile_says(qwen, chat_tokenizer):
    from sft_utils.profiles import GenerationSettings, Prompt, Question

    profile = SimpleNamespace(
        questions=(Question("a?"), Question("b?", system="own")),
        prompt=Prompt(system="shared"),
        generation=GenerationSettings(max_new_tokens=3),
    )
    first, second = ask_questions(qwen, chat_tokenizer, profile)
    assert first.prompt.startswith("<|im_start|>system\nshared<|im_end|>\n<|im_start|>user\na?")
    assert second.prompt.startswith("<|im_start|>system\nown<|im_end|>\n<|im_start|>user\nb?")
    assert max(first.num_tokens, second.num_tokens) <= 3


# --- The profile's own scorers


def asked(answers, scorers=()):
    scoring = SimpleNamespace(scorers=scorers)
    return SimpleNamespace(questions=questions(*answers), scoring=scoring)


def test_the_scorers_of_a_profile_score_what_has_an_answer():
    profile = asked(["Oslo", None, "Lima", "Kenya"], ("contains", "stops"))
    given = [answer("It is Oslo."), answer("?"), answer("Lima", stopped=False), answer("Oslo")]
    table = question_scores(profile, {"before": [answer("No.")] * 4, "after": given})
    low, high = (round(100 * end, 1) for end in proportion_interval([1, 1, 0]))
    assert table.index.tolist() == ["before", "after"]
    assert table.columns.tolist() == ["questions", "contains", "stops"]
    assert table.loc["after", "questions"] == 3
    assert table.loc["after", "contains"] == f"66.7 % ({low} to {high})"
    assert table.loc["after", "stops"] == f"66.7 % ({low} to {high})"
    assert table.loc["before", "contains"].startswith("0.0 % (0.0 to ")


def test_a_profile_that_names_no_scorer_gets_all():
    table = question_scores(asked(["Oslo", "Lima"]), {"after": [answer("In Oslo"), answer("Lima")]})
    assert table.columns.tolist() == ["questions", *SCORERS]
    low, high = mean_interval([2 / 3, 1])
    assert low < 1 < high
    assert table.loc["after", "token_f1"] == f"83.3 % ({max(0, 100 * low):.1f} to 100.0)"


def test_one_question_has_a_score_and_only_shares_have_an_interval():
    table = question_scores(asked(["Oslo"]), {"after": [answer("In Oslo")]})
    assert table.loc["after", "token_f1"] == "66.7 %"
    assert table.loc["after", "contains"].startswith("100.0 % (")


def test_without_answers_there_is_nothing_to_score(capsys):
    assert question_scores(asked([None, None]), {"after": [answer("a"), answer("b")]}) is None
    assert capsys.readouterr().out.startswith("No question of this profile has an answer")
