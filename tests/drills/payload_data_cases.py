"""Payloads for prepared data: its index files, its tokenizer and its manifest."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.drills.payload_contents import (
    JSON_FILES,
    Plant,
    numpy_objects,
    pipe,
    plain_pickle,
    torch_zip,
    written,
    zip_bomb,
)


def _npy(header: bytes, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    size = len(header) if length is None else length
    return b"\x93NUMPY" + bytes(version) + size.to_bytes(2 if version == (1, 0) else 4, "little") + header


def _array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


INDEX_FILES: dict[str, Plant] = {
    "a numpy array of objects": written(numpy_objects),
    "a pickle": written(plain_pickle),
    "a torch.save zip": written(torch_zip),
    "a zip bomb": written(zip_bomb),
    "nothing": written(b""),
    "a huge shape": written(_npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (4611686018427387904,), }\n")),
    "a header of 4 GB": written(_npy(b"{}", (2, 0), 2**32 - 1)),
    "a header of brackets": written(_npy(b"(" * 9000)),
    "a header that calls": written(_npy(b"{'descr': __import__('os').system('true'), 'shape': (1,)}\n")),
    "a dtype that is nested": written(
        _npy(b"{'descr': " + b"[" * 90 + b"]" * 90 + b", 'fortran_order': 0, 'shape': ()}\n")
    ),
    "numbers of another type": written(_array(np.zeros(3, dtype=np.float32))),
    "two dims": written(_array(np.zeros((3, 3), dtype=np.int64))),
    "a pipe": pipe,
}

TOKENIZER_FILES: dict[str, Plant] = JSON_FILES | {
    "of an unknown kind": written(b'{"version": "1.0", "model": {"type": "Exec", "command": "touch x"}}'),
    "without the end of text": written(b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'),
    "with an id of 2^32": written(
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "merges": [], '
        b'"vocab": {"<|endoftext|>": 4294967295}}}'
    ),
    "with a broken character map": written(
        b'{"version": "1.0", "added_tokens": [], '
        b'"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, '
        b'"model": {"type": "BPE", "merges": [], "vocab": {"<|endoftext|>": 0}}}'
    ),
}

MANIFEST_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a path upwards": lambda body: body["files"].update({"../../x": body["files"].pop("tokenizer/tokenizer.json")}),
    "an absolute path": lambda body: body["files"].update({"/etc/hostname": {"num_bytes": 1, "sha256": "x"}}),
    "a source with a path": lambda body: body["sources"].update({"../x": body["sources"]["kjv"]}),
    "tokens of objects": lambda body: body.update(dtype="object"),
    "a dtype of many fields": lambda body: body.update(dtype="u1,u1"),
    "sizes of texts": lambda body: body["files"]["tokenizer/tokenizer.json"].update(num_bytes="1"),
    "a huge number of documents": lambda body: body["sources"]["kjv"]["train"]["shards"][0].update(num_records=2**62),
    "a huge number of tokens": lambda body: body["sources"]["kjv"]["train"]["shards"][0].update(num_tokens=2**62),
    "documents of texts": lambda body: body["sources"]["kjv"]["train"]["shards"][0].update(num_records="1"),
    "no sources": lambda body: body.update(sources=[]),
    "an unknown field": lambda body: body.update(command="touch x"),
}


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a prepared folder's manifest says, and its hash with it."""
    body = json.loads(path.read_text())["manifest"]
    change(body)
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "manifest": body}))
