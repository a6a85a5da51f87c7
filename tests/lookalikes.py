"""Random models that look like those of the profile `hub`, and chat rows that look like its data.

A Qwen3 with the real Qwen3 chat template plays base and reference: the base calls another token
its end than its template does, and the template has no generation markers. The trainee is a Llama
without a chat template and without a pad token, as SmolLM2 is.
"""

from __future__ import annotations

from pathlib import Path

from conftest import CORPUS, byte_level_bpe, make_model

# The first ids, then the markup that the real tokenizers have.
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_WORDS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]  # tokens, yet no special ones
SMOL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]

# What Qwen3-0.6B and SmolLM2-135M are.
FULL_SIZE = {
    "qwen3": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "llama": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
}

# The front matter that `push_to_hub` writes.
CARD = """---
dataset_info:
  features:
  - name: messages
    list:
    - name: role
      dtype: string
    - name: content
      dtype: string
  splits:
  - name: train
    num_bytes: {size}
    num_examples: {rows}
  download_size: {size}
  dataset_size: {size}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
"""


def sizes(kind: str, width: float) -> dict[str, int]:
    """The sizes of the real model, or below 1 a fraction of them with the vocabulary left out."""
    full = FULL_SIZE[kind]
    if width == 1:
        return full
    groups = full["num_attention_heads"] // full["num_key_value_heads"]
    key_values = max(1, round(full["num_key_value_heads"] * width))
    unit = 8 * key_values * groups  # a Llama wants a multiple of its heads
    return {
        "hidden_size": unit * max(2, round(full["hidden_size"] * width / unit)),
        "intermediate_size": max(48, round(full["intermediate_size"] * width / 8) * 8),
        "num_hidden_layers": max(2, round(full["num_hidden_layers"] * width)),
        "num_attention_heads": key_values * groups,
        "num_key_value_heads": key_values,
        "head_dim": max(16, round(full["head_dim"] * width / 8) * 8),
    }


def rows(count: int = 40) -> list[dict]:
    """So many conversations: short, long, with a system message, with several turns."""
    found = []
    for i in range(count):
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
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    corpus = CORPUS + [str(row) for row in rows()]
    backend = byte_level_bpe(corpus, 256 + len(specials) + 60, specials)
    backend.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def qwen_template() -> str:
    """The chat template of Qwen3, as TRL keeps it to recognize it."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text("utf8")


def write_models(folder: Path, width: float | None = None) -> None:
    """Three checkpoints, with the disagreements about end tokens that are found on the Hub.

    They are as small as those of `conftest.make_model`, or with ``width`` a fraction of the real
    ones; with 1 they have all of their weights, in bfloat16 as they are published.
    """
    end = "<|endoftext|>"
    qwen, llama = (sizes(kind, width) if width else {} for kind in ("qwen3", "llama"))
    for seed, (name, turn_end, ends) in enumerate(
        (("base", end, [0]), ("reference", "<|im_end|>", [2, 0]))
    ):
        tokenizer = make_tokenizer(QWEN_TOKENS, QWEN_WORDS, eos_token=turn_end, pad_token=end)
        tokenizer.chat_template = qwen_template()
        changes = {"seed": seed, **qwen} if width else {}
        save(folder / name, "qwen3", tokenizer, ends, pad_token_id=0, **changes)
    tokenizer = make_tokenizer(
        SMOL_TOKENS,
        [],
        bos_token=end,
        eos_token=end,
        unk_token=end,
        additional_special_tokens=SMOL_TOKENS[1:],
    )
    save(folder / "trainee", "llama", tokenizer, [0], bos_token_id=0, pad_token_id=None, **llama)


def save(folder: Path, kind: str, tokenizer, ends: list[int], **settings) -> None:
    """A random model for the tokenizer, and both in a folder."""
    import torch
    from transformers import GenerationConfig

    settings = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 8192,
        "initializer_range": 0.1,
        **settings,
    }
    model = make_model(kind, eos_token_id=ends[0], tie_word_embeddings=True, **settings)
    model.generation_config = GenerationConfig(eos_token_id=ends)
    if settings["vocab_size"] > len(tokenizer):
        model.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(folder: Path, rows: list[dict]) -> None:
    """A data set as `push_to_hub` leaves it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "data" / "train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    (folder / "README.md").write_text(CARD.format(size=file.stat().st_size, rows=len(rows)))
    (folder / ".gitattributes").write_text("*.parquet filter=lfs diff=lfs merge=lfs -text\n")
