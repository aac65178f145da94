"""A headless Chromium of the system, and pages in it that note everything they say and ask for."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).parents[2]
DESKTOP, PHONE = (1280, 900), (390, 844)
_DRAWN_MS = 120_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """An open page."""

    page: Page
    said: list[str] = field(default_factory=list)
    """What stands in its console, and errors that nobody caught."""
    asked: list[str] = field(default_factory=list)
    """Addresses that it asked for, its own first; what it carries itself (data:) is none."""

    def wait_until_drawn(self) -> None:
        """Return when every chart has been drawn once."""
        self.page.wait_for_selector("body[data-drawn]", state="attached", timeout=_DRAWN_MS)

    def wait_for_drawing(self, number: int) -> None:
        """Return when all charts have been drawn for the n-th time or a later one."""
        for _ in range(_DRAWN_MS // 50):
            if int(self.page.evaluate("document.body.dataset.drawn ?? 0")) >= number:
                return
            self.page.wait_for_timeout(50)
        raise TimeoutError(f"it was not drawn {number} times")

    def drawings(self) -> int:
        """Return how often all charts have been drawn."""
        return int(self.page.evaluate("document.body.dataset.drawn ?? 0"))


def chromium_path() -> str | None:
    """Return where the system's Chromium is; None if it has none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """Give a headless browser; nothing of it is downloaded, and it ends with the context."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser, address: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False, scale: float = 1
) -> Iterator[Opened]:
    """Give a page that has been opened at an address, in a profile of its own.

    Args:
        browser: has it.
        address: of the page, with a scheme.
        size: of the window; a narrow one is a phone's, with a finger for a pointer.
        dark: whether the reader's system is dark.
        scale: pixels of the screen per pixel of the page.
    """
    is_phone = size[0] < 600
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        is_mobile=is_phone,
        has_touch=is_phone,
        device_scale_factor=scale,
        permissions=["clipboard-read", "clipboard-write"],
        reduced_motion="reduce",
    )
    try:
        page = context.new_page()
        result = Opened(page=page)
        page.on("console", lambda message: result.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: result.said.append(f"error: {error}"))
        page.on("request", lambda request: _note(result.asked, request.url))
        page.goto(address)
        yield result
    finally:
        context.close()


def artifacts() -> Path:
    """Return the folder for screenshots that a test run leaves behind."""
    folder = Path(os.environ.get("AUTARKY_ARTIFACTS") or REPOSITORY / "artifacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _note(asked: list[str], address: str) -> None:
    if not address.startswith(("data:", "blob:")):
        asked.append(address)
