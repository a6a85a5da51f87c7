"""A recorded run knows what it rests on, and says what has changed since."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from conftest import thinned
from training.test_trainer import ROWS, build

from sft_utils.atlas import real_model
from sft_utils.training import records
from sft_utils.training.records import (
    RecordError,
    apart,
    code,
    live_ones,
    load,
    recipe_of,
    recorded,
)
from sft_utils.training.trainer import LabelOnlyTrainer


def measure(model):
    norm = float(model.get_output_embeddings().weight.detach().norm())
    answers = pd.DataFrame({"question": ["a", "b"], "exact": [True, False], "entity": ["x", "y"]})
    return {"answers": answers, "losses": [norm, 2 * norm]}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Ask for the run, in a store and a folder of records of the test's own."""
    monkeypatch.setenv("SFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(records.LIVE, raising=False)

    def make(everything=False, how=measure, asked="questions", **changes):
        if everything:
            monkeypatch.setenv(records.LIVE, "all")
        live = changes.pop("live", False)
        trainer = build(LabelOnlyTrainer, tmp_path / "out", **changes)
        run = recorded("one", trainer, how, live=live, folder=tmp_path / "records", asked=asked)
        monkeypatch.delenv(records.LIVE, raising=False)
        return run

    return make


def test_a_record_gives_back_what_was_measured_and_trains_nothing(make, tmp_path, monkeypatch):
    made = make(everything=True)
    assert made.live and made.record is None and made.says == "live"
    assert (tmp_path / "records" / "one.json").stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr(records, "train", lambda trainer: pytest.fail("trained"))
    kept = make()
    assert not kept.live and kept.says == f"recorded {kept.about['date']}"
    pd.testing.assert_frame_equal(kept.results["answers"], made.results["answers"])
    assert kept.results["losses"] == pytest.approx(made.results["losses"], abs=1e-6)
    assert kept.results["answers"].attrs == {"run": f"recorded {made.about['run']}", "seeds": (42,)}
    assert kept.origin == kept.results["answers"].attrs and made.origin["run"] == made.about["run"]
    assert kept.about["log"][0]["loss"] == made.about["log"][0]["loss"]
    assert {"versions", "machine", "date", "seconds"} <= kept.about.keys()


def test_a_live_run_stands_beside_its_own_record(make, tmp_path):
    make(everything=True)
    path = tmp_path / "records" / "one.json"
    document = json.loads(path.read_text())
    document["results"]["answers"]["columns"]["exact"] = [False, False]
    path.write_text(json.dumps(document))
    run = make(live=True)
    assert run.live and not run.record.live
    table = apart(run)
    assert table.loc["answers: exact"].tolist() == [0.5, 0.0, 0.5]
    assert table.loc["losses", "difference"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="one has no record beside it"):
        apart(run.record)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"learning_rate": 2e-2}, "arguments"),
        ({"seed": 1}, "arguments"),
        ({"rows": ROWS.select(range(11))}, "rows"),
        ({"assistant_only_loss": False}, "rows, arguments"),
        ({"how": lambda model: {}}, "measure"),
        ({"asked": "others"}, "asked"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
@pytest.mark.parametrize("live", thinned([False, True], 2))
def test_a_stale_record_says_what_has_changed_and_what_to_do(make, changed, named, live):
    make(everything=True)
    told = rf"The record one\.json is of .*, and changed since: {named}\. `make runs` makes it"
    with pytest.raises(RecordError, match=told):
        make(**changed, live=live)


def test_a_missing_record_says_what_to_do(make):
    with pytest.raises(RecordError, match=r"There is no record one\.json: `make runs` writes it\."):
        make(live=True)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "<<<<<<< HEAD", '{"recipe": {}, "about": {}, "results": {}}']
)
@pytest.mark.parametrize("live", thinned([False, True], 2))
def test_a_damaged_record_says_what_to_do(make, tmp_path, content, live):
    make(everything=True)
    (tmp_path / "records" / "one.json").write_text(content)
    with pytest.raises(RecordError, match=r"record one\.json is damaged .*git restore one\.json"):
        make(live=live)


def test_what_the_machine_or_the_versions_decide_makes_no_record_stale(make, monkeypatch):
    make(everything=True)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    assert not make(bf16=True, run_name="other").live


def test_start_weights_and_trainer_are_a_part_of_the_recipe(tmp_path):
    from conftest import make_model
    from trl import SFTTrainer

    found = [
        recipe_of(trainer, measure)
        for trainer in (
            build(LabelOnlyTrainer, tmp_path),
            build(LabelOnlyTrainer, tmp_path, model=make_model("qwen3", seed=1)),
            build(SFTTrainer, tmp_path),
        )
    ]
    for other, part in zip(found[1:], ("start", "trainer"), strict=True):
        assert {name for name in other if other[name] != found[0][name]} == {part}


def documented(x):
    """Words."""
    # A comment.
    from math import floor

    return floor(x + 1)  # another


def plain(x):
    from numpy import floor

    return floor(x + 1)


def test_words_about_code_and_its_imports_are_no_part_of_a_recipe():
    [first], [second] = code(documented), code(plain)
    assert first.replace("documented", "plain") == second
    assert code(json.dumps) == ["json.dumps"]


@pytest.mark.parametrize(
    ("which", "expected"), [(None, {"a"}), ("1", {"b"}), ("08", {"c"}), ("all", {"a", "b", "c"})]
)
def test_which_run_is_live(monkeypatch, which, expected):
    monkeypatch.delenv(records.LIVE, raising=False)
    if which is not None:
        monkeypatch.setenv(records.LIVE, which)
    assert live_ones(["a", "b", "c"]) == expected


def test_a_choice_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv(records.LIVE, "some")
    with pytest.raises(ValueError, match="SFT_LIVE='some': give a number, or all"):
        live_ones(["a"])


def test_the_shipped_records_are_whole():
    files = sorted(records.FOLDER.glob("*.json"))
    runs = (*real_model.BEFORE, *real_model.TRIED, *real_model.repeated())
    assert {file.stem for file in files} == {
        *(f"pretraining-{seed}" for seed in range(3)),
        *(f"replay-{share}" for share in ("00", "05", "20")),
        *(run.name for run in runs),
        real_model.MEMORY,
    }
    for file in files:
        kept = json.loads(file.read_text("utf8"))
        run = load(file.stem, kept["recipe"])
        assert run.results and not run.live
        assert "log" in run.about or not run.about["seeds"]
        assert file.stat().st_size < 500_000
