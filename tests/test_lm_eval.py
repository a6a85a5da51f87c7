"""An outside judge agrees: lm-evaluation-harness scores the checkpoints as the book does.

``lm_eval`` loads the checkpoint, writes the prompts and generates by itself, on the tasks in
``sft_utils/atlas/lm_eval_tasks``. What is compared of a question: its prompt, tokens, answer and
scores.
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest
import yaml
from conftest import own_files, thinned

import sft_utils.atlas.lm_eval_tasks
from sft_utils import generation, load_model_and_tokenizer, resolve
from sft_utils.atlas import evaluate
from sft_utils.atlas.evaluate import MAX_NEW_TOKENS, cloze, score_split
from sft_utils.atlas.lm_eval_tasks import FOLDER
from sft_utils.atlas.questions import SPLITS, scored_questions
from sft_utils.atlas.world import load_world
from sft_utils.evaluation.metrics import SCORES

#: The published splits, by their tasks.
CHAT = {
    "atlas_" + split.removesuffix("-test").replace("-", "_"): split
    for split in SPLITS
    if not split.endswith("-dev")
}
TUNED = ("atlas_instruction", "atlas_follow_up", "atlas_never_asked")


@pytest.fixture(autouse=True)
def nothing_lasts(monkeypatch):
    """The environment is as before. What ``lm_eval`` says of the machine, which it asks other
    programs for, is left out."""
    from lm_eval import evaluator

    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)
    environment = dict(os.environ)
    yield
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


@pytest.fixture(scope="module")
def manager():
    """The tasks here alone: the thousands that come with ``lm_eval`` take long to list."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(FOLDER), include_defaults=False)


@pytest.fixture(scope="module")
def models():
    """For each checkpoint, the judge's model and the book's, each loaded in its own way."""
    from lm_eval.models.huggingface import HFLM

    return {
        name: (
            HFLM(pretrained=resolve(name), dtype="float32", device="cpu", batch_size=256),
            *load_model_and_tokenizer(name, device="cpu"),
        )
        for name in ("atlas-sft", "atlas-small")
    }


def judged(lm, manager, task, **options):
    """What ``lm_eval`` logs for each question of a task, and the means that it reports."""
    from lm_eval.evaluator import simple_evaluate

    results = simple_evaluate(
        model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0,
        **{"apply_chat_template": True} | options,
    )  # fmt: skip
    return sorted(results["samples"][task], key=lambda row: row["doc_id"]), results["results"][task]


def asked(model, tokenizer, questions, **options):
    """The book's table, and the generations that it was made from."""
    answers, generate = [], generation.generate_responses

    def record(*arguments, **keywords):
        answers.extend(generate(*arguments, **keywords))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "generate_responses", record)
        patch.setattr(evaluate, "remember", lambda rests_on, ask: ask())  # not from the store
        return score_split(model, tokenizer, questions, **options), answers


def differences(samples, frame, scores=SCORES):
    """Every answer and score on which the judge and the book's table are not the same."""
    rows = frame.to_dict("records")
    found = [] if len(samples) == len(rows) else [f"{len(samples)} and {len(rows)} questions"]
    for number, (sample, row) in enumerate(zip(samples, rows, strict=False)):
        judge = {"response": sample["filtered_resps"][0], "right": sample["target"]}
        judge |= {score: sample[score] for score in scores}
        found += [
            f"question {number}, {name}: {value!r} and {row[name]!r}"
            for name, value in judge.items()
            if value != row[name]
        ]
    return found


def compare(lm, model, tokenizer, manager, task, step, *, room=MAX_NEW_TOKENS):
    """Ask both every so many of a split's questions, and compare."""
    questions = scored_questions(CHAT[task], load_world())
    places = range(0, len(questions), step)
    options = {} if room == MAX_NEW_TOKENS else {"gen_kwargs": {"max_gen_toks": room}}
    samples, means = judged(lm, manager, task, samples={task: list(places)}, **options)
    questions = [questions[place] for place in places]
    frame, answers = asked(model, tokenizer, questions, max_new_tokens=room)
    prompts = [sample["arguments"][0][0] for sample in samples]
    assert prompts == [answer.prompt for answer in answers]
    assert [lm.tok_encode(prompt) for prompt in prompts] == [a.prompt_ids for a in answers]
    assert differences(samples, frame) == []
    for score in SCORES:
        assert means[f"{score},none"] == pytest.approx(frame[score].mean())
    return samples, frame, answers


# --- Agreement ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def headline(models, manager):
    """A fifth of the published headline, put to the fine-tuned checkpoint by both."""
    return compare(*models["atlas-sft"], manager, "atlas_headline", 5)


def test_the_headline_is_the_same(headline):
    samples, frame, _ = headline
    assert len(samples) > 160 and frame["exact"].mean() > 0.5


@pytest.mark.parametrize("task", TUNED)
def test_a_fine_tuned_checkpoint_scores_the_same(models, manager, task):
    samples, frame, _ = compare(*models["atlas-sft"], manager, task, 12)
    assert len(samples) >= 25 and frame["right_value"].any()


@pytest.mark.parametrize("task", thinned(sorted({*CHAT} - {*TUNED, "atlas_headline"}), 5))
def test_a_base_model_scores_the_same(models, manager, task):
    _, frame, _ = compare(*models["atlas-small"], manager, task, 48)
    assert not frame["stops"].all()


@pytest.mark.parametrize("more", [-1, 0])
def test_where_an_answer_just_fits_stops_is_the_same(models, manager, headline, more):
    lengths = [answer.num_tokens for answer in headline[2]]
    room = sorted(lengths)[len(lengths) // 2] + more
    _, _, answers = compare(*models["atlas-sft"], manager, "atlas_headline", 20, room=room)
    # With one less, the end of these is what is cut.
    assert more or any(answer.stopped and answer.num_tokens == room for answer in answers)


@pytest.fixture(scope="module")
def completed(models):
    _, model, tokenizer = models["atlas-small"]
    return cloze(model, tokenizer)


@pytest.mark.parametrize("chat", [True, False])
def test_cloze_is_the_same_with_and_without_a_chat_template(models, manager, completed, chat):
    places = range(0, len(completed), 20)
    samples, means = judged(
        models["atlas-small"][0], manager, "atlas_cloze",
        apply_chat_template=chat, samples={"atlas_cloze": list(places)},
    )  # fmt: skip
    frame = completed.iloc[list(places)]
    assert len(samples) > 90 and frame["correct"].mean() > 0.5
    assert [sample["arguments"][0][0] for sample in samples] == frame["prompt"].tolist()
    assert differences(samples, frame, ["correct"]) == []
    assert means["correct,none"] == pytest.approx(frame["correct"].mean())


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lambda s: s[5].update(filtered_resps=["It is Atlantis."] * 2), "question 5, response: "),
        (lambda s: s[11].update(stops=1.0 - s[11]["stops"]), "question 11, stops: "),
        (lambda s: s.pop(), " questions"),
    ],
)
def test_a_planted_difference_is_seen(headline, plant, found):
    samples, frame = deepcopy(headline[0]), headline[1]
    plant(samples)
    [difference] = differences(samples, frame)
    assert found in difference


# --- The tasks ------------------------------------------------------------------------------------


def read_tasks():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    found = {
        path.stem: yaml.load(path.read_text(), Loader)
        for path in own_files("sft_utils/atlas/lm_eval_tasks/*.yaml")
    }
    shared = found.pop("_chat")
    return {name: (shared if "include" in task else {}) | task for name, task in found.items()}


def test_there_is_a_task_for_every_published_split_with_the_room_of_the_book():
    tasks = read_tasks()
    splits = {n: task["dataset_kwargs"]["split"] for n, task in tasks.items() if n in CHAT}
    assert splits == CHAT
    assert set(tasks) == {*CHAT, "atlas_cloze"}
    assert [name for name, task in tasks.items() if task["task"] != name] == []
    rooms = {name: task["generation_kwargs"]["max_gen_toks"] for name, task in tasks.items()}
    assert rooms == dict.fromkeys(CHAT, MAX_NEW_TOKENS) | {"atlas_cloze": 16}


def test_the_checkpoints_leave_the_length_of_an_answer_to_the_judge(models):
    for name, (lm, _, _) in models.items():
        assert lm.model.generation_config.max_new_tokens is None, name


def ask_headline(manager, settings=None, **options):
    [task] = manager.load(["atlas_headline"])["tasks"].values()
    task.config.generation_kwargs.update(settings or {})
    task.build_all_requests(limit=1, **options)
    return task.instances


class Template:
    """A model's stand-in: all that the tasks use of it before they generate."""

    def __init__(self, length=None):
        self.model = SimpleNamespace(generation_config=SimpleNamespace(max_new_tokens=length))

    def write(self, messages):
        return "".join(message["content"] for message in messages)


def test_a_question_is_asked_twice_with_one_token_less(manager):
    first, second = ask_headline(manager, chat_template=Template().write)
    [question, *_] = scored_questions("headline-test", load_world())
    assert first.args[0] == second.args[0] == question.text
    assert (first.args[1]["max_gen_toks"], second.args[1]["max_gen_toks"]) == (40, 39)
    assert first.args[1]["until"] == []
    # A template with no model behind it will do.
    assert len(ask_headline(manager, chat_template=lambda messages: "?")) == 2


@pytest.mark.parametrize(
    ("message", "settings", "options"),
    [
        ("add --apply_chat_template", {}, {}),
        ("leave out --system_instruction", {}, {"system_instruction": "Be brief."}),
        ("answered greedily", {"temperature": 0.7}, {}),
        ("sets max_new_tokens to 64", {}, {"chat_template": Template(64).write}),
    ],
)
def test_what_would_give_other_scores_is_refused(manager, message, settings, options):
    if message != "add --apply_chat_template":
        options = {"chat_template": Template().write} | options
    with pytest.raises(ValueError, match=message):
        ask_headline(manager, settings, **options)


# --- The command ----------------------------------------------------------------------------------


def test_the_module_prints_its_folder(capsys):
    runpy.run_module("sft_utils.atlas.lm_eval_tasks", run_name="__main__")
    assert capsys.readouterr().out == f"{FOLDER}\n"


def test_the_command_that_the_package_names_runs(tmp_path, monkeypatch, capsys):
    from lm_eval import tasks
    from lm_eval._cli.harness import HarnessCLI

    text = sft_utils.atlas.lm_eval_tasks.__doc__.replace("\\\n", "")
    command = shlex.split(text[text.index("lm_eval run") : text.index("'atlas_*'") + 9])
    assert command[2:4] == ["--include_path", "$(python -m sft_utils.atlas.lm_eval_tasks)"]
    command[3] = str(FOLDER)
    command = [part.replace("=FOLDER", f"={resolve('atlas-small')}") for part in command]
    extra = ["--limit", "2", "--log_samples", "--output_path", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, *extra])
    alone = tasks.TaskManager  # the built-in tasks are left out here too
    monkeypatch.setattr(tasks, "TaskManager", lambda **o: alone(**o, include_defaults=False))
    cli = HarnessCLI()
    cli.execute(cli.parse_args())

    table = capsys.readouterr().out
    for name in read_tasks():
        assert f"|{name}" in table
        [log] = tmp_path.rglob(f"samples_{name}_*.jsonl")
        assert len(log.read_text("utf8").splitlines()) == 2
    [log] = tmp_path.rglob("results_*.json")
    metrics = json.loads(log.read_text("utf8"))["results"]["atlas_headline"]
    assert {f"{score},none" for score in SCORES} <= set(metrics)
