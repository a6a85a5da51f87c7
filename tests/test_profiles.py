"""Profiles: the shipped ones are whole, and a badly written one is refused by name."""

import dataclasses

import pytest

from sft_utils.profiles import PROFILE_FILES, ProfileError, Question, load_profile

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


def test_the_default_is_the_atlas(monkeypatch):
    monkeypatch.delenv("SFT_PROFILE", raising=False)
    atlas = load_profile()
    assert atlas.name == "atlas"
    assert dataclasses.astuple(atlas.models) == (
        "atlas-base",
        "atlas-sft",
        "atlas-small",
        "atlas-base-1form",
    )
    assert atlas.data.source == "atlas-sft-data"
    assert len(atlas.questions) == 10
    assert all(question.answer for question in atlas.questions)
    monkeypatch.setenv("SFT_PROFILE", "")
    assert load_profile() == atlas


def test_the_hub_by_the_environment(monkeypatch):
    monkeypatch.setenv("SFT_PROFILE", "hub")
    hub = load_profile()
    assert dataclasses.astuple(hub.models) == (
        "Qwen/Qwen3-0.6B-Base",
        "banghua/Qwen3-0.6B-SFT",
        "HuggingFaceTB/SmolLM2-135M",
        None,
    )
    assert (hub.data.source, hub.data.split, hub.data.rows) == (
        "banghua/DL-SFT-Dataset",
        "train",
        100,
    )
    assert hub.prompt.template_kwargs == {"enable_thinking": False}
    assert hub.prompt.chat_template == "chatml.jinja"
    assert hub.sft.learning_rate == 8e-5
    assert hub.sft.activation_checkpointing is False
    assert 8 <= len(hub.questions) <= 12


@pytest.mark.parametrize("path", sorted(PROFILE_FILES.glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_profiles_ask_each_question_once(path):
    texts = [question.text for question in load_profile(path.stem).questions]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("path", sorted(PROFILE_FILES.glob("*.toml")), ids=lambda p: p.stem)
def test_settings_are_arguments_of_todays_sftconfig(path):
    from trl import SFTConfig

    known = {f.name for f in dataclasses.fields(SFTConfig)}
    assert set(dataclasses.asdict(load_profile(path.stem).sft)) <= known


def test_a_profile_of_ones_own(profile):
    mine = profile(MINIMAL)
    assert mine.name == "mine"
    assert mine.models.control is None
    assert (mine.data.split, mine.data.rows) == ("train", None)
    assert type(mine.sft.learning_rate) is float
    assert mine.prompt.template_kwargs == {}
    assert mine.questions == (Question("Who?", "I"),)
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
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    message = str(caught.value)
    assert repr(name) in message
    assert "atlas, hub" in message
    assert "copy sft_utils/profile_files/atlas.toml" in message


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('base = "my/base"', "", r"mine.toml: models: base is missing"),
        ('base = "my/base"', "base = 5", r"models: base must be of type str, not 5"),
        ("[sft]", "[sft]\nlearn = 1", r"sft: unknown learn. Known: learning_rate, .*"),
        ("learning_rate = 1", "learning_rate = true", "learning_rate must be of type float"),
        ("learning_rate = 1", 'learning_rate = "1e-4"', "must be of type float, not '1e-4'"),
        ("num_train_epochs = 2", "num_train_epochs = 2\nlogging_steps = 1.5", "of type int"),
        ("[models]", "extra = 1\n[models]", "mine.toml: unknown extra"),
        ("[models]", "[models", "not valid TOML"),
        ("[[questions]]", "[questions]", "questions must be a list of tables"),
        ('text = "Who?"', "", r"questions\[0\]: text is missing"),
        ('[data]\nsource = "mine.jsonl"', "", "data is missing"),
        ('[data]\nsource = "mine.jsonl"', "[data]\nsource = 'a'\nrows = '5'", "rows must be of"),
    ],
)
def test_badly_written_profiles(profile, old, new, problem):
    assert old in MINIMAL
    with pytest.raises(ProfileError, match=problem):
        profile(MINIMAL.replace(old, new, 1))


def test_no_questions(profile):
    text = "questions = []\n" + MINIMAL.partition("[[questions]]")[0]
    with pytest.raises(ProfileError, match="`questions` is empty"):
        profile(text)
