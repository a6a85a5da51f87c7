"""A trainer with a cheaper optimizer step on a processor, for pages that train many times.

TRL's loss is made for GPUs and for vocabularies of a hundred thousand tokens: off a GPU it scores
every position, masked ones too, in tiles that the backward pass computes once more. With a small
vocabulary that is most of a step. Explained in chapter 11.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from peft import PeftModel
from trl import SFTTrainer

#: Settings of a model that change the logits after the projection.
_SCALED_BY = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "output_multiplier",
    "lm_head_multiplier",
)


class LabelOnlyTrainer(SFTTrainer):
    """`trl.SFTTrainer`, but only the positions that carry a label are projected to logits.

    The loss, what it is divided by and all that is logged stay TRL's own: it is given the same
    numbers, computed in another way. Packed rows, LoRA adapters and evaluation are included. With
    several processes, on another device than a processor, and for models whose logits are scaled,
    that read more than text or that learn a prompt, everything is TRL's. Explained in chapter 11,
    which shows that the losses are equal.
    """

    def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        """The loss of a batch: a tensor without dimensions, in nats for each label."""
        if self.args.device.type == "cpu" and self.args.world_size == 1 and _is_plain(self.model):
            model = partial(self._forward, model)
        return super().compute_loss(model, inputs, *given, **named)

    def _forward(self, model: Any, *, fused_lm_head: bool = False, **inputs: Any) -> Any:
        """What TRL asks of a model: scores of the labels, each of shape (rows, length - 1)."""
        if not fused_lm_head:
            return model(**inputs)
        targets = inputs.pop("labels")[:, 1:]
        carries = targets != -100
        causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        with self.accelerator.autocast():
            states = causal.base_model(**inputs).last_hidden_state[:, :-1][carries]
            scores = causal.get_output_embeddings()(states).float().log_softmax(-1)
        labels, plain = targets[carries], scores.detach()
        found = {
            "log_probs": scores.gather(-1, labels[:, None])[:, 0],
            "entropy": -(plain.exp() * plain).sum(-1),
            "is_top1": (plain.argmax(-1) == labels).float(),
        }
        spread = {
            k: v.new_zeros(carries.shape).masked_scatter(carries, v) for k, v in found.items()
        }
        return SimpleNamespace(label_mask=carries, **spread)


def _is_plain(model: Any) -> bool:
    """Whether the logits are the output embeddings times the last hidden states, and no more."""
    config = model.config
    adapter = model.active_peft_config if isinstance(model, PeftModel) else None
    return (
        config.get_text_config() is config
        and all(getattr(config, name, None) in (None, 1) for name in _SCALED_BY)
        and not getattr(config, "output_router_logits", False)
        and not getattr(adapter, "is_prompt_learning", False)
    )
