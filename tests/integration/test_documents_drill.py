import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.drills.documents import drill, overrides_of

CODE_BYTES = 36 * 2**20
"""Preparation starts processes from 32 MiB on."""
UNUSABLE = (b'{"id": "bytes", "text": "\xff"}', b"no JSON", b'{"id": "empty", "text": " "}', b'{"id": "none"}')


def test_preparation_that_is_killed_comes_to_the_same_with_any_number_of_processes(tmp_path: Path) -> None:
    texts = code()
    write_lines(tmp_path / "little.jsonl", texts, 2**20)
    write_lines(tmp_path / "code.jsonl", texts, CODE_BYTES)
    overrides = [
        *overrides_of(["python", "rust"]),
        f"data.sources.python.path={tmp_path / 'code.jsonl'}",
        f"data.sources.rust.path={tmp_path / 'little.jsonl'}",
        f"data.shard_bytes={2**21}",
    ]
    found = drill(tmp_path, overrides, num_workers=[2, 1, 3], seed=0, has_speed=False)
    assert found.problems == []
    assert len(found.kills) == 2
    assert found.num_kept > 0, "no kill came after a shard was written"


def write_lines(path: Path, texts: Iterator[str], num_bytes: int) -> None:
    """Write texts as JSON Lines until they have so many bytes, and among them lines that cannot be used."""
    with path.open("wb") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": f"file {number}", "text": text}).encode() + b"\n")
            if number < len(UNUSABLE):
                file.write(UNUSABLE[number] + b"\n")
            num_bytes -= len(text)
            if num_bytes <= 0:
                return
    raise AssertionError("this Python has too few files")


def code() -> Iterator[str]:
    """Yield the Python files of this Python and of its packages."""
    paths = sysconfig.get_paths()
    for folder in (paths["stdlib"], paths["purelib"]):
        for path in sorted(Path(folder).rglob("*.py")):
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a test of the standard library holds other encodings
