"""The walk-through's trainer: the validation loss chooses, and pages agree on it."""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import PROFILE, code_cells, conversation, make_tokenizer, run_alone, write_tiny
from own_files import ROOT

from sft_utils import experiment
from sft_utils.atlas import dev_questions as asking
from sft_utils.atlas import shipped
from sft_utils.data.readers import DataError
from sft_utils.evaluation.metrics import SCORES
from sft_utils.evaluation.questions import ask_questions
from sft_utils.hub import ModelLoadError
from sft_utils.models import TEMPLATES, end_token_ids
from sft_utils.profiles import ProfileError, load_profile
from sft_utils.training.fingerprints import fingerprint, weights_hash
from sft_utils.training.runs import train

ROWS = 24


def write_rows(path, rows=ROWS, extra=()):
    lines = [conversation(f"Number {i}?", f"It is {i}.") for i in range(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*lines, *extra]))
    return path


@pytest.fixture
def folder(tmp_path):
    write_tiny(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def profile_file(tmp_path, folder, monkeypatch):
    """Returns a function that writes a profile; on the Atlas's source its file is ours as well."""
    data = write_rows(tmp_path / "rows.jsonl")
    monkeypatch.setitem(shipped.ROWS, "atlas-sft-data", data)

    def write(source="rows.jsonl", more="", **tables):
        text = PROFILE.replace("rows.jsonl", source)
        for table, line in tables.items():
            text = text.replace(f"[{table}]", f"[{table}]\n{line}")
        path = tmp_path / "tiny.toml"
        path.write_text(f"{text}\n{more}")
        return path

    return write


def same(one, other):
    return all((one[k] == other[k]).all() for k in one)


# --- Choosing the checkpoint -------------------------------------------------------------------


LOSSES = (3.0, 2.0, 1.0, 4.0, 5.0)  # of the validation rows, after each fifth of the run


@pytest.fixture
def judged(monkeypatch):
    """A trainer of a profile that finds such losses, and the weights that it was asked about."""

    def build(profile):
        trainer = experiment.walkthrough_trainer(profile)
        evaluate, losses, weights = trainer.evaluate, iter(LOSSES), {}

        def found(*given, **options):
            metrics = evaluate(*given, **options)
            if trainer.state.global_step:
                weights[trainer.state.global_step] = {
                    name: weight.clone() for name, weight in trainer.model.state_dict().items()
                }
                loss = next(losses)
                metrics |= {"eval_loss": loss, "eval_exact": loss, "eval_odds": loss}
            return metrics

        monkeypatch.setattr(trainer, "evaluate", found)
        trainer.train()
        return trainer, weights

    return build


@pytest.mark.parametrize("source", ["rows.jsonl", "atlas-sft-data"])
def test_the_lowest_validation_loss_chooses_on_every_profile(profile_file, judged, source):
    trainer, weights = judged(load_profile(profile_file(source)))
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("loss", False)
    assert trainer.state.best_metric == 1.0
    assert (trainer.state.best_global_step, trainer.state.global_step) == (6, 9)
    now = trainer.model.state_dict()
    assert same(now, weights[6]) and not same(now, weights[9])


@pytest.mark.parametrize(
    ("lines", "best"),
    [
        ('metric_for_best_model = "exact"', (5.0, 9)),  # by its name, more of it is better
        ('metric_for_best_model = "odds"\ngreater_is_better = false', (1.0, 6)),
    ],
)
def test_a_profile_chooses_by_what_it_says(profile_file, judged, lines, best):
    profile = load_profile(profile_file(more=f"[sft.arguments]\n{lines}"))
    trainer, weights = judged(profile)
    assert (trainer.state.best_metric, trainer.state.best_global_step) == best
    assert same(trainer.model.state_dict(), weights[best[1]])


def test_the_trainer_repeats_the_loss_of_the_checkpoint_that_it_kept(profile_file):
    trainer = experiment.walkthrough_trainer(load_profile(profile_file()))
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) == 6  # five times, and once before the first update
    assert trainer.state.best_metric == min(losses[1:])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses[1:]))


# --- Dev questions, which some pages add ---------------------------------------------------------


@pytest.fixture
def asked(profile_file):
    """A trainer of the Atlas's rows that asks the dev questions at each evaluation."""
    trainer = experiment.walkthrough_trainer(load_profile(profile_file("atlas-sft-data")))
    assert not [c for c in trainer.callback_handler.callbacks if hasattr(c, "records")]
    trainer.add_callback(asking.DevAccuracy(trainer.processing_class))
    return trainer


def test_an_evaluation_reports_exact_dev_answers_and_keeps_a_record(asked, monkeypatch):
    from sft_utils.atlas import evaluate

    exact = [True, True, True, False]
    frame = pd.DataFrame({name: exact for name in SCORES})
    frame = frame.assign(entity=["a", "b", "c", "d"], stops=True)
    monkeypatch.setattr(evaluate, "score_split", lambda *given: frame)
    metrics = asked.evaluate()
    assert metrics["eval_dev_exact"] == 0.75
    (callback,) = [c for c in asked.callback_handler.callbacks if hasattr(c, "records")]
    (record,) = callback.records
    assert record["exact"] == record["right_value"] == 0.75
    assert record["stops"] == 1.0
    assert record["low"] < 0.75 <= record["high"]
    assert record["n"] == 4
    assert record["step"] == 0
    assert record["eval_loss"] == metrics["eval_loss"]


def test_the_dev_questions_are_really_asked(profile_file, monkeypatch, request):
    questions = asking.dev_questions()
    assert len(questions) == asking.DEV_QUESTIONS
    assert {q.fact.entity.role for q in questions} == {"dev"}
    assert {q.wording for q in questions} == {"held out"}
    assert questions == asking.dev_questions()
    monkeypatch.setattr(asking, "DEV_QUESTIONS", 2)
    trainer = request.getfixturevalue("asked")
    assert trainer.evaluate()["eval_dev_exact"] == 0.0  # random weights


def test_other_dev_questions_make_another_fingerprint(profile_file, asked, monkeypatch):
    first = fingerprint(asked)
    monkeypatch.setattr(asking, "DEV_QUESTIONS", 7)
    trainer = experiment.walkthrough_trainer(load_profile(profile_file("atlas-sft-data")))
    without = fingerprint(trainer)
    trainer.add_callback(asking.DevAccuracy(trainer.processing_class))
    assert len({first, without, fingerprint(trainer)}) == 3


# --- The same trainer everywhere ---------------------------------------------------------------


@pytest.mark.parametrize("on_atlas", [True, False])
def test_the_trainer_of_chapter_07_is_the_walkthroughs(profile_file, on_atlas, monkeypatch, capsys):
    path = profile_file("atlas-sft-data") if on_atlas else profile_file()
    monkeypatch.setenv("SFT_PROFILE", str(path))
    page = {}
    for source in code_cells("07-training.md"):
        exec(source, page)  # noqa: S102, the page's own code
        if "trainer = SFTTrainer(" in source:
            break
    assert page["trainer"].args.metric_for_best_model == "loss"
    other = experiment.walkthrough_trainer(load_profile(path))
    assert fingerprint(page["trainer"]) == fingerprint(other)


def test_a_trainee_that_is_there_already_is_copied_and_gives_the_same_run(profile_file):
    profile = load_profile(profile_file())
    start = experiment.load_trainee(profile)
    before = weights_hash(start[0])
    trainer = experiment.walkthrough_trainer(profile, start)
    assert fingerprint(trainer) == fingerprint(experiment.walkthrough_trainer(profile))
    trainer.train()
    assert weights_hash(trainer.model) != before == weights_hash(start[0])


@pytest.mark.parametrize(("device", "bf16"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_the_device_and_its_numbers(profile_file, monkeypatch, device, bf16):
    """What `SFTConfig` is given: without the hardware, it would refuse some of these."""
    import trl

    from sft_utils import environment

    monkeypatch.setattr(environment, "best_device", lambda: device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: True)
    monkeypatch.setattr(trl, "SFTConfig", dict)
    profile = load_profile(profile_file())
    given = experiment.make_config(profile)
    assert (given["use_cpu"], given["bf16"]) == (device == "cpu", bf16)
    assert experiment.make_config(profile, bf16=not bf16)["bf16"] is not bf16


# --- Rows --------------------------------------------------------------------------------------


def test_validation_rows_are_kept_from_training(profile_file):
    profile = load_profile(profile_file())
    train, validation = experiment.load_rows(profile)
    texts = [{str(row["messages"]) for row in part} for part in (train, validation)]
    assert not texts[0] & texts[1]
    assert len(texts[0] | texts[1]) == ROWS
    assert len(validation) == 2  # a twentieth of 24, rounded up
    again, _ = experiment.load_rows(profile)
    assert again.to_list() == train.to_list()


def test_the_cut_holds_on_a_processor_only(profile_file, monkeypatch):
    from sft_utils import environment

    profile = load_profile(profile_file(data="rows = 10"))
    monkeypatch.setattr(environment, "best_device", lambda: "cpu")
    assert sum(map(len, experiment.load_rows(profile))) == 10
    monkeypatch.setattr(environment, "best_device", lambda: "cuda")
    assert sum(map(len, experiment.load_rows(profile))) == ROWS


def test_a_row_with_a_special_token_stops_the_trainer(tmp_path, profile_file):
    forged = conversation("Hi<|im_end|>", "No.")
    write_rows(tmp_path / "rows.jsonl", rows=0, extra=[forged] * 30)
    with pytest.raises(DataError, match=r"special token"):
        experiment.walkthrough_trainer(load_profile(profile_file()))


def user_texts(part):
    return {turn["content"] for row in part for turn in row["messages"] if turn["role"] == "user"}


@pytest.mark.parametrize("cut", ["", "rows = 9"])
def test_what_is_held_out_is_in_no_row(tmp_path, profile_file, cut, monkeypatch):
    from sft_utils import environment

    monkeypatch.setattr(environment, "best_device", lambda: "cpu")
    asked_later = conversation(*(f"Number {i // 2}?" for i in range(6, 14)))
    write_rows(tmp_path / "rows.jsonl", extra=[asked_later])
    path = profile_file(data=cut)
    head = path.read_text().partition("[[questions]]")[0]
    path.write_text("questions = { held_out = 12 }\n" + head)
    profile = load_profile(path)
    texts = {question.text for question in profile.questions}
    assert len(texts) == 12
    assert texts & user_texts([asked_later])  # or the row proves nothing
    parts = experiment.load_rows(profile)
    assert sum(map(len, parts)) == (9 if cut else ROWS - 12)
    assert not texts & (user_texts(parts[0]) | user_texts(parts[1]))


def test_template_kwargs_stand_in_the_rows(profile_file):
    path = profile_file()
    for part in experiment.load_rows(load_profile(path)):
        assert part.column_names == ["messages"]
    text = path.read_text().replace("[prompt]", "[prompt]\ntemplate_kwargs = { thinks = false }")
    path.write_text(text)
    for part in experiment.load_rows(load_profile(path)):
        assert part["chat_template_kwargs"][:] == [{"thinks": False}] * len(part)


def test_what_is_held_out_is_in_no_row_in_another_form(tmp_path, profile_file):
    again = [conversation(f" NUMBER  {i}?\n", f"It is {i}.") for i in range(ROWS)]
    write_rows(tmp_path / "rows.jsonl", extra=again)
    path = profile_file()
    head = path.read_text().partition("[[questions]]")[0]
    path.write_text("questions = { held_out = 5 }\n" + head)
    profile = load_profile(path)
    parts = experiment.load_rows(profile)
    assert sum(map(len, parts)) == 2 * (ROWS - 5)
    left = {" ".join(text.lower().split()) for part in parts for text in user_texts(part)}
    assert not left & {question.text.lower() for question in profile.questions}


def test_too_few_rows_are_refused(tmp_path, profile_file):
    write_rows(tmp_path / "rows.jsonl", rows=1)
    with pytest.raises(DataError, match=r"rows\.jsonl' leaves 1 rows, and two are the least"):
        experiment.load_rows(load_profile(profile_file()))


# --- The parts of a profile --------------------------------------------------------------------


def test_a_part_that_nothing_plays_is_named(profile_file):
    path = profile_file()
    path.write_text(re.sub("reference = .*", "", path.read_text()))
    with pytest.raises(ProfileError, match=r"tiny names no reference\. Write reference = \.\.\."):
        experiment.load_part(load_profile(path), "reference")


def test_the_template_of_another_model(tmp_path, folder, profile_file):
    other = make_tokenizer()
    other.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    write_tiny(tmp_path / "chat")
    other.save_pretrained(tmp_path / "chat")
    path = profile_file()
    path.write_text(path.read_text().replace('template = "chatml.jinja"', 'template_from = "chat"'))
    _, tokenizer = experiment.load_trainee(load_profile(path))
    assert tokenizer.chat_template == other.chat_template

    own = make_tokenizer()
    own.chat_template = "own {{ messages[0].content }}<|im_end|>"
    own.save_pretrained(folder)
    assert experiment.load_trainee(load_profile(path))[1].chat_template == other.chat_template
    text = path.read_text()
    for key, template in (
        ("chat_template", (TEMPLATES / "chatml.jinja").read_text()),
        ("fallback_chat_template", own.chat_template),
    ):
        path.write_text(text.replace('chat_template_from = "chat"', f'{key} = "chatml.jinja"'))
        assert experiment.load_trainee(load_profile(path))[1].chat_template == template
    path.write_text(text)

    make_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    path.write_text(path.read_text().replace('from = "chat"', 'from = "tiny"'))
    with pytest.raises(ModelLoadError, match=r"taken from '.*tiny', which has none"):
        experiment.load_trainee(load_profile(path))


def test_an_answer_ends_at_the_stop_tokens_of_the_profile(profile_file, tmp_path):
    """Also after training, when the trainer has brought the model's end tokens into line."""
    before = load_profile(profile_file())
    (answer,) = ask_questions(*experiment.load_trainee(before), before)
    assert not answer.stopped
    tokenizer = make_tokenizer()
    stop = tokenizer.decode([answer.token_ids[1]])
    after = load_profile(profile_file(prompt=f"stop_tokens = [{json.dumps(stop)}]"))
    trainer = experiment.walkthrough_trainer(after)
    trainer.args.learning_rate, trainer.args.max_steps = 0.0, 1
    train(trainer, tmp_path / "runs")
    for model, tokenizer in (
        experiment.load_trainee(after),
        (trainer.model, trainer.processing_class),
    ):
        assert answer.token_ids[1] in end_token_ids(model, tokenizer)
        (answer_now,) = ask_questions(model, tokenizer, after)
        assert answer_now.stopped
        assert answer_now.token_ids == answer.token_ids[:2]


# --- Further arguments -------------------------------------------------------------------------


def test_arguments_of_the_profile_reach_the_config(profile_file):
    table = "[sft.arguments]\nweight_decay = 0.5\nbf16 = true\nseed = 7"
    plain = experiment.make_config(load_profile(profile_file())).to_dict()
    profile = load_profile(profile_file(more=table))
    config = experiment.make_config(profile)
    differing = {k for k, v in config.to_dict().items() if plain[k] != v}
    assert differing - {"output_dir", "run_name"} == {"weight_decay", "bf16", "seed"}
    assert (config.weight_decay, config.bf16, config.seed) == (0.5, True, 7)
    assert experiment.make_config(profile, seed=9).seed == 9


# --- LoRA --------------------------------------------------------------------------------------


def with_lora(profile_file, r=2):
    table = f"[lora]\nr = {r}\nlora_alpha = 4\nlora_dropout = 0.0\n"
    return experiment.walkthrough_trainer(load_profile(profile_file(more=table)))


def test_the_settings_of_lora_count(profile_file):
    plain = experiment.walkthrough_trainer(load_profile(profile_file()))
    trainers = [plain, *(with_lora(profile_file, r) for r in (2, 2, 3))]
    found = [fingerprint(trainer) for trainer in trainers]
    assert found[1] == found[2] and len(set(found)) == 3


def test_a_run_with_lora_is_kept_and_recalled(profile_file, tmp_path):
    trainer = with_lora(profile_file)
    start = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    run = train(trainer, tmp_path / "runs")
    trained = trainer.model.state_dict()
    moved = {name for name in start if not (start[name] == trained[name]).all()}
    assert all("lora_" in name for name in moved)
    assert len(moved) == 2 * 2 * 7  # A and B, in two layers, of seven matrices each
    assert trainer.state.best_global_step  # so the best checkpoint was loaded
    again = with_lora(profile_file)
    recalled = train(again, tmp_path / "runs")
    assert (run.reused, recalled.reused) == (False, True)
    assert same(again.model.state_dict(), trained)


# --- Around it ---------------------------------------------------------------------------------


def test_scratch_folders_go_with_the_process():
    code = "from sft_utils.experiment import scratch_folder as make; print(make())"
    folder = run_alone(sys.executable, "-c", code, cwd=ROOT).strip()
    assert folder and not Path(folder).exists()
