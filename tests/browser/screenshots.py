"""Take the README's pictures anew: `python -m tests.browser.screenshots [key=value …]`.

Runs the demo (with the overrides that are given), and writes docs/images/report.png (a desk), report-phone.png (a phone
in the dark) and terminal.png (in the midst of the second training stage).
"""

import argparse
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser

from tests.browser.chromium import DESKTOP, PHONE, REPOSITORY, chromium, chromium_path, opened
from tests.browser.terminal import terminal_svg
from tests.integration.running import only_run, submit_to_end

IMAGES = REPOSITORY / "docs" / "images"
_LARGEST_BYTES = 300_000
_TERMINAL_WIDTH = 1000
_STEP_OF_TERMINAL = 77


def take_report(browser: Browser, report: Path) -> list[Path]:
    """Return the pictures of the beginning of a report."""
    taken = []
    for name, size, dark, scale in (("report", DESKTOP, False, 1.0), ("report-phone", PHONE, True, 1.5)):
        with opened(browser, report.as_uri(), size=size, dark=dark, scale=scale) as shown:
            shown.wait_until_drawn()
            taken.append(IMAGES / f"{name}.png")
            shown.page.screenshot(path=taken[-1])
    return taken


def take_terminal(browser: Browser, svg: str) -> Path:
    """Return the picture of a terminal that rich saved as SVG (`Console.save_svg`).

    Its fonts are the system's: rich names some of the network's, which nothing here asks for.
    """
    picture = IMAGES / "terminal.png"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "terminal.html"
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        page.write_text(
            f'<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
            "<style>body { margin: 0 } svg { display: block; width: 100% }</style>" + svg
        )
        with opened(browser, page.as_uri(), size=(_TERMINAL_WIDTH, 600)) as shown:
            shown.page.locator("svg").first.screenshot(path=picture, omit_background=True)
    return picture


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the demo")
    arguments = parser.parse_args()
    path = chromium_path()
    if path is None:
        print("there is no chromium; `make packages` installs it on Debian as root", file=sys.stderr)
        return 1
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        words = ["experiment=demo", f"run.root={runs}", "run.id=demo", *arguments.overrides]
        finished = submit_to_end(words, folder=Path(folder) / "output")
        if finished.exit_code:
            print(finished.explain(), file=sys.stderr)
            return 1
        with chromium(path) as browser:
            taken = take_report(browser, only_run(runs) / "report.html")
            taken.append(take_terminal(browser, terminal_svg(only_run(runs), step=_STEP_OF_TERMINAL)))
    for picture in taken:
        print(f"{picture.relative_to(REPOSITORY)}: {picture.stat().st_size:,} bytes")
    too_large = [picture.name for picture in taken if picture.stat().st_size > _LARGEST_BYTES]
    if too_large:
        print(f"larger than {_LARGEST_BYTES:,} bytes: {', '.join(too_large)}", file=sys.stderr)
    return 1 if too_large else 0


if __name__ == "__main__":
    sys.exit(main())
