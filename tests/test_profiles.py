"""Profiles: the shipped ones are whole, and a badly written one is refused by name."""

import dataclasses
import json
import re
from typing import get_type_hints

import pytest
from conftest import conversation, own_files

from sft_utils.profiles import (
    PROFILE_FILES,
    SFT,
    Data,
    GenerationSettings,
    Lora,
    ProfileError,
    Question,
    is_books_own,
    load_profile,
    sft_arguments,
)

Q = "[[questions]]"
SHIPPED = own_files("sft_utils/profile_files/*.toml")
MINIMAL = """
[models]
base = "my/base"
reference = "my/reference"
trainee = "my/trainee"
[data]
source = "mine.jsonl"
[sft]
learning_rate = 1
num_train_epochs = 2
per_device_train_batch_size = 4
[[questions]]
text = "Who?"
answer = "I"
"""


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Returns a function that loads a profile of the given text."""
    monkeypatch.chdir(tmp_path)

    def load(text):
        (tmp_path / "mine.toml").write_text(text)
        return load_profile("mine.toml")

    return load


def test_the_default_is_the_atlas_and_the_environment_names_another(monkeypatch):
    monkeypatch.delenv("SFT_PROFILE", raising=False)
    atlas = load_profile()
    assert (atlas.name, atlas.models.base) == ("atlas", "atlas-base")
    assert all(question.answer for question in atlas.questions)
    monkeypatch.setenv("SFT_PROFILE", "")
    assert load_profile() == atlas
    monkeypatch.setenv("SFT_PROFILE", "hub")
    assert load_profile().models.trainee == "HuggingFaceTB/SmolLM2-135M"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_profile_asks_each_question_once_and_names_todays_arguments(path):
    from trl import SFTConfig

    profile = load_profile(path.stem)
    texts = [question.text for question in profile.questions]
    assert len(set(texts)) == len(texts) >= 8
    known = {f.name for f in dataclasses.fields(SFTConfig)}
    assert set(dataclasses.asdict(profile.sft)) - {"arguments"} <= known


def test_a_profile_of_ones_own(profile):
    mine = profile(MINIMAL)
    assert mine.name == "mine"
    assert mine.models.control is mine.lora is None
    assert (mine.data.split, mine.data.rows) == ("train", None)
    assert type(mine.sft.learning_rate) is float
    assert mine.prompt.template_kwargs == {}
    assert mine.questions == (Question("Who?", "I"),)
    assert mine.held_out == 0
    assert (mine.sft.arguments, mine.scoring.scorers) == ({}, ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        mine.name = "yours"


def test_found_from_a_folder_below(profile, tmp_path, monkeypatch):
    expected = profile(MINIMAL)
    (tmp_path / "book").mkdir()
    monkeypatch.chdir(tmp_path / "book")
    assert load_profile("mine.toml") == expected
    assert load_profile(tmp_path / "mine.toml") == expected


def test_a_template_beside_the_profile(profile, tmp_path):
    (tmp_path / "my.jinja").write_text("{{ messages }}")
    mine = profile(MINIMAL + '[prompt]\nchat_template = "my.jinja"')
    assert mine.prompt.chat_template == str(tmp_path / "my.jinja")
    with pytest.raises(ProfileError, match=r"no chat template 'your\.jinja'"):
        profile(MINIMAL + '[prompt]\nchat_template = "your.jinja"')


@pytest.mark.parametrize("name", ["nothing", "nothing.toml", "../profile_files/atlas"])
def test_unknown_profile(name):
    with pytest.raises(ProfileError, match=f"{name!r}.*atlas, hub"):
        load_profile(name)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('base = "my/base"', "", r"mine.toml: models: base is missing"),
        (
            "[sft]",
            "[prompt]\ntemplate_kwargs = {tokenize = false}\n[sft]",
            r"prompt: template_kwargs: tokenize is no variable of a template: .* Leave it out",
        ),
        ('text = "Who?"', "text = ' '", r"questions\[0\]: text: ' ' asks nothing\. Fill"),
        ("[sft]", "[sft]\nseed = 1", r"sft: write seed in \[sft\.arguments\]\."),
        ("[sft]", "[sft]\nlearn = 1", r"sft: unknown learn. Known: learning_rate, .*"),
        ("learning_rate = 1", "learning_rate = true", "_rate must be a valid number, not True"),
        ("[models]", "[models", "not valid TOML"),
        (Q, f"[prompt]\nchat_template='chatml.jinja'\nchat_template_from='b'\n{Q}", "are both set"),
        (Q, "[questions]", r"questions: unknown text\. Known: held_out\."),
        (
            Q,
            f"[scoring]\nscorers = ['contain']\n{Q}",
            r"scorers: .*\. Did you mean contains\? Known",
        ),
        (Q, f"[prompt]\nstop_tokens = [1]\n{Q}", r"stop_tokens\[0\] must be"),
        ("[sft]", "columns = {a = 1}\n[sft]", "data: columns: a must be a valid string, not 1"),
        ("[sft]", "columns = {promt = 'q'}\n[sft]", r"unknown promt\. Did you mean prompt\?"),
        (Q, f"[sft.arguments]\nmax_length = 5\n{Q}", "max_length in .sft. it"),
        (Q, f"[sft.arguments]\noutput_dir = 'a'\n{Q}", "output_dir is chosen"),
        (Q, f"[sft.arguments]\npush_to_hub = true\n{Q}", "a build sends nothing anywhere"),
        ("[models]", "[[models]]", r"toml: models must be a table, not \[\{"),
        ("[models]", "held_out = 3\n[models]", r"held_out is a key of \[questions\]\. Write"),
        ('"Who?"', "1979-05-27", r"questions\[0\]: text must be a valid string, not datetime"),
        ('"I"', f'"I"\n{Q}\ntext = "Who?"', r"questions: 'Who\?' is asked 2 times\. Ask it once"),
        ("= 4", "= 4\nactivation_checkpointing = 1", "must be a valid boolean, not 1"),
        ("learning_rate = 1", "learning_rate = nan", "must be a finite number, not nan"),
        (
            Q,
            f"[lora]\nr = 1\nlora_alpha = 1\ntarget_modules = 3\n{Q}",
            r"^mine\.toml: lora: target_modules must be a list, not 3\.$",
        ),
        (
            Q,
            f"[lora]\nr = 8\nlora_alfa = 1\n{Q}",
            r"lora: lora_alpha is missing\.\nmine\.toml: lora: unknown lora_alfa\. Did you mean",
        ),
    ],
)
def test_badly_written_profiles(profile, old, new, problem):
    assert old in MINIMAL
    with pytest.raises(ProfileError, match=problem):
        profile(MINIMAL.replace(old, new, 1))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (f"1{'0' * 400}", r"learning_rate must be a valid number, not 10{9,30}\.\.\."),
        (f"1{'0' * 5000}", r"mine\.toml is not valid TOML"),
        ("[" * 5000, r"mine\.toml is not valid TOML"),
    ],
    ids=["larger than any float", "more digits than Python reads", "too deep"],
)
def test_a_value_without_end(profile, value, problem):
    with pytest.raises(ProfileError, match=problem):
        profile(MINIMAL.replace("learning_rate = 1", f"learning_rate = {value}"))


@pytest.mark.parametrize("kind", [Data, GenerationSettings, SFT, Lora])
def test_nothing_else_is_taken_for_a_number(profile, kind):
    table = "generation" if kind is GenerationSettings else kind.__name__.lower()
    hints = get_type_hints(kind)
    numbers = [key for key, hint in hints.items() if hint in (int, float, int | None)]
    assert numbers
    for key in numbers:
        text = re.sub(rf"^{key} = .*\n", "", MINIMAL, flags=re.M)
        text += "" if f"[{table}]" in text else f"[{table}]\n"
        for wrong in ("'8'", "true", "[8]", "-8"):
            with pytest.raises(ProfileError, match=rf"{table}: {key} must be .*, not "):
                profile(text.replace(f"[{table}]", f"[{table}]\n{key} = {wrong}"))


def test_a_name_that_can_be_no_path_is_one_of_the_hub(profile):
    for name in ("a" * 300, "~nobody/model"):
        assert profile(MINIMAL.replace("my/base", name)).models.base == name


def test_a_reference_is_optional_and_its_revision_needs_it(profile):
    without = MINIMAL.replace('reference = "my/reference"\n', "")
    assert profile(without).models.reference is None
    with pytest.raises(ProfileError, match="reference_revision is set and reference is not"):
        profile(without.replace("[data]", 'reference_revision = "v1"\n[data]'))
    named = profile(MINIMAL.replace("[data]", 'base_revision = "v1"\n[data]'))
    assert named.models.base_revision == "v1"


def test_every_table_as_it_is_written(profile):
    text = MINIMAL.replace("[sft]", 'revision = "v2"\ncolumns = { prompt = "q" }\n[sft]')
    mine = profile(
        text
        + """
        [prompt]
        chat_template_from = "my/chat"
        stop_tokens = ["<|eot|>", "\\n"]
        [lora]
        r = 8
        lora_alpha = 16
        target_modules = ["q_proj", "v_proj"]
        [scoring]
        scorers = ["exact"]
        """
    )
    assert (mine.data.revision, mine.data.columns) == ("v2", {"prompt": "q"})
    assert mine.prompt.chat_template_from == "my/chat"
    assert mine.prompt.stop_tokens == ("<|eot|>", "\n")
    assert mine.lora == Lora(r=8, lora_alpha=16, target_modules=("q_proj", "v_proj"))
    assert mine.scoring.scorers == ("exact",)
    assert profile(MINIMAL + "[lora]\nr = 1\nlora_alpha = 2").lora.target_modules == "all-linear"


def test_what_lies_beside_the_profile_is_found_from_anywhere(profile, tmp_path, monkeypatch):
    (tmp_path / "mine.jsonl").write_text("")
    (tmp_path / "my" / "base").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    profile(MINIMAL)
    monkeypatch.chdir(tmp_path / "elsewhere")
    mine = load_profile(tmp_path / "mine.toml")
    assert mine.data.source == str(tmp_path / "mine.jsonl")
    assert mine.models.base == str(tmp_path / "my" / "base")
    assert mine.models.trainee == "my/trainee"  # no such folder: a name on the Hub


# --- Further arguments of SFTConfig ------------------------------------------------------------


def test_further_arguments_are_checked_against_sftconfig(profile):
    mine = profile(MINIMAL + "[sft.arguments]\nweight_decay = 1\noptim = 'sgd'\npacking = true")
    assert sft_arguments(mine) == {"weight_decay": 1.0, "optim": "sgd", "packing": True}
    assert type(sft_arguments(mine)["weight_decay"]) is float


@pytest.mark.parametrize(
    ("lines", "follows"),
    [
        ("eval_strategy = 'epoch'", {"save_strategy": "epoch"}),
        ("save_strategy = 'epoch'", {"eval_strategy": "epoch"}),
        ("eval_steps = 50", {"save_steps": 50.0}),
        ("save_steps = 0.5\neval_steps = 0.25", {}),
        ("eval_steps = 50\nload_best_model_at_end = false", {}),
        ("save_strategy = 'best'", {}),
        ("save_strategy = 'no'", {"load_best_model_at_end": False}),
        ("fp16 = true", {"bf16": False}),
        ("use_cpu = true\nbf16 = true", {}),
        ("push_to_hub = false", {}),
    ],
)
def test_what_the_pages_fix_follows_what_the_profile_sets(profile, lines, follows):
    mine = profile(f"{MINIMAL}[sft.arguments]\n{lines}")
    found = sft_arguments(mine)
    assert {name: found[name] for name in found.keys() - mine.sft.arguments} == follows
    assert {name: found[name] for name in mine.sft.arguments} == mine.sft.arguments


def test_without_evaluation_nothing_is_chosen_by_it(profile):
    no = "[sft.arguments]\neval_strategy = 'no'\n"
    assert sft_arguments(profile(MINIMAL + no)) == {
        "eval_strategy": "no",
        "eval_on_start": False,
        "load_best_model_at_end": False,
    }
    contrary = sft_arguments(profile(MINIMAL + no + "load_best_model_at_end = true"))
    assert contrary["load_best_model_at_end"]  # which SFTConfig refuses, and says so


@pytest.mark.parametrize(
    ("metric", "more_is_better"),
    [
        ("loss", False),
        ("eval_loss", False),
        ("perplexity", False),
        ("mean_token_accuracy", True),
        ("eval_dev_exact", True),
        ("f1", True),
    ],
)
def test_the_name_of_a_metric_tells_its_direction(profile, metric, more_is_better):
    mine = MINIMAL + f"[sft.arguments]\nmetric_for_best_model = '{metric}'\n"
    assert sft_arguments(profile(mine))["greater_is_better"] is more_is_better
    contrary = sft_arguments(
        profile(mine + f"greater_is_better = {str(not more_is_better).lower()}")
    )
    assert contrary["greater_is_better"] is not more_is_better  # what is written holds


@pytest.mark.parametrize("metric", ["lossy", "loss_odds", "reward"])
def test_a_metric_of_no_known_direction_needs_one(profile, metric):
    mine = MINIMAL + f"[sft.arguments]\nmetric_for_best_model = '{metric}'\n"
    problem = rf"arguments: metric_for_best_model is '{metric}'.*Write greater_is_better = true or"
    with pytest.raises(ProfileError, match=problem):
        sft_arguments(profile(mine))
    assert sft_arguments(profile(mine + "greater_is_better = true"))["greater_is_better"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("wait_decay = 1", r"mine\.toml: sft: arguments: .* wait_decay\. Did you mean weight_d"),
        ("packing = 1", "arguments: packing must be a valid boolean, not 1"),
        ("label_names = [1]", r"label_names\[0\] must be a valid string, not 1"),
    ],
)
def test_an_argument_that_sftconfig_does_not_take(profile, line, problem):
    mine = profile(MINIMAL + f"[sft.arguments]\n{line}")
    with pytest.raises(ProfileError, match=problem):
        sft_arguments(mine)


# --- Questions from elsewhere ------------------------------------------------------------------


@pytest.fixture
def with_questions(profile, tmp_path):
    """Returns a function that loads a profile whose questions are what the text says."""

    def load(text, **files):
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_text(content)
        return profile(f"{text}\n" + MINIMAL.partition("[[questions]]")[0])

    return load


def test_questions_of_a_file(with_questions):
    expected = (Question("Who?", "I, me", "Be brief."), Question("What?"))
    lines = '{"text": "Who?", "answer": "I, me", "system": "Be brief."}\n\n{"text": "What?"}\n'
    assert with_questions("questions = 'q.jsonl'", q_jsonl=lines).questions == expected
    table = 'text,answer,system\nWho?,"I, me",Be brief.\nWhat?,,\n'
    assert with_questions("questions = 'q.csv'", q_csv=table).questions == expected


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('{"text": "a"}\n{"txt": "b"}', r"row 1 \(line 2\): unknown txt\. Did you mean text"),
        ('{"text": "a"}\n\n{"answer": "b"}', r"row 1 \(line 3\): text is missing"),
        ("[1]", r"row 0 \(line 1\) must be a table, not \[1\]"),
        ("{", r"mine\.toml: questions: q\.jsonl, row 0 \(line 1\): .* is not valid JSON"),
        ("", "`questions` is empty"),
    ],
)
def test_a_bad_file_of_questions(with_questions, lines, problem):
    with pytest.raises(ProfileError, match=problem):
        with_questions("questions = 'q.jsonl'", q_jsonl=lines)
    with pytest.raises(ProfileError, match=r"mine\.toml: questions: there is no file 'q\.csv'"):
        with_questions("questions = 'q.csv'")


def rows(count):
    """Conversations of two turns, each second with a system message, and the first once more."""
    found = []
    for i in [*range(count), 0]:
        row = conversation(f"Number {i}?", f"It is {i}.", "Sure?", "Yes.")
        if i % 2:
            row["messages"].insert(0, {"role": "system", "content": "Be brief."})
        found.append(json.dumps(row) + "\n")
    return "".join(found)


HELD_OUT = "questions = { held_out = 4 }"


def test_questions_drawn_from_the_data(with_questions):
    mine = with_questions(HELD_OUT, mine_jsonl=rows(12))
    assert (mine.held_out, len(set(mine.questions))) == (4, 4)
    for question in mine.questions:
        number = int(question.text.removeprefix("Number ").removesuffix("?"))
        assert question.answer == f"It is {number}."
        assert question.system == ("Be brief." if number % 2 else None)
    assert with_questions(HELD_OUT) == mine


def test_a_question_in_another_form_is_the_same(with_questions):
    asked = ("Who sang?", " who  SANG ?\n", "\uff37ho sang\u200b?", "Who sings?")
    lines = "".join(json.dumps(conversation(text, "Ann.")) + "\n" for text in asked)
    drawn = with_questions("questions = { held_out = 1 }", mine_jsonl=lines).questions
    assert drawn[0].text in ("Who sang?", "Who sings?")
    with pytest.raises(ProfileError, match="has 2 different questions"):
        with_questions("questions = { held_out = 2 }")


@pytest.mark.parametrize(
    ("count", "problem"),
    [
        ("12", r"mine\.toml: questions: held_out is 12, and the data set has 12 different quest"),
        ("0", r"mine\.toml: questions: held_out must be greater than 0, not 0"),
    ],
)
def test_as_many_as_cannot_be_held_out(with_questions, count, problem):
    with pytest.raises(ProfileError, match=problem):
        with_questions(f"questions = {{ held_out = {count} }}", mine_jsonl=rows(12))


def test_a_row_without_an_answered_question_gives_none(with_questions):
    called = [{"role": role, "content": role} for role in ("user", "tool", "assistant")]
    lines = json.dumps({"messages": called}) + "\n" + rows(2)
    mine = with_questions("questions = { held_out = 1 }", mine_jsonl=lines)
    assert mine.questions[0].text in ("Number 0?", "Number 1?")
    with pytest.raises(ProfileError, match="has 2 different questions"):
        with_questions("questions = { held_out = 2 }")


@pytest.mark.parametrize(
    ("old", "new", "own"),
    [("", "", True), ("# The embedded", "# My", True),
     ('scorers = ["contains"', 'scorers = ["exact"', True),
     ("learning_rate = 3e-4", "learning_rate = 1e-4", False),
     ("max_new_tokens = 48", "max_new_tokens = 5", False),
     ("[scoring]", "[lora]\nr = 8\nlora_alpha = 16\n\n[scoring]", False)],
)  # fmt: skip
def test_what_the_book_claims_is_of_its_own_profile(tmp_path, monkeypatch, old, new, own):
    text = (PROFILE_FILES / "atlas.toml").read_text("utf8")
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new))
    monkeypatch.setenv("SFT_PROFILE", str(tmp_path / "mine.toml"))
    assert is_books_own() is own
    monkeypatch.delenv("SFT_PROFILE")
    assert is_books_own()
