"""What the tests of ``tests/site`` share: pages, screens, a host of files, a window."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from playwright.sync_api import Browser, Page, Request, expect

ROOT = Path(__file__).parents[1]
#: Where the site lies at its host, as in ``html.baseurl`` of ``_config.yml``.
BASE = urlsplit(yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))["html"]["baseurl"]).path
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
#: Guards against a hang, and no measure of speed: another process may have the machine.
TIMEOUT = 120_000  # milliseconds
expect.set_options(timeout=TIMEOUT)
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
#: The pages in reading order, as their addresses within the site.
CHAPTERS = [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
PAGES = [f"{file}.html" for file in (TOC["root"], *CHAPTERS)]
FRONT = PAGES[0]
OTHERS = ["search.html", "genindex.html"]


class Screen(NamedTuple):
    """The size of a window, and the color scheme that its reader prefers."""

    name: str
    width: int
    height: int
    scheme: str


SCREENS = [
    Screen(f"{name}-{scheme}", width, height, scheme)
    for name, width, height in (("desktop", 1280, 800), ("phone", 390, 844))
    for scheme in ("light", "dark")
]
DESKTOP, PHONE = SCREENS[0], SCREENS[2]
#: Pages that differ in kind. Each change looks at all pages on the desktop's screen, and at these
#: in every other way too; `make weekly` looks at all pages in all ways.
KINDS = ("index", "08-evaluation", "26-ask", "claims", "glossary")


def look(page: str, screen: Screen | None = None) -> Any:
    """A parameter of a test that looks at a page, on a screen or in another way."""
    often = screen == DESKTOP or Path(page).stem in KINDS
    return pytest.param(
        (page, screen) if screen else page,
        id=f"{Path(page).stem}-{screen.name}" if screen else Path(page).stem,
        marks=() if often else pytest.mark.weekly,
    )


VIEWS = [look(page, screen) for page in (*PAGES, *OTHERS) for screen in SCREENS]
each_page = pytest.mark.parametrize("name", [look(page) for page in PAGES])


class Handler(SimpleHTTPRequestHandler):
    """A host of files under `BASE`, with the site's own page where there is nothing."""

    def translate_path(self, path: str) -> str:
        path = unquote(urlsplit(path).path)
        inside = path.removeprefix(BASE) if path.startswith(BASE) else "no such file"
        return super().translate_path(inside)

    def send_error(self, code: int, *args: Any) -> None:
        if code != HTTPStatus.NOT_FOUND:
            return super().send_error(code, *args)
        body = Path(self.directory, "404.html").read_bytes()
        self.send_response(HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@dataclass
class View:
    """A page on a screen, with what the browser said and asked for."""

    page: Page
    name: str
    screen: Screen
    problems: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note what goes wrong, and every request, from now on.

        A request that ends as aborted was given up by its page, or by who went on to another: what
        is missing or refused ends otherwise.
        """
        page = self.page

        def failed(request: Request) -> None:
            if request.failure != "net::ERR_ABORTED":
                self.problems.append(f"failed: {request.url} {request.failure}")

        page.on("request", lambda request: self.urls.append(request.url))
        page.on("requestfailed", failed)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on(
            "response",
            lambda r: self.problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None,
        )
        page.on(
            "console",
            lambda m: self.problems.append(f"{m.type}: {m.text}") if m.type == "error" else None,
        )


def open_page(browser: Browser, url: str, screen: Screen = DESKTOP, **options: Any) -> View:
    """A new window with nothing kept from others, at ``url``, loaded whole."""
    context = browser.new_context(
        viewport={"width": screen.width, "height": screen.height},
        color_scheme=screen.scheme,
        **options,
    )
    context.set_default_timeout(TIMEOUT)
    view = View(context.new_page(), urlsplit(url).path.rpartition("/")[2], screen)
    view.watch()
    view.page.goto(url, wait_until="load")
    return view


def compressed(html: Path, url: str) -> int:
    """Bytes that a host sends for a file of the site: what is text, as gzip by default packs it."""
    data = (html / unquote(urlsplit(url).path).removeprefix(BASE)).read_bytes()
    text = urlsplit(url).path.endswith((".html", ".css", ".js", ".svg", ".json"))
    return len(gzip.compress(data, 6)) if text else len(data)
