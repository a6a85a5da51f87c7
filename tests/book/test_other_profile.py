"""Chapters 01 to 10 with a reader's own profile: other models, other data, nothing of the Atlas.

Random Qwen3 models with the real Qwen3 chat template play base and reference, as on the Hub: the
base calls another token its end than its template does, and the template has no generation
markers. The trainee is a Llama without a chat template and without a pad token, as SmolLM2 is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CORPUS, make_model
from myst_nb.core.variables import format_plain_text

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("page_runner.py")
PAGES = (
    "01-setup", "02-helpers", "03-baseline", "04-sft-reference",
    "05-data", "06-config", "07-training", "08-evaluation", "09-replication", "10-cost",
)  # fmt: skip

# The first ids, then the markup that the real tokenizers have.
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_WORDS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]  # tokens, yet no special ones
SMOL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]

PROFILE = """
[models]
base = "{folder}/base"
reference = "{folder}/reference"
trainee = "{folder}/trainee"

[data]
source = "{folder}/rows.jsonl"
rows = 36

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

[[questions]]
text = "How does a thread differ from a process?"

[[questions]]
text = "Write a Python expression that reverses the string s."
system = "Answer with code only."

[[questions]]
text = "Name <b>three</b> prime numbers | below ten."
"""

GLUE = re.compile(r"\{glue:text\}`([^`:]+)(?::([^`:]*))?`")  # not those of other pages


def rows() -> list[dict]:
    """Forty conversations: short, long, with a system message, with several turns."""
    found = []
    for i in range(40):
        messages = [
            {"role": "user", "content": f"What is {i} plus {i}?"},
            {"role": "assistant", "content": f"{i} plus {i} is {2 * i}."},
        ]
        if i % 3 == 0:
            messages.insert(0, {"role": "system", "content": "Be brief & exact."})
        if i % 4 == 0:
            messages += [
                {"role": "user", "content": "And twice that?"},
                {"role": "assistant", "content": f"{4 * i}."},
            ]
        if i % 8 == 5:  # longer than max_length
            messages[-1]["content"] += " So it is, by the rules of adding numbers." * 5
        found.append({"messages": messages})
    return found


def make_tokenizer(specials: list[str], words: list[str], **settings):
    """A byte-level tokenizer of its own, trained here."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(specials) + 60,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS + [str(row) for row in rows()], trainer)
    backend.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def qwen_template() -> str:
    """The chat template of Qwen3, as TRL keeps it to recognize it."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text("utf8")


def write_models(folder: Path) -> None:
    """Three checkpoints, with the disagreements about end tokens that are found on the Hub."""
    end = "<|endoftext|>"
    for name, turn_end, ends in (("base", end, [0]), ("reference", "<|im_end|>", [2, 0])):
        tokenizer = make_tokenizer(QWEN_TOKENS, QWEN_WORDS, eos_token=turn_end, pad_token=end)
        tokenizer.chat_template = qwen_template()
        save(folder / name, "qwen3", tokenizer, ends, pad_token_id=0)
    tokenizer = make_tokenizer(
        SMOL_TOKENS,
        [],
        bos_token=end,
        eos_token=end,
        unk_token=end,
        additional_special_tokens=SMOL_TOKENS[1:],
    )
    save(folder / "trainee", "llama", tokenizer, [0], bos_token_id=0, pad_token_id=None)


def save(folder: Path, kind: str, tokenizer, ends: list[int], **settings) -> None:
    """A random model for the tokenizer, and both in a folder."""
    from transformers import GenerationConfig

    settings = {"max_position_embeddings": 8192, "initializer_range": 0.1, **settings}
    model = make_model(
        kind, len(tokenizer), eos_token_id=ends[0], tie_word_embeddings=True, **settings
    )
    model.generation_config = GenerationConfig(eos_token_id=ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Runner:
    """The process that runs pages, and what it said of each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "results.jsonl"
        self.log = folder / "log"
        environment = {
            "SFT_PROFILE": str(folder / "mine.toml"),
            "SFT_RUNS": str(folder / "runs"),
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_WAIT_POLICY": "PASSIVE",
            "KMP_BLOCKTIME": "0",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, RUNNER, self.results],
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def run(self, page: str) -> dict:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{ROOT / 'book' / page}.md\n")
        self.process.stdin.flush()
        while (line := self.process.stdout.readline()) not in ("", "done\n"):
            pass
        if not line:
            pytest.fail(f"{page}: the process ended.\n{self.log.read_text()[-3000:]}")
        return json.loads(self.results.read_text("utf8").splitlines()[-1])


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (folder / "mine.toml").write_text(PROFILE.format(folder=folder.as_posix()))
    write_models(folder)
    runner = Runner(folder)
    yield runner
    with runner.process:  # closes its pipes and waits for it
        runner.process.kill()


def test_the_template_is_one_that_needs_patching():
    """Else the pages would not be tried on what the real models bring."""
    template = qwen_template()
    assert "enable_thinking" in template and "add_generation_prompt" in template
    assert "generation %}" not in template.replace("add_generation", "")


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(runner, page):
    result = runner.run(page)
    told = [
        f"{page}.md, cell {number}: {cell['error']}\n--- the cell\n{cell['source']}\n"
        f"--- its output\n{cell['stdout'][-3000:]}"
        for number, cell in enumerate(result["cells"], 1)
        if cell["error"]
    ]
    if told:
        pytest.fail("\n".join(told), pytrace=False)
    assert len(result["cells"]) == result["of"] > 3

    for number, cell in enumerate(result["cells"], 1):
        where = f"{page}.md, cell {number}"
        assert "Traceback (most recent call last)" not in cell["stdout"], where
        assert not cell["stderr"].strip(), f"{where} wrote to stderr: {cell['stderr'][:2000]}"

    assert result["loaded"], f"{page}.md loads no model"
    strangers = [name for name in result["loaded"] if not name.startswith(str(runner.folder))]
    assert strangers == [], f"{page}.md loads models that the profile does not name"

    glued = {
        output["metadata"]["scrapbook"]["name"]: output["data"]
        for cell in result["cells"]
        for output in cell["outputs"]
        if "scrapbook" in output["metadata"]
    }
    source = (ROOT / "book" / f"{page}.md").read_text("utf8")
    quoted = [match for match in GLUE.finditer(source) if ".md::" not in match[0]]
    assert {match[1] for match in quoted} <= glued.keys(), "quoted in the prose and not glued"
    for match in quoted:
        [plain] = [text for mime, text in glued[match[1]].items() if mime.endswith("text/plain")]
        shown = format_plain_text(plain, match[2] or "s")  # raises where a build would
        assert shown.strip() and shown.lower() not in ("nan", "none"), f"{match[0]} is {shown!r}"
