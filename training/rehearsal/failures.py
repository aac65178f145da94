"""What dies with a node, whether the state survives in memory, and what the next start reads. No torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.config.layout_checks import check_layout
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.rehearsal.ownership import ELEMENT_BYTES, STATE_KINDS, Ownership, Slices, build_ownership
from training.rehearsal.plan import plan_of
from training.rehearsal.rehearsal import Rehearsal


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What is gone when nodes die."""

    nodes: tuple[int, ...]
    ranks: tuple[int, ...]
    """Ranks on them."""
    dead_of_pipeline_stage: dict[int, int]
    """Pipeline stage -> its dead ranks, of those that have any."""
    replicas: tuple[int, ...]
    """Data replicas with a dead rank: the pipelines that cannot go on."""
    lost_bytes: int
    """fp32 weights and moments that no living rank holds."""
    state_bytes: int
    """All of them."""

    @property
    def survives_in_memory(self) -> bool:
        """Whether the living ranks together still hold the whole state."""
        return self.lost_bytes == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A start after a failure: its size, and what its ranks read from the last checkpoint."""

    num_nodes: int
    world_size: int
    pipeline: int
    replicas: int
    accumulation: int
    """Micro-batches of each replica, so that the global batch is the same."""
    read_bytes: NDArray[np.int64]
    """Bytes of weights and moments that each rank reads."""
    read_files: NDArray[np.int64]
    """Files that each rank opens."""


def lose_nodes(rehearsal: Rehearsal, nodes: Sequence[int]) -> Loss:
    """Return what is lost with some nodes; rank r runs on node r // processes_per_node.

    Raises:
        ConfigError: there is no such node.
    """
    plan, cluster = rehearsal.plan, rehearsal.plan.config.cluster
    for node in nodes:
        if not 0 <= node < cluster.num_nodes:
            reason = f"the cluster has {cluster.num_nodes} nodes, counted from 0"
            raise ConfigError("--fail node", node, reason, f"a number from 0 to {cluster.num_nodes - 1}")
    world = np.arange(plan.grid.world_size)
    is_dead = np.isin(world // cluster.processes_per_node, nodes)
    dead = np.flatnonzero(is_dead).tolist()
    return Loss(
        nodes=tuple(sorted(set(nodes))),
        ranks=tuple(dead),
        dead_of_pipeline_stage=dict(sorted(Counter(map(plan.grid.pipeline_stage_of, dead)).items())),
        replicas=tuple(sorted({plan.grid.replica_of(rank) for rank in dead})),
        lost_bytes=len(STATE_KINDS) * ELEMENT_BYTES * _lost_elements(rehearsal, is_dead),
        state_bytes=len(STATE_KINDS) * ELEMENT_BYTES * int(rehearsal.ownership.numels.sum()),
    )


def random_nodes(num_nodes: int, *, count: int, seed: int) -> list[int]:
    """Return nodes that fail, drawn without replacement: each as likely as any other."""
    if not 0 < count <= num_nodes:
        raise ConfigError("--fail random", count, f"the cluster has {num_nodes} nodes", f"1 to {num_nodes}")
    if seed < 0:
        raise ConfigError("--fail random", f"seed={seed}", "a seed is not negative", "seed=0")
    return sorted(np.random.default_rng(seed).choice(num_nodes, count, replace=False).tolist())


def start_with_spares(rehearsal: Rehearsal) -> Start:
    """Return the start in the same layout: spare nodes take the places of the dead ones."""
    return _start(rehearsal, rehearsal.plan.config)


def smaller_start(rehearsal: Rehearsal, *, num_alive_nodes: int) -> Start | None:
    """Return the largest start that living nodes can make with the same global batch; None if there is none.

    The pipeline and the planned axes stay, replicas go: their number must divide the global batch.
    """
    config = rehearsal.plan.config
    for num_nodes in range(num_alive_nodes, 0, -1):
        smaller = replace(config, cluster=replace(config.cluster, num_nodes=num_nodes))
        try:
            check_layout(smaller, rehearsal.plan.training_stage)
        except ConfigError:
            continue  # this many nodes cannot be used; fewer may
        return _start(rehearsal, smaller)
    return None


def _start(rehearsal: Rehearsal, config: RunConfig) -> Start:
    plan = plan_of(config, rehearsal.plan.training_stage)
    ownership = build_ownership(plan)
    read_bytes, read_files = _reading(rehearsal.ownership, ownership, plan.grid.world_size)
    if ownership.is_replicated:  # without ZeRO, and so without a pipeline: every rank reads what the first one does
        read_bytes, read_files = (np.full_like(column, column[0]) for column in (read_bytes, read_files))
    return Start(
        num_nodes=config.cluster.num_nodes,
        world_size=plan.grid.world_size,
        pipeline=plan.grid.pipeline,
        replicas=plan.grid.data,
        accumulation=plan.accumulation,
        read_bytes=read_bytes,
        read_files=read_files,
    )


def _lost_elements(rehearsal: Rehearsal, is_dead: NDArray[np.bool_]) -> int:
    """Return the elements of parameters that no living rank has."""
    state = rehearsal.ownership.state
    if rehearsal.ownership.is_replicated:
        return 0 if not is_dead.all() else int(rehearsal.ownership.numels.sum())
    lost = state.rows(is_dead[state.rank] & state.is_owner)
    alive_copies = state.rows(~is_dead[state.rank] & ~state.is_owner)
    kept = np.isin(_ranges(lost), _ranges(alive_copies))  # tied weights are held twice, cut alike
    return int(lost.numel[~kept].sum())


def _ranges(slices: Slices) -> NDArray[np.int64]:
    """Return a number for each row, the same for the same beginning of a range of the same parameter."""
    return slices.parameter.astype(np.int64) * 2**40 + slices.start


def _reading(old: Ownership, new: Ownership, world_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the bytes that each rank of a new layout reads from an old layout's files, and the files it opens."""
    assert old.names == new.names, "the model is the same"
    written = old.state.owned().in_order()
    wanted = new.state
    keys = _ranges(written)
    first = np.searchsorted(keys, _ranges(wanted), side="right") - 1
    last_element = wanted.parameter.astype(np.int64) * 2**40 + wanted.start + wanted.numel - 1
    count = np.searchsorted(keys, last_element, side="right") - first
    reader = np.repeat(wanted.rank.astype(np.int64), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    writer = written.rank[np.repeat(first, count) + within]
    pairs = np.unique(reader * len(keys) + writer)
    files = np.bincount(pairs // len(keys), minlength=world_size)
    return len(STATE_KINDS) * ELEMENT_BYTES * wanted.numel_of_ranks(world_size), files.astype(np.int64)
