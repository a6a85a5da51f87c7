"""Memory: what is counted is what is alive, and the estimate holds against it."""

import pytest
import torch
from conftest import make_model
from datasets import Dataset
from torch.autograd.graph import saved_tensors_hooks
from trl import SFTConfig, SFTTrainer

from sft_utils.memory import LOSS_TILE, estimate_memory, peak_bytes, shape_only

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

    assert peak_bytes(one_at_a_time) == 1000 * FLOATS
    assert 2000 * FLOATS <= peak_bytes(two_at_once) <= 2004 * FLOATS


def test_views_and_operations_in_place_cost_nothing():
    given = torch.ones(1000)

    def work():
        given.view(10, 100).add_(1)
        own = given * 2
        own.view(10, 100).t()[3:].mul_(2)

    assert peak_bytes(work) == 1000 * FLOATS


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_that_autograd_keeps(kind, checkpointing):
    model = make_model(kind, hidden_size=48, intermediate_size=96, num_hidden_layers=4).train()
    ids = torch.ones(3, 40, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept, alive = {}, []

    def pack(tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            kept[memory.data_ptr()] = memory.nbytes()
            alive.append(tensor)  # so that no address is given out twice
        return tensor

    if checkpointing:
        model.activation_checkpointing_enable()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    estimate = estimate_memory(model, ids.numel(), activation_checkpointing=checkpointing)
    if checkpointing:  # the layer that is computed anew comes later, in the backward pass
        layer = (
            estimate_memory(model, ids.numel())["activations"]
            - FLOATS * ids.numel() * 3 * model.config.hidden_size
        ) / model.config.num_hidden_layers
        estimate["activations"] -= layer
    tolerance = 0.2 if checkpointing else 0.1
    assert sum(kept.values()) == pytest.approx(estimate["activations"], rel=tolerance)


def test_the_estimate_bounds_what_a_training_step_holds():
    model = make_model("llama", hidden_size=64, num_hidden_layers=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.ones(8, 32, dtype=torch.long)

    def steps():
        for _ in range(2):
            model.base_model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
            model.base_model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    parts = estimate_memory(model, ids.numel())
    parts.pop("tile of the loss")
    parts.pop("weights")  # were there before
    measured = peak_bytes(steps)
    assert 0.75 * sum(parts.values()) < measured < 1.1 * sum(parts.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_holds_for_trls_trainer(chat_tokenizer, tmp_path, checkpointing):
    messages = [
        {"role": "user", "content": "What is the capital of Kenya? " * 3},
        {"role": "assistant", "content": "It is Nairobi."},
    ]
    rows = Dataset.from_list([{"messages": messages}] * 8)
    settings = {"use_cpu": True, "bf16": False, "save_strategy": "no", "report_to": "none"}
    batches = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    config = SFTConfig(
        str(tmp_path),
        max_steps=2,
        assistant_only_loss=True,
        disable_tqdm=True,
        activation_checkpointing=checkpointing,
        **settings,
        **batches,
    )
    model = make_model("llama", vocab_size=20000, num_hidden_layers=6, tie_word_embeddings=True)
    trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=chat_tokenizer)
    tokens = 4 * len(trainer.train_dataset[0]["input_ids"])
    parts = estimate_memory(model, tokens, activation_checkpointing=checkpointing)
    measured = parts["weights"] + peak_bytes(trainer.train)
    assert 0.85 * sum(parts.values()) < measured < 1.1 * sum(parts.values())


def test_weights_gradients_and_averages_are_counted_to_the_byte():
    model = make_model("qwen3")
    count = sum(weight.numel() for weight in model.parameters())
    full = estimate_memory(model, 1)
    assert full["weights"] == full["gradients"] == 4 * count
    assert full["Adam's two averages"] == 8 * count
    adapters = estimate_memory(model, 1, weight_bytes=2, trained=10)
    assert adapters["weights"] == 2 * count
    assert adapters["gradients"] + adapters["Adam's two averages"] == 120


def test_the_tile_is_trls():
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    assert LOSS_TILE == (chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE)


def test_a_shape_takes_no_memory():
    model = shape_only(make_model("qwen3").config)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert model.num_parameters() == make_model("qwen3").num_parameters()
