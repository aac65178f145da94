"""Files that anyone may have written are read with suspicion."""

import os
import time
from pathlib import Path

import pytest

from training.plain_files import read_json, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE_YAML = {
    "billion laughs": BOMB,
    "alias": "a: &x 1\nb: *x",
    "alias of itself": "a: &x [*x]",
    "merge": "a: &x {b: 1}\nc: {<<: *x}",
    "python object": "!!python/object/apply:os.system ['touch marker']",
    "python name": "a: !!python/name:os.system",
    "python module": "a: !!python/module:os",
    "unknown tag": "a: !secret x",
    "twice": "run: 1\nrun: 2",
    "twice, deeper": "run: {a: 1, b: 2, a: 3}",
    "deep": "[" * 100 + "]" * 100,
    "deep mapping": "{a: " * 100 + "1" + "}" * 100,
    "large": "a: " + "x" * 2**21,
    "two documents": "a: 1\n---\nb: 2",
    "not UTF-8": b"a: \xff",
    "NUL": "a: \0",
}


@pytest.mark.parametrize("content", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_yaml_that_is_no_tree_of_plain_values_is_refused_at_once(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    begun = time.monotonic()
    with pytest.raises(ValueError):  # noqa: PT011 (each has words of its own)
        read_yaml(path)
    assert time.monotonic() - begun < 5
    assert os.listdir(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_what_is_no_plain_file_is_not_waited_for(read: object, tmp_path: Path) -> None:
    assert callable(read)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(ValueError, match="no plain file"):
            read(tmp_path / name)


def test_plain_yaml_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a: [1, 2.5, null, true]\nb: {c: text}\n")
    assert read_yaml(tmp_path / "x") == {"a": [1, 2.5, None, True], "b": {"c": "text"}}
