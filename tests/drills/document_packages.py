"""Real documents in bulk: the HTML documentation of Debian packages, as JSON Lines of text. Nothing is installed."""

import json
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from lxml import etree, html  # type: ignore[attr-defined]

PACKAGES = ("postgresql-doc-15", "python3.11-doc", "cppreference-doc-en-html", "linux-doc-6.1", "rust-doc")
"""Smallest first; what conf/data/documents.yaml names."""
_BLOCKS = frozenset(
    [
        *(
            "address",
            "article",
            "aside",
            "blockquote",
            "br",
            "dd",
            "div",
            "dl",
            "dt",
            "figure",
            "footer",
            "header",
            "hr",
        ),
        *("h1", "h2", "h3", "h4", "h5", "h6", "li", "main", "nav", "ol", "p", "pre", "section", "table", "tr", "ul"),
    ]
)
_NO_TEXT = ("script", "style", "head", "noscript", "template")
_FEWEST_CHARACTERS = 200
"""Of a page that is kept: shorter ones say that the page has moved."""


def write_documents(package: str, cache: Path) -> Path:
    """Return a file with a package's pages as {"id", "text"}, made now if it is not there.

    Args:
        package: of Debian.
        cache: folder for the package, what is in it, and the file.
    """
    target = cache / f"{package}.jsonl"
    if target.exists():
        return target
    pages = sorted(
        path for path in _unpacked(package, cache).rglob("*.htm*") if path.is_file() and not path.is_symlink()
    )
    partial = target.with_suffix(".partial")
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool, partial.open("w", encoding="utf-8") as file:
        for page, text in zip(pages, pool.map(text_of_page, pages, chunksize=64), strict=True):
            if text is not None and len(text) >= _FEWEST_CHARACTERS:
                place = page.relative_to(cache / "unpacked" / package).as_posix()
                file.write(json.dumps({"id": place, "text": text}, ensure_ascii=False) + "\n")
    partial.rename(target)
    return target


def text_of_page(path: Path) -> str | None:
    """Return the text of an HTML file, blocks on lines of their own; None if it has none."""
    try:
        root = html.fromstring(path.read_bytes(), parser=html.HTMLParser(encoding="utf-8"))
    except etree.ParserError:  # an empty file
        return None
    etree.strip_elements(root, *_NO_TEXT, etree.Comment, with_tail=False)
    return "\n".join(_lines("".join(_pieces(root))))


def _pieces(root: html.HtmlElement) -> Iterator[str]:
    for event, element in etree.iterwalk(root, events=("start", "end")):
        if isinstance(element.tag, str) and element.tag in _BLOCKS:
            yield "\n"
        if event == "start" and element.text:
            yield element.text
        if event == "end" and element.tail and element is not root:
            yield element.tail


def _lines(text: str) -> Iterable[str]:
    """Yield the lines of a text without white space at their ends, at most one empty line after another."""
    is_empty = True
    for line in text.splitlines():
        stripped = line.rstrip()
        if stripped or not is_empty:
            yield stripped
        is_empty = not stripped


def _unpacked(package: str, cache: Path) -> Path:
    folder = cache / "unpacked" / package
    if folder.exists():
        return folder
    (cache / "packages").mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", package], cache / "packages")
    [archive] = (cache / "packages").glob(f"{package}_*.deb")
    _run(["dpkg", "-x", str(archive.resolve()), f"{folder.resolve()}.partial"], cache)
    folder.with_name(f"{package}.partial").rename(folder)
    return folder


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(command)} failed: {done.stderr.strip()}\n  -> apt-get update, and a Debian bookworm"
        )
