"""What something will take here, told before it begins: by counting, and by a short trial.

`sft_utils.dry_run` says it of a profile, page by page. Chapter 06 explains the arithmetic.
"""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.loss_mask import loss_tokens
from .evaluation.held_out import MOST_ANSWERS
from .evaluation.statistics import draw
from .profiles import SEED, Profile
from .training.runs import store_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

LOOKED_AT = 5000  # rows, or questions, that are tokenized; of more, a sample is drawn by seed
SECONDS = 5.0  # that one measured pass may take
TRIAL = 8  # tokens that are generated to see how fast
BATCH = 64  # answers that are generated at a time
HALF = {"weight_bytes": 4 + 2, "activation_bytes": 2}  # bf16=True over float32 weights


@dataclass(frozen=True)
class Lengths:
    """The tokens of training rows, cut at the limit. Of many ``rows`` they are a sample."""

    tokens: list[int]
    rows: int


@dataclass
class Looked:
    """Rows as the trainer takes them, in tokens.

    ``full`` are their lengths, and ``kept`` those that are left where there is something to learn,
    by row; ``learned`` counts the tokens that carry loss, and ``stops`` says if one ends an answer.
    """

    full: list[int] = field(default_factory=list)
    kept: dict[int, int] = field(default_factory=dict)
    learned: int = 0
    shown: str = ""
    stops: bool = False


def look(
    tokenizer: PreTrainedTokenizerBase, ends: set[int], config: SFTConfig, rows: Dataset
) -> Looked:
    """Tokenize rows as the trainer does, `LOOKED_AT` of them at most. ``ends`` end an answer."""
    limit, looked = config.max_length or sys.maxsize, Looked()
    numbers = draw(range(len(rows)), LOOKED_AT)
    for number, asked in zip(numbers, rows.select(numbers), strict=True):
        row = loss_tokens(tokenizer, asked["messages"], asked.get("chat_template_kwargs"))
        looked.full.append(len(row))
        taught = [t.id for t in row[:limit] if t.carries_loss or not config.assistant_only_loss]
        if taught:
            looked.kept[number] = len(row[:limit])
            looked.learned += len(taught)
            looked.shown = looked.shown or str(tokenizer.decode(taught))
            looked.stops = looked.stops or not ends.isdisjoint(taught)
    return looked


def page_times(profile: Profile, *, training: float, updates: int, step: float) -> dict[str, float]:
    """The seconds of each page that trains or answers much, if no answer stops before its limit.

    ``training`` are those of the whole run of ``updates`` updates, and ``step`` those of one more
    token of a batch of answers, as `answering_step` measures it. Loading, and evaluation while a
    model is trained, come on top.
    """
    limit = profile.generation.max_new_tokens

    def answering(each: int, held_out: int = 0) -> float:
        count = each * len(profile.questions) + held_out * MOST_ANSWERS
        return math.ceil(count / BATCH) * limit * step

    models = 2 + (profile.models.reference is not None)
    times = {
        "01": training * min(1, 30 / updates) + answering(2),
        "03": answering(5),
        "04": answering(2, 2),
        "07": training + answering(2),
        "08": answering(models + 20, models),  # twenty samples of each question
    }
    if profile.models.reference is None:
        del times["04"]
    return times


def answering_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, profile: Profile
) -> float:
    """Seconds that one more token of a batch of `BATCH` answers takes, by a short trial."""
    from .generation import generate_responses

    asked = [profile.questions[n % len(profile.questions)].text for n in range(BATCH)]
    how: dict[str, Any] = {
        "template_kwargs": profile.prompt.template_kwargs,
        "system": profile.prompt.system,
    }
    steps = min(profile.generation.max_new_tokens, TRIAL)
    generate_responses(model, tokenizer, asked[:1], max_new_tokens=1, **how)  # prepares much
    start = time.perf_counter()
    given = generate_responses(
        model, tokenizer, asked, max_new_tokens=steps, return_details=True, **how
    )
    return (time.perf_counter() - start) / max(answer.num_tokens for answer in given)


def work(config: SFTConfig, lengths: Lengths) -> tuple[int, float]:
    """The number of updates, and of tokens that they compute, padding included.

    Rows of similar length are taken to share a batch, as the walk-through's sampling has it. Raises
    ``ValueError`` if there is no whole batch where only whole ones count.
    """
    batch, scale = config.train_batch_size, lengths.rows / len(lengths.tokens)
    if config.packing:
        width = config.max_length or max(lengths.tokens)
        packed = math.ceil(scale * sum(lengths.tokens) / width)
        batches, epoch = math.ceil(packed / batch), float(packed * width)
    else:
        batches = math.ceil(lengths.rows / batch)
        if config.dataloader_drop_last and lengths.rows < batch:
            raise ValueError(
                f"dataloader_drop_last is true, and {lengths.rows} rows to train on make no whole "
                f"batch of {batch}. Lower per_device_train_batch_size."
            )
        longest_first = sorted(lengths.tokens, reverse=True)
        epoch = scale * sum(
            width * len(longest_first[start : start + batch])
            for start, width in enumerate(longest_first)
            if start % batch == 0
        )
    steps = max(1, math.ceil(batches / config.gradient_accumulation_steps))
    updates = (
        config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * steps)
    )
    return updates, epoch * updates / steps


def measured_rate(config: SFTConfig, model: PreTrainedModel, lengths: Lengths) -> float:
    """Tokens a second of a pass forward and backward, on random tokens; no weight changes."""
    import torch

    device, vocabulary = model.device, model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(SEED)
    was_training = model.training
    model.train()

    def seconds(rows: int, width: int) -> float:
        ids = torch.randint(vocabulary, (rows, width), generator=draw).to(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bool(config.bf16)):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    width = min(32, statistics.median_high(lengths.tokens))
    seconds(1, width)  # the first pass prepares much that later ones find ready
    affordable = max(width, int(width * SECONDS / seconds(1, width)))  # tokens
    width = min(affordable, statistics.median_high(lengths.tokens))
    rows = max(1, min(config.train_batch_size, affordable // width))
    rate = rows * width / min(seconds(rows, width) for _ in range(3))
    model.zero_grad()
    model.train(was_training)
    return rate


def product_rate(config: SFTConfig, width: int = 1024) -> float:
    """Operations a second of a product of two square matrices."""
    import torch

    matrix = torch.ones(width, width, device=config.device)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        taken.append(time.perf_counter() - start)
    return 2 * width**3 / min(taken)


def trained(model: PreTrainedModel) -> int:
    """The parameters that a training changes: those of an adapter, if there is one."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def memory_needs(config: SFTConfig, model: PreTrainedModel, lengths: Lengths) -> tuple[float, str]:
    """The bytes of a training step by the estimate on paper, 0 if it has none; and a line."""
    from .training.memory import estimate_memory

    rows, width = min(config.train_batch_size, lengths.rows), max(lengths.tokens)
    try:
        parts = estimate_memory(
            model,
            rows * width,
            activation_checkpointing=bool(config.activation_checkpointing),
            trained=trained(model),
            gpu=config.device.type == "cuda",
            **HALF if config.bf16 else {},
        )
    except AttributeError as error:
        return 0, f"no estimate for {type(model).__name__}: {error}"
    needed = sum(parts.values())
    return needed, f"about {size(needed)}, estimated for {rows} rows of {width:,} tokens"


def disk_needs(
    config: SFTConfig, model: PreTrainedModel, seconds: float
) -> Iterator[tuple[Path, float, int, str, str]]:
    """What a run of so many ``seconds`` writes, folder by folder.

    Of each the folder, the bytes that are needed and those that are free, a line, and what to do
    if they are too few. In the store: checkpoints and the kept run. In the folder for temporary
    files: the model that is exported, beside the one that it began from.
    """
    from .training.checkpoints import EVERY

    kept = 4 * sum(weight.numel() for weight in model.parameters())  # in float32
    saved = 3 * 4 * trained(model)  # Adam's two averages beside the weights
    count = 2 + bool(config.load_best_model_at_end)  # the newest, the best, and one under way
    count = 0 if config.save_strategy == "no" and seconds < EVERY else count
    store = store_folder()
    store = next(path for path in (store, *store.parents) if path.exists())
    told = f"{size(count * saved)} for {count} checkpoints while it trains, {size(kept)} for the "
    remedy = "Make room, or set SFT_RUNS to a larger disk."
    free = shutil.disk_usage(store).free
    yield store, count * saved + kept, free, f"{told}kept run", remedy
    scratch = Path(tempfile.gettempdir())
    told = f"{size(2 * kept)} for the model that chapter 07 exports and the one it began from"
    remedy = "Make room, or set TMPDIR to a larger disk."
    yield scratch, 2 * kept, shutil.disk_usage(scratch).free, told, remedy


def size(count: float) -> str:
    """Bytes as people say them."""
    power = min(3, int(math.log(max(1, count), 1000)))
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"


def duration(seconds: float) -> str:
    """Seconds as people say them, at least one."""
    if seconds < 100:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
