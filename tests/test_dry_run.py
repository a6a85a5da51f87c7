"""The check of a profile: what it says is what a build would do, and it leaves nothing behind."""

import io
import json
import math
import re
import shutil
import sys
import tomllib

import pytest
from conftest import (
    PROFILE,
    ROOT,
    conversation,
    make_model,
    readme_profile,
    run_alone,
    thinned,
    write_tiny,
)
from lookalikes import write_models

from sft_utils import dry_run, estimates, experiment
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model without a chat template."""
    write_tiny(folder := tmp_path_factory.mktemp("shared") / "tiny")
    return folder


@pytest.fixture
def home(tmp_path, tiny):
    """A folder with the tiny model, 24 rows and a profile of them."""
    home = tmp_path / "home"
    shutil.copytree(tiny, home / "tiny")
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
    assert said["data"] == "rows.jsonl: 24 rows, none refused"
    assert said["profile"].endswith("; the file mine.toml")
    assert str(home) not in "".join(said.values())  # all is named as the profile names it
    assert said["rehearsal"].startswith("one update of the trainee, an evaluation, a checkpoint")
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
        assert f"about {estimates.size(needed)}, estimated for 4 rows of 60" in said["memory"]
    size = 4 * trainer.model.num_parameters()
    shown = [estimates.size(count * size) for count in (3 * 3, 1)]
    assert said["disk"].startswith(
        f"{shown[0]} for 3 checkpoints while it trains, {shown[1]} for the kept run; "
    )
    assert f"\n{estimates.size(2 * size)} for the model that chapter 07 exports" in said["disk"]
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
    return {path: path.is_file() and path.stat().st_mtime_ns for path in folder.rglob("*")}


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
    told = capsys.readouterr().out
    assert told.startswith("PROBLEM    There is no profile")
    assert told.endswith("1 problem: a build would fail\n")
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
    assert said["disk"].startswith(f"{estimates.size(3 * 3 * 4 * trained)} for 3 checkpoints")


@pytest.mark.weekly
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
    monkeypatch.setattr(estimates, "LOOKED_AT", 5)
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
        (
            ('"Hi"', f'"{"Hi " * 600}"'),
            r"base: the question 'Hi .* tokens; with max_new_tokens = 4",
        ),
        (("max_new_tokens = 4", "max_new_tokens = 600"), "more than the model's context of 512"),
        (("max_new_tokens = 4", "max_new_tokens = 0"), "max_new_tokens must be greater than 0, no"),
        (("= 1e-2", "= nan"), "learning_rate must be a finite number, not nan"),
        (("= 1e-2", "= 0"), "learning_rate must be greater than 0, not 0"),
        (("= 1e-2", "= -1.0"), "learning_rate must be greater than 0, not -1.0"),
        (("= 1e-2", "= 1e300"), "training: the loss is no number after one update: lower"),
        (("_epochs = 3", "_epochs = 0"), "num_train_epochs must be greater than 0, not 0"),
        (("_epochs = 3", "_epochs = inf"), "num_train_epochs must be a finite number, not inf"),
        (("batch_size = 4", "batch_size = 0"), "batch_size must be greater than 0, not 0"),
        (("batch_size = 4", f"batch_size = {10**12}"), "batch_size must be less than 2147483648"),
        (("max_length = 60", "max_length = 0"), "max_length must be greater than 0, not 0"),
        (
            ("max_length = 60", 'lr_scheduler_type = "cosine_with_min_lr"'),
            "sft: lr_scheduler_type =",
        ),
        (("max_length = 60", 'lr_scheduler_type = "cosin"'), "sft: lr_scheduler_type = 'cosin'"),
    ],
)
def test_a_problem_is_told(check, change, problem):
    good, said = check(change)
    assert not good
    assert re.search(problem, said["PROBLEM"]), said["PROBLEM"]


ARGUMENTS = {  # lines of [sft.arguments], and what is said of them
    'optim = "paged_adamw_8bit"': r"optim = 'paged_adamw_8bit': .*bitsandbytes.* Change it or",
    'optim = "adamw"': "optim = 'adamw': .*",
    'report_to = "tensorboard"': "report_to = 'tensorboard': .*tensorboard",
    'pad_token = "<none>"': "pad_token = '<none>': .*not found in the vocabulary",
    'eos_token = "<none>"': "eos_token = '<none>': ",
    'metric_for_best_model = "rouge"': "metric_for_best_model is 'rouge'.*Write greater_is_better",
    'metric_for_best_model = "dev_exact"': "metric_for_best_model = 'dev_exact': .*eval_loss",
    "greater_is_better = true": "greater_is_better is true, and the loss chooses",
    'chat_template_path = "none.jinja"': "chat_template_path = 'none.jinja': ",
    "push_to_hub = true": "push_to_hub is true, and a build sends nothing.*hf upload",
    'resume_from_checkpoint = "c"': "resume_from_checkpoint is chosen by the store of runs",
    "gradient_checkpointing = true": r"write activation_checkpointing in \[sft\] itself",
    'deepspeed = "none.json"': "deepspeed = 'none.json': ",
    'eval_strategy = "no"\nload_best_model_at_end = true': "eval_strategy = 'no': ",
    'eval_strategy = "epoch"\nsave_strategy = "steps"': "eval_strategy = 'epoch': .*to match",
    "eval_steps = 0.2\nsave_steps = 0.3": "eval_steps = 0.2: .*multiple",
    "eval_steps = 0": "eval_steps must be above 0, at most 2147483647, not 0",
    "max_steps = 0": "max_steps must be from 1 to 2147483647, not 0",
    "seed = -1": "seed must be from 0 to 4294967295, not -1",
    f"seed = {2**40}": "seed must be from 0 to 4294967295, not 1099511627776",
    "per_device_eval_batch_size = 0": "per_device_eval_batch_size must be from 1",
    "weight_decay = nan": "weight_decay must be 0 or more, not nan",
    "adam_beta1 = inf": "adam_beta1 must be a finite number, not inf",
    "adam_beta1 = 2.0": "adam_beta1 = 2.0: .*[Ii]nvalid beta",
    "max_grad_norm = -1.0": "max_grad_norm must be 0 or more, not -1.0",
}
LORA = {  # of [lora]
    "r = 1\nlora_alpha = 1\ntarget_modules = ['q_prj']": r"target_modules = \('q_prj',\): .*not f",
    "r = 1\nlora_alpha = 1\ntarget_modules = '(('": r"lora: target_modules = '\(\(': .*position \d",
    "r = 1\nlora_alpha = 1\nlora_dropout = 1.5": "lora_dropout must be less than 1, not 1.5",
    f"r = {10**12}\nlora_alpha = 1": "r must be less than 2147483648, not 1000000000000",
    "r = 100000\nlora_alpha = 1": "r = 100,000 makes an adapter of .* Lower r",
}


@pytest.mark.parametrize(
    ("lines", "problem"),
    thinned(
        [(f"[sft.arguments]\n{lines}", said) for lines, said in ARGUMENTS.items()]
        + [(f"[lora]\n{lines}", said) for lines, said in LORA.items()],
        every=4,
    ),
)
def test_a_setting_that_would_stop_the_build_is_named(check, lines, problem):
    good, said = check(more=lines)
    assert not good
    assert re.search(problem, said["PROBLEM"]), said["PROBLEM"]
    assert "Traceback" not in said["PROBLEM"] and "sft-check" not in said["PROBLEM"]
    assert said["result"] == "1 problem: a build would fail"


def test_all_settings_that_are_wrong_are_named_at_once(check):
    lines = '[sft.arguments]\noptim = "paged_adamw_8bit"\npad_token = "<none>"\nseed = 3'
    good, said = check(more=lines)
    assert not good and said["result"] == "2 problems: a build would fail"
    assert "optim =" in said["PROBLEM"] and "pad_token =" in said["PROBLEM"]


@pytest.mark.parametrize(
    "lines",
    thinned(every=3, cases=[
        "[sft.arguments]\nmax_steps = 3",
        "[sft.arguments]\nmax_steps = -1\nlogging_strategy = 'no'\nseed = 3",
        "[sft.arguments]\neval_strategy = 'epoch'\nmetric_for_best_model = 'mean_token_accuracy'",
        "[sft.arguments]\neval_steps = 500",  # more than there are updates
        "[sft.arguments]\nsave_strategy = 'best'\npacking = true",
        "[sft.arguments]\nsave_strategy = 'no'\npush_to_hub = false",
        "[sft.arguments]\neval_strategy = 'no'\nassistant_only_loss = false",
        "lr_scheduler_type = 'cosine_with_min_lr'\n[sft.arguments]\n"
        "lr_scheduler_kwargs = {min_lr = 1e-5}",
        "[lora]\nr = 2\nlora_alpha = 4\ntarget_modules = ['q_proj']",
    ]),
)  # fmt: skip
def test_settings_that_work_pass(check, lines):
    good, said = check(("[[q", f"{lines}\n[[q"))
    assert good, said["PROBLEM"]


def test_a_generation_config_that_transformers_does_not_save_again_is_mended(home, check):
    file = home / "tiny" / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": 2, "temperature": 0.6, "top_p": 0.9}))
    good, said = check()
    assert good, said["PROBLEM"]
    settings = experiment.load_trainee(load_profile(home / "mine.toml"))[0].generation_config
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.6, 0.9)
    file.write_text(json.dumps({"eos_token_id": 2, "early_stopping": True}))
    good, said = check()
    assert not good
    assert re.search("training: GenerationConfig is invalid: .*early_stopping", said["PROBLEM"])


def test_nothing_left_to_validate_on_is_a_problem(home, check):
    judged = experiment.load_rows(load_profile(home / "mine.toml"))[1]["messages"]
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    long = conversation("Why? " * 40, "So.")
    write(home / "rows.jsonl", [long if row["messages"] in judged else row for row in rows])
    good, said = check()
    assert not good
    assert said["PROBLEM"].startswith("No validation row has anything left to learn: the shortest")


@pytest.mark.parametrize("kind", ["learned positions", "rotary positions"])
def test_rows_beyond_the_context_of_the_model_are_a_problem(home, check, kind):
    from transformers import GPT2Config, GPT2LMHeadModel

    if kind == "learned positions":
        config = GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=1, n_head=1)
        model = GPT2LMHeadModel(config)
        model.generation_config.eos_token_id = 2
    else:
        model = make_model("llama", max_position_embeddings=64)
    model.save_pretrained(home / "tiny")
    good, said = check(("max_length = 60", "max_length = 128"))
    assert not good
    assert said["PROBLEM"].startswith(
        "data: 1 of 22 rows have more tokens than the model's context"
    )
    assert "of 64, the longest" in said["PROBLEM"] and "Set max_length = 64" in said["PROBLEM"]
    good, said = check(("max_length = 128", "max_length = 64"))
    assert good, said["PROBLEM"]


def test_whatever_else_is_raised_is_a_problem_and_no_traceback(check, monkeypatch):
    def fail(profile):
        raise RuntimeError("the disk broke")

    monkeypatch.setattr(dry_run, "load_trainee", fail)
    good, said = check()
    assert not good and said["PROBLEM"] == "RuntimeError: the disk broke"


def test_a_disk_that_is_too_small_is_a_problem(check, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    good, said = check()
    assert not good
    assert "are more than is free. Make room, or set SFT_RUNS" in said["PROBLEM"]
    assert "set TMPDIR" in said["PROBLEM"]


def test_a_terminal_that_does_not_know_every_character_is_told_all_the_same(home, monkeypatch):
    rows = [conversation(f"Number {i}?", f"Είναι {i}.") for i in range(24)]
    write(home / "rows.jsonl", rows)
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert main(["check", str(home / "mine.toml")]) == 0
    sys.stdout.flush()
    assert rb"\u0395" in shown.getvalue()


def test_a_copy_under_the_name_of_a_shipped_profile_is_told_apart(home, monkeypatch, capsys):
    (home / "atlas.toml").write_text("\ufeff" + (home / "mine.toml").read_text(), "utf8")
    monkeypatch.chdir(home)
    monkeypatch.setattr(dry_run, "_models", lambda profile, report: {})
    main(["check", "atlas.toml"])
    assert "atlas, 1 questions; the file atlas.toml" in capsys.readouterr().out
    main(["check", "atlas"])
    assert "atlas, 10 questions; shipped with the package" in capsys.readouterr().out


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
    assert f"; {dropped} have nothing left to learn and are dropped" in said["lengths"]
    assert f"\n{20 - dropped} of 2 validation rows as well" in said["lengths"]
    batches = len(trainer.get_train_dataloader())
    assert said["updates"].startswith(f"{3 * math.ceil(batches / 2)} of ")
    write(home / "rows.jsonl", [conversation("Why? " * 40, "So.")] * 20)
    good, said = check()
    assert not good
    assert said["PROBLEM"].startswith("No row has anything left to learn")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-100], "model.safetensors in the folder .*torn is damaged"),
        (lambda content: content[:-4] + b"\0\0\xc0\x7f", r"no numbers: 1 of .* are NaN or inf"),
    ],
    ids=["cut", "NaN"],
)
def test_damaged_weights_are_told_of_each_part(home, check, damage, words):
    shutil.copytree(home / "tiny", home / "torn")
    weights = home / "torn" / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    good, said = check(('base = "tiny"', 'base = "torn"'))
    assert not good
    assert re.match(f"base: .*{words}", said["PROBLEM"])
    assert "time" in said  # the rest is told all the same


def test_weights_that_do_not_fit_their_config_are_told_of_each_part(home, check):
    shutil.copytree(home / "tiny", home / "other")
    config = json.loads((home / "other" / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (home / "other" / "config.json").write_text(json.dumps(config))
    good, said = check(('base = "tiny"', 'base = "other"'))
    assert not good
    assert re.match("base: .*do not match its config.json:\n.* missing", said["PROBLEM"])


# --- The example of the README -----------------------------------------------------------------


def test_the_example_of_the_readme_can_be_built(tmp_path, capsys):
    """With what it names on the Hub and its rows as small ones here."""
    write_models(tmp_path)
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(60)]
    write(tmp_path / "mine.jsonl", rows)
    text = readme_profile()
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
