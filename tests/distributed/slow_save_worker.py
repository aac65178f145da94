"""One rank: trains on while a save takes longer than a collective may; rank 0 writes what became of it.

python -m tests.distributed.slow_save_worker FOLDER
"""

import json
import sys
import time
from pathlib import Path

import torch

from tests.distributed.ending import leave
from tests.distributed.engine_checks import progress_at
from training.checkpoint.saver import Saver
from training.checkpoint.snapshot import Fragment, Snapshot
from training.engine.process_group import start

COLLECTIVE_TIMEOUT_SECONDS = 4
SAVE_SECONDS = 10


def main(folder: Path) -> None:
    processes = start(COLLECTIVE_TIMEOUT_SECONDS)
    tensors = {kind: torch.full((1000,), float(processes.rank)) for kind in ("weight", "exp_avg", "exp_avg_sq")}
    fragment = Fragment(parameter="w", shape=(2000,), start=1000 * processes.rank, tensors=tensors, is_owner=True)

    def slow_disk_of_rank_1(point: str, _step: int) -> None:
        if point == "snapshot_taken" and processes.rank == 1:
            time.sleep(SAVE_SECONDS)

    saver = Saver(processes.with_own_group(60), config={}, at_point=slow_disk_of_rank_1)
    saver.begin(Snapshot([fragment]), directory=folder, progress=progress_at(1), layout="")
    steps = 0
    while processes.sum([float(saver.is_written)])[0] < processes.world_size:  # a step's collective
        steps += 1
        time.sleep(0.1)
    outcome = saver.finish()
    if processes.rank == 0:
        found = {"checkpoint": str(outcome.checkpoint), "steps": steps, "seconds": outcome.write_seconds}
        (folder / "found.json").write_text(json.dumps(found | {"stall": outcome.stall_seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
