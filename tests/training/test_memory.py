"""Memory: what is counted is what is alive, and the estimate holds against it."""

import pytest
import torch
from conftest import chat_rows, make_model, quick_config
from trl import SFTTrainer

from sft_utils.training import memory

FLOATS = 4  # bytes


def test_only_what_is_alive_at_once_counts():
    given = torch.ones(1000)

    def one_at_a_time():
        for _ in range(5):
            given * 2  # noqa: B018, dies at once

    def two_at_once():
        first = given * 2
        second = first + 1
        return second.sum() + first.sum()

    def in_place():
        given.view(10, 100).add_(1)
        own = given * 2
        own.view(10, 100).t()[3:].mul_(2)

    assert memory.peak_bytes(one_at_a_time) == memory.peak_bytes(in_place) == 1000 * FLOATS
    assert 2000 * FLOATS <= memory.peak_bytes(two_at_once) <= 2004 * FLOATS


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_holds_for_trls_trainer(chat_tokenizer, tmp_path, kind, checkpointing):
    rows = chat_rows([("What is the capital of Kenya? " * 3, "It is Nairobi.")] * 8)
    batches = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    config = quick_config(
        tmp_path, max_steps=2, activation_checkpointing=checkpointing, report_to="none", **batches
    )
    model = make_model(kind, vocab_size=20000, num_hidden_layers=6, tie_word_embeddings=True)
    trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=chat_tokenizer)
    tokens = 4 * len(trainer.train_dataset[0]["input_ids"])
    parts = memory.estimate_memory(model, tokens, activation_checkpointing=checkpointing)
    measured = parts["weights"] + memory.peak_bytes(trainer.train)
    assert 0.85 * sum(parts.values()) < measured < 1.1 * sum(parts.values())


def test_weights_gradients_and_averages_are_counted_to_the_byte():
    model = make_model("qwen3")
    count = sum(weight.numel() for weight in model.parameters())
    full = memory.estimate_memory(model, 1)
    assert full["weights"] == full["gradients"] == 4 * count
    assert full["Adam's two averages"] == 8 * count
    adapters = memory.estimate_memory(model, 1, weight_bytes=2, trained=10)
    assert adapters["weights"] == 2 * count
    assert adapters["gradients"] + adapters["Adam's two averages"] == 120


def test_the_tile_is_trls():
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    assert memory.LOSS_TILE == (chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE)


def test_a_shape_takes_no_memory():
    model = memory.shape_only(make_model("qwen3").config)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert model.num_parameters() == make_model("qwen3").num_parameters()


# --- Several devices ---------------------------------------------------------------------------

STATES = ("weights", "gradients", "optimizer")


def test_the_figures_of_the_zero_paper():
    """Its Figure 1: 7.5 B parameters on 64 devices, in gigabytes a device."""

    class Shape:
        def named_parameters(self):
            yield "model.layers.0.weight", torch.empty(7_500_000_000, device="meta")

        parameters = lambda self: (w for _, w in self.named_parameters())  # noqa: E731
        config = make_model("llama").config

    published = {"DDP": 120, "ZeRO-1": 31.4, "ZeRO-2": 16.6, "ZeRO-3, FSDP2": 1.9}
    for strategy, gigabytes in published.items():
        parts = memory.device_memory(
            Shape(), 1, strategy=strategy, devices=64, precision="bf16 mixed"
        )
        assert sum(parts[name] for name in STATES) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_every_strategy_splits_what_it_says_to_the_byte():
    model = make_model("qwen3")  # tied: the head's weights are the embedding's
    count = model.num_parameters()
    found = {
        (strategy, precision): memory.device_memory(
            model, 40, strategy=strategy, devices=4, precision=precision
        )
        for strategy in memory.STRATEGIES
        for precision in memory.PRECISIONS
    }
    up = lambda whole: -(-whole // 4)  # noqa: E731
    for (strategy, precision), parts in found.items():
        w, g, o = (size * count for size in memory.PRECISIONS[precision])
        assert w + g + o == 16 * count
        assert (
            tuple(parts[name] for name in STATES)
            == {
                "DDP": (w, g, o),
                "ZeRO-1": (w, g, up(o)),
                "ZeRO-2": (w, up(g), up(o)),
                "ZeRO-3, FSDP2": (up(w), up(g), up(o)),
            }[strategy]
        )
        assert ("put together" in parts) == (strategy == "ZeRO-3, FSDP2")
        alone = memory.estimate_memory(model, 40, activation_bytes=w // count, gpu=True)
        for name in ("activations", "tile of the loss"):
            assert parts[name] == alone[name]
    outside = model.model.embed_tokens.weight.numel() + 32  # and the last norm
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    untied = count - outside - 2 * layer
    parts = found["ZeRO-3, FSDP2", "bf16 mixed"]
    assert parts["put together"] == 2 * (outside + untied + 2 * layer)


def test_one_device_has_nothing_to_split_and_only_what_is_trained_has_gradients():
    model = make_model("qwen3")
    alone = memory.device_memory(model, 10)
    assert [memory.device_memory(model, 10, strategy=s) for s in memory.STRATEGIES] == [alone] * 4
    parts = memory.device_memory(model, 10, devices=2, strategy="ZeRO-2", trained=101)
    assert [parts[name] for name in STATES] == [4 * model.num_parameters(), 202, 404]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"strategy": "ZeRO-4"}, "'ZeRO-4' is not known; there are 'DDP', 'ZeRO-1'"),
        ({"precision": "fp16"}, "'fp16' is not known; there are 'float32', 'bf16 mixed'"),
        ({"devices": 0}, "devices = 0: give 1 or more"),
    ],
)
def test_what_is_not_known_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        memory.device_memory(make_model("qwen3"), 10, **wrong)
