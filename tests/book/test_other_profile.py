"""Chapters 01 to 13 with a reader's own profiles: other models, other data, nothing of the Atlas.

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
from myst_nb.core.variables import format_plain_text

from sft_utils import load_profile
from sft_utils.claims import CLAIM_TYPE
from sft_utils.evaluation import held_out
from sft_utils.experiment import load_part, load_rows
from sft_utils.results import MISSING, RESULT_TYPE

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("page_runner.py")
PAGES = (
    "01-setup", "02-helpers", "03-baseline", "04-sft-reference",
    "05-data", "06-config", "07-training", "08-evaluation", "12-replication", "13-cost", "26-ask",
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
#: By profile, the chapters that each change tries: those that do something else where a reference,
#: an adapter, columns or an evaluation is there or missing, most of all. The others are tried each
#: week.
EACH_CHANGE = {"whole": "03 06 07 08 09", "bare": "04 05 07 08"}
WITHOUT = "This profile names no reference"
SAY_SO = {"01-setup", "02-helpers", "04-sft-reference", "08-evaluation", "13-cost"}

#: Chapters that are the report of a fine-tuning: no sentence of theirs has a dash for a number.
REPORT = PAGES[:8]
#: By page, the names of what it glues on held-out answers, for whom, and who else must fit them.
REPORTS = {
    "04-sft-reference": ("ref_held_base", "base", ("reference",)),
    "08-evaluation": ("small_held_before", "trainee", ("reference",)),
}

GLUE = re.compile(r"\{glue:text\}`([^`:]+)(?::([^`:]*))?`")  # not those of other pages


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


def _assert_report(file: Path, page: str, glued: dict) -> None:
    """What the page says of held-out answers is what is measured on the same rows here."""
    prefix, part, others = REPORTS[page]
    profile = load_profile(file)
    others = [load_part(profile, one) for one in others if getattr(profile.models, one)]
    speaker = load_part(profile, part)
    asked = held_out.held_out_answers(profile, load_rows(profile)[1], speaker, *others)
    frame = held_out.ask_held_out(*speaker, asked, profile)
    for name in ("bits_per_byte", "perplexity", "stops"):
        [shown] = [v for k, v in glued[f"{prefix}_{name}"].items() if k.endswith(RESULT_TYPE)]
        expected = held_out.held_out_measure(frame, name)
        for field in ("value", "low", "high", "n"):
            assert json.loads(shown)[field] == pytest.approx(getattr(expected, field), rel=1e-4)
    bits = str(held_out.held_out_measure(frame, "bits_per_byte"))
    opening = prefix.split("_held_")[0] + "_opening"
    assert any(bits in text for text in glued[opening].values())


@pytest.mark.parametrize(
    ("runner", "profile", "page"),
    [
        pytest.param(name, name, page, id=f"{name}-{page}",
                     marks=() if page[:2] in EACH_CHANGE[name] else pytest.mark.weekly)
        for name in PROFILES
        for page in PAGES
    ],
    indirect=["runner"],
)  # fmt: skip
def test_page_runs(folder, runner, profile, page):
    result = run(runner, page)
    for number, cell in enumerate(result["cells"], 1):
        where = f"{page}.md, cell {number}"
        assert "Traceback (most recent call last)" not in cell["stdout"], where
        assert not cell["stderr"].strip(), f"{where} wrote to stderr: {cell['stderr'][:2000]}"

    stdout = "".join(cell["stdout"] for cell in result["cells"])
    assert stdout.count(WITHOUT) == (profile == "bare" and page in SAY_SO)
    if page == "07-training":
        # The trainer that the page builds in the open is the one that other pages take.
        prints = re.findall(r"^(?:this page|the function): +([0-9a-f]{64})$", stdout, re.MULTILINE)
        assert len(prints) == 2 and prints[0] == prints[1]
        assert stdout.count("This run was not evaluated") == (profile == "whole")

    assert result["loaded"], f"{page}.md loads no model"
    strangers = [name for name in result["loaded"] if not name.startswith(str(folder))]
    assert strangers == [], f"{page}.md loads models that the profile does not name"

    outputs = [output for cell in result["cells"] for output in cell["outputs"]]
    kept = [output for output in outputs if "scrapbook" in output["metadata"]]
    glued = {output["metadata"]["scrapbook"]["name"]: output["data"] for output in kept}
    # What is claimed was found on the Atlas, and is claimed nowhere else.
    assert [name for name, data in glued.items() if any(k.endswith(CLAIM_TYPE) for k in data)] == []
    if page in REPORTS:
        _assert_report(folder / f"{profile}.toml", page, glued)
    source = (ROOT / "book" / f"{page}.md").read_text("utf8")
    quoted = [match for match in GLUE.finditer(source) if ".md::" not in match[0]]
    assert {match[1] for match in quoted} <= glued.keys(), "quoted in the prose and not glued"
    for match in quoted:
        [plain] = [text for mime, text in glued[match[1]].items() if mime.endswith("text/plain")]
        shown = format_plain_text(plain, match[2] or "s")  # raises where a build would
        assert shown.strip() and shown.lower() not in ("nan", "none"), f"{match[0]} is {shown!r}"
        in_table = source[: match.start()].rpartition("\n")[2].startswith("|")
        assert in_table or page not in REPORT or shown != MISSING, (
            f"a sentence with a dash: {match}"
        )


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
    """Nothing is claimed of what it trains; what only runs on record show is left out."""
    cells = run(copied, page)["cells"]
    made = {output["metadata"]["scrapbook"]["name"] for cell in cells for output in cell["outputs"]
            if any(mime.endswith(CLAIM_TYPE) for mime in output["data"])}  # fmt: skip
    assert page < "06" or made <= {"claim ask-same-logits"}  # true of any model
    left_out = "".join(cell["stdout"] for cell in cells).count("on record are of the shipped")
    assert left_out == (page in ("12-replication", "13-cost"))


@pytest.mark.weekly
@pytest.mark.parametrize(("name", "other"), [("bare", "whole"), ("whole", "bare")])
def test_a_build_reports_the_profile_and_nothing_else(folder, tmp_path, name, other):
    """What only a build can show: that the prose around the cells is whole and says whose it is."""
    copy_tree(tmp_path)
    site = Site(tmp_path, tmp_path)
    build = site.run(SFT_PROFILE=str(folder / f"{name}.toml"), OMP_NUM_THREADS="1")
    assert build.code == 0, build.output[-5000:]
    assert "WARNING" not in build.output.replace("[IPKernelApp] WARNING", "")
    assert not any(run["cached"] for run in build.executions.values())
    assert all(c["holds"] for c in json.loads((site.html / "results.json").read_text())["claims"])
    for page in PAGES:
        assert f"Built with the profile {name} ." in site.page(page).text, page  # a value and a dot
        assert f"profile {other}" not in site.page(page).text, page
    assert "with another profile than the book’s own" in site.page("index").text
    assert "encyclopedia many times" not in site.page("index").text
    rows = {"bare": "columns.jsonl", "whole": "rows.jsonl"}
    assert rows[name] in site.page("05-data").text
