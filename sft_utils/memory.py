"""What a training step keeps in memory: an estimate on paper, and a count of the tensors alive.

Explained in chapter 06.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: TRL computes the loss in tiles of at most so many tokens by so many vocabulary entries, and
#: always reserves the full width. Off the GPU it works on up to 7 copies of what a tile holds.
LOSS_TILE = (4096, 32768)
LOSS_COPIES = 7


def shape_only(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the config's shape without any numbers in it: it can be counted, not run."""
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


def estimate_memory(
    model: PreTrainedModel,
    tokens: int,
    *,
    weight_bytes: int = 4,
    state_bytes: int = 4,
    activation_bytes: int = 4,
    activation_checkpointing: bool = False,
    trained: int | None = None,
    gpu: bool = False,
) -> dict[str, int]:
    """The bytes that a training step needs, by part. Explained in chapter 06.

    ``tokens`` is rows x length of one forward pass, padding included. ``weight_bytes`` is 4 in
    float32 and 2 in bfloat16; ``state_bytes`` is the size of a gradient and of each of Adam's two
    averages; ``trained`` is how many parameters are trained, all of them by default. On a ``gpu``
    the loss is computed in place, elsewhere on copies.

    The activations are those of a Llama or Qwen3 layer in transformers, with the attention of
    PyTorch: per token and layer 6 vectors of the hidden size (three for each norm), 4 of the
    heads' size (query, key, value, result) and 4 of the feed-forward's. Qwen3 also normalizes
    query and key. Checkpointing keeps each layer's input and computes one layer anew at a time.
    """
    config = model.config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or hidden // heads
    layer = 6 * hidden + 4 * heads * head + 4 * config.intermediate_size
    if any(name.endswith("q_norm.weight") for name, _ in model.named_parameters()):
        layer += 2 * head * (heads + config.num_key_value_heads)
    layers = config.num_hidden_layers
    kept = layers * hidden + layer if activation_checkpointing else layers * layer
    parameters = sum(weight.numel() for weight in model.parameters())
    trained = parameters if trained is None else trained
    rows, width = min(tokens, LOSS_TILE[0]), min(config.vocab_size, LOSS_TILE[1])
    copies = 0 if gpu else 4 * LOSS_COPIES * rows * width
    return {
        "weights": weight_bytes * parameters,
        "gradients": state_bytes * trained,
        "Adam's two averages": 2 * state_bytes * trained,
        "activations": activation_bytes * tokens * (kept + 3 * hidden),
        "tile of the loss": activation_bytes * rows * LOSS_TILE[1] + copies,
    }


def peak_bytes(action: Callable[[], Any]) -> int:
    """The most bytes of tensors that were alive at once during ``action()``. See chapter 06.

    Counted are the tensors that PyTorch's operations returned while it ran, each piece of memory
    once: not the tensors from before, and not what one operation takes and gives back inside.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Count(TorchDispatchMode):
        """Adds up the memory of results, and takes it off when they die."""

        alive = peak = 0
        known: weakref.WeakSet[Any] = weakref.WeakSet()

        def __torch_dispatch__(
            self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            inputs = {
                tensor.untyped_storage()
                for tensor in tree_leaves((args, kwargs))
                if isinstance(tensor, torch.Tensor)
            }
            results = operation(*args, **(kwargs or {}))
            for tensor in tree_leaves(results):
                if isinstance(tensor, torch.Tensor):
                    self.see(tensor.untyped_storage(), inputs)
            return results

        def see(self, memory: Any, inputs: set[Any]) -> None:
            if memory in inputs or memory in self.known:
                return  # a view, or an operation in place
            self.known.add(memory)
            self.alive += memory.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(memory, self.free, memory.nbytes())

        def free(self, count: int) -> None:
            self.alive -= count

    counter = Count()
    with counter:
        action()
    return counter.peak
