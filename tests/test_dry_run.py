"""The check of a profile: what it says is what a build would do, and it leaves nothing behind."""

import json
import math
import re
import shutil
import sys
import tomllib

import pytest
from conftest import PROFILE, ROOT, conversation, run_alone, write_tiny
from lookalikes import write_models

from sft_utils import dry_run, experiment
from sft_utils.dry_run import check_profile, main
from sft_utils.estimates import Lengths, work
from sft_utils.profiles import load_profile
from sft_utils.training.memory import estimate_memory

UNMARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def home(tmp_path):
    """A folder with a tiny model without a chat template, 24 rows and a profile of them."""
    home = tmp_path / "home"
    write_tiny(home / "tiny")
    rows = [conversation(f"Number {i}?", f"It is {i}.") for i in range(23)]
    write(home / "rows.jsonl", [*rows, conversation("And the long one?", "It is long. " * 9)])
    text = PROFILE.replace('reference = "tiny"', "").replace("= 64", "= 60")
    batches = "batch_size = 4\ngradient_accumulation_steps = 2"
    (home / "mine.toml").write_text(text.replace("batch_size = 8", batches))
    (home / "unmarked.jinja").write_text(UNMARKED)
    (home / "one_way.jinja").write_text(UNMARKED.partition("{% if add_gen")[0])
    return home


@pytest.fixture
def check(home):
    """Returns a function that checks the profile after changes: result, and lines by name."""

    def run(*changes, more=""):
        text = (home / "mine.toml").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (home / "mine.toml").write_text(f"{text}\n{more}")
        lines = []
        good = check_profile(home / "mine.toml", say=lines.append)
        found, name = {}, ""
        for line in lines:
            name = line[:10].strip() or name
            found[name] = f"{found[name]}\n{line[11:]}" if name in found else line[11:]
        return good, found

    return run


# --- A good profile ----------------------------------------------------------------------------


def test_it_says_what_a_build_would_do(home, check):
    good, said = check()
    assert good and "PROBLEM" not in said
    assert said["result"] == "can be built"
    profile = load_profile(home / "mine.toml")
    model, _ = experiment.load_trainee(profile)
    for part in ("base", "trainee"):
        assert f"tiny: {model.num_parameters():,} parameters, float32, in a folder" in said[part]
    assert said["reference"].startswith("none")
    assert said["data"] == f"{home / 'rows.jsonl'}: 24 rows, none refused"
    assert said["read as"] == "rows of turns (messages -> turns)"
    assert said["not used"] == "no column"
    assert said["rows"] == "22 to train on, 2 for validation"
    assert said["stops"] == "an answer ends at '<|im_end|>'"


def test_lengths_loss_updates_and_memory_are_those_of_the_trainer(home, check):
    _, said = check()
    trainer = experiment.walkthrough_trainer(load_profile(home / "mine.toml"))
    rows = trainer.train_dataset
    lengths = [len(ids) for ids in rows["input_ids"]]
    learned = sum(label != -100 for row in rows["labels"] for label in row)
    assert max(lengths) == 60  # cut
    share = learned / sum(lengths)
    assert said["loss"].startswith(f"on {learned:,} of {sum(lengths):,} tokens ({share:.0%})")
    assert said["loss"].endswith("<|im_end|>'")
    assert re.search(r"teaches 'It is \d+\.<\|im_end\|>'$", said["loss"])
    median = sorted(lengths)[len(lengths) // 2]
    assert re.match(rf"median {median} tokens, longest \d+; 1 of 22 rows", said["lengths"])
    assert int(re.search(r"longest (\d+)", said["lengths"])[1]) > 60
    batches = len(trainer.get_train_dataloader())
    assert said["updates"] == f"{3 * math.ceil(batches / 2)} of 8 rows each, in 3 epochs"
    needed = sum(estimate_memory(trainer.model, 4 * 60, gpu=False).values())
    if trainer.args.device.type == "cpu":
        assert f"about {dry_run._size(needed)}, estimated for 4 rows of 60" in said["memory"]
    size = 4 * trainer.model.num_parameters()
    shown = [dry_run._size(count * size) for count in (3 * 3, 1)]
    assert said["disk"].startswith(
        f"{shown[0]} for 3 checkpoints while it trains, {shown[1]} for the kept run; "
    )
    assert "measured in passes of the trainee on this machine" in said["time"]


def test_an_update_of_a_trainer_takes_as_many_tokens(home):
    """The padded tokens of an epoch, against the batches that the trainer really makes."""
    profile = load_profile(home / "mine.toml")
    trainer = experiment.walkthrough_trainer(profile)
    real = sum(batch["input_ids"].numel() for batch in trainer.get_train_dataloader())
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    updates, tokens = work(trainer.args, Lengths(lengths, len(lengths)))
    assert updates == 9
    assert tokens == pytest.approx(3 * real, rel=0.1)
    assert work(trainer.args, Lengths(lengths, 10 * len(lengths)))[1] == pytest.approx(10 * tokens)
    shorter = experiment.make_config(profile, max_steps=3)
    assert work(shorter, Lengths(lengths, len(lengths))) == (3, pytest.approx(tokens / 3))
    packing = experiment.make_config(profile, packing=True)
    assert work(packing, Lengths([60] * 16, 16)) == (6, 3 * 16 * 60)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_command_tells_writes_nothing_and_has_a_status(home, monkeypatch, capsys):
    inside = home.parent
    for name in ("cwd", "temporary", "cache"):
        (inside / name).mkdir()
    monkeypatch.chdir(inside / "cwd")
    monkeypatch.setattr("tempfile.tempdir", str(inside / "temporary"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(inside / "cache"))
    text = (home / "mine.toml").read_text()
    (home / "mine.toml").write_text("questions = {held_out = 3}\n" + text.partition("[[q")[0])
    before = files(inside)
    assert main(["check", str(home / "mine.toml")]) == 0
    said = capsys.readouterr().out
    assert said.endswith("result     can be built\n")
    assert "mine, 3 questions, drawn from the data and kept out of training" in said
    assert "24 rows, 3 left out (3 questions are held out)" in said
    assert files(inside) == before
    monkeypatch.setenv("SFT_PROFILE", str(home / "none.toml"))
    assert main(["check"]) == 1
    assert capsys.readouterr().out.startswith("PROBLEM    There is no profile")
    with pytest.raises(SystemExit):
        main([])


def test_a_cut_is_told(home, check, monkeypatch):
    from sft_utils import environment

    monkeypatch.setattr(environment, "best_device", lambda: "cpu")
    good, said = check(("[prompt]", "rows = 10\n[prompt]"))
    assert good
    assert said["data"].endswith("24 rows, 14 left out (rows = 10 on this machine), none refused")
    assert said["rows"] == "9 to train on, 1 for validation"


def test_lora_is_counted(home, check):
    good, said = check(more="[lora]\nr = 2\nlora_alpha = 4")
    assert good
    trainer = experiment.walkthrough_trainer(load_profile(home / "mine.toml"))
    weights = list(trainer.model.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    assert said["lora"].startswith(f"{trained:,} parameters are trained, ")
    assert said["disk"].startswith(f"{dry_run._size(3 * 3 * 4 * trained)} for 3 checkpoints")


def test_what_the_mask_is_known_from_and_what_the_template_drops(home, check):
    good, said = check()
    assert good and said["mask"] == "the assistant's tokens are known from its own markers"
    lengths = said["lengths"], said["loss"]
    good, said = check(("chatml.jinja", "unmarked.jinja"))
    assert good and said["mask"] == "the assistant's tokens are known from the rule"
    assert (said["lengths"], said["loss"]) == lengths
    thinking = [conversation(f"{i}?", f"<think>So</think>It is {i}.") for i in range(5)]
    plain = [conversation(f"Number {i}?", f"It is {i}.") for i in range(20)]
    write(home / "rows.jsonl", [*thinking, *plain])
    cut = UNMARKED.replace("m['content'] +", "m['content'].split('</think>')[-1] +")
    (home / "unmarked.jinja").write_text(cut)
    good, said = check()
    assert good and said["mask"].endswith(
        "in 5 of 25 rows, the template drops text of the assistant's turns"
    )
    refusing = "{% if '7' in messages[0]['content'] %}{{ raise_exception('no 7') }}{% endif %}"
    (home / "unmarked.jinja").write_text(refusing + UNMARKED)
    good, said = check()
    assert not good and re.match(
        r"row 12 \('Number 7\?'\): The .* refuses .*: no 7\. Change", said["PROBLEM"]
    )


def test_of_many_rows_a_sample_is_looked_at(check, monkeypatch):
    monkeypatch.setattr(dry_run, "LOOKED_AT", 5)
    good, said = check()
    assert good and " of 5 rows looked at are over" in said["lengths"]
    assert said["updates"] == "9 of 8 rows each, in 3 epochs"


def test_weights_that_are_not_here_yet(home, check, monkeypatch):
    """As for a model on the Hub, of which only the small files are fetched."""
    small = home / "small"
    shutil.copytree(home / "tiny", small, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(dry_run, "fetch", lambda source, revision, weights: small)
    good, said = check(('trainee = "tiny"', 'trainee = "owner/tiny"'))
    assert good, said
    assert "float32, on the Hub, its weights not downloaded yet" in said["trainee"]
    assert "6 operations a parameter and token" in said["time"]
    assert said["updates"] == "9 of 8 rows each, in 3 epochs"


def test_a_model_that_does_not_fit_is_not_loaded(check, monkeypatch):
    machine = {"memory_gib": 1e-4}
    monkeypatch.setattr(dry_run, "describe_device", lambda: machine)
    monkeypatch.setattr(dry_run, "load_trainee", lambda profile: pytest.fail("loaded"))
    good, said = check()
    assert not good
    assert said["PROBLEM"].startswith("memory: more than this machine has.")


# --- Profiles with something wrong -------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("learning_rate", "learning_rte"), r"unknown learning_rte\. Did you mean learning_rate"),
        (('base = "tiny"', 'base = "./none"'), r"base: Cannot load a model from './none'"),
        (("rows.jsonl", "none.jsonl"), r"data: refused\nThere is no data file 'none.jsonl'"),
        (("chat_template", "# "), r"tiny' has no chat template"),
        (("chatml.jinja", "one_way.jinja"), r"\{% generation %\} .*ignores add_generation_prompt"),
        (('text = "Hi"', 'text = "<|im_end|>"'), r"base: Turn 0 \(user\) contains '<\|im_end\|>'"),
        (("[prompt]", '[prompt]\nstop_tokens = ["ab cd"]'), r"'ab cd' is \d tokens of"),
        (("[data]", 'trainee_revision = "v1"\n[data]'), r"trainee: The folder .* no revision 'v1'"),
        (("[[q", "[sft.arguments]\nsave_steps = 0.3\n[[q"), "settings: .*steps"),
        (
            ("[[q", "[lora]\nr = 1\nlora_alpha = 1\ntarget_modules = ['q_prj']\n[[q"),
            "Target modules .*q_prj.* not found",
        ),
    ],
)
def test_a_problem_is_told(check, change, problem):
    good, said = check(change)
    assert not good
    assert re.search(problem, said["PROBLEM"]), said["PROBLEM"]


def test_refused_rows_are_listed_with_their_lines(home, check):
    bad = [conversation("a", " "), conversation("b", "c"), {"messages": []}]
    write(home / "rows.jsonl", bad)
    good, said = check()
    assert not good
    assert re.search(r"row 0 \(line 1\), turn 1: the content of the assistant", said["PROBLEM"])
    assert re.search(r"row 2 \(line 3\).*messages", said["PROBLEM"])
    assert said["result"] == "1 problem: a build would fail"


def test_an_end_that_is_never_learned_is_a_problem(home, check):
    write(home / "rows.jsonl", [conversation("How long?", "It is long. " * 50)] * 4)
    good, said = check()
    assert not good
    assert said["PROBLEM"].startswith("loss: no token that ends an answer carries loss")


def test_rows_with_nothing_left_to_learn_are_dropped(home, check):
    rows = [conversation(f"Number {i}?", f"It is {i}.") for i in range(20)]
    write(home / "rows.jsonl", [conversation("Why? " * 40, "So.")] * 20 + rows)
    good, said = check()
    trainer = experiment.walkthrough_trainer(load_profile(home / "mine.toml"))
    dropped = 38 - len(trainer.train_dataset)
    assert good and 0 < dropped < 38
    assert said["lengths"].endswith(f"; {dropped} have nothing left to learn and are dropped")
    batches = len(trainer.get_train_dataloader())
    assert said["updates"].startswith(f"{3 * math.ceil(batches / 2)} of ")
    write(home / "rows.jsonl", [conversation("Why? " * 40, "So.")] * 20)
    good, said = check()
    assert not good
    assert said["PROBLEM"].startswith("No row has anything left to learn")


def test_damaged_weights_are_told_of_each_part(home, check):
    shutil.copytree(home / "tiny", home / "torn")
    weights = home / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    good, said = check(('base = "tiny"', 'base = "torn"'))
    assert not good
    assert re.match(r"base: Cannot load the model in '.*torn'", said["PROBLEM"])
    assert "time" in said  # the rest is told all the same


# --- The example of the README -----------------------------------------------------------------


def test_the_example_of_the_readme_can_be_built(tmp_path, capsys):
    """With what it names on the Hub and its rows as small ones here."""
    write_models(tmp_path)
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(60)]
    write(tmp_path / "mine.jsonl", rows)
    readme = (ROOT / "README.md").read_text("utf8")
    blocks = re.findall(r"^```toml\n(.*?)^```$", readme, re.M | re.S)
    [text] = [block for block in blocks if "[models]" in block]
    (tmp_path / "mine.toml").write_text(text.replace('"HuggingFaceTB/SmolLM2-135M"', '"trainee"'))
    assert main(["check", str(tmp_path / "mine.toml")]) == 0
    said = capsys.readouterr().out
    assert said.endswith("result     can be built\n")
    held_out = tomllib.loads(text)["questions"]["held_out"]
    assert f"mine, {held_out} questions, drawn from the data and kept out of training" in said


# --- The command -------------------------------------------------------------------------------


def test_the_module_that_is_documented_runs_the_command():
    command = (sys.executable, "-m", "sft_utils.profiles", "check", "--help")
    assert "check" in run_alone(*command, cwd=ROOT)
