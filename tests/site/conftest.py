"""The built site in a real browser, served on loopback as a host would serve it.

``make test-site`` builds the book first; ``SFT_SITE=folder`` names one that was built before, as in
``tests/book``. The browser is the ``chromium`` on the path, or what ``CHROMIUM`` names. Each page
is opened once for each screen and shared by the tests that only look.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright
from site_browser import (
    BASE,
    DESKTOP,
    FLAGS,
    OTHERS,
    PAGES,
    ROOT,
    SCREENS,
    Handler,
    Screen,
    View,
    open_page,
)  # fmt: skip


@pytest.fixture(scope="session")
def html() -> Path:
    """The folder of the built site."""
    folder = Path(os.environ.get("SFT_SITE") or ROOT, "_build", "html").resolve()
    if not (folder / "execution.json").exists():
        pytest.fail(f"{folder} holds no finished build: run `make book` first.", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def address(html) -> Iterator[str]:
    """Where the site is served, with a slash at the end."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Handler(*args, directory=str(html))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}{BASE}"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not program:
        pytest.fail(
            "There is no Chromium on the path. On Debian: apt-get install chromium. "
            "Or set CHROMIUM to the program.",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


VIEWS = [(page, screen) for page in (*PAGES, *OTHERS) for screen in SCREENS]


@pytest.fixture(
    scope="module", params=VIEWS, ids=[f"{Path(page).stem}-{screen.name}" for page, screen in VIEWS]
)
def view(request, browser, address) -> Iterator[View]:
    """Each page on each screen."""
    name, screen = request.param
    view = open_page(browser, address + name, screen)
    view.name = name
    yield view
    view.page.context.close()


@pytest.fixture
def visit(browser, address):
    """Open a page of the site by its name, for a test that acts on it."""
    views = []

    def visit(name: str, screen: Screen = DESKTOP, **options: Any) -> View:
        views.append(open_page(browser, address + name, screen, **options))
        return views[-1]

    yield visit
    for view in views:
        view.page.context.close()
