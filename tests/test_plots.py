"""Figures: words for those who cannot see, no meaning in color alone, the same bytes every time."""

import html
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from sft_utils.plots import (
    HATCHES,
    MARK,
    PALETTE,
    curves,
    lengths,
    loss_curves,
    loss_view,
    relation_dots,
    score_bars,
)

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

DRAW = {
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
def test_alt_text_and_title(name):
    alt = 'Loss falls: "2" > 1 & <0.5>'
    figure = DRAW[name](alt)
    soup = BeautifulSoup(figure._repr_html_(), "html.parser")
    [shown] = soup.find_all("figure")
    assert shown["role"] == "img"
    assert shown["aria-label"] == alt
    assert [title.text for title in shown.find("svg").find_all("title")] == [alt]
    assert repr(figure) == f"Figure: {alt}"


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("alt", ["", " \n"])
def test_no_figure_without_alt_text(name, alt):
    with pytest.raises(ValueError, match="alt is empty"):
        DRAW[name](alt)


@pytest.mark.parametrize("name", DRAW)
def test_colors_are_the_page_s_or_of_the_palette(name):
    svg = DRAW[name]("words").svg
    assert "currentColor" in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {color.lower() for color in PALETTE}
    for text in re.findall(r'<text style="([^"]*)"', svg):
        assert "fill: " in text, "without a fill, text is black on dark"
    assert DRAW[name]("words").svg.count("<style") == 0, "a style in an SVG is the whole page's"


@pytest.mark.parametrize("color", PALETTE)
@pytest.mark.parametrize("page", ["#ffffff", "#14181e"])
def test_palette_stands_out_on_white_and_on_dark(color, page):
    def luminance(code):
        levels = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(color), luminance(page)))
    assert (light + 0.05) / (dark + 0.05) >= 3


@pytest.mark.parametrize("name", DRAW)
def test_ids_resolve_and_are_the_figure_s_own(name):
    figure = DRAW[name]("words")
    ids = re.findall(r' id="([^"]+)"', figure.svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', figure.svg)) == set(ids)
    other = loss_curves([{"step": 7, "loss": 0.125}], alt="words")
    assert not set(ids) & set(re.findall(r' id="([^"]+)"', other.svg))


@pytest.mark.parametrize("name", DRAW)
def test_same_bytes_again_whatever_the_reader_s_style(name):
    import matplotlib

    first = DRAW[name]("words").svg
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "x"}):
        before = dict(matplotlib.rcParams)
        assert DRAW[name]("words").svg == first
        assert dict(matplotlib.rcParams) == before
    assert not re.search(r"\b20\d\d-\d\d-\d\d", first)


def test_same_bytes_in_another_process():
    code = (
        "from sft_utils.plots import lengths; import sys;"
        "sys.stdout.write(lengths([3, 5, 5, 9], limit=8, alt='words').svg)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )
    assert result.stdout.decode() == DRAW["lengths"]("words").svg


def test_words_from_data_are_escaped_and_no_formula():
    label = "<b>&$5$ or $6_7$"
    figure = score_bars(TABLE.replace("SFT", label), alt="words", title="<i>")
    assert words(figure).count(label) == 2
    assert html.escape(label) in figure.svg
    assert "<b>" not in figure.svg
    assert "<title>&lt;i&gt;</title>" in figure.svg


# --- Scores ------------------------------------------------------------------------------------


def test_score_bars_print_values_and_intervals():
    found = words(score_bars(TABLE, alt="words"))
    for expected in ("exact answer (n = 240)", "stops by itself (n = 240)"):
        assert found.count(expected) == 1
    assert found.count("base") == found.count("SFT") == 2
    values = [text for text in found if text.startswith("(")]
    assert values == ["(0 to <1)", "(64 to 76)", "(8 to 16)", "(>99 to 100)"]
    assert {"0", "70", "12", "100"} <= set(found)


def test_score_bars_take_the_tables_of_scoring():
    from sft_utils.scoring import score_table

    answers = pd.DataFrame(
        {
            "entity": ["Kenya", "Kenya", "Peru"],
            "exact": [True, True, True],
            "right_value": [True, True, True],
            "value_anywhere": [True, True, True],
            "stops": [False, False, False],
        }
    )
    table = pd.concat({"base": score_table(answers), "SFT": score_table(answers)}, names=["label"])
    found = words(score_bars(table, alt="words"))
    ranges = [word for word in found if word.startswith("(")]
    assert len(ranges) == 8
    assert sum(word.endswith(" to 100)") for word in ranges) == 6  # all right
    assert sum(word.startswith("(0 to ") for word in ranges) == 2  # all wrong
    assert "(100 to 100)" not in ranges and "(0 to 0)" not in ranges
    assert "value anywhere (n = 3)" in found


def test_each_label_has_its_hatch():
    table = pd.DataFrame(
        [(f"model {i}", "exact", 0.5, 0.4, 0.6) for i in range(len(HATCHES))],
        columns=["label", "score", "mean", "low", "high"],
    )
    assert len(set(hatches(score_bars(table, alt="words")))) == len(HATCHES) == 7
    base, tuned, base_again, tuned_again = hatches(score_bars(TABLE, alt="words"))
    assert base == base_again == "" != tuned
    assert tuned == tuned_again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="low"), r"lacks the columns \['low'\]"),
        (lambda t: t.head(0), "0 rows"),
        (lambda t: t.assign(mean=[0, 70, 12, 100]), "Row 1: mean is 70, not a share from 0 to 1"),
        (lambda t: t.assign(high=float("nan")), "Row 0: high is nan"),
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
    found = words(loss_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], alt="words"))
    assert "training 1" in found
    assert "learning rate" not in found
    assert not any(text.startswith("evaluation") for text in found)
    with pytest.raises(ValueError, match="No entry of log_history has a `loss`"):
        loss_curves([{"step": 1, "train_loss": 2.0}], alt="words")


@pytest.mark.parametrize("last", [float("nan"), float("inf")])
def test_a_diverged_run_says_so(last):
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": last}]
    assert f"training {last}" in words(loss_curves(log, alt="words"))


def test_lines_that_end_together_have_labels_apart():
    log = [{"step": s, "loss": 1.0, "eval_loss": 1.0} for s in (1, 2)]
    svg = loss_curves(log, alt="words").svg
    heights = [
        float(re.search(rf'<text [^>]* y="([\d.]+)"[^>]*>{name} 1</text>', svg)[1])
        for name in ("evaluation", "training")
    ]
    assert abs(heights[0] - heights[1]) > 10


def test_lengths_hatch_exactly_what_is_beyond_the_limit():
    figure = lengths([3, 5, 5, 8, 9, 11], limit=8, alt="words")
    tinted = [hatch == "" for hatch in hatches(figure)]
    assert tinted == [True, True, True, False, False]
    assert "median 6.5 tokens, longest 11; limit 8: 2 of 6 rows are longer" in words(figure)


def test_bars_never_straddle_the_limit():
    values = list(range(20, 200))
    figure = lengths(values, limit=111, alt="words")
    bars = hatches(figure)
    assert len(bars) <= 31
    assert "" in bars[:1] and bars[-1] != ""
    assert any("limit 111: 88 of 180 rows are longer" in text for text in words(figure))


def test_a_far_limit_is_told_and_not_drawn():
    figure = lengths(pd.Series([10, 20]), limit=1024, alt="words")
    assert any(
        text.endswith("limit 1024: 0 of 2 rows are longer, far to the right →")
        for text in words(figure)
    )
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


def boxes():
    return BeautifulSoup(loss_view(TOKENS)._repr_html_(), "html.parser").find_all("span")


def test_loss_view_marks_exactly_the_tokens_that_carry_loss():
    shown = [("loss" in box.get("class", []), box.find("small").text.split(" ")) for box in boxes()]
    assert shown == [
        (carries, [MARK, str(token)] if carries else [str(token)]) for _, token, carries in TOKENS
    ]


def test_loss_view_makes_white_space_visible_and_escapes():
    assert [box.find("i").text for box in boxes()] == [
        "<|im_start|>",
        "user",
        "↵",
        "␣<b>&",
        "It",
        "␣is⇥so[U+202E]",
        "<|im_end|>",
        "↵",
        "[empty]",
    ]
    raw = loss_view(TOKENS)._repr_html_()
    assert "␣&lt;b&gt;&amp;" in raw
    assert raw.count("<br>") == 2, "a line break after each token that ends in one"


def test_loss_view_looks_different_without_color():
    style = BeautifulSoup(loss_view(TOKENS)._repr_html_(), "html.parser").find("style").text
    assert "font-weight:bold;text-decoration:underline" in style
    assert not re.search(r"[{;]color:(?!inherit)", style), "text takes the page's color"


def test_loss_view_has_its_legend_in_words_and_no_script():
    raw = loss_view(TOKENS)._repr_html_()
    legend = BeautifulSoup(raw, "html.parser").find("p").text
    assert f"{MARK}, bold and underlined: carries loss (3 of 9 tokens)" in legend
    assert "<script" not in raw


def test_loss_view_as_plain_text():
    assert repr(loss_view([(" a", 5, False), ("\n", 6, True)])).splitlines() == [
        "     id  loss  token",
        "      5        ␣a",
        "      6   ◆    ↵",
    ]


def test_loss_view_of_nothing():
    with pytest.raises(ValueError, match="no tokens"):
        loss_view([])


def test_curves_draw_every_panel_and_name_every_line():
    panels = {
        "loss": {"validation": [(0, 2.0), (1, 1.0)]},
        "rate": {"a": [(0, 1.0)], "b": [(0, 0.5)]},
    }
    figure = curves(panels, xlabel="epoch", alt="Loss falls from 2 to 1.")
    for text in ("loss", "rate", "validation", "a 1", "b 0.5", "epoch"):
        assert text in figure.svg
    assert figure.alt == "Loss falls from 2 to 1."
    with pytest.raises(ValueError, match="alt"):
        curves(panels, xlabel="epoch", alt="")
