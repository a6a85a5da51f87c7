"""Which tokens of a conversation carry loss, and how long rows are. Chapter 05."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..chat import Messages, conversation_ids, has_generation_markers
from .readers import DataError

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class LossToken(NamedTuple):
    """One token of a rendered conversation."""

    text: str
    id: int
    carries_loss: bool


def loss_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template_kwargs: dict[str, Any] | None = None,
) -> list[LossToken]:
    """Return each token of a conversation and whether loss falls on it with assistant-only loss.

    What carries loss is what the chat template writes between ``{% generation %}`` and
    ``{% endgeneration %}``. A well-known template without these markers is replaced by TRL's
    version with them, as `SFTTrainer` does. Explained in chapter 05.

    Raises `DataError` if there are no markers and TRL knows no version with them.
    """
    template = tokenizer.chat_template
    name = tokenizer.name_or_path or "this model"
    if not template:
        raise DataError(f"The tokenizer of {name!r} has no chat template. Set one first.")
    if not has_generation_markers(template):
        from trl.chat_template_utils import get_training_chat_template

        try:
            template = get_training_chat_template(tokenizer)
        except ValueError as error:
            raise DataError(
                f"The chat template of {name!r} has no {{% generation %}} markers, so it does not "
                "tell which tokens are the assistant's. Put {% generation %} and "
                "{% endgeneration %} around what the assistant writes, its end token included; "
                "templates/chatml.jinja in this package shows how."
            ) from error
    encoded: Any = tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **(template_kwargs or {}),
    )
    return [
        LossToken(str(tokenizer.decode([token])), token, bool(mask))
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ]


def sequence_lengths(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: dict[str, Any] | None = None,
) -> pd.Series:
    """Return the tokens of every rendered row, counted, by row. Explained in chapter 05."""
    import pandas as pd

    lengths = [
        len(conversation_ids(tokenizer, messages, template_kwargs))
        for messages in dataset["messages"]
    ]
    return pd.Series(lengths, name="tokens").rename_axis("row")
