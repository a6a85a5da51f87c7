"""Makes the Atlas's checkpoints from its tables: a tokenizer, then pretraining from scratch.

``make models`` runs ``python -m sft_utils.atlas.pretrain``. Everything is seeded. The loop is
plain next-token prediction on packed windows of the corpus, which is all that pretraining is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import draft_folder
from .corpus import END_OF_DOCUMENT, CorpusWriter, one_form_documents
from .sft_data import sft_rows
from .shipped import MODELS, ROWS
from .world import World, load_world

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
VOCABULARY = 3072
WINDOW = 256  # tokens in one training row
TOKENIZER_DOCUMENTS = 4000


@dataclass(frozen=True)
class Recipe:
    """One pretraining: sizes, number of updates, rows in a batch and the peak learning rate."""

    architecture: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    updates: int
    rows: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 100


def train_tokenizer(
    documents: Iterator[str], vocabulary: int = VOCABULARY
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with single digits, trained on the given corpus only."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pattern = r"'s|\p{L}+| \p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [END_OF_DOCUMENT, START_OF_TURN, END_OF_TURN]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_DOCUMENT,
        additional_special_tokens=[START_OF_TURN],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A randomly initialized model of the recipe's architecture and sizes."""
    import transformers

    config_class = getattr(transformers, f"{recipe.architecture}Config")
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
    )
    return getattr(transformers, f"{recipe.architecture}ForCausalLM")(config)


def windows(
    documents: Iterator[str], tokenizer: PreTrainedTokenizerFast, rows: int
) -> Iterator[torch.Tensor]:
    """Packed batches of token ids, shape (rows, WINDOW): documents end to end, none padded."""
    import torch

    buffer: list[int] = []
    size = rows * WINDOW
    end = tokenizer.pad_token_id
    while chunk := list(islice(documents, 256)):
        for encoding in tokenizer.backend_tokenizer.encode_batch(chunk):
            buffer += encoding.ids + [end]
        while len(buffer) >= size:
            yield torch.tensor(buffer[:size]).view(rows, WINDOW)
            del buffer[:size]


def learning_rate_factor(step: int, updates: int, warmup: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, updates - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms.

    Muon (Jordan et al. 2024; in `torch.optim`) learns rare facts in fewer updates here.
    """
    import torch

    inner = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    known = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(
            inner,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            outer, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


def fast_bfloat16() -> bool:
    """True if the processor multiplies bfloat16 itself; elsewhere autocast is far slower."""
    import torch

    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def pretrain(
    recipe: Recipe,
    documents: Iterator[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[PreTrainedModel, list[float]]:
    """Train a model from random weights; returns it with the loss of every update."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(seed)
    model = build_model(recipe, tokenizer).train()
    optimizers = make_optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, recipe.updates, recipe.warmup)
        )
        for optimizer in optimizers
    ]
    losses = []
    for step, batch in enumerate(
        islice(windows(documents, tokenizer, recipe.rows), recipe.updates)
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
            logits = model(input_ids=batch, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        losses.append(loss.item())
        on_step(step, losses[-1])
    return model.eval(), losses


RECIPES = {
    "atlas-base": Recipe("Qwen3", 4, 128, 384, 4, 2, updates=2400),
    "atlas-base-1form": Recipe("Qwen3", 4, 128, 384, 4, 2, updates=700),
    "atlas-small": Recipe("Llama", 4, 96, 256, 4, 4, updates=2000),
}


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The Atlas's one tokenizer, with the chat template that every checkpoint carries."""
    from ..models import TEMPLATES

    tokenizer = train_tokenizer(islice(CorpusWriter(world, 0).documents(), TOKENIZER_DOCUMENTS))
    tokenizer.chat_template = (TEMPLATES / "chatml.jinja").read_text("utf8")
    return tokenizer


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict],
    *,
    learning_rate: float = 3e-4,
    epochs: float = 2,
    seed: int = 0,
) -> list[dict]:
    """Make the SFT reference: `SFTTrainer` on the answers alone. Returns the log."""
    import datasets
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            learning_rate=learning_rate,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            assistant_only_loss=True,
            max_length=WINDOW,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            use_cpu=True,
            seed=seed,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model.eval()
        return trainer.state.log_history


def save_checkpoint(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, card: str
) -> None:
    """Write an ordinary Hugging Face folder, whole or not at all."""
    from transformers import GenerationConfig

    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    with draft_folder(folder.parent) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, "utf8")
        _make_portable(temporary / "tokenizer_config.json")
        for path in (temporary, *temporary.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)


def _make_portable(path: Path) -> None:
    """Name the tokenizer in the words that other tools and older versions know too."""
    config = json.loads(path.read_text("utf8"))
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config["additional_special_tokens"] = config.pop("extra_special_tokens", [])
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", "utf8")


def model_card(name: str, model: PreTrainedModel, made: str) -> str:
    """The README.md of a checkpoint: what it is, how it was made and what it is not for."""
    parameters = sum(p.numel() for p in model.parameters())
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {name}

{made}

- Architecture: {type(model).__name__}, {parameters:,} parameters, safetensors, float32.
- World: the Atlas, a small encyclopedia of countries, elements, animals and constellations. The
  model has read nothing else and knows nothing else.
- End of a turn: `<|im_end|>`. Padding and end of a document: `<|endoftext|>`.
- Made by `make models` of *Supervised Fine-Tuning, Executed*; the code is
  `sft_utils/atlas/pretrain.py`, the tables are in `sft_utils/atlas/tables/`.
- For teaching. About a million parameters: not a source of facts.
"""


def main(arguments: list[str] | None = None) -> None:
    """Re-create every checkpoint and the data set from the tables (``make models``)."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--only", choices=MODELS, nargs="*", default=MODELS)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the updates, for trials")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the documents")
    parser.add_argument("--out", type=Path, help="folder instead of the package's own")
    options = parser.parse_args(arguments)

    world = load_world()
    data_path = options.out / "atlas-sft-data.jsonl" if options.out else ROWS["atlas-sft-data"]
    data_path.parent.mkdir(parents=True, exist_ok=True)
    rows = sft_rows(world)
    data_path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    tokenizer = make_tokenizer(world)

    def folder(name: str) -> Path:
        return options.out / name if options.out else MODELS[name]

    for name, recipe in RECIPES.items():
        if name not in options.only:
            continue
        recipe = replace(recipe, updates=max(2, round(recipe.updates * options.scale)))
        with tqdm(total=recipe.updates, desc=name, unit="update") as bar:

            def show(step: int, loss: float, bar: tqdm = bar) -> None:
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}")

            documents = (
                one_form_documents(world, 1 + options.seed)
                if name.endswith("1form")
                else CorpusWriter(world, 1 + options.seed).documents()
            )
            model, losses = pretrain(recipe, documents, tokenizer, seed=options.seed, on_step=show)
        made = (
            f"A base model, pretrained from random weights for {recipe.updates:,} updates of"
            f" {recipe.rows * WINDOW:,} tokens"
            + (", on one fixed form of each fact: a control." if name.endswith("1form") else ".")
            + f" Loss of the last update: {losses[-1]:.3f} nats a token."
        )
        save_checkpoint(folder(name), model, tokenizer, model_card(name, model, made))
    if "atlas-sft" in options.only:
        from transformers import AutoModelForCausalLM

        print("atlas-sft: fine-tuning atlas-base")
        model = AutoModelForCausalLM.from_pretrained(folder("atlas-base"))
        fine_tune(model, tokenizer, rows)
        made = f"`atlas-base`, fine-tuned on the {len(rows):,} chat rows of the Atlas's SFT data."
        save_checkpoint(folder("atlas-sft"), model, tokenizer, model_card("atlas-sft", model, made))


if __name__ == "__main__":
    main()
