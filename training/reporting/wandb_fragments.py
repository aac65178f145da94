"""What wandb keeps in RUN_DIR/wandb: one fragment per start of an offline run, a log of protobuf records each.

wandb-core writes a fragment in blocks, so a kill loses the end of it and may cut a record in two. Where it ends is
where the next start goes on, and `wandb sync` gives up a run at a cut, so the cut is taken off first.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2

_FILE_HEADER_BYTES = 7
_BLOCK_BYTES = 2**15
_CHUNK_HEADER_BYTES = 7
"""Checksum (4), length (2, little-endian), type (1), as in LevelDB's log."""
_LAST_BLOCKS = 64
"""Blocks in which the last row is looked for first."""
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def next_line(run_directory: Path) -> int:
    """Return the line of metrics.jsonl that follows the newest row in any fragment, 0 if there is no row.

    Raises:
        OSError: a fragment cannot be read.
    """
    return max((_end(path).step + 1 for path in run_directory.glob("wandb/*run-*/run-*.wandb")), default=0)


def mend(run_directory: Path) -> None:
    """Make all offline fragments whole, none of which may be in use: cut off a last record that a kill left in part.

    A fragment without a row is marked as sent: `wandb sync` would stop at it, and send none of the others.

    Raises:
        OSError: a fragment cannot be read, cut or marked.
    """
    for path in _offline(run_directory):
        end = _end(path)
        if end.bytes < path.stat().st_size:
            os.truncate(path, end.bytes)
        if end.step < 0:
            _mark_as_sent(path)


def retire(run_directory: Path) -> None:
    """Mark the offline fragments as sent: their rows reach the server another way, and must not twice.

    Raises:
        OSError: a mark cannot be written.
    """
    for path in _offline(run_directory):
        _mark_as_sent(path)


def _mark_as_sent(path: Path) -> None:
    """Leave the mark that `wandb sync` leaves, and goes by."""
    path.with_name(f"{path.name}.synced").touch()


def _offline(run_directory: Path) -> list[Path]:
    return sorted(run_directory.glob("wandb/offline-run-*/run-*.wandb"))


@dataclass(frozen=True, slots=True)
class _End:
    step: int = -1
    """`_step` of the last row, -1 without one."""
    bytes: int = _FILE_HEADER_BYTES
    """Where the last whole record ends."""


def _end(path: Path) -> _End:
    """Return where a fragment ends, from its last blocks, or from all of it if they hold no row."""
    first_block = max(0, path.stat().st_size // _BLOCK_BYTES - _LAST_BLOCKS)
    end = _read_end(path, first_block)
    return end if end.step >= 0 or first_block == 0 else _read_end(path, 0)


def _read_end(path: Path, first_block: int) -> _End:
    end = _End()
    for content, end_bytes in _records(path, first_block):
        step = _step(content)
        end = _End(end.step if step is None else step, end_bytes)
    return end


def _step(content: bytes) -> int | None:
    """Return `_step` of a record that is a row, None of another."""
    record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue] (made when it is imported)
    try:
        record.ParseFromString(content)
    except DecodeError:
        return None
    return record.history.step.num if record.HasField("history") else None


def _records(path: Path, first_block: int) -> Iterator[tuple[bytes, int]]:
    """Yield each whole record that begins in a block or later, and where it ends in the file."""
    with path.open("rb") as file:
        place = file.seek(max(_FILE_HEADER_BYTES, first_block * _BLOCK_BYTES))
        parts: list[bytes] | None = None  # of the record that is being read; None before the first one begins
        while True:
            left_in_block = -place % _BLOCK_BYTES
            if 0 < left_in_block < _CHUNK_HEADER_BYTES:  # padding
                place = file.seek(place + left_in_block)
            header = file.read(_CHUNK_HEADER_BYTES)
            if len(header) < _CHUNK_HEADER_BYTES:
                return
            length, kind = int.from_bytes(header[4:6], "little"), header[6]
            content = file.read(length)
            if len(content) < length or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
                return
            place += _CHUNK_HEADER_BYTES + length
            if kind in (_FULL, _FIRST):
                parts = [content]
            elif parts is not None:
                parts.append(content)
            if kind in (_FULL, _LAST) and parts is not None:
                yield b"".join(parts), place
