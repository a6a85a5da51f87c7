"""How likely a model finds given answers, token by token. Chapter 04."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Likelihood:
    """How likely a text is after a prompt, token by token.

    ``losses`` are in nats, one for each token that holds some of the text; ``cuts`` is where each
    of them ends, in characters of the text; ``size`` is the text's length in bytes of UTF-8.
    """

    losses: tuple[float, ...]
    cuts: tuple[int, ...]
    size: int
    end_loss: float

    @property
    def loss(self) -> float:
        """The mean, nats a token."""
        return sum(self.losses) / len(self.losses)

    @property
    def bits_per_byte(self) -> float:
        """The sum, in bits for each byte."""
        return sum(self.losses) / math.log(2) / self.size


def likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    text: str,
    *,
    max_length: float = math.inf,
) -> Likelihood:
    """How likely a model finds ``text`` after a chat ``prompt``.

    Both are tokenized together, as in training, and the tokens of the text are told by their place
    in it: a token that holds the end of the prompt as well counts whole. Only the first
    ``max_length`` tokens are read, and the size is that of the text they hold.

    The loss of the end-of-turn token after the text is ``end_loss``, and no part of the others: it
    has no bytes, and whether a model stops is another question. It is NaN where the tokenizer's
    template ends a turn with no token of its own, or where the text was cut.

    Raises ``ValueError`` if no token of the text is within ``max_length``, and for a tokenizer that
    does not tell the places of its tokens.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from ..chat import end_of_turn_id

    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path!r} does not tell where in a text its tokens "
            "stand. Use a fast one, with a tokenizer.json."
        )
    whole = prompt + text
    encoded: Any = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    cut = len(ids) > max_length
    if cut:
        ids, ends = ids[: int(max_length)], ends[: int(max_length)]
    places = [place for place, end in enumerate(ends) if place and end > len(prompt)]
    if not places:
        raise ValueError(
            f"No token of {text[:60]!r} is among the first {len(ids)} after the prompt."
        )
    cuts = tuple(ends[place] - len(prompt) for place in places)
    last = end_of_turn_id(tokenizer) if not cut else None
    read = torch.tensor([ids if last is None else [*ids, last]], device=model.device)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=read).logits[0, places[0] - 1 : -1].float()
        losses = cross_entropy(logits, read[0, places[0] :], reduction="none").tolist()
    end_loss = math.nan if last is None else losses.pop()
    return Likelihood(
        tuple(losses[place - places[0]] for place in places),
        cuts,
        len(text[: cuts[-1]].encode()),
        end_loss,
    )


def follow_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> pd.DataFrame:
    """Follow a given answer token by token. Explained in chapter 04.

    One row for each token of ``answer`` and a last one for its end. The columns say what the
    model expected there, having read ``prompt`` and the answer so far: the probability of that
    token (``next``), that of ending the turn instead (``end``: all of `sft_utils.end_token_ids`
    together), and the likeliest token (``likeliest``, any end token as ``(end)``). In the last
    row ``next`` is the same as ``end``. ``prompt`` is written out in full, markup included.
    """
    import pandas as pd
    import torch

    from ..models import end_token_ids

    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rest = tokenizer(answer, add_special_tokens=False)["input_ids"]
    ends = end_token_ids(model, tokenizer)
    ids = torch.tensor([start + rest], device=model.device)
    model.eval()
    with torch.no_grad():
        given = model(input_ids=ids).logits[0, len(start) - 1 :].float().softmax(-1).cpu()
    end = given[:, ends].sum(-1)
    best = given.argmax(-1).tolist()
    following = [float(given[place, token]) for place, token in enumerate(rest)] + [float(end[-1])]
    return pd.DataFrame(
        {
            "token": [str(tokenizer.decode([token])) for token in rest] + ["(end)"],
            "next": following,
            "end": end.tolist(),
            "likeliest": ["(end)" if b in ends else str(tokenizer.decode([b])) for b in best],
        }
    )
