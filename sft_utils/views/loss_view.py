"""The loss view: which tokens of a conversation carry loss. Chapter 05."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass

from .figures import NO_PANEL

MARK = "◆"
PART = "⋯"
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
_STYLE = """
.sft-loss{line-height:1.25;text-align:left}
.sft-loss p{margin:0 0 .6em;font-size:.9em}
.sft-loss span{display:inline-block;max-width:100%;margin:0 3px 5px 0;padding:1px 4px 2px;
border:1px solid;border-radius:4px;text-align:center;vertical-align:top;font-family:monospace}
.sft-loss span.loss{border:2px solid;padding:0 3px 1px;background:rgba(0,114,178,.2)}
.sft-loss i{display:block;font-style:normal;white-space:pre-wrap;overflow-wrap:anywhere}
.sft-loss .loss i{font-weight:bold;text-decoration:underline;text-underline-offset:.2em}
.sft-loss small{font-size:.72em}
"""


@dataclass(frozen=True)
class LossView:
    """The tokens of a conversation in boxes: HTML in a page, one token a line elsewhere."""

    tokens: tuple[tuple[str, int, bool], ...]

    def _repr_html_(self) -> str:
        boxes = "\n".join(_box(*token) for token in self.tokens)
        count = sum(carries for *_, carries in self.tokens)
        return (
            f'<div class="sft-view sft-loss"><style>{NO_PANEL}{_STYLE}</style>\n'
            f"<p>Each box is a token with its id below. <b>{MARK}, bold and underlined: carries "
            f"loss</b> ({count} of {len(self.tokens)} tokens). Plain, in a thin border: "
            f"read only, no loss. ␣ is a space, ↵ a line break, {PART} a token without text of its "
            f"own, such as a further part of the character before it.</p>\n{boxes}\n</div>"
        )

    def __repr__(self) -> str:
        lines = [f"{'id':>7}  loss  token"]
        lines += [
            f"{token:>7}  {MARK if carries else ' ':^4}  {_visible(text)}"
            for text, token, carries in self.tokens
        ]
        return "\n".join(lines)


def loss_view(tokens: Iterable[tuple[str, int, bool]]) -> LossView:
    """Show which tokens carry loss. Explained in chapter 05.

    ``tokens`` are triples of text, token id and whether loss falls on it, in order, as
    `sft_utils.loss_tokens` returns them. Text is escaped, and white space and characters
    that do not show are made visible. A character of several tokens stands in the first of them.

    Raises `ValueError` if there are no tokens.
    """
    kept = tuple((str(text), int(token), bool(carries)) for text, token, carries in tokens)
    if not kept:
        raise ValueError("There are no tokens to show.")
    return LossView(kept)


def _visible(text: str) -> str:
    return (
        PART
        if not text
        else "".join(
            _VISIBLE.get(char) or (char if char.isprintable() else f"[U+{ord(char):04X}]")
            for char in text
        )
    )


def _box(text: str, token: int, carries: bool) -> str:
    kind, mark = (' class="loss"', f"{MARK} ") if carries else ("", "")
    end = "<br>" if text.endswith("\n") else ""
    return (
        f"<span{kind}><i>{html.escape(_visible(text))}</i><small>{mark}{token}</small></span>{end}"
    )
