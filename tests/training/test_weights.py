"""How far weights have moved, on weights that are counted by hand."""

import pytest
import torch
from torch import nn

from sft_utils.training.weights import weight_changes


def model(**weights):
    """A module with a linear layer of each name, without biases, and these weights."""
    made = nn.Module()
    for name, values in weights.items():
        layer = nn.Linear(len(values), 1, bias=False)
        layer.weight = nn.Parameter(torch.tensor([values]))
        made.add_module(name, layer)
    return made


def test_changes_are_told_by_kind_and_in_all():
    before = model(q_proj=[3.0, 4.0], k_proj=[1.0, 0.0], gone=[1.0], wider=[1.0])
    after = model(q_proj=[3.0, 1.0], k_proj=[1.0, 4.0], wider=[1.0, 2.0], come=[1.0])
    table = weight_changes(before, after)
    assert [*table.index] == ["q_proj", "k_proj", "all"]
    assert [*table["weights"]] == [2, 2, 4]
    assert [*table["change / size"]] == pytest.approx([3 / 5, 4, 5 / 26**0.5])
    assert [*table["share of the weights"]] == pytest.approx([1 / 2, 1 / 2, 1])
    assert [*table["share of the change"]] == pytest.approx([9 / 25, 16 / 25, 1])


def test_a_kind_is_summed_over_the_layers_and_a_weight_of_the_model_is_its_own_kind():
    before, after = (nn.ModuleList([model(up=[at]), model(up=[1.0])]) for at in (1.0, 2.0))
    before.scale, after.scale = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    table = weight_changes(before, after)
    assert table["weights"].to_dict() == {"scale": 1, "up": 2, "all": 3}
    assert table["change / size"].to_dict() == pytest.approx(
        {"scale": 0, "up": 0.5**0.5, "all": 3**-0.5}
    )


def test_models_without_a_weight_in_common_are_refused():
    with pytest.raises(ValueError, match="no weight of one name and shape. Compare a model with"):
        weight_changes(model(q_proj=[1.0]), model(k_proj=[1.0]))
