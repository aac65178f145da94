"""Which rank holds which range of which parameter's state, as columns of numbers: millions of rows at full size.

The cuts are DeepSpeed 0.19.8's. ZeRO-3 pads every parameter to equal parts (runtime/zero/partition_parameters.py,
`partition_numel`); ZeRO-1 and 2 put a parameter group into one flat piece and pad its end
(runtime/zero/stage_1_and_2.py). Rows hold what is real: padding belongs to nobody. No torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from training.rehearsal.buckets import partition_numel
from training.rehearsal.grid import Grid, GroupKind, Ranks
from training.rehearsal.parameters import Parameter, distinct, optimizer_groups
from training.rehearsal.plan import Plan

WEIGHT = "weight"
STATE_KINDS = (WEIGHT, "exp_avg", "exp_avg_sq")
"""What a checkpoint holds of each parameter, in fp32 (training/checkpoint/manifest.py)."""
ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Slices:
    """Ranges of parameters and who holds them, one row each."""

    parameter: NDArray[np.int32]
    """Place in `Ownership.names`."""
    rank: NDArray[np.int32]
    start: NDArray[np.int64]
    """First element in the flattened parameter."""
    numel: NDArray[np.int64]
    is_owner: NDArray[np.bool_]
    """Whether this rank writes it into checkpoints: not so for the copy of a tied weight."""

    def __len__(self) -> int:
        return len(self.parameter)

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Slices":
        """Return some of the rows."""
        return Slices(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def owned(self) -> "Slices":
        """Return the rows of owners; the table itself where all are."""
        return self if self.is_owner.all() else self.rows(self.is_owner)

    def in_order(self) -> "Slices":
        """Return the rows by parameter and range."""
        if (np.diff(self.parameter) >= 0).all():
            same = self.parameter[1:] == self.parameter[:-1]
            if (self.start[1:] >= self.start[:-1])[same].all():
                return self
        return self.rows(np.lexsort((self.start, self.parameter)))

    def numel_of_ranks(self, world_size: int) -> NDArray[np.int64]:
        """Return the elements that each rank has."""
        order = np.argsort(self.rank, kind="stable")
        totals = np.append(0, np.cumsum(self.numel[order]))
        ends = np.searchsorted(self.rank[order], np.arange(world_size + 1))
        return np.diff(totals[ends])

    def with_row(self, row: int, **values: int | bool) -> "Slices":
        """Return the same with some values of one row replaced."""
        changed = {name: getattr(self, name).copy() for name in values}
        for name, value in values.items():
            changed[name][row] = value
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ownership:
    """The parameters of the whole model and the state of each, by who holds it."""

    names: tuple[str, ...]
    """Canonical names; with tensor parallelism a name for each part of a tensor rank."""
    numels: NDArray[np.int64]
    """Elements of each."""
    state: Slices
    is_replicated: bool
    """All replicas hold everything, as they do without ZeRO, and the first of them writes: that one has the rows."""


def build_ownership(plan: Plan) -> Ownership:
    """Return who holds what: the same ranges of weights and of both moments."""
    names: dict[str, int] = {}
    numels: list[int] = []
    tables: list[Slices] = []
    for parameters, ranks in _engines(plan):
        for parameter in parameters:
            if parameter.name not in names:
                names[parameter.name] = len(names)
                numels.append(parameter.whole_numel)
        numbers = np.array([names[parameter.name] for parameter in parameters], np.int32)
        tables.append(_cut(plan, parameters, numbers, ranks))
    state = Slices(*(np.concatenate([getattr(t, field.name) for t in tables]) for field in fields(Slices)))
    return Ownership(
        names=tuple(names),
        numels=np.array(numels, np.int64),
        state=state.in_order(),
        is_replicated=plan.layout.zero_stage == 0,
    )


def build_biases(plan: Plan) -> Ownership:
    """Return who writes the biases of balancing without a loss, whose weight alone is kept.

    All ranks of a pipeline stage have them whole, and the first writes them (training/engine/routing.py).
    """
    experts = plan.config.model.experts
    blocks = [layer.name for layer in plan.layers if layer.has_experts]
    if experts is None or experts.bias_update_rate == 0:
        blocks = []
    first_rank = {
        plan.layers[index].name: plan.pipeline_stage_ranks(chunk % plan.grid.pipeline).start
        for chunk, part in enumerate(plan.parts)
        for index in part
    }
    count = len(blocks)
    numels = np.full(count, experts.num_experts if experts else 0, np.int64)
    owners = np.array([first_rank[name] for name in blocks], np.int32)
    return Ownership(
        names=tuple(f"{name}.mlp.gate.bias" for name in blocks),
        numels=numels,
        state=Slices(
            np.arange(count, dtype=np.int32), owners, np.zeros(count, np.int64), numels, np.ones(count, np.bool_)
        ),
        is_replicated=True,
    )


def _engines(plan: Plan) -> Iterator[tuple[list[Parameter], Ranks]]:
    """Yield the parameters that ZeRO shards together, and the ranks it shards them over, for all of the job."""
    grid = plan.grid
    shards = grid.groups(GroupKind.shards).reshape(grid.pipeline, grid.tensor, grid.num_shards)
    experts = grid.groups(GroupKind.expert_shards).reshape(grid.pipeline, grid.expert, grid.tensor, -1)
    for chunk, part in enumerate(plan.parts):
        stage = chunk % grid.pipeline
        for tensor_place in range(grid.tensor):
            yield _named(distinct(plan.held_layers(part)), grid, tensor_place), shards[stage, tensor_place]
            for place in range(grid.expert):
                layers = plan.held_layers(part, expert_place=place)
                routed = [parameter for layer in layers for parameter in layer.apart]
                if routed:
                    yield _named(routed, grid, tensor_place), experts[stage, place, tensor_place]


def _named(parameters: Sequence[Parameter], grid: Grid, tensor_place: int) -> list[Parameter]:
    """Return parameters under names of their own for each tensor rank; what is not cut is the first one's."""
    if grid.tensor == 1:
        return list(parameters)
    suffix = f" (tensor part {tensor_place})"
    return [
        replace(p, name=p.name + suffix * (p.cut_dim is not None))
        for p in parameters
        if p.cut_dim is not None or tensor_place == 0
    ]


def _cut(plan: Plan, parameters: Sequence[Parameter], numbers: NDArray[np.int32], ranks: Ranks) -> Slices:
    zero_stage = plan.layout.zero_stage
    if zero_stage == 3:
        return _cut_each(parameters, numbers, ranks)
    if zero_stage == 0:
        whole = np.array([parameter.numel for parameter in parameters], np.int64)
        count = len(parameters)
        return Slices(numbers, np.full(count, ranks[0], np.int32), _starts(parameters), whole, np.ones(count, np.bool_))
    of_name = {parameter.name: number for parameter, number in zip(parameters, numbers.tolist(), strict=True)}
    tables = [
        _cut_flat(group, np.array([of_name[p.name] for p in group], np.int32), ranks)
        for group in optimizer_groups(plan.config.optimizer, parameters)
    ]
    return Slices(*(np.concatenate([getattr(table, field.name) for table in tables]) for field in fields(Slices)))


def _cut_each(parameters: Sequence[Parameter], numbers: NDArray[np.int32], ranks: Ranks) -> Slices:
    """Return equal parts of every parameter; the last ones may be shorter, or empty and left out."""
    whole = np.array([parameter.numel for parameter in parameters], np.int64)[:, None]
    part = -(-whole // len(ranks))
    starts = part * np.arange(len(ranks), dtype=np.int64)
    numel = np.clip(whole - starts, 0, part)
    row, place = np.nonzero(numel)
    owned = np.array([not parameter.is_copy for parameter in parameters])
    begins = starts[row, place] + _starts(parameters)[row]
    return Slices(numbers[row], ranks[place], begins, numel[row, place], owned[row])


def _cut_flat(parameters: Sequence[Parameter], numbers: NDArray[np.int32], ranks: Ranks) -> Slices:
    """Return equal parts of all parameters put into one piece."""
    whole = np.array([parameter.numel for parameter in parameters], np.int64)
    ends = np.cumsum(whole)
    part = partition_numel(int(ends[-1]), len(ranks))
    points = np.union1d(ends - whole, np.arange(0, ends[-1], part, dtype=np.int64))
    row = np.searchsorted(ends, points, side="right")
    owned = np.array([not parameter.is_copy for parameter in parameters])
    numel = np.diff(np.append(points, ends[-1]))
    begins = points - (ends - whole)[row] + _starts(parameters)[row]
    return Slices(numbers[row], ranks[points // part], begins, numel, owned[row])


def _starts(parameters: Sequence[Parameter]) -> NDArray[np.int64]:
    """Return where each begins within the experts of all ranks; 0 for all others."""
    return np.array([parameter.start for parameter in parameters], np.int64)
