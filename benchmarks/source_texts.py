"""Texts that are on every machine: Python definitions, from the files of this interpreter and its packages.

A file is cut before each class and function at its top level, which makes documents of about the lengths that training
data has: many of some hundred tokens, a few of many thousand.
"""

import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

_DEFINITION = re.compile(r"^(?=(?:class|def|async def) )", re.MULTILINE)


def python_texts(num_bytes: int) -> list[str]:
    """Return different texts of so many UTF-8 bytes together, the last one whole; which ones, a hash of paths decides.

    Raises:
        RuntimeError: there are not that many.
    """
    texts: dict[str, None] = {}
    total = 0
    for path in python_files():
        for text in _DEFINITION.split(read_text(path)):
            if not text.strip() or text in texts:
                continue
            texts[text] = None
            total += len(text.encode())
            if total >= num_bytes:
                return list(texts)
    raise RuntimeError(f"all Python files of this installation are {total:,} bytes, {num_bytes:,} were wanted")


def write_documents(path: Path, texts: Sequence[str]) -> None:
    """Write a JSON Lines file with one document a line, its place as id."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": f"text-{number}", "text": text}, ensure_ascii=False) + "\n")


def overrides_for(name: str, path: Path, *, form: str = "documents") -> list[str]:
    """Return what makes a JSON Lines file the only source of a config made of the defaults."""
    source = f"{{kind: json, form: {form}, path: '{path}', id_field: id, held_out_fraction: 0.0}}"
    return [
        "~data.sources.kjv",
        "~data.sources.python",
        f"+data.sources.{name}={source}",
        "~stages.pretrain.mixture.kjv",
        "~stages.pretrain.mixture.python",
        f"+stages.pretrain.mixture.{name}=1.0",
        "stages.pretrain.eval_suite=null",
        "~eval.suites.quick",
    ]


def python_files() -> Iterator[Path]:
    """Yield all Python files, in an order that mixes the packages and does not change."""
    found = {
        path.relative_to(root).as_posix(): path
        for root in {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
        for path in root.rglob("*.py")
    }
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()):
        yield found[name]


def read_text(path: Path) -> str:
    """Return a file's text; nothing of one that is not UTF-8, as a few that test decoders are."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
