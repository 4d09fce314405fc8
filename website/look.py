"""Opens every page of the built site in Chromium: on a light phone and a dark desktop.

python website/look.py                        fails on console errors, requests to other hosts, pages too wide, a dead search
python website/look.py --screenshots shots    also keeps what was seen, in all four forms
"""

import argparse
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, expect, sync_playwright

SITE = Path(__file__).parents[1] / "site"
LIVE = "live"
"""The live demo, where the site has one (website/live.py): a page in a frame of another."""

SCREENS: dict[str, ViewportSize] = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}
SCHEMES: list[Literal["light", "dark"]] = ["light", "dark"]


class Quiet(SimpleHTTPRequestHandler):
    """A file server that prints nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Does not mind that a page was left while its files were on the way."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Print what went wrong, unless the browser went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which a folder is served."""
    server = Server(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def main() -> int:
    """Look at everything, and list what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screenshots", type=Path, help="folder for an image of each page")
    options = parser.parse_args()
    pages = sorted({str(path.relative_to(SITE).parent) for path in SITE.rglob("index.html")} - {LIVE})
    with served(SITE) as root, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        faults = look(browser, root, pages, options.screenshots)
        try_search(browser, root)
        if (SITE / LIVE).exists():
            try_live(browser, root, options.screenshots)
        browser.close()
    print(f"{len(pages)} pages, {len(faults)} faults", *faults, sep="\n")
    return 1 if faults else 0


def look(browser: Browser, root: str, pages: list[str], folder: Path | None) -> list[str]:
    """Visit all pages: on a light phone and a dark desktop, for screenshots on every screen in both schemes."""
    forms = list(product(SCREENS.items(), SCHEMES) if folder else zip(SCREENS.items(), SCHEMES, strict=True))
    faults: list[str] = []
    for (screen, size), scheme in forms:
        # afresh: the site keeps its colours, and menus that move out of a smaller screen are too wide for a moment
        page = browser.new_page(viewport=size, color_scheme=scheme)
        page.on("console", lambda line: faults.append(f"{line.page and line.page.url}: {line.text}") if is_fault(line) else None)
        page.on("pageerror", lambda error, screen=screen: faults.append(f"({screen}): {error}"))
        page.on("request", lambda request: None if request.url.startswith((root, "data:")) else faults.append(request.url))
        for name in pages:
            page.goto(f"{root}{name}/")
            faults.extend([f"{name} ({screen}, {scheme}): {fault}" for fault in faults_of_layout(page)])
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=folder / f"{name.replace('/', '-')}-{screen}-{scheme}.png")
        page.close()
    return faults


def is_fault(line: ConsoleMessage) -> bool:
    """Whether a page did something wrong; that the machine has no GPU is not its fault."""
    return line.type in ("error", "warning") and line.text != "No available adapters."


def try_search(browser: Browser, root: str) -> None:
    """Search for the operator's page, in the browser, with the index that was made with the site; a time-out if it is not found."""
    page = browser.new_page()
    page.goto(root)
    page.fill("input[name=query]", "deformable attention")
    found = page.locator(".md-search-result__item a[href*=operator]")
    found.first.wait_for(state="attached")
    page.close()


def try_live(browser: Browser, root: str, folder: Path | None) -> None:
    """Let the live demo find the objects of its images, in its frame and on a page of its own; a time-out if it finds none."""
    found = re.compile(r"[1-9]\d* objects in")
    for (screen, size), scheme in product(SCREENS.items(), SCHEMES):
        page = browser.new_page(viewport=size, color_scheme=scheme)
        page.goto(f"{root}browser/")
        frame = page.frame_locator("iframe[name=live]")
        expect(frame.locator("#state")).to_contain_text(found, timeout=120_000)
        if folder:
            page.screenshot(path=folder / f"{LIVE}-{screen}-{scheme}.png", full_page=True)
        page.close()
    page = browser.new_page()
    page.goto(f"{root}{LIVE}/?image=scene-2.png")
    expect(page.locator("#state")).to_contain_text(found, timeout=120_000)
    page.close()


def faults_of_layout(page: Page) -> Iterator[str]:
    """What is wider than the screen, and images that did not load."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wide > 0:
        yield f"wider than the screen by {wide} pixels"
    for source in page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"):
        yield f"image that did not load: {source}"


if __name__ == "__main__":
    sys.exit(main())
