"""Chapters 01 to 08 with a reader's own profiles: other models, other data, nothing of the Atlas.

One has all that a profile may have but the Atlas, and its run is not evaluated on its way. The
other has no reference, rows with columns of their own, questions held out from them, and trains an
adapter.

Random Qwen3 models with the real Qwen3 chat template play base and reference, as on the Hub: the
base calls another token its end than its template does, and the template has no generation
markers. The trainee is a Llama without a chat template and without a pad token, as SmolLM2 is.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from book.built import Site
from book.page_runner import Runner
from conftest import copy_tree
from lookalikes import rows, write_models

from sft_utils import load_profile
from sft_utils.claims import CLAIM_TYPE
from sft_utils.evaluation import held_out
from sft_utils.experiment import load_part, load_rows

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("page_runner.py")
PAGES = (
    "01-setup", "02-helpers", "03-baseline", "04-sft-reference",
    "05-data", "06-config", "07-training", "08-evaluation",
)  # fmt: skip

MODELS = """
[models]
base = "{folder}/base"
trainee = "{folder}/trainee"
"""

SETTINGS = """
[prompt]
chat_template = "chatml.jinja"
template_kwargs = {{ enable_thinking = false }}

[generation]
max_new_tokens = 10

[sft]
learning_rate = 1e-3
num_train_epochs = 2
per_device_train_batch_size = 4
gradient_accumulation_steps = 2
logging_steps = 2
max_length = 160
lr_scheduler_type = "cosine"
warmup_steps = 2
"""

WHOLE = """
[sft.arguments]
eval_strategy = "no"

[data]
source = "{folder}/rows.jsonl"
rows = 36

[[questions]]
text = "How does a thread differ from a process?"

[[questions]]
text = "Write a Python expression that reverses the string s."
system = "Answer with code only."

[[questions]]
text = "Name <b>three</b> prime numbers | below ten."
"""

BARE = """
[data]
source = "{folder}/columns.jsonl"
columns = {{ prompt = "question", completion = "answer", system = "task" }}

[questions]
held_out = 4

[lora]
r = 4
lora_alpha = 8

[sft.arguments]
weight_decay = 0.01
"""

PROFILES = {
    "whole": MODELS + 'reference = "{folder}/reference"\n' + SETTINGS + WHOLE,
    "bare": MODELS + SETTINGS + BARE,
}
#: By profile, the chapters that each change tries: a training without a reference and with an
#: adapter, and scores beside a reference. The others are tried each week.
EACH_CHANGE = {"whole": "08", "bare": "07"}
#: Of which profiles a page is left out: chapter 04 is about the reference.
LEFT_OUT = {("bare", "04-sft-reference")}
#: By page, whose held-out answers it reports, and who else must fit them.
REPORTS = {
    "04-sft-reference": ("base", ("reference",)),
    "08-evaluation": ("trainee", ("reference",)),
}


def start(folder: Path, name: str, **settings: str) -> Runner:
    """A process that runs pages with a profile of the folder."""
    named = {"SFT_PROFILE": str(folder / f"{name}.toml"), "SFT_RUNS": str(folder / "runs")}
    return Runner(folder / f"{name}.jsonl", RUNNER, **named | settings)


def run(runner: Runner, page: str) -> dict:
    """What became of a page's cells, none of which failed."""
    result = runner.ask(ROOT / "book" / f"{page}.md")
    last = result["cells"][-1]  # a cell that fails is the last
    assert last["error"] is None, f"{page}.md\n{last['source']}\n---\n{last['stdout'][-3000:]}"
    assert len(result["cells"]) == result["of"] > 3
    return result


def columns() -> list[dict]:
    """The first question and answer of each row of `rows`, one column each."""
    found = []
    for number, row in enumerate(rows()):
        said = {turn["role"]: turn["content"] for turn in reversed(row["messages"])}
        found.append({"question": said["user"], "answer": said["assistant"],
                      "task": said.get("system"), "id": number})  # fmt: skip
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    for name, made in (("rows", rows()), ("columns", columns())):
        text = "".join(json.dumps(row) + "\n" for row in made)
        (folder / f"{name}.jsonl").write_text(text)
    for name, text in PROFILES.items():
        (folder / f"{name}.toml").write_text(text.format(folder=folder.as_posix()))
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def runner(folder, request):
    runner = start(folder, request.param)
    yield runner
    runner.close()


def _assert_report(file: Path, page: str, shown: str) -> None:
    """What the page shows of held-out answers is what is measured on the same rows here."""
    part, others = REPORTS[page]
    profile = load_profile(file)
    others = [load_part(profile, one) for one in others if getattr(profile.models, one)]
    speaker = load_part(profile, part)
    asked = held_out.held_out_answers(profile, load_rows(profile)[1], speaker, *others)
    frame = held_out.ask_held_out(*speaker, asked, profile)
    for name in ("bits_per_byte", "perplexity", "stops"):
        measure = held_out.held_out_measure(frame, name)
        value, low, high = (
            held_out.in_unit(measure, number)
            for number in (measure.value, measure.low, measure.high)
        )
        assert f"{value} ({low.removesuffix(' %')} to {high.removesuffix(' %')})" in shown, name
    assert re.search(rf"\banswers\b\D+{len(frame)}\b", shown)


@pytest.mark.parametrize(
    ("runner", "profile", "page"),
    [
        pytest.param(name, name, page, id=f"{name}-{page}",
                     marks=() if page[:2] in EACH_CHANGE[name] else pytest.mark.weekly)
        for name in PROFILES
        for page in PAGES
        if (name, page) not in LEFT_OUT
    ],
    indirect=["runner"],
)  # fmt: skip
def test_page_runs(folder, runner, profile, page):
    result = run(runner, page)
    for number, cell in enumerate(result["cells"], 1):
        where = f"{page}.md, cell {number}"
        assert "Traceback (most recent call last)" not in cell["stdout"], where
        assert not cell["stderr"].strip(), f"{where} wrote to stderr: {cell['stderr'][:2000]}"

    assert result["loaded"], f"{page}.md loads no model"
    strangers = [name for name in result["loaded"] if not name.startswith(str(folder))]
    assert strangers == [], f"{page}.md loads models that the profile does not name"

    # What is claimed was found on the Atlas, and is claimed nowhere else.
    assert [mime for mime in shown_data(result) if mime[0].endswith(CLAIM_TYPE)] == []
    stdout = "".join(cell["stdout"] for cell in result["cells"])
    if page == "07-training":
        # The trainer that the page builds in the open is the one that other pages take.
        prints = re.findall(r"^(?:this page|the function): +([0-9a-f]{64})$", stdout, re.MULTILINE)
        assert len(prints) == 2 and prints[0] == prints[1]
    if page in REPORTS:
        shown = "".join(text for _, text in shown_data(result)) + stdout
        _assert_report(folder / f"{profile}.toml", page, shown)
    # Every number of the prose is there, and no sentence has a dash for one.
    for text, value in result["prose"]:
        wrong = value.strip().lower() in ("", "nan", "none", "–") or "Error: " in value
        assert not wrong, f"{page}.md: {{eval}}`{text}` is {value!r}"


def shown_data(result: dict) -> list[tuple[str, str]]:
    """All that the cells of a page showed or stored: kind and text."""
    return [pair for cell in result["cells"] for output in cell["outputs"]
            for pair in output["data"].items()]  # fmt: skip


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The shipped profile with one thing changed, as most profiles of readers begin."""
    folder = tmp_path_factory.mktemp("copied")
    text = (ROOT / "sft_utils" / "profile_files" / "atlas.toml").read_text("utf8")
    text = text.replace("learning_rate = 3e-4", "learning_rate = 1e-4")
    (folder / "slower.toml").write_text(text)
    runner = start(folder, "slower")
    yield runner
    runner.close()


@pytest.mark.weekly
@pytest.mark.parametrize("page", PAGES)
def test_a_copy_of_the_shipped_profile_may_change_one_thing(copied, page):
    """Nothing is claimed of what it trains."""
    result = run(copied, page)
    assert [kind for kind, _ in shown_data(result) if kind.endswith(CLAIM_TYPE)] == []
    assert [value for _, value in result["prose"] if "Error: " in value] == []


@pytest.mark.weekly
@pytest.mark.parametrize(("name", "other"), [("bare", "whole"), ("whole", "bare")])
def test_a_build_reports_the_profile_and_nothing_else(folder, tmp_path, name, other):
    """What only a build can show: that the prose around the cells is whole and says whose it is."""
    copy_tree(tmp_path)
    site = Site(tmp_path, tmp_path, folder=f"_build/profiles/{name}")
    build = site.run(SFT_PROFILE=str(folder / f"{name}.toml"), OMP_NUM_THREADS="1")
    assert build.code == 0, build.output[-5000:]
    assert "WARNING" not in build.output.replace("[IPKernelApp] WARNING", "")
    assert not any(run["cached"] for run in build.executions.values())
    assert json.loads((site.html / "results.json").read_text())["claims"] == []
    pages = [page for page in PAGES if (name, page) not in LEFT_OUT]
    assert {path.stem for path in (site.html / "book").glob("[0-9]*.html")} == set(pages)
    for page in pages:
        assert f"Built with the profile {name} ." in site.page(page).text, page  # a value and a dot
        assert f"profile {other}" not in site.page(page).text, page
    assert "with another profile than the book’s own" in site.page("index").text
    assert "encyclopedia many times" not in site.page("index").text
    rows = {"bare": "columns.jsonl", "whole": "rows.jsonl"}
    assert rows[name] in site.page("05-data").text
