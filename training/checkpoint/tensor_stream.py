"""Tensors on their way from one place to another, a bounded piece at a time: memory does not grow with the model."""

from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from training.checkpoint.digest import MODULUS, digest
from training.checkpoint.tensor_file import TensorFileWriter, TensorHeader

ReadInto = Callable[[str, int, memoryview], None]
"""(tensor, first element, float32 destination): fills it; `CheckpointReader.read_into` is one."""

MAX_FILE_BYTES = 2 * 10**9
"""Of one file, unless a single tensor is larger."""
_CHUNK_ELEMENTS = 2 * 2**20
"""Elements that are read, converted, compared or written at a time: 8 MiB of float32."""


def stream(read_into: ReadInto, tensor: str, shape: tuple[int, ...]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first element, values) of ranges that cover a flattened tensor; the values hold until the next ones."""
    numel = prod(shape)
    buffer = np.empty(min(numel, _CHUNK_ELEMENTS), dtype=np.float32)
    for start in range(0, numel, _CHUNK_ELEMENTS):
        values = buffer[: numel - start]
        read_into(tensor, start, values.data)
        yield start, values


def bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the values' bit patterns: a NaN equals itself, -0.0 does not equal 0.0."""
    return values.view(np.uint32)


def widen(bf16: NDArray[np.uint16], values: NDArray[np.float32]) -> None:
    """Set float32 values from bf16 bit patterns, which are their upper halves."""
    values.view(np.uint32)[:] = bf16
    values.view(np.uint32)[:] <<= 16


def narrowed(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bf16 bit patterns nearest to float32 values, ties to even."""
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def rounded(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Return float32 values in the precision of a dtype, F32 or BF16."""
    if dtype == "F32":
        return values
    result = np.empty_like(values)
    widen(narrowed(values), result)
    return result


def in_files(tensors: Sequence[TensorHeader], max_bytes: int) -> list[list[TensorHeader]]:
    """Return the tensors, in their order, in groups of at most `max_bytes`; a larger tensor gets a group of its own."""
    groups: list[list[TensorHeader]] = []
    room = 0
    for tensor in tensors:
        if not groups or tensor.num_bytes > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(tensor)
        room -= tensor.num_bytes
    return groups


def copy_tensor(read_into: ReadInto, tensor: str, shape: tuple[int, ...], dtype: str, writer: TensorFileWriter) -> int:
    """Write one tensor as F32 or BF16; returns the digest of the float32 values that were read."""
    total = 0
    for start, values in stream(read_into, tensor, shape):
        total += digest(bits(values), start)
        writer.write(narrowed(values).data if dtype == "BF16" else values.data)
    return total % MODULUS
