"""One rank of the freeze drill: saves a tiny state step by step, as a run does, and keeps the newest two.

python -m tests.drills.freeze_worker RUN_DIRECTORY LAST_STEP (asynchronous | waiting)
"""

import os
import sys
from pathlib import Path

import torch

from tests.drills.freeze import KEEP_LAST
from tests.unit.checkpoint.simulated_ranks import fragments_of, progress_at
from training.checkpoint.catalog import Folders, newest_whole, prune, remove_torsos, step_of
from training.checkpoint.load import load_checkpoint
from training.checkpoint.saver import Saver
from training.checkpoint.snapshot import Fragment, Snapshot
from training.engine import process_group
from training.fault_tolerance.lifeline import tie_to_launcher
from training.lease import Lease

_COLLECTIVE_TIMEOUT_SECONDS = 120


def main(argv: list[str]) -> int:
    """Resume, then save every step up to the last one."""
    directory, last_step, asynchronous = Path(argv[0]), int(argv[1]), argv[2] == "asynchronous"
    tie_to_launcher()
    torch.set_num_threads(1)
    processes = process_group.start(_COLLECTIVE_TIMEOUT_SECONDS)
    rank, num_ranks = processes.rank, processes.world_size
    folder = directory / "checkpoints"
    lease = Lease.take(directory) if rank == 0 else None
    if lease is not None:
        remove_torsos(Folders(permanent=folder))
    number = int(processes.broadcast_text(str(lease.number) if lease else None))
    live = fragments_of(rank, num_ranks, None)
    snapshot = Snapshot(live)
    found, rejected = newest_whole([folder], processes)
    assert rejected == [], rejected
    step = 0
    if found is not None:
        step = step_of(found)
        load_checkpoint(found, snapshot, processes)
        assert _is_state_of(live, step, rank, num_ranks), f"rank {rank}: {found} holds another state"
    saver = Saver(
        processes.with_own_group(_COLLECTIVE_TIMEOUT_SECONDS),
        config={},
        attempt=number,
        check_lease=lease.check if lease else lambda: None,
        asynchronous=asynchronous,
    )
    while step < last_step:
        step += 1
        _train_to(live, step, rank, num_ranks)
        saver.begin(snapshot, directory=folder, progress=progress_at(step), layout=f"{num_ranks} ranks")
        if asynchronous:
            snapshot.settle()  # as engines do before an update
            _train_to(live, step + 1, rank, num_ranks)  # while the copy is written
            processes.agree(True)
        outcome = saver.finish()
        if outcome.failure is not None:
            raise outcome.failure
        if rank == 0:
            prune([folder], keep_last=KEEP_LAST, keep_steps=frozenset())
    if lease is not None:
        lease.release()
    process_group.stop()
    return 0


def _train_to(live: list[Fragment], step: int, rank: int, num_ranks: int) -> None:
    """Set the live state to that of a step; its values follow from the step, whatever the number of ranks."""
    for fragment, state in zip(live, fragments_of(rank, num_ranks, step), strict=True):
        for kind, values in state.tensors.items():
            fragment.tensors[kind].copy_(values)


def _is_state_of(live: list[Fragment], step: int, rank: int, num_ranks: int) -> bool:
    return all(
        torch.equal(fragment.tensors[kind], values)
        for fragment, state in zip(live, fragments_of(rank, num_ranks, step), strict=True)
        for kind, values in state.tensors.items()
    )


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(exit_code)  # as training.train ends
