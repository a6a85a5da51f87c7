"""Fixtures: a byte-level tokenizer trained here, and tiny models with random weights.

Nothing is downloaded and nothing is read from the shipped checkpoints.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def pytest_collection_modifyitems(items):
    """The build of the book comes first: it takes longest, and the rest runs beside it."""
    items.sort(key=lambda item: "test_site" not in item.nodeid)


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CORPUS = [
    "What is the capital of Kenya? It is Nairobi.",
    "What is the capital of Peru? It is Lima.",
    "Which animal is the largest? It is the blue whale.",
    "user assistant system tool\n",
]


def make_tokenizer():
    """A byte-level BPE tokenizer of 300 tokens with ChatML's special tokens as ids 0, 1, 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
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


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def chat_tokenizer(tokenizer):
    """The tokenizer with the ChatML template of the package."""
    from sft_utils.models import TEMPLATES

    tokenizer.chat_template = (TEMPLATES / "chatml.jinja").read_text()
    return tokenizer


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
