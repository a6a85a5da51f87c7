"""How far training has moved the weights of a model, by their kind. Chapters 04 and 07."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


def weight_changes(before: nn.Module, after: nn.Module) -> pd.DataFrame:
    """How far the weights of one model are from those of another: a row for each kind, and "all".

    Compared are the weights that both have under one name and in one shape. Their kind is the last
    but one part of the name, as in ``layers.0.self_attn.q_proj.weight``. ``change / size`` is the
    Euclidean norm of the change over that of the weights before it; the share of the change is
    that of its square, which adds up over the kinds.

    Raises ``ValueError`` if the two have no weight in common.
    """
    import pandas as pd

    rows = []
    later = dict(after.named_parameters())
    for name, weight in before.named_parameters():
        if name in later and later[name].shape == weight.shape:
            old, new = (w.detach().cpu().double() for w in (weight, later[name]))
            change, size = (float(w.square().sum()) for w in (new - old, old))
            rows.append((name.split(".")[-2:][0], weight.numel(), change, size))
    if not rows:
        raise ValueError(
            f"{type(before).__name__} and {type(after).__name__} have no weight of one name and "
            "shape. Compare a model with one that was trained from it, its adapter merged."
        )
    columns = ["kind", "weights", "change²", "size²"]
    sums = pd.DataFrame(rows, columns=columns).groupby("kind", sort=False).sum()
    sums.loc["all"] = sums.sum()
    total = sums.loc["all"]
    return pd.DataFrame(
        {
            "weights": sums["weights"].astype(int),
            "change / size": (sums["change²"] / sums["size²"]) ** 0.5,
            "share of the weights": sums["weights"] / total["weights"],
            "share of the change": sums["change²"] / total["change²"],
        }
    )
