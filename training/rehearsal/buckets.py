"""Gradients -> the reductions that DeepSpeed starts for them, in order. No torch.

Sources: DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py (`reduce_independent_p_g_buckets_and_remove_grads`,
`average_tensor`, `allreduce_and_scatter`), runtime/zero/stage3.py (`reduce_independent_p_g_buckets_and_remove_grads`,
`__avg_scatter_grads`), runtime/engine.py (`allreduce_no_retain`) and runtime/bf16_optimizer.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from training.config.optimizer_schema import OptimizerConfig
from training.rehearsal.parameters import Layer, Parameter, optimizer_groups

ENGINE_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed 0.19.8, runtime/engine.py, MEMORY_OPT_ALLREDUCE_SIZE: reductions outside of ZeRO's own optimizers."""
_ALIGNMENT = 2
"""`nccl_start_alignment_factor`: each rank's part of a flat group has a multiple of so many elements."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One reduction."""

    numel: int
    """Elements that each rank gives, padding among them."""
    about: str
    """Parameters in it."""


def partition_numel(numel: int, num_shards: int) -> int:
    """Return the elements of one rank's part of a flat group under ZeRO-1 and 2, padding among them."""
    return -(-numel // (_ALIGNMENT * num_shards)) * _ALIGNMENT


def shard_numel(numel: int, num_shards: int) -> int:
    """Return the elements of one rank's part of a parameter under ZeRO-3, padding among them."""
    return -(-numel // num_shards)


def in_release_order(layer: Layer, optimizer: OptimizerConfig) -> list[Parameter]:
    """Return a layer's parameters in the order in which ZeRO-3 takes their gradients: those of a block all at once.

    Hooks of a leaf module run through its parameters as the optimizer's groups order them: matrices first.
    """
    return [parameter for group in optimizer_groups(optimizer, layer.parameters) for parameter in group]


class Filling:
    """Gradients that ZeRO collects before it reduces them: as many as fit, or one that is larger by itself."""

    def __init__(self, bucket_elements: int) -> None:
        self._bucket_elements = bucket_elements
        self._bucket: list[Parameter] = []
        self._elements = 0

    def add(self, parameter: Parameter) -> list[Parameter]:
        """Add a gradient; return what has to be reduced before, [] if nothing has to."""
        full = self.take() if self._elements + parameter.numel > self._bucket_elements else []
        self._bucket.append(parameter)
        self._elements += parameter.numel
        return full

    def take(self) -> list[Parameter]:
        """Return what was collected, and begin anew."""
        taken, self._bucket, self._elements = self._bucket, [], 0
        return taken


def full_buckets(parameters: Iterable[Parameter], *, bucket_elements: int) -> list[list[Parameter]]:
    """Return gradients as they are reduced together, in order."""
    filling = Filling(bucket_elements)
    buckets = [filling.add(parameter) for parameter in parameters]
    return [bucket for bucket in (*buckets, filling.take()) if bucket]


def partitioned_pieces(
    bucket: Sequence[Parameter], groups: Sequence[Sequence[Parameter]], *, bucket_elements: int, num_shards: int
) -> list[Bucket]:
    """Return the all-reduces of ZeRO-1 and 2 for a bucket of gradients.

    It is one, but for a parameter that is larger than the bucket: that is reduced in pieces that end where a rank's
    part of its flat group does, each just larger than the bucket.
    """
    about, numel = names(bucket), sum(parameter.numel for parameter in bucket)
    if numel <= bucket_elements:
        return [Bucket(numel, about)]
    (large,) = bucket
    [group] = [group for group in groups if any(parameter.name == large.name for parameter in group)]
    part = partition_numel(sum(parameter.numel for parameter in group), num_shards)
    offset = sum(p.numel for p in takewhile(lambda parameter: parameter.name != large.name, group))
    return [Bucket(piece, about) for piece in _pieces(offset, numel, part, bucket_elements)]


def sharded_bucket(bucket: Sequence[Parameter], *, num_shards: int) -> Bucket:
    """Return the reduce-scatter of ZeRO-3 for a full bucket: every parameter is padded to a multiple of the shards."""
    return Bucket(sum(num_shards * shard_numel(p.numel, num_shards) for p in bucket), names(bucket))


def engine_buckets(tensors: Iterable[tuple[int, str]]) -> list[Bucket]:
    """Return the all-reduces of gradients that DeepSpeed's engine does itself: a bucket ends once it is too large.

    Args:
        tensors: elements and name of each.
    """
    buckets, elements, about = [], 0, list[str]()
    for numel, name in tensors:
        elements += numel
        about.append(name)
        if elements > ENGINE_BUCKET_ELEMENTS:
            buckets.append(Bucket(elements, _listed(about)))
            elements, about = 0, []
    if elements:
        buckets.append(Bucket(elements, _listed(about)))
    return buckets


def names(parameters: Sequence[Parameter]) -> str:
    """Return parameters as text, the first and the last by name."""
    return _listed([parameter.name for parameter in parameters])


def _pieces(offset: int, numel: int, part: int, bucket_elements: int) -> Iterator[int]:
    """Yield the pieces of one large gradient, which begins at `offset` of a flat group cut into equal parts."""
    piece, done = 0, 0
    while done < numel:
        slice_ = min(numel - done, part - (offset + done) % part)
        piece += slice_
        done += slice_
        if piece > bucket_elements:
            yield piece
            piece = 0
    if piece:
        yield piece


def _listed(about: Sequence[str]) -> str:
    if len(about) <= 2:
        return ", ".join(about)
    return f"{about[0]} … {about[-1]}, {len(about)} in all"
