"""The walk-through's trainer: dev questions choose where there are any, and pages agree on it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_model, make_tokenizer

from sft_utils import atlas, walkthrough
from sft_utils.data import DataError
from sft_utils.profiles import load_profile
from sft_utils.runs import fingerprint
from sft_utils.scoring import SCORES

PAGE = Path(__file__).parents[1] / "book" / "07-training.md"
ROWS = 24

PROFILE = """
[models]
base = "{folder}"
reference = "{folder}"
trainee = "{folder}"

[data]
source = "{source}"
{cut}

[prompt]
chat_template = "chatml.jinja"

[generation]
max_new_tokens = 4

[sft]
learning_rate = 1e-2
num_train_epochs = 3
per_device_train_batch_size = 8
logging_steps = 1
max_length = 64

[[questions]]
text = "Hi"
"""


def write_rows(path, rows=ROWS, extra=()):
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Number {i}?"},
                {"role": "assistant", "content": f"It is {i}."},
            ]
        }
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*lines, *extra]))
    return path


@pytest.fixture
def folder(tmp_path):
    """A tiny base model without a chat template, as base models come."""
    folder = tmp_path / "tiny"
    make_model("llama", max_position_embeddings=512, tie_word_embeddings=True).save_pretrained(
        folder
    )
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def profile_file(tmp_path, folder, monkeypatch):
    """Returns a function that writes a profile; on the Atlas's source its file is ours as well."""
    data = write_rows(tmp_path / "rows.jsonl")
    monkeypatch.setattr(atlas, "sft_data_path", lambda: data)

    def write(source=str(data), cut=""):
        path = tmp_path / "tiny.toml"
        path.write_text(PROFILE.format(folder=folder, source=source, cut=cut))
        return path

    return write


@pytest.fixture
def dev(monkeypatch):
    """Stands for the dev questions: gives the shares of exact answers that a test asks for.

    ``asked`` keeps the weights of the model at each call.
    """
    from sft_utils.atlas import evaluate

    class Dev:
        def __init__(self):
            self.shares = iter([0.0, 0.25, 0.25, 0.75, 0.5, 0.5])
            self.weights = []

        def __call__(self, model, tokenizer, questions, **kwargs):
            share = next(self.shares)
            self.weights.append({k: v.clone() for k, v in model.state_dict().items()})
            exact = [i < 4 * share for i in range(4)]
            frame = pd.DataFrame({name: exact for name in SCORES})
            return frame.assign(entity=["a", "b", "c", "d"], stops=True)

    fake = Dev()
    monkeypatch.setattr(evaluate, "score_split", fake)
    return fake


def same(one, other):
    return all((one[k] == other[k]).all() for k in one)


# --- Choosing the checkpoint -------------------------------------------------------------------


def test_the_checkpoint_with_the_most_exact_dev_answers_is_kept(profile_file, dev):
    trainer = walkthrough.walkthrough_trainer(load_profile(profile_file("atlas-sft-data")))
    trainer.train()
    assert trainer.state.best_metric == 0.75
    assert (trainer.state.best_global_step, trainer.state.global_step) == (6, 9)
    now = trainer.model.state_dict()
    assert same(now, dev.weights[3])
    assert not same(now, dev.weights[4])


def test_an_evaluation_reports_exact_dev_answers_and_keeps_a_record(profile_file, dev):
    trainer = walkthrough.walkthrough_trainer(load_profile(profile_file("atlas-sft-data")))
    dev.shares = iter([0.75])
    metrics = trainer.evaluate()
    assert metrics["eval_dev_exact"] == 0.75
    (callback,) = [c for c in trainer.callback_handler.callbacks if hasattr(c, "records")]
    (record,) = callback.records
    assert record["exact"] == record["right_value"] == 0.75
    assert record["stops"] == 1.0
    assert record["low"] < 0.75 <= record["high"]
    assert record["n"] == 4
    assert record["step"] == 0
    assert record["eval_loss"] == metrics["eval_loss"]


def test_the_dev_questions_are_really_asked(profile_file, monkeypatch):
    questions = walkthrough.dev_questions()
    assert len(questions) == walkthrough.DEV_QUESTIONS
    assert {q.fact.entity.role for q in questions} == {"dev"}
    assert {q.wording for q in questions} == {"held out"}
    assert questions == walkthrough.dev_questions()
    monkeypatch.setattr(walkthrough, "DEV_QUESTIONS", 2)
    trainer = walkthrough.walkthrough_trainer(load_profile(profile_file("atlas-sft-data")))
    assert trainer.evaluate()["eval_dev_exact"] == 0.0  # random weights


def test_without_dev_questions_the_lowest_loss_chooses(profile_file):
    profile = load_profile(profile_file())
    assert walkthrough.dev_callbacks(profile, make_tokenizer()) == []
    trainer = walkthrough.walkthrough_trainer(profile)
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) == 6  # five times, and once before the first update
    assert trainer.state.best_metric == min(losses[1:])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses[1:]))


# --- The same trainer everywhere ---------------------------------------------------------------


def page_cells(page):
    return re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", page.read_text(), re.S | re.M)


@pytest.mark.parametrize("on_atlas", [True, False])
def test_the_trainer_of_chapter_07_is_the_walkthroughs(profile_file, on_atlas, monkeypatch, capsys):
    path = profile_file("atlas-sft-data") if on_atlas else profile_file()
    monkeypatch.setenv("SFT_PROFILE", str(path))
    page = {}
    for cell in page_cells(PAGE):
        source = re.sub(r"\A(:[\w-]+:.*\n)+", "", cell)
        exec(source, page)  # noqa: S102, the page's own code
        if "trainer = SFTTrainer(" in source:
            break
    assert page["trainer"].args.metric_for_best_model == ("dev_exact" if on_atlas else "loss")
    other = walkthrough.walkthrough_trainer(load_profile(path))
    assert fingerprint(page["trainer"]) == fingerprint(other)


def test_other_dev_questions_make_another_fingerprint(profile_file, monkeypatch):
    profile = load_profile(profile_file("atlas-sft-data"))
    first = fingerprint(walkthrough.walkthrough_trainer(profile))
    monkeypatch.setattr(walkthrough, "DEV_QUESTIONS", 7)
    assert fingerprint(walkthrough.walkthrough_trainer(profile)) != first


def test_changes_replace_arguments_and_nothing_else(profile_file):
    profile = load_profile(profile_file())
    plain, changed = walkthrough.make_config(profile), walkthrough.make_config(profile, max_steps=5)
    differing = {k for k, v in plain.to_dict().items() if changed.to_dict()[k] != v}
    assert differing <= {"max_steps", "output_dir", "run_name"}
    assert changed.max_steps == 5


# --- Rows --------------------------------------------------------------------------------------


def test_validation_rows_are_kept_from_training(profile_file):
    profile = load_profile(profile_file())
    train, validation = walkthrough.load_rows(profile)
    texts = [{str(row["messages"]) for row in part} for part in (train, validation)]
    assert not texts[0] & texts[1]
    assert len(texts[0] | texts[1]) == ROWS
    assert len(validation) == 2  # a twentieth of 24, rounded up
    again, _ = walkthrough.load_rows(profile)
    assert again.to_list() == train.to_list()


def test_the_cut_holds_on_a_processor_only(profile_file, monkeypatch):
    from sft_utils import environment

    profile = load_profile(profile_file(cut="rows = 10"))
    monkeypatch.setattr(environment, "best_device", lambda: "cpu")
    assert sum(map(len, walkthrough.load_rows(profile))) == 10
    monkeypatch.setattr(environment, "best_device", lambda: "cuda")
    assert sum(map(len, walkthrough.load_rows(profile))) == ROWS


def test_a_row_with_a_special_token_stops_the_trainer(tmp_path, profile_file):
    forged = {
        "messages": [
            {"role": "user", "content": "Hi<|im_end|>"},
            {"role": "assistant", "content": "No."},
        ]
    }
    write_rows(tmp_path / "rows.jsonl", rows=0, extra=[forged] * 30)
    with pytest.raises(DataError, match=r"special token"):
        walkthrough.walkthrough_trainer(load_profile(profile_file()))


# --- Around it ---------------------------------------------------------------------------------


def test_importing_costs_nothing_and_scratch_folders_go_with_the_process():
    code = (
        "import os, sys; from sft_utils.walkthrough import scratch_folder as make\n"
        "folder = make(); assert os.path.isdir(folder)\n"
        "assert not {'torch', 'trl', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "print(folder)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).exists()


def test_curves_draw_every_panel_and_name_every_line():
    panels = {
        "loss": {"validation": [(0, 2.0), (1, 1.0)]},
        "rate": {"a": [(0, 1.0)], "b": [(0, 0.5)]},
    }
    figure = walkthrough.curves(panels, xlabel="epoch", alt="Loss falls from 2 to 1.")
    for text in ("loss", "rate", "validation", "a 1", "b 0.5", "epoch"):
        assert text in figure.svg
    assert figure.alt == "Loss falls from 2 to 1."
    with pytest.raises(ValueError, match="alt"):
        walkthrough.curves(panels, xlabel="epoch", alt="")
