"""Put a value of a page's cell where the prose can quote it."""

from __future__ import annotations

from typing import Any


def glue(name: str, value: Any, *, display: bool = False) -> None:
    """Store ``value`` under ``name`` for the prose; show it in the cell's output with ``display``.

    ``value`` is anything that Jupyter can show: a string, a number, a figure, a data frame. NumPy
    numbers become Python's. In a notebook without myst-nb, or in plain Python, nothing is stored,
    and ``display`` shows the value as usual. Rule 1 of the book: no number in the prose is typed.
    """
    if not name or name != name.strip():
        raise ValueError(f"glue name {name!r}: give a name that does not start or end in a space.")
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    try:
        from IPython import get_ipython
        from IPython.display import display as show

        in_notebook = get_ipython() is not None
    except ModuleNotFoundError:
        in_notebook = False
    if not in_notebook:
        if display:
            print(value)
        return
    try:
        from myst_nb import glue as store
    except ModuleNotFoundError:
        if display:
            show(value)
        return
    store(name, value, display)
