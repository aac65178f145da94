import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.drills.documents import drill, overrides_of

CODE_BYTES = 36 * 2**20
"""Preparation starts processes from 32 MiB on."""
UNUSABLE = (b'{"id": "bytes", "text": "\xff"}', b"no JSON", b'{"id": "empty", "text": " "}', b'{"id": "none"}')


def test_preparation_that_is_killed_comes_to_the_same_with_any_number_of_processes(tmp_path: Path) -> None:
    write_code(tmp_path / "code.jsonl", CODE_BYTES)
    write_code(tmp_path / "little.jsonl", 2**20)
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


def write_code(path: Path, num_bytes: int) -> None:
    """Write Python files as JSON Lines until they hold so many bytes, and among them lines that cannot be used."""
    with path.open("wb") as file:
        for number, text in enumerate(_texts()):
            file.write(json.dumps({"id": f"file {number}", "text": text}).encode() + b"\n")
            if number < len(UNUSABLE):
                file.write(UNUSABLE[number] + b"\n")
            num_bytes -= len(text)
            if num_bytes <= 0:
                return
    raise AssertionError("this Python has too few files")


def _texts() -> Iterator[str]:
    paths = sysconfig.get_paths()
    for folder in (paths["stdlib"], paths["purelib"]):
        for path in sorted(Path(folder).rglob("*.py")):
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a test of the standard library holds other encodings
