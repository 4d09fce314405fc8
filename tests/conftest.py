"""The order of the tests, and a real browser for those of pages."""

import gc
import itertools
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else shutil.which("chromium")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

gc.disable()  # what collecting the tests imports stays: looking for garbage in it takes a fourth of that time


def pytest_collection_finish():
    """From here on the millions of objects that came with imports are left out."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # an export makes millions of objects, few of them garbage: a twentieth of its time
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # some libraries count at the end what was not freed


def pytest_collection_modifyitems(config, items):
    """Slow tests come first in the share of each worker, or at the end one would wait for another's."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = iter([item for item in items if not item.get_closest_marker("slow")])
    share, items[:] = len(items) // workers, []
    for worker in range(workers):
        first = slow[worker * len(slow) // workers : (worker + 1) * len(slow) // workers]  # modules stay together
        items += first
        items += itertools.islice(others, max(0, share - len(first)))
    items += others


@pytest.fixture(scope="module")  # while it is open, its event loop runs in this thread, and no test can start one of its own
def browser():
    if CHROMIUM is None:
        message = "this test needs Chromium: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(browser):
    """Opens an address in a tab; when the block ends: nothing was asked from elsewhere, and nothing went wrong in the page."""

    @contextmanager
    def open_tab(address, **settings):
        requests, complaints = [], []
        tab = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **settings})
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        tab.goto(address)
        yield tab
        tab.close()
        assert complaints == []
        assert [url for url in requests if not url.startswith((address.split("?")[0], "data:", "blob:"))] == []

    return open_tab
