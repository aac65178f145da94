"""Arrow files in which preparation keeps records that were read, and parts of them. Imports little: processes start."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

CHUNK_SCHEMA = pa.schema([("id", pa.string()), ("content", pa.large_binary()), ("digest", pa.binary(32))])


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Records of a chunk."""

    chunk: Path
    """Its Arrow file."""
    records: np.ndarray
    """int64; their places in it, in order."""
    num_bytes: int
    """Of their contents."""


def write_chunk(path: Path, table: pa.Table) -> None:
    """Write the records of a chunk; columns as in CHUNK_SCHEMA."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, CHUNK_SCHEMA) as writer:
        writer.write_table(table)


def open_chunk(path: Path) -> pa.Table:
    """Return the records of a chunk's Arrow file, mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
