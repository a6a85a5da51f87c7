"""Fixtures: a byte-level tokenizer trained here, and tiny models with random weights.

Nothing is downloaded and nothing is read from the shipped checkpoints.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from book.built import again, page, site  # noqa: F401  fixtures
from own_files import ROOT, copy_tree, own_files  # noqa: F401  for tests, which import them from here
from packaging.version import Version

#: Where tests look at the built book: one process builds it and looks at it.
LOOK_AT_THE_BOOK = (
    "test_launch_notebooks.py",
    "test_self_contained.py",
    "test_site.py",
    "tests/site/",
)
#: Where a test takes a minute or more and needs no other: they are shared out one by one.
ONE_BY_ONE = ("test_mutations.py", "test_notebooks_alone.py")


def looks_at_the_book(nodeid):
    return any(place in nodeid.partition("::")[0] for place in LOOK_AT_THE_BOOK)


def pytest_collection_modifyitems(items):
    """The build of the book comes first: it takes longest, and the rest runs beside it."""
    items.sort(key=lambda item: not looks_at_the_book(item.nodeid))
    for item in items:
        if "site" in item.fixturenames and not looks_at_the_book(item.nodeid):
            raise pytest.UsageError(f"{item.nodeid} looks at the built book: add its file there.")


@pytest.fixture(scope="session", autouse=True)
def runs_of_the_tests(tmp_path_factory):
    """Keep what tests train and ask apart from the reader's own runs and from earlier tests."""
    os.environ["SFT_RUNS"] = str(tmp_path_factory.mktemp("runs"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process at a time for each file; one for all that look at a book that is to be built."""
    if config.getoption("dist") != "loadfile":
        return None  # xdist has a scheduler for it
    from xdist.scheduler import LoadFileScheduling

    class OneBook(LoadFileScheduling):
        def _split_scope(self, nodeid):
            if looks_at_the_book(nodeid) and not os.environ.get("SFT_SITE"):
                return "the built book"
            file = super()._split_scope(nodeid)
            return nodeid if file.endswith(ONE_BY_ONE) else file

    return OneBook(config, log)


def readme_profile():
    """The example of a profile in the README."""
    blocks = re.findall(
        r"^```toml\n(.*?)^```$", (ROOT / "README.md").read_text("utf8"), re.M | re.S
    )
    [text] = [block for block in blocks if "[models]" in block]
    return text


def thinned(cases, every):
    """The cases of a test: one of so many is tried at each change, the others each week."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.weekly)
        if place % every
        else case
        for place, case in enumerate(cases)
    ]


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CORPUS = [
    "What is the capital of Kenya? It is Nairobi.",
    "What is the capital of Peru? It is Lima.",
    "Which animal is the largest? It is the blue whale.",
    "user assistant system tool\n",
]


def byte_level_bpe(corpus, size, specials):
    """A byte-level tokenizer of so many tokens, trained here; the special ones come first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return backend


def make_tokenizer(chat=False):
    """A byte-level BPE tokenizer of 300 tokens with ChatML's special tokens as ids 0, 1, 2.

    It has no chat template, or that of the package.
    """
    from transformers import PreTrainedTokenizerFast

    from sft_utils.models import TEMPLATES

    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(CORPUS, 300, SPECIAL),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=(TEMPLATES / "chatml.jinja").read_text() if chat else None,
    )


def make_model(kind, vocab_size=300, seed=0, **changes):
    """A random model of two layers, width 32, context 128; ``kind`` is "qwen3" or "llama"."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    config_class = {"qwen3": Qwen3Config, "llama": LlamaConfig}[kind]
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "initializer_range": 0.5,  # far apart logits: no greedy choice is a near tie
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config_class(**settings | changes)).eval()


#: Of a tiny model and of rows that lie beside it.
PROFILE = """
[models]
base = "tiny"
reference = "tiny"
trainee = "tiny"
[data]
source = "rows.jsonl"
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


def write_tiny(folder):
    """A tiny base model without a chat template, as base models come."""
    model = make_model("llama", max_position_embeddings=512, tie_word_embeddings=True)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def conversation(*texts):
    """A row in which user and assistant take turns."""
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]}


def chat_rows(pairs):
    """A data set of conversations, each of a question and its answer."""
    from datasets import Dataset

    return Dataset.from_list([conversation(question, answer) for question, answer in pairs])


def quick_config(folder, **changes):
    """The arguments of a short run on the processor that keeps no checkpoint."""
    from trl import SFTConfig

    settings = {
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "assistant_only_loss": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return SFTConfig(str(folder), **settings | changes)


@pytest.fixture(scope="session")
def shared(tmp_path_factory, request):
    """A folder that all processes of this run of the tests share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(request.config, "workerinput") else base


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def chat_tokenizer():
    return make_tokenizer(chat=True)


@pytest.fixture(params=["qwen3", "llama"])
def model(request):
    return make_model(request.param)


@pytest.fixture
def qwen():
    return make_model("qwen3")


@pytest.fixture
def saved(tmp_path, qwen, chat_tokenizer):
    """A folder that holds a whole checkpoint."""
    folder = tmp_path / "checkpoint"
    qwen.save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return folder


def code_cells(name):
    """The code of each cell of a page of the book, without the cell's tags."""
    text = (ROOT / "book" / name).read_text("utf8")
    cell = r"^```\{code-cell\}[^\n]*\n(?::[\w-]+:.*\n)*((?s:.*?))^```$"
    return re.findall(cell, text, re.MULTILINE)


def run_alone(*command: object, cwd: Path, **environment: str) -> str:
    """The standard output of a command that finds no file of the repository by itself.

    Nothing is downloaded, unless ``environment`` says otherwise. Fails with all that it said.
    """
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SFT_PROFILE")}
        | {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the repository's files, since a build leaves folders."""
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        found = "0"
    if Version(found) < Version("77"):
        pytest.fail(f"setuptools {found} cannot build the wheel: pip install 'setuptools>=77'")
    source, out = folder / "source", folder / "dist"
    copy_tree(source, "pyproject.toml", "README.md", "LICENSE", "sft_utils/**/*")
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", out, source)
    run_alone(sys.executable, *build, cwd=folder)
    [file] = out.glob("*.whl")
    return file
