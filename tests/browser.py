"""A headless Chromium for the tests of pages, opened from the disk as a reader opens them."""

import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
VIEWPORT = {"width": 1280, "height": 800}


@contextmanager
def chromium() -> Iterator:
    """A browser; the test is skipped, saying so, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright; pip install playwright")
    with sync_api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = next(filter(None, map(shutil.which, NAMES)), None)
        if not own.exists() and found is None:
            pytest.skip("no browser; python -m playwright install chromium, or apt-get install chromium")
        # --no-sandbox: CI runs as root, which Chromium refuses otherwise
        browser = playwright.chromium.launch(
            executable_path=None if own.exists() else found, args=["--no-sandbox", "--force-color-profile=srgb"]
        )
        yield browser
        browser.close()


def open_page(browser, path: Path, **keywords):
    """A page from the disk. Anything that goes wrong in it, or leaves the disk, is listed in page.faults."""
    page = browser.new_page(viewport=VIEWPORT, **keywords)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("dialog", lambda dialog: page.faults.append(f"dialog {dialog.message}"))
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)

    def note_request(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            page.faults.append(f"asked for {request.url}")

    page.on("request", note_request)
    page.goto(path.as_uri())
    settle(page)
    return page


def settle(page) -> None:
    """Wait until every image of the stage is there and drawn."""
    until(page, "[...document.querySelectorAll('.stage img')].every((each) => each.complete)")
    # two frames: one that draws, one that shows
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def until(page, expression: str, seconds: float = 20) -> None:
    """Wait until an expression is true. Playwright's own waiting needs eval, which the pages' policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(20)


def grey(page, x: float, y: float) -> int:
    """What is seen at shares x, y of the stage."""
    settle(page)
    box = page.locator("#stage").bounding_box()
    place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "width": 1, "height": 1}
    picture = Image.open(io.BytesIO(page.screenshot(clip=place))).convert("RGB")
    red, green, blue = picture.getpixel((0, 0))
    assert red == green == blue, "not grey"
    return red


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag from and to points of the window."""
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()
