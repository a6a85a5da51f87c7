"""What readers do: find, go on, use the keyboard, copy, print, read without script or network."""

from __future__ import annotations

import io
import re
import unicodedata
from functools import cache
from pathlib import Path

import pytest
from playwright.sync_api import expect
from pypdf import PdfReader, PdfWriter
from site_browser import FRONT, PAGES, PHONE, SCREENS, each_page, open_page


def squeezed(text: str) -> str:
    """The text without white space, which a PDF has elsewhere, and without its ligatures."""
    return re.sub(r"[\s\u00ad]+", "", unicodedata.normalize("NFKC", text))


# --- The first screen ----------------------------------------------------------------------------


@pytest.mark.parametrize("screen", SCREENS, ids=lambda screen: screen.name)
def test_the_first_screen_shows_the_result(visit, screen):
    """One question, both answers, the score with its interval, the two commands."""
    page = visit(FRONT, screen).page
    parts = [page.locator(".asked .question"), *page.locator(".asked .answer").all()]
    parts += [page.locator(".first-score"), page.locator("article pre").first]
    assert len(parts) == 5
    for part in parts:
        box = part.bounding_box()
        assert box and box["y"] >= 0 and box["y"] + box["height"] <= screen.height, part
        assert box["x"] >= 0 and box["x"] + box["width"] <= screen.width
    before, after = (answer.inner_text() for answer in page.locator(".asked .answer").all())
    assert "✂" in before and "■" in after and len(before) > 2 * len(after)
    score = page.locator(".first-score").inner_text()
    assert re.search(r"95 % interval: [\d.]+ to [\d.]+ %", score)
    commands = page.locator("article pre").first.inner_text()
    assert "make book" in commands and "make test" in commands


# --- The keyboard --------------------------------------------------------------------------------

#: Everything that can be used now. What a closed menu or a folded cell holds is not shown.
USABLE = """() => {
  const all = document.querySelectorAll(
    "a[href], button, input, select, textarea, summary, [tabindex='0'], [contenteditable]");
  let number = 0;
  for (const node of all) {
    delete node.dataset.usable;
    if (node.checkVisibility({visibilityProperty: true}) && !node.disabled
        && node.getClientRects().length && node.tabIndex >= 0 && !node.closest("[inert]"))
      node.dataset.usable = number++;
  }
  return number;
}"""
FOCUS = """() => {
  const node = document.activeElement;
  if (!node || node === document.body) return null;
  const style = getComputedStyle(node), box = node.getBoundingClientRect();
  const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  const seen = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  const opaque = style.opacity !== "0" && style.visibility !== "hidden";
  const html = node.outerHTML.slice(0, 120);
  return {number: node.dataset.usable ?? null, ring, seen, opaque, html};
}"""


def tab_through(page) -> tuple[set[str], list[str]]:
    """Press Tab from the top to the end: what got the focus, and where one could not see it."""
    reached: set[str] = set()
    unseen = []
    for _ in range(2000):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        if focus is None or focus["number"] in reached:
            return reached, unseen
        if focus["number"] is not None:
            reached.add(focus["number"])
        if not (focus["ring"] and focus["seen"] and focus["opaque"]):
            unseen.append(str(focus))
    raise AssertionError("the focus never came to the end of the page")


@each_page
def test_the_keyboard_reaches_everything_and_the_focus_is_seen(visit, name):
    page = visit(name).page
    page.evaluate("document.querySelectorAll('details').forEach((part) => part.open = true)")
    usable = page.evaluate(USABLE)
    reached, unseen = tab_through(page)
    assert unseen == []
    missed = {str(number) for number in range(usable)} - reached
    html = "(all) => all.map((n) => document.querySelector(`[data-usable='${n}']`).outerHTML)"
    assert page.evaluate(html, sorted(missed)) == []
    assert usable > 30


def test_folded_cells_and_menus_open_by_keyboard(visit):
    page = visit(PAGES[5]).page
    for opener in (page.locator("article summary").first, page.locator(".dropdown button").first):
        opener.focus()
        page.keyboard.press("Enter")
    assert page.locator("article details").first.evaluate("(part) => part.open")
    expect(page.locator(".dropdown-menu.show")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.matches('.dropdown-menu.show *')")
    page.keyboard.press("Escape")
    expect(page.locator(".dropdown-menu.show")).to_have_count(0)


def test_the_contents_open_by_keyboard_on_a_phone(visit):
    page = visit(PAGES[3], PHONE).page
    for button, shown in ((".primary-toggle", PAGES[4]), (".secondary-toggle", "#")):
        page.locator(f".bd-header-article {button}").focus()
        page.keyboard.press("Enter")
        link = page.locator(f"dialog[open] a[href*='{Path(shown).name}']").first
        expect(link).to_be_visible()
        link.focus()
        assert page.evaluate("document.activeElement.matches('dialog[open] a')")
        page.keyboard.press("Escape")
        expect(page.locator("dialog[open]")).to_have_count(0)


def test_code_is_copied_by_keyboard(visit):
    page = visit(PAGES[1], permissions=["clipboard-read", "clipboard-write"]).page
    cell = page.locator("article .cell_input").first
    cell.locator("button.copybtn").focus()
    page.keyboard.press("Enter")
    expect(cell.locator("button.copybtn")).to_have_class(re.compile("success"))
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == cell.locator("pre").inner_text().strip()


def test_the_color_mode_is_chosen_and_kept(visit):
    page = visit(PAGES[1]).page
    for _ in range(3):
        page.locator(".theme-switch-button").focus()
        page.keyboard.press("Enter")
        if page.evaluate("document.documentElement.dataset.mode") == "dark":
            break
    page.goto(page.url)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


# --- Finding -------------------------------------------------------------------------------------


def test_search_opens_and_finds_by_keyboard(visit, address):
    view = visit(PAGES[1])
    page = view.page
    page.keyboard.press("Control+k")
    expect(page.locator("#pst-search-dialog[open] input")).to_be_focused()
    page.keyboard.type("learning rate")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=learning+rate")
    first = page.locator("#search-results ul.search li a").first
    expect(first).to_be_visible()
    page.wait_for_load_state("networkidle")  # it reads the pages that it found
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/book/**")
    assert view.problems == []


def test_search_finds_every_page_by_its_title(visit, address):
    page = visit(FRONT).page
    lost = {}
    for name in PAGES:
        page.goto(address + name)
        title = page.locator("article h1").first.evaluate("(h) => h.firstChild.textContent")
        page.goto(address + "search.html")
        page.locator(".bd-search-container input").fill(title)
        page.keyboard.press("Enter")
        told = page.locator("#search-results .search-summary, #search-results > p").first
        expect(told).to_contain_text(re.compile("found|matching"))
        links = page.locator("#search-results ul.search li > a")
        found = links.evaluate_all("(all) => all.map((a) => a.href.split(/[?#]/)[0])")
        if address + name not in found:
            lost[name] = title
    assert lost == {}


def test_the_words_of_a_search_are_marked_and_break_nothing(visit):
    """Also where they stand in what is not shown: the title of a drawing, a style."""
    page = visit("book/08-evaluation.html").page
    for hidden in ("svg title", "style"):
        text = page.locator(f"article {hidden}").first.text_content()
        word = re.search(r"\w{4,}", text)[0]
        view = visit(f"book/08-evaluation.html?highlight={word.lower()}")
        assert view.problems == []
        found = view.page.locator(f"article {hidden}").first
        assert found.evaluate("(n) => [n.textContent, n.children.length]") == [text, 0]
    view = visit("book/08-evaluation.html?highlight=evaluation")
    assert view.page.locator("article h1 .highlighted").count() == 1


# --- Without script, without a network, without a page -------------------------------------------


@each_page
def test_without_script_a_page_reads_and_leads_on(visit, address, name):
    view = visit(name, java_script_enabled=False)
    page = view.page
    source = page.locator("article").evaluate(
        "(a) => [...a.querySelectorAll('p, pre, td, h1, h2, h3')]"
        ".filter((n) => !n.closest('details'))"
        ".map((n) => [n.textContent.trim(), n.checkVisibility()])"
    )
    assert [text for text, shown in source if text and not shown] == []
    assert page.locator("nav.bd-links a").count() >= len(PAGES)
    assert page.locator("nav.bd-links a").nth(1).is_visible()
    if name != PAGES[-1]:
        page.locator("a.right-next").click()
        page.wait_for_url(address + PAGES[PAGES.index(name) + 1])
    assert view.problems == []


def test_a_folder_is_enough(browser, html, address):
    """Opened as files: the front page, the next, the colors, the search."""
    view = open_page(browser, html.joinpath("index.html").as_uri())
    page = view.page
    page.wait_for_url("**/book/index.html")
    assert page.evaluate("getComputedStyle(document.querySelector('.asked')).display") == "grid"
    page.locator("a.right-next").click()
    page.wait_for_url("**/01-setup.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("Chat template")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=*")
    expect(page.locator("#search-results ul.search a[href*='glossary']").first).to_be_visible()
    assert page.evaluate("document.fonts.check('900 16px \"Font Awesome 6 Free\"', '\\uf0c9')")
    page.context.close()
    assert view.problems == []
    assert [url for url in view.urls if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("path", ["nothing.html", "book/nothing", "a/b/c/"])
def test_an_unknown_address_leads_back(visit, address, path):
    view = visit(path)
    page = view.page
    assert [p for p in view.problems if not p.startswith("error: ")] == [f"404: {address}{path}"]
    assert page.locator("article h1").inner_text().startswith("There is no such page")
    page.locator("article a[href]").last.click()
    page.wait_for_url(address + FRONT)


# --- Paper ---------------------------------------------------------------------------------------

BLOCKS = """() => [...document.querySelectorAll("article :is(h1, h2, h3, p, pre, td, dt)")]
  .filter((node) => !node.closest("svg, summary") && !node.querySelector("p, pre, td"))
  .map((node) => {
    const copy = node.cloneNode(true);
    copy.querySelectorAll(".headerlink, button, math, style").forEach((part) => part.remove());
    return copy.textContent;
  })"""


@pytest.fixture(scope="module")
def paper(browser, address):
    """Gives a page as a PDF, with the text of its blocks; prints each once."""

    @cache
    def paper(name):
        view = open_page(browser, address + name)
        blocks = view.page.evaluate(BLOCKS)
        pdf = view.page.pdf(format="A4", prefer_css_page_size=True)
        view.page.context.close()
        return pdf, blocks

    return paper


def text_of(pdf: bytes) -> str:
    return "".join(squeezed(page.extract_text()) for page in PdfReader(io.BytesIO(pdf)).pages)


@each_page
def test_on_paper_nothing_is_lost(paper, name):
    """Every line of text is there, that of folded cells too."""
    pdf, blocks = paper(name)
    text = text_of(pdf)
    lines = [line for block in blocks for line in block.split("\n") if len(squeezed(line)) > 3]
    words = [word for line in lines for word in line.split() if len(word) > 3]
    missing = [word for word in words if squeezed(word) not in text]
    assert len(missing) <= 0.005 * len(words), missing[:20]
    assert len(words) > 20


@each_page
def test_on_paper_nothing_runs_over_the_edge(visit, name):
    page = visit(name).page
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 672, "height": 1000})  # A4 less its margins, at 96 dpi
    out = page.evaluate("""() => [...document.querySelectorAll("article *")]
      .filter((node) => !node.closest("svg *, pre *") && node.checkVisibility()
        && node.getBoundingClientRect().right > innerWidth + 1)
      .map((node) => `${node.tagName} ${node.className}: ${node.textContent.slice(0, 60)}`)""")
    assert out == []


@pytest.mark.weekly
def test_the_whole_book_is_one_pdf(paper, html):
    """The pages one after the other, with an outline; kept in ``_build/book.pdf``."""
    book, papers = PdfWriter(), [paper(name) for name in PAGES]
    for pdf, blocks in papers:
        book.append(io.BytesIO(pdf), outline_item=blocks[0])
    file = html.parent / "book.pdf"
    book.write(file)
    read = PdfReader(file)
    assert len(read.pages) == sum(len(PdfReader(io.BytesIO(pdf)).pages) for pdf, _ in papers)
    assert [item.title for item in read.outline] == [blocks[0] for _, blocks in papers]
    text = "".join(squeezed(page.extract_text()) for page in read.pages)
    assert all(squeezed(blocks[0]) in text for _, blocks in papers)
