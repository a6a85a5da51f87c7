"""How long something will take here, told before it begins: by counting, and by a short trial.

Pages 03, 04, 07 and 08 say it near their beginning, and `sft_utils.dry_run` says it of a
profile. Chapter 06 explains the arithmetic.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .profiles import SEED, Profile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig, SFTTrainer

SECONDS = 5.0  # that one measured pass may take
TRIAL = 8  # tokens that are generated to see how fast


@dataclass(frozen=True)
class Lengths:
    """The tokens of training rows, cut at the limit. Of many ``rows`` they are a sample."""

    tokens: list[int]
    rows: int


def answers_ahead(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
    *,
    scored: int,
    times: int,
) -> str:
    """Say how long it takes to ask all questions ``times`` times, if no answer stops by itself.

    Those are the profile's and ``scored`` others. A first batch of the profile's is answered for a
    few tokens; each token takes one step of the whole batch.
    """
    from .generation import generate_responses

    count = times * (len(profile.questions) + scored)
    batch, limit = min(count, 64), profile.generation.max_new_tokens
    asked = [profile.questions[n % len(profile.questions)].text for n in range(batch)]
    how: dict[str, Any] = {
        "template_kwargs": profile.prompt.template_kwargs,
        "system": profile.prompt.system,
    }
    steps = min(limit, TRIAL)
    generate_responses(model, tokenizer, asked[:1], max_new_tokens=1, **how)  # prepares much
    start = time.perf_counter()
    given = generate_responses(
        model, tokenizer, asked, max_new_tokens=steps, return_details=True, **how
    )
    seconds = (time.perf_counter() - start) / max(answer.num_tokens for answer in given)
    whole = math.ceil(count / batch) * limit * seconds
    return (
        f"Ahead: {count:,} answers of up to {limit} tokens each, about {duration(whole)} if none "
        f"stops before; one more token of {batch} answers took {1000 * seconds:.1f} ms just now."
    )


def training_ahead(trainer: SFTTrainer) -> str:
    """Say how long the trainer's run takes. No weight changes, and no random state."""
    from .environment import torch_random_state

    rows: Any = trainer.train_dataset
    config: Any = trainer.args
    model: Any = trainer.model
    lengths = Lengths([len(ids) for ids in rows["input_ids"]], len(rows))
    updates, tokens = work(config, lengths)
    with torch_random_state():
        rate = measured_rate(config, model, lengths)
    return (
        f"Ahead: {updates:,} updates, about {duration(tokens / rate)} for {tokens:,.0f} tokens at "
        f"{rate:,.0f} a second, measured just now; evaluation comes on top. A run that is in the "
        "store is not made again."
    )


def work(config: SFTConfig, lengths: Lengths) -> tuple[int, float]:
    """The number of updates, and of tokens that they compute, padding included. Chapter 06.

    Rows of similar length are taken to share a batch, as the walk-through's sampling has it.
    """
    batch, scale = config.train_batch_size, lengths.rows / len(lengths.tokens)
    if config.packing:
        width = config.max_length or max(lengths.tokens)
        packed = math.ceil(scale * sum(lengths.tokens) / width)
        batches, epoch = math.ceil(packed / batch), float(packed * width)
    else:
        batches = math.ceil(lengths.rows / batch)
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


def duration(seconds: float) -> str:
    """Seconds as people say them, at least one."""
    if seconds < 100:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
