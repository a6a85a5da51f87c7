"""What a training step keeps in memory: an estimate on paper, and a count of the tensors alive.

Explained in chapter 15, for several devices in chapter 25.
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


def published_configs() -> dict[str, PreTrainedConfig]:
    """The configs of published models that pages count and never load. Chapters 06, 15 and 25.

    That of 7 B parameters is what transformers takes a Llama to be if it is told nothing.
    """
    from transformers import LlamaConfig, Qwen3Config

    return {
        "SmolLM2-135M": LlamaConfig(
            hidden_size=576, num_hidden_layers=30, intermediate_size=1536,
            num_attention_heads=9, num_key_value_heads=3, vocab_size=49152,
            tie_word_embeddings=True,
        ),
        "Qwen3-0.6B": Qwen3Config(
            hidden_size=1024, num_hidden_layers=28, intermediate_size=3072,
            num_attention_heads=16, num_key_value_heads=8, head_dim=128, vocab_size=151936,
            tie_word_embeddings=True,
        ),
        "Llama, 7 B": LlamaConfig(),
    }  # fmt: skip


def adapter_parameters(config: PreTrainedConfig, r: int = 16) -> int:
    """The parameters of LoRA adapters of rank ``r`` on every linear layer. Chapters 06, 15, 25."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(shape_only(config), lora)
    return model.get_nb_trainable_parameters()[0]


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
    """The bytes that a training step needs, by part. Explained in chapter 15.

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


#: Bytes a parameter of the weights, the gradients and what the optimizer holds: Adam's two averages
#: and, where the weights are in bfloat16, their copy in float32.
PRECISIONS = {"float32": (4, 4, 8), "bf16 mixed": (2, 2, 12)}
#: Which of the three are split over the devices.
STRATEGIES = {
    "DDP": (False, False, False),
    "ZeRO-1": (False, False, True),
    "ZeRO-2": (False, True, True),
    "ZeRO-3, FSDP2": (True, True, True),
}


def device_memory(
    model: PreTrainedModel,
    tokens: int,
    *,
    strategy: str = "DDP",
    devices: int = 1,
    precision: str = "float32",
    trained: int | None = None,
    activation_checkpointing: bool = False,
) -> dict[str, int]:
    """The bytes that a training step with AdamW needs on each of ``devices`` GPUs, by part.

    ``strategy`` is a key of `STRATEGIES`, ``precision`` one of `PRECISIONS`; ``tokens`` and
    ``trained`` are those of `estimate_memory`, and ``tokens`` are those of one device: every
    device reads rows of its own, so activations are never split. What is split goes by the ZeRO
    paper (Rajbhandari and others 2020, page 3, Figure 1).

    Where weights are split, a device puts together what it computes with, in full: counted are
    the parts outside of the layers, one layer in use and the next, on its way. Not counted are
    buffers of communication and what the allocator leaves unused. Raises ``ValueError`` for
    another strategy, precision or number of devices. Explained in chapter 25.
    """
    for value, known in ((strategy, STRATEGIES), (precision, PRECISIONS)):
        if value not in known:
            raise ValueError(f"{value!r} is not known; there are {', '.join(map(repr, known))}.")
    if devices < 1:
        raise ValueError(f"devices = {devices}: give 1 or more.")
    counts = {name: weight.numel() for name, weight in model.named_parameters()}
    parameters = sum(counts.values())
    trained = parameters if trained is None else trained
    parts = {}
    names = ("weights", "gradients", "optimizer")
    for name, size, split in zip(names, PRECISIONS[precision], STRATEGIES[strategy], strict=True):
        whole = size * (parameters if name == "weights" else trained)
        parts[name] = -(-whole // devices) if split else whole
    if STRATEGIES[strategy][0] and devices > 1:
        layers = sum(count for name, count in counts.items() if ".layers." in name)
        of_one = layers // model.config.get_text_config().num_hidden_layers
        parts["put together"] = PRECISIONS[precision][0] * (parameters - layers + 2 * of_one)
    estimate = estimate_memory(
        model,
        tokens,
        activation_bytes=PRECISIONS[precision][0],
        activation_checkpointing=activation_checkpointing,
        gpu=True,
    )
    return parts | {name: estimate[name] for name in ("activations", "tile of the loss")}


def peak_bytes(action: Callable[[], Any]) -> int:
    """The most bytes of tensors that were alive at once during ``action()``. See chapter 15.

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
