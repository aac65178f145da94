"""Several ranks as threads of this process, who meet as collectively as the real ones."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.checkpoint.commit import SaveOrder, write_checkpoint
from training.checkpoint.manifest import Progress
from training.checkpoint.snapshot import Fragment, Snapshot

SHAPES = {"embedding.weight": (7, 4), "block.weight": (5, 3), "norm.weight": (6,)}
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def progress_at(step: int) -> Progress:
    return Progress(
        step=step,
        training_stage="only",
        stage_step=step,
        samples=4 * step,
        tokens=10 * step,
        optimizer_updates=step,
        skips_in_a_row=0,
        lr=0.5,
        config_hash="c",
        data_fingerprint="d",
    )


class SimulatedRanks:
    """One rank's `Ranks` over threads of this process, as collective as the real one."""

    def __init__(self, rank: int, meeting: "Meeting") -> None:
        self.rank = rank
        self.world_size = meeting.num_ranks
        self._meeting = meeting

    def agree(self, ok: bool) -> bool:
        return all(self._meeting.exchange(self.rank, ok))

    def sum_integers(self, values: list[int]) -> list[int]:
        return [sum(column) % 2**64 for column in zip(*self._meeting.exchange(self.rank, values), strict=True)]

    def gather_text(self, text: str) -> list[str]:
        return self._meeting.exchange(self.rank, text)


class Meeting:
    """Where the ranks exchange what they bring; it breaks for all if one stays away."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self._barrier = threading.Barrier(num_ranks, timeout=20)
        self._brought: list[Any] = [None] * num_ranks

    def exchange(self, rank: int, thing: Any) -> list[Any]:
        self._brought[rank] = thing
        self._barrier.wait()
        everything = list(self._brought)
        self._barrier.wait()
        return everything


ALONE = SimulatedRanks(0, Meeting(1))
"""A job of one rank."""


def on_ranks(num_ranks: int, work: Callable[[SimulatedRanks], Any]) -> list[Any]:
    """Run work(ranks) on every rank; the results, or the exceptions that were raised, in rank order."""
    meeting = Meeting(num_ranks)
    with ThreadPoolExecutor(num_ranks) as pool:
        futures = [pool.submit(work, SimulatedRanks(rank, meeting)) for rank in range(num_ranks)]
        return [future.exception() or future.result() for future in futures]


def fragments_of(rank: int, num_ranks: int, seed: int | None) -> list[Fragment]:
    """A rank's share of every parameter, cut evenly; values of the whole depend on the seed alone (None: zeros)."""
    fragments = []
    for index, (name, shape) in enumerate(SHAPES.items()):
        numel = int(torch.Size(shape).numel())
        start, stop = (numel * rank) // num_ranks, (numel * (rank + 1)) // num_ranks
        tensors = {}
        for offset, kind in enumerate(KINDS):
            generator = torch.Generator().manual_seed(100 * (seed or 0) + 10 * index + offset)
            whole = torch.zeros(numel) if seed is None else torch.randn(numel, generator=generator)
            tensors[kind] = whole[start:stop]
        fragments.append(Fragment(parameter=name, shape=shape, start=start, tensors=tensors, is_owner=True))
    return fragments


def order(directory: Path, *, step: int, num_ranks: int, **changes: Any) -> SaveOrder:
    """What is to be saved, as a run would order it."""
    usual = SaveOrder(
        directory=directory,
        progress=progress_at(step),
        layout=f"{num_ranks} ranks",
        config={"model": {"hidden_size": 4}},
        attempt=1,
        check_lease=lambda: None,
        before_commit=lambda: None,
        at_point=lambda _point, _step: None,
    )
    return replace(usual, **changes)


def save(directory: Path, *, step: int, num_ranks: int, seed: int, **changes: Any) -> list[Any]:
    """Commit a checkpoint of `num_ranks` ranks; its path (or exception) from every rank."""

    def save_mine(ranks: SimulatedRanks) -> Path:
        snapshot = Snapshot(fragments_of(ranks.rank, num_ranks, seed))
        snapshot.take()
        return write_checkpoint(order(directory, step=step, num_ranks=num_ranks, **changes), snapshot, ranks)

    return on_ranks(num_ranks, save_mine)


def saved(directory: Path, *, step: int = 1, num_ranks: int = 2, seed: int = 1) -> Path:
    """Commit a checkpoint that must succeed."""
    paths = save(directory, step=step, num_ranks=num_ranks, seed=seed)
    assert set(paths) == {directory / f"step-{step:08d}"}, paths
    return paths[0]
