"""The built site in a real browser, served on loopback as a host would serve it.

The browser is the ``chromium`` on the path, or what ``CHROMIUM`` names: where there is none, these
tests are skipped, but where one is named they fail. Each page is opened once for each screen and
shared by the tests that only look. ``SFT_SITE`` names a site that was built before.
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
    VIEWS,
    Handler,
    Screen,
    View,
    open_page,
)


@pytest.fixture(scope="session")
def html(site) -> Path:
    """The folder of the built site."""
    if not site.executions():
        pytest.fail(f"{site.html} holds no finished build", pytrace=False)
    return site.html.resolve()


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


@pytest.fixture(scope="module")  # while it runs, nothing else can have a loop of events
def browser() -> Iterator[Browser]:
    named = os.environ.get("CHROMIUM")
    program = shutil.which(named or "chromium")
    if not program:
        (pytest.fail if named else pytest.skip)(
            f"There is no {named or 'chromium'} on the path. On Debian: apt-get install chromium. "
            "Or set CHROMIUM to the program."
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=VIEWS)
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
