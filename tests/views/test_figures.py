"""Figures: words for those who cannot see, no meaning in color alone, the same bytes every time."""

import html
import math
import re
from xml.etree import ElementTree

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from sft_utils.evaluation.comparison import in_words
from sft_utils.views.figures import (
    HATCHES,
    PALETTE,
    curves,
    lengths,
    loss_curves,
    relation_dots,
    score_bars,
)
from sft_utils.views.loss_view import MARK, loss_view

LOG = [
    {"step": 1, "loss": 2.5, "learning_rate": 1e-3},
    {"step": 2, "loss": 1.5, "learning_rate": 5e-4},
    {"step": 2, "eval_loss": 1.75},
    {"step": 3, "loss": 0.5, "learning_rate": 0.0},
    {"step": 3, "eval_loss": 1.25},
    {"step": 3, "train_loss": 1.5},
]

TABLE = pd.DataFrame(
    [
        ("base", "exact", 0.0, 0.0, 0.004, 240),
        ("SFT", "exact", 0.7, 0.64, 0.755, 240),
        ("base", "stops", 0.12, 0.08, 0.16, 240),
        ("SFT", "stops", 1.0, 0.996, 1.0, 240),
    ],
    columns=["label", "score", "mean", "low", "high", "n"],
)

RELATIONS = pd.DataFrame(
    [("capital", 0.93, 0.9, 0.96, 0.01), ("continent", 0.97, 0.94, 0.99, 0.29)],
    columns=["relation", "mean", "low", "high", "most_common"],
)

PANELS = {
    "loss": {"validation": [(0, 2.0), (1, 1.0)]},
    "rate": {"a": [(0, 1.0)], "b": [(0, 0.5)]},
}
DRAW = {
    "curves": lambda alt: curves(PANELS, xlabel="epoch", alt=alt),
    "score_bars": lambda alt: score_bars(TABLE, alt=alt),
    "relation_dots": lambda alt: relation_dots(RELATIONS, alt=alt),
    "loss_curves": lambda alt: loss_curves(LOG, alt=alt),
    "lengths": lambda alt: lengths([3, 5, 5, 9], limit=8, alt=alt),
}


def words(figure):
    """The texts of a figure, in the order in which they are drawn."""
    return [
        text.text for text in ElementTree.fromstring(figure.svg).iter() if local(text) == "text"
    ]


def local(element):
    return element.tag.split("}")[-1]


def styles(figure):
    """The style of every path, as dictionaries."""
    found = re.findall(r'<path [^>]*?style="([^"]*)"', figure.svg)
    return [dict(part.split(": ") for part in style.split("; ")) for style in found]


def hatches(figure):
    """The lines of the pattern that fills each bar, "" for a tinted one, from top to bottom."""
    drawn = dict(
        re.findall(r'<pattern id="([^"]+)".*?<path d="([^"]+)"', figure.svg, flags=re.DOTALL)
    )
    fills = [s["fill"] for s in styles(figure) if s.get("stroke-width") == "1.4" and "fill" in s]
    return [drawn[fill[5:-1]] if fill.startswith("url") else "" for fill in fills]


def markers(figure):
    """The outlines of the colored markers, by color."""
    found = re.findall(r'<path id="[^"]+" d="([^"]+)" style="([^"]+)"', figure.svg)
    return {
        color: {outline for outline, style in found if f"stroke: {color.lower()}" in style}
        for color in PALETTE
    }


# --- Every figure ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAW)
def test_every_figure(name):
    """Words for who cannot see it, ids of its own, colors of the page or the palette."""
    import matplotlib

    alt = 'Loss falls: "2" > 1 & <0.5>'
    figure = DRAW[name](alt)
    [shown] = BeautifulSoup(figure._repr_html_(), "html.parser").find_all("figure")
    numbers = {"score_bars": TABLE, "relation_dots": RELATIONS}.get(name)
    told = alt if numbers is None else f"{alt}. {in_words(numbers)}."
    assert (shown["role"], shown["aria-label"]) == ("img", told)
    assert [title.text for title in shown.find("svg").find_all("title")] == [told]
    assert repr(figure) == f"Figure: {told}"
    with pytest.raises(ValueError, match="alt is empty"):
        DRAW[name](" \n")

    svg = figure.svg
    assert "currentColor" in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {color.lower() for color in PALETTE}
    for text in re.findall(r'<text style="([^"]*)"', svg):
        assert "fill: " in text, "without a fill, text is black on dark"
    assert "<style" not in svg, "a style in an SVG is the whole page's"

    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) == set(ids)
    other = loss_curves([{"step": 7, "loss": 0.125}], alt="words")
    assert not set(ids) & set(re.findall(r' id="([^"]+)"', other.svg))

    # The same bytes again, whatever the reader's style and the day.
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "x"}):
        before = dict(matplotlib.rcParams)
        assert DRAW[name](alt).svg == svg
        assert dict(matplotlib.rcParams) == before
    assert not re.search(r"\b20\d\d-\d\d-\d\d", svg)


@pytest.mark.parametrize("color", PALETTE)
def test_palette_stands_out_on_white_and_on_dark(color):
    def luminance(code):
        levels = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for page in ("#ffffff", "#14181e"):
        dark, light = sorted((luminance(color), luminance(page)))
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_words_from_data_are_escaped_and_no_formula():
    label = "<b>&$5$ or $6_7$"
    figure = score_bars(TABLE.replace("SFT", label), alt="words", title="<i>")
    assert words(figure).count(label) == 2
    assert html.escape(label) in figure.svg
    assert "<b>" not in figure.svg
    assert "<title>&lt;i&gt;</title>" in figure.svg


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_seen_is_shown_by_its_code_and_no_font_is_missed():
    figure = score_bars(
        TABLE.replace({"SFT": "a\u202eb\x00", "base": "北京"}), alt="x\x1b", title="t\x07"
    )
    assert {"北京", r"a\u202eb\x00", r"t\x07"} <= set(words(figure))
    assert figure.alt.startswith(r"x\x1b. 北京, exact answer: 0 %; a\u202eb\x00")
    assert not set(figure._repr_html_()) & set("\u202e\x00\x1b\x07")


# --- Scores ------------------------------------------------------------------------------------


def test_score_bars_print_values_and_intervals():
    found = words(score_bars(TABLE.set_index(["label", "score"]), alt="words"))
    for expected in ("exact answer (n = 240)", "stops by itself (n = 240)"):
        assert found.count(expected) == 1
    assert found.count("base") == found.count("SFT") == 2
    values = [text for text in found if text.startswith("(")]
    assert values == ["(0 to <1)", "(64 to 76)", "(8 to 16)", "(>99 to 100)"]
    assert {"0", "70", "12", "100"} <= set(found)


def test_each_label_has_its_hatch():
    table = pd.DataFrame(
        [(f"model {i}", score, 0.5, 0.4, 0.6) for score in ("exact", "stops") for i in range(7)],
        columns=["label", "score", "mean", "low", "high"],
    )
    found = hatches(score_bars(table, alt="words"))
    assert len(set(found)) == len(HATCHES) == 7
    assert found[:7] == found[7:] and found[0] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="low"), r"lacks the columns \['low'\]"),
        (lambda t: t.head(0), "0 rows"),
        (lambda t: t.assign(mean=[0, 70, 12, 100]), "Row 1: mean is 70, not a share from 0 to 1"),
        (lambda t: t.assign(label="base"), r"\('base', 'exact'\) stands in the table more than"),
    ],
)
def test_score_bars_refuse_other_tables(change, message):
    with pytest.raises(ValueError, match=message):
        score_bars(change(TABLE), alt="words")


def test_relation_dots_use_two_markers_and_print_both():
    figure = relation_dots(RELATIONS, alt="words")
    found = words(figure)
    assert "the model, with its 95% interval" in found
    assert "most common answer" in found
    assert [text for text in found if text in {"93", "1", "97", "29"}] == ["93", "1", "97", "29"]
    outlines = markers(figure)
    assert outlines[PALETTE[0]] and outlines[PALETTE[1]]
    assert not outlines[PALETTE[0]] & outlines[PALETTE[1]]
    with pytest.raises(ValueError, match=r"lacks the columns \['most_common'\]"):
        relation_dots(RELATIONS.drop(columns="most_common"), alt="words")


# --- Training and data -------------------------------------------------------------------------


def test_loss_curves_differ_in_line_and_marker():
    figure = loss_curves(LOG, alt="words")
    lines = {
        s["stroke"]: s.get("stroke-dasharray")
        for s in styles(figure)
        if s.get("stroke-width") == "2"
    }
    assert lines[PALETTE[0].lower()] is None
    dashes = {lines[PALETTE[1].lower()], lines[PALETTE[2].lower()]}
    assert None not in dashes and len(dashes) == 2
    outlines = markers(figure)
    assert outlines[PALETTE[0]] and outlines[PALETTE[1]]
    assert not outlines[PALETTE[0]] & outlines[PALETTE[1]]
    found = words(figure)
    assert {"training 0.5", "evaluation 1.25", "learning rate", "loss, nats a token"} <= set(found)


def test_loss_curves_draw_only_what_was_logged():
    found = words(
        loss_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}], alt="words")
    )
    assert "training nan" in found, "a run that diverged"
    assert "learning rate" not in found
    assert not any(text.startswith("evaluation") for text in found)
    none = "no training loss: fewer updates than logging_steps"
    for log in ([{"step": 1, "train_loss": 2.0}], [{"step": 0, "eval_loss": 2.0}]):
        assert none in words(loss_curves(log, alt="words"))


def test_lines_that_end_together_have_labels_apart():
    svg = loss_curves([{"step": s, "loss": 1.0, "eval_loss": 1.0} for s in (1, 2)], alt="words").svg
    one, other = re.findall(r'<text [^>]* y="([\d.]+)"[^>]*>(?:evaluation|training) 1</text>', svg)
    assert abs(float(one) - float(other)) > 10


def test_lengths_hatch_exactly_what_is_beyond_the_limit():
    figure = lengths([3, 5, 5, 8, 9, 11], limit=8, alt="words")
    tinted = [hatch == "" for hatch in hatches(figure)]
    assert tinted == [True, True, True, False, False]
    assert "median 6.5 tokens, longest 11; limit 8: 2 of 6 rows are longer" in words(figure)
    bars = hatches(lengths(range(20, 200), limit=111, alt="words"))
    assert len(bars) <= 31 and bars == sorted(bars) and bars[0] == "" != bars[-1]


def test_a_far_limit_is_told_and_not_drawn():
    figure = lengths(pd.Series([10, 20]), limit=1024, alt="words")
    told = "limit 1024: 0 of 2 rows are longer, far to the right →"
    assert any(text.endswith(told) for text in words(figure))
    assert not any("stroke-dasharray" in style for style in styles(figure))


@pytest.mark.parametrize(("values", "limit"), [([], 8), ([3], 0)])
def test_lengths_refuse_nothing(values, limit):
    with pytest.raises(ValueError, match=f"{len(values)} rows, limit={limit}"):
        lengths(values, limit=limit, alt="words")


# --- The loss view -----------------------------------------------------------------------------

TOKENS = [
    ("<|im_start|>", 1, False),
    ("user", 7, False),
    ("\n", 8, False),
    (" <b>&", 9, False),
    ("It", 10, True),
    (" is\tso\u202e", 11, True),
    ("<|im_end|>", 2, True),
    ("\n", 8, False),
    ("", 12, False),
]


def test_loss_view_marks_the_tokens_that_carry_loss_and_shows_what_cannot_be_seen():
    raw = loss_view(TOKENS)._repr_html_()
    soup = BeautifulSoup(raw, "html.parser")
    shown = ["<|im_start|>", "user", "↵", "␣<b>&", "It", "␣is⇥so[U+202E]", "<|im_end|>", "↵"]
    assert [
        ("loss" in box.get("class", []), box.find("small").text, box.find("i").text)
        for box in soup.find_all("span")
    ] == [
        (carries, f"{MARK} {token}" if carries else str(token), text)
        for (_, token, carries), text in zip(TOKENS, [*shown, "⋯"], strict=True)
    ]
    assert raw.count("<br>") == 2, "a line break after each token that ends in one"
    assert "<script" not in raw
    legend = f"{MARK}, bold and underlined: carries loss (3 of 9 tokens)"
    assert legend in soup.find("p").text
    style = soup.find("style").text
    assert "font-weight:bold;text-decoration:underline" in style
    assert not re.search(r"[{;]color:(?!inherit)", style), "text takes the page's color"


def test_loss_view_as_plain_text():
    assert repr(loss_view([(" a", 5, False), ("\n", 6, True)])).splitlines() == [
        "     id  loss  token",
        "      5        ␣a",
        "      6   ◆    ↵",
    ]
    with pytest.raises(ValueError, match="no tokens"):
        loss_view([])
