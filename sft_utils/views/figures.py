"""Figures as inline SVG.

Lines and text take the page's own text color (``currentColor``), so a figure reads well on white
and on dark. Nothing is told by color alone: hatches, markers, line styles and labels in words say
the same. The same input gives the same bytes. Chapters 05, 07 and 10 use this module.
"""

from __future__ import annotations

import hashlib
import html
import math
import re
import statistics
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from ..evaluation.metrics import SCORE_NAMES
from ..wording import visible

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

#: The colors of Okabe and Ito (2008) with a contrast of 3:1 both on white and on the dark page.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
HATCHES = ("", "////", "xxx", "----", "\\\\\\\\", "+++", "||||")  # of lines: dots make files big

Points = Sequence[tuple[float, float]]  # x and y

_INK = "#010203"  # stands for currentColor until the SVG is written
_WIDTH = 7.0  # inches, at 96 pixels each: the width of a page's text
_RC: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the layout is the same everywhere
    "svg.hashsalt": "sft-utils",
    "text.parse_math": False,
    "font.size": 10,
    "hatch.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    ),
}

# The theme puts every HTML output on a light panel in dark mode; ours need none.
NO_PANEL = (
    "html[data-theme=dark] .bd-content div.cell_output .text_html:has(div.sft-view)"
    "{background:none;color:inherit;padding:0}"
)


@dataclass(frozen=True)
class Figure:
    """A drawing and the words that stand for it: HTML in a page, the words elsewhere."""

    svg: str
    alt: str

    def _repr_html_(self) -> str:
        return (
            f'<div class="sft-view"><style>{NO_PANEL}</style>\n'
            f'<figure role="img" aria-label="{html.escape(self.alt)}" '
            f'style="margin:0;overflow-x:auto">\n{self.svg}\n</figure></div>'
        )

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def _figure(
    draw: Callable[[Canvas], None], height: float, alt: str, title: str | None = None
) -> Figure:
    """Call ``draw`` on an empty canvas of ``height`` inches and keep the result."""
    import matplotlib.style
    from matplotlib.figure import Figure as Canvas

    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what the figure shows, with its numbers.")
    with matplotlib.style.context(["default", _RC]), warnings.catch_warnings():
        # Text stays text, and a reader's browser has a font for it.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        canvas = Canvas(figsize=(_WIDTH, height), layout="constrained")
        if title:
            canvas.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
        draw(canvas)
        file = StringIO()
        canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Figure(_inline(visible(file.getvalue()), visible(title or alt)), visible(alt))


def _inline(text: str, title: str) -> str:
    """Matplotlib's SVG file as an element of a page, one that cannot disturb its neighbors."""
    found = re.search(r'<svg[^>]* viewBox="([^"]+)"[^>]*>(.*</svg>)', text, re.DOTALL)
    assert found, "matplotlib wrote no SVG"
    box, body = found.groups()
    body = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", body, flags=re.DOTALL)
    body = body.replace(_INK, "currentColor")
    body = body.replace("'DejaVu Sans', sans-serif", "var(--pst-font-family-base, sans-serif)")
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', body))
    prefix = hashlib.sha256(body.encode()).hexdigest()[:8]
    body = re.sub(
        r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body
    )
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", body)
    width = float(box.split()[2])
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" style="display:block;width:{width / 72:g}in;min-width:30rem;'
        'max-width:100%;height:auto;stroke-linejoin:round">\n'
        f"<title>{html.escape(title)}</title>{body}"
    )


def _percent(share: float) -> str:
    """A share as whole percents; never 0 or 100 unless it is exactly that."""
    value = 100 * share
    if 0 < value < 0.5:
        return "<1"
    return ">99" if 99.5 <= value < 100 else f"{value:.0f}"


def _check_shares(frame: pd.DataFrame, names: Sequence[str], shares: Sequence[str]) -> None:
    """Raise `ValueError` unless the columns are there and the shares lie between 0 and 1."""
    missing = [name for name in (*names, *shares) if name not in frame.columns]
    if missing or not len(frame):
        raise ValueError(
            f"The table has {len(frame)} rows and lacks the columns {missing}: it needs "
            f"{', '.join((*names, *shares))}, one row for each {' and '.join(names)}."
        )
    for column in shares:
        for row, value in zip(frame.index, frame[column], strict=True):
            if not 0 <= value <= 1:  # false for NaN too
                raise ValueError(f"Row {row}: {column} is {value}, not a share from 0 to 1.")
    twice = frame[frame.duplicated(list(names))]
    if len(twice):
        raise ValueError(f"{tuple(twice.iloc[0][list(names)])} stands in the table more than once.")


def _percent_axis(axes: Axes, rows: float, label: str) -> None:
    """Percents from left to right; ``rows`` rows from top to bottom, the first at 0."""
    axes.set(xlim=(0, 100), ylim=(rows - 0.4, -0.7), xlabel=label)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.spines["left"].set_linewidth(1.2)
    _grid(axes, "x")


def _filled(color: str, hatch: str) -> dict[str, Any]:
    """How a bar looks: hatched, or tinted if ``hatch`` is empty."""
    face: Any = "none" if hatch else (color, 0.35)
    return {"facecolor": face, "edgecolor": color, "hatch": hatch, "linewidth": 1.4}


def _grid(axes: Axes, axis: str) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis=axis, color=_INK, alpha=0.18, linewidth=0.8)  # type: ignore[arg-type]


def _interval(axes: Axes, y: float, low: float, high: float) -> None:
    """A line with caps from ``low`` to ``high``, two shares."""
    axes.plot([100 * low, 100 * high], [y, y], color=_INK, linewidth=1.6, marker="|",
              markersize=8, markeredgewidth=1.6, clip_on=False, zorder=4)  # fmt: skip


def _beside(axes: Axes, y: float, text: str, points: int = 8, **style: Any) -> None:
    """Text at height ``y``, ``points`` to the right of the axes."""
    axes.annotate(text, (1, y), (points, 0), axes.get_yaxis_transform(), "offset points",
                  va="center", annotation_clip=False, **style)  # fmt: skip


def score_bars(table: pd.DataFrame, *, alt: str, title: str | None = None) -> Figure:
    """Bars for each score, one a model or condition, with intervals and values. Chapters 09 to 11.

    ``table`` has the columns ``label`` (the model or condition), ``score``, and ``mean``,
    ``low``, ``high``: shares from 0 to 1, the last two the ends of the 95% interval. A column
    ``n`` (questions) is printed too. Scores and labels keep the order of the table. Tables of
    `metrics.score_table` fit: ``pd.concat({"base": ..., "SFT": ...}, names=["label"])``.

    Raises `ValueError` if a column is missing, a share is not between 0 and 1, a pair of label
    and score is there twice, or ``alt`` is empty. ``alt`` says what is shown; numbers are added.
    """
    if {"label", "score"} & set(table.index.names):
        table = table.reset_index()
    _check_shares(table, ("label", "score"), ("mean", "low", "high"))
    alt = _with_numbers(alt, table)
    labels = list(dict.fromkeys(table["label"]))
    groups = [(str(score), rows) for score, rows in table.groupby("score", sort=False)]
    height = 0.7 + 0.27 * len(table) + 0.36 * len(groups) + (0.3 if title else 0)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        y, ticks = 0.0, []
        for score, rows in groups:
            axes.text(0.8, y + 0.1, _heading(score, rows), weight="bold", va="center")
            for row in rows.to_dict("records"):
                y += 1
                ticks.append((y, str(row["label"])))
                _bar(axes, y, row, labels.index(row["label"]))
            y += 1.35
        axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks])
        _percent_axis(axes, y - 0.35, "% of the answers; lines with caps: 95% intervals")

    return _figure(draw, height, alt, title)


def _with_numbers(alt: str, table: pd.DataFrame) -> str:
    """What a figure shows, and its numbers after it; nothing is added to nothing."""
    from ..evaluation.comparison import in_words

    return _with_entries(alt, [in_words(table)])


def _with_entries(alt: str, entries: Iterable[str]) -> str:
    return alt.strip() and f"{alt.rstrip('.')}. {'; '.join(entries)}."


def _heading(score: str, rows: pd.DataFrame) -> str:
    name = SCORE_NAMES.get(score, score)
    if "n" not in rows.columns:
        return name
    low, high = rows["n"].min(), rows["n"].max()
    return f"{name} (n = {low})" if low == high else f"{name} (n = {low} to {high})"


def _bar(axes: Axes, y: float, row: Mapping[Any, Any], style: int) -> None:
    color = PALETTE[style % len(PALETTE)]
    axes.barh(y, 100 * row["mean"], height=0.72, **_filled(color, HATCHES[style % len(HATCHES)]))
    _interval(axes, y, row["low"], row["high"])
    mean, low, high = (_percent(row[name]) for name in ("mean", "low", "high"))
    _beside(axes, y, mean, 38, ha="right", weight="bold")
    _beside(axes, y, f"({low} to {high})", 43)


def relation_dots(frame: pd.DataFrame, *, alt: str) -> Figure:
    """Each relation's score beside what always giving its most common answer would score.

    ``frame`` has a row for each relation, drawn in that order, and the
    columns ``relation``, ``mean``, ``low``, ``high`` (the model's score and its 95% interval)
    and ``most_common`` (the score of the most common answer): shares from 0 to 1.

    Raises `ValueError` if a column is missing, a share is not between 0 and 1, a relation is
    there twice, or ``alt`` is empty.
    """
    _check_shares(frame, ("relation",), ("mean", "low", "high", "most_common"))
    alt = _with_numbers(alt, frame)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for y, row in enumerate(frame.to_dict("records")):
            _interval(axes, y, row["low"], row["high"])
            axes.plot(100 * row["mean"], y, "o", markersize=7.5, color=PALETTE[0], clip_on=False,
                      zorder=6, label="" if y else "the model, with its 95% interval")  # fmt: skip
            axes.plot(100 * row["most_common"], y, "D", markersize=9, markerfacecolor="none",
                      markeredgecolor=PALETTE[1], markeredgewidth=1.8, clip_on=False,
                      zorder=5, label="" if y else "most common answer")  # fmt: skip
            _beside(axes, y, _percent(row["mean"]), 38, ha="right", weight="bold")
            _beside(axes, y, _percent(row["most_common"]), 70, ha="right")
        _beside(axes, -0.8, "●", 38, ha="right", size=13, color=PALETTE[0])
        _beside(axes, -0.8, "◇", 70, ha="right", size=13, color=PALETTE[1])
        axes.set_yticks(range(len(frame)), [str(name) for name in frame["relation"]])
        _percent_axis(axes, len(frame), "% of the answers")
        canvas.legend(loc="outside upper left", ncols=2, frameon=False)

    return _figure(draw, 1.15 + 0.3 * len(frame), alt)


def dot_panels(table: pd.DataFrame, *, alt: str) -> Figure:
    """Several measures of the same runs, side by side: dots with intervals. Chapter 13.

    ``table`` has a row for each pair of ``label`` (the run; one line of the figure) and
    ``measure`` (one panel, with an axis of its own), and the columns ``value``, ``low`` and
    ``high`` in the unit of the measure, and ``text``, what is printed above the dot. Both keep
    the order of the table. ``alt`` says what is shown; the texts are added.

    Raises `ValueError` if a column is missing, a pair is there twice, or ``alt`` is empty.
    """
    _check_shares(table, ("label", "measure", "value", "low", "high", "text"), ())
    _check_shares(table, ("label", "measure"), ())
    told = zip(table["label"], table["measure"], table["text"], strict=True)
    alt = _with_entries(alt, (f"{label}, {measure}: {text}" for label, measure, text in told))
    labels = list(dict.fromkeys(table["label"]))
    groups = [(str(name), rows) for name, rows in table.groupby("measure", sort=False)]

    def draw(canvas: Canvas) -> None:
        panels = canvas.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, (name, rows) in zip(panels, groups, strict=True):
            for row in rows.to_dict("records"):
                y = labels.index(row["label"])
                axes.plot([row["low"], row["high"]], [y, y], color=_INK, linewidth=1.6,
                          marker="|", markersize=8, markeredgewidth=1.6)  # fmt: skip
                axes.plot(row["value"], y, "o", markersize=7.5, color=PALETTE[0], zorder=6)
                axes.annotate(row["text"], (row["value"], y), (0, 8), ha="center", weight="bold",
                              textcoords="offset points", annotation_clip=False)  # fmt: skip
            axes.set_title(name)
            axes.margins(x=0.25)
            axes.tick_params(axis="y", length=0, pad=8)
            axes.locator_params(axis="x", nbins=4)
            _grid(axes, "x")
        panels[0].set_yticks(range(len(labels)), [str(label) for label in labels])
        panels[0].set_ylim(len(labels) - 0.6, -0.7)

    return _figure(draw, 0.8 + 0.5 * len(labels), alt)


def curves(
    panels: Mapping[str, Mapping[str, Points]],
    *,
    xlabel: str,
    alt: str,
    logarithmic: Collection[str] = (),
) -> Figure:
    """Panels one above the other over the same x: title -> name of the line -> points (x, y).

    ``logarithmic`` names the titles of those with a logarithmic y axis. Raises `ValueError` if
    ``alt`` is empty. Used in chapters 06 and 10.
    """
    styles = [("-", "o"), ("--", "s"), (":", "^"), ("-.", "D")]

    def draw(canvas: Canvas) -> None:
        below = canvas.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (title, lines) in zip(below, panels.items(), strict=True):
            for i, points in enumerate(lines.values()):
                _line(axes, points, PALETTE[i], *styles[i])
            if title in logarithmic:
                _logarithmic(axes)
            else:
                axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
            _end_labels(axes, lines)
            axes.set_title(title)
            _grid(axes, "y")
        below[-1].set_xlabel(xlabel)

    return _figure(draw, 0.6 + 1.7 * len(panels), alt)


def loss_curves(log_history: Iterable[Mapping[str, Any]], *, alt: str) -> Figure:
    """Training loss, evaluation loss if there is any, and the learning rate below. Chapter 07.

    ``log_history`` is the trainer's ``state.log_history``: dictionaries with ``step`` (updates)
    and any of ``loss``, ``eval_loss`` (nats a token) and ``learning_rate``. The axis of the losses
    is logarithmic, unless one of them is not above zero. A run of fewer updates than
    ``logging_steps`` has no training loss: what was logged is drawn, and that none was is said.

    Raises `ValueError` if ``alt`` is empty.
    """
    logs = list(log_history)
    series = {
        key: [(log["step"], float(log[key])) for log in logs if key in log]
        for key in ("loss", "eval_loss", "learning_rate")
    }

    def draw(canvas: Canvas) -> None:
        if series["learning_rate"]:
            top, bottom = canvas.subplots(2, sharex=True, height_ratios=[3, 1])
            _line(bottom, series["learning_rate"], PALETTE[2], "-.", "")
            bottom.set_title("learning rate")
            bottom.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            top = bottom = canvas.subplots()
        _line(top, series["loss"], PALETTE[0], "-", "o")
        _line(top, series["eval_loss"], PALETTE[1], "--", "s")
        if not series["loss"]:
            told = "no training loss: fewer updates than logging_steps"
            top.text(0.5, 0.9, told, ha="center", transform=top.transAxes)
        losses = series["loss"] + series["eval_loss"]
        if losses and all(loss > 0 for _, loss in losses if math.isfinite(loss)):
            _logarithmic(top)
        _end_labels(top, {"training": series["loss"], "evaluation": series["eval_loss"]})
        top.set_title("loss, nats a token")
        bottom.set_xlabel("updates")
        bottom.xaxis.get_major_locator().set_params(integer=True)
        for axes in (top, bottom):
            if axes.get_yscale() == "linear":
                axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
            _grid(axes, "y")

    return _figure(draw, 3.9 if series["learning_rate"] else 2.9, alt)


def _line(axes: Axes, points: Points, color: str, line: str, marker: str) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), color=color, linestyle=line, linewidth=2,
                  marker=marker, markersize=5, markevery=max(1, len(points) // 25))  # fmt: skip


def _logarithmic(axes: Axes) -> None:
    """A logarithmic y axis whose numbers are written out: 0.2, 0.5, 1."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _end_labels(axes: Axes, lines: Mapping[str, Points]) -> None:
    """The name and last value of each line at the right, pushed apart where they would overlap."""
    ends = []
    bottom, top = axes.get_ylim()
    for name, points in lines.items():
        drawn = [value for _, value in points if math.isfinite(value)]  # a run can diverge
        if points:
            ends.append((drawn[-1] if drawn else bottom, f"{name} {points[-1][1]:.3g}"))
    y, logarithmic = -math.inf, axes.get_yscale() == "log"
    for end, text in sorted(ends):
        y = max(end, y * (top / bottom) ** 0.1 if logarithmic else y + 0.1 * top)
        _beside(axes, y, text)


def lengths(series: pd.Series | Sequence[int], *, limit: int, alt: str) -> Figure:
    """How many rows have how many tokens, with the limit marked. Explained in chapter 05.

    ``series`` holds the tokens of each row, as `sft_utils.sequence_lengths` returns them;
    ``limit`` is the trainer's ``max_length`` in tokens. Bars of rows beyond it are hatched.

    Raises `ValueError` if there are no rows, ``limit`` is not positive, or ``alt`` is empty.
    """
    values = sorted(int(value) for value in series)
    if not values or limit < 1:
        raise ValueError(f"{len(values)} rows, limit={limit}: give rows and a positive limit.")
    over = sum(value > limit for value in values)
    width = max(1, math.ceil((values[-1] - values[0] + 1) / 30))
    first = limit - width * math.ceil((limit - values[0] + 1) / width)  # a bar ends at the limit
    counts: dict[int, int] = {}
    for value in values:
        left = first + width * ((value - first - 1) // width)
        counts[left] = counts.get(left, 0) + 1
    near = limit <= 1.5 * values[-1]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for left, count in counts.items():
            late = left >= limit
            style = _filled(PALETTE[late], HATCHES[late])
            axes.bar(left + 0.5, count, width, align="edge", **style)
        note = f"limit {limit}: {over} of {len(values)} rows are longer"
        if near:
            axes.axvline(limit + 0.5, color=_INK, linestyle="--", linewidth=1.8)
        right = "" if near else ", far to the right →"
        axes.set_title(
            f"median {statistics.median(values):g} tokens, longest {values[-1]}; {note}{right}",
            weight="normal",
        )
        axes.set(xlabel="tokens in a row of data", ylabel="rows of data")
        _grid(axes, "y")

    return _figure(draw, 2.7, alt)


def seed_dots(table: pd.DataFrame, *, mean: float, low: float, high: float, alt: str) -> Figure:
    """A dot for each seed with its interval, and their mean with its own below. Chapter 12.

    ``table`` has a row for each seed and the columns ``label``, ``mean``, ``low`` and ``high``:
    shares from 0 to 1. ``mean``, ``low`` and ``high`` are those of the seeds together. The axis
    does not begin at zero. ``alt`` says what is shown; numbers are added. Raises ``ValueError`` if
    a column is missing or ``alt`` is empty.
    """
    _check_shares(table, ("label",), ("mean", "low", "high"))
    left = 100 * min(low, *table["low"])
    right = 100 * max(high, *table["high"])
    together = {"label": "mean of the seeds", "mean": mean, "low": low, "high": high}
    rows: list[Mapping[Any, Any]] = [*table.to_dict("records"), together]
    alt = _with_entries(alt, (f"{row['label']}: {100 * row['mean']:.1f} %" for row in rows))

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for y, row in enumerate(rows):
            last = row is together
            _interval(axes, y, row["low"], row["high"])
            axes.plot(100 * row["mean"], y, "D" if last else "o", markersize=8,
                      color=PALETTE[int(last)], clip_on=False, zorder=6)  # fmt: skip
            _beside(axes, y, f"{100 * row['mean']:.1f}", 42, ha="right", weight="bold")
        axes.axvline(100 * mean, color=PALETTE[1], linestyle="--", linewidth=1.4)
        axes.set_yticks(range(len(rows)), [str(row["label"]) for row in rows])
        _percent_axis(axes, len(rows), "% of the answers; the axis does not begin at 0")
        room = 0.08 * (right - left) + 0.5
        axes.set_xlim(max(0.0, left - room), min(100.0, right + room))

    return _figure(draw, 0.9 + 0.32 * (len(table) + 1), alt)
