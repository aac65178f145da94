"""Several ranks as threads of this process, with a vote that is as collective as the real one."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from training.checkpoint.manifest import Progress
from training.checkpoint.store import Agree, Fragment, save_checkpoint

SHAPES = {"embedding.weight": (7, 4), "block.weight": (5, 3), "norm.weight": (6,)}
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def progress_at(step: int) -> Progress:
    return Progress(
        step=step,
        training_stage="only",
        stage_step=step,
        tokens=10 * step,
        optimizer_updates=step,
        config_hash="c",
        data_fingerprint="d",
    )


class Vote:
    """`agree` for a number of threads."""

    def __init__(self, num_ranks: int) -> None:
        self._barrier = threading.Barrier(num_ranks, timeout=20)
        self._votes: list[bool] = []
        self._lock = threading.Lock()
        self._outcome = True

    def agree(self, ok: bool) -> bool:
        with self._lock:
            self._votes.append(ok)
        if self._barrier.wait() == 0:
            self._outcome, self._votes = all(self._votes), []
        self._barrier.wait()
        outcome = self._outcome
        self._barrier.wait()
        return outcome


def on_ranks(num_ranks: int, work: Callable[[int, Agree], Any]) -> list[Any]:
    """Run work(rank, agree) on every rank; the results, or the exceptions that were raised, in rank order."""
    vote = Vote(num_ranks)
    with ThreadPoolExecutor(num_ranks) as pool:
        futures = [pool.submit(work, rank, vote.agree) for rank in range(num_ranks)]
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


def save(directory: Path, *, step: int, num_ranks: int, seed: int) -> list[Any]:
    """Commit a checkpoint of `num_ranks` ranks; its path (or exception) from every rank."""
    return on_ranks(
        num_ranks,
        lambda rank, agree: save_checkpoint(
            directory,
            progress=progress_at(step),
            layout=f"{num_ranks} ranks",
            fragments=fragments_of(rank, num_ranks, seed),
            rank=rank,
            world_size=num_ranks,
            agree=agree,
        ),
    )


def saved(directory: Path, *, step: int = 1, num_ranks: int = 2, seed: int = 1) -> Path:
    """Commit a checkpoint that must succeed."""
    paths = save(directory, step=step, num_ranks=num_ranks, seed=seed)
    assert set(paths) == {directory / f"step-{step:08d}"}
    return paths[0]
