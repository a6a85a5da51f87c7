"""Every page on every screen: it loads from the site alone, fits, can be read and is accessible."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import axe_playwright_python
from site_browser import BASE, DESKTOP, OTHERS, compressed

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf8")
#: The levels A and AA of WCAG 2.0 to 2.2, as axe names them.
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"]


def test_nothing_fails_and_no_other_host_is_asked(view, address):
    assert view.problems == []
    own = urlsplit(address).netloc
    assert [u for u in view.urls if urlsplit(u).netloc != own and not u.startswith("data:")] == []


def test_the_first_view_is_light(view, html):
    """300 KB compressed, 20 requests; and 1 MB unpacked, all told."""
    asked = [url for url in view.urls if not url.startswith("data:")]
    sizes = {url: compressed(html, url) for url in asked}
    files = {html / unquote(urlsplit(url).path).removeprefix(BASE) for url in asked}
    assert len(asked) <= 20
    assert sum(sizes.values()) <= 300_000, sizes
    assert sum(file.stat().st_size for file in files) <= 1_000_000, files


def test_the_page_does_not_scroll_sideways(view):
    view.page.evaluate("scrollTo(10000, 0)")
    assert view.page.evaluate("scrollX") == 0
    view.page.evaluate("scrollTo(0, 0)")


#: What sticks out of the article, is cut off in it, or lies on its neighbor. A frame that scrolls
#: may hold what is wider than it; the keyboard must reach the frame, and it must really scroll.
LAYOUT = """() => {
  const found = [];
  const article = document.querySelector("article");
  const outer = article.getBoundingClientRect();
  const say = (what, node) =>
    found.push(`${what}: <${node.tagName} class="${node.getAttribute("class")}"> `
      + node.textContent.trim().replace(/\\s+/g, " ").slice(0, 60));
  const shown = (node) => node.checkVisibility() && node.getClientRects().length > 0;
  const scrolls = (node) => /auto|scroll/.test(getComputedStyle(node).overflowX);
  const framed = (node) => {
    for (let up = node; up !== article; up = up.parentElement) if (scrolls(up)) return true;
    return false;
  };
  for (const node of article.querySelectorAll("*")) {
    if (node.matches("svg *, pre *") || !shown(node)) continue;
    const box = node.getBoundingClientRect(), style = getComputedStyle(node);
    if (box.width < 2 || box.height < 2) continue;
    if ((box.right > outer.right + 1 || box.left < outer.left - 1) && !framed(node))
      say("sticks out", node);
    if (/hidden|clip/.test(style.overflowX) && node.scrollWidth > node.clientWidth + 1)
      say("cut off", node);
    const wide = node.scrollWidth > node.clientWidth + 1;
    const high = node.scrollHeight > node.clientHeight + 1;
    if (scrolls(node) && wide || /auto|scroll/.test(style.overflowY) && high) {
      if (node.tabIndex < 0) say("not reached by keyboard", node);
      const before = [node.scrollLeft, node.scrollTop];
      node.scrollLeft += 5; node.scrollTop += 5;
      if (node.scrollLeft === before[0] && node.scrollTop === before[1])
        say("does not scroll", node);
      [node.scrollLeft, node.scrollTop] = before;
    }
  }
  const parents = "section, .cell, .cell_output, .output, details, li, dd";
  for (const parent of article.querySelectorAll(parents)) {
    const boxes = [...parent.children]
      .filter((node) => shown(node) && !/absolute|fixed/.test(getComputedStyle(node).position)
        && !/inline/.test(getComputedStyle(node).display))
      .map((node) => [node, node.getBoundingClientRect()]);
    boxes.forEach(([node, box], i) => {
      if (i && box.top < boxes[i - 1][1].bottom - 1 && box.height > 1)
        say("lies on the one before", node);
    });
  }
  for (const svg of article.querySelectorAll("figure svg")) {
    if (!shown(svg)) continue;
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 2 || box.right > frame.right + 2)
        say("cut off in a figure", text);
    }
  }
  return found;
}"""


def test_no_output_is_cut_off_or_overlaps(view):
    assert view.name in OTHERS or view.page.evaluate(LAYOUT) == []


#: What the screen's width and the colors change. The other rules look at what they do not.
CHANGING = ["color-contrast", "link-in-text-block", "scrollable-region-focusable", "target-size"]
RUN_AXE = """async (options) => {
  const result = await axe.run(document, options);
  return result.violations.flatMap((rule) => rule.nodes.map((node) => ({
    ours: !!document.querySelector(node.target[0])?.closest("article"),
    serious: ["serious", "critical"].includes(rule.impact),
    says: `${rule.id}: ${node.html.slice(0, 160)} ${node.failureSummary}`,
  })));
}"""


def test_axe_finds_nothing(view):
    """No violation in our content at WCAG 2.2 AA, and none that is serious in the theme's frame."""
    only = {"type": "tag", "values": LEVELS}
    if view.screen != DESKTOP:
        only = {"type": "rule", "values": CHANGING}
    view.page.evaluate(AXE)
    found = view.page.evaluate(RUN_AXE, {"runOnly": only, "resultTypes": ["violations"]})
    assert [one["says"] for one in found if one["ours"] or one["serious"]] == []
