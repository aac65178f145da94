"""Measure an all-reduce over all ranks: `LAUNCHER -m training.bandwidth RESULT.json BYTES SECONDS`.

Bus bandwidth as nccl-tests defines it: 2 (n - 1) / n times the bytes over the time, so that the figure is the same for
any number of ranks on equal links (nccl-tests, doc/PERFORMANCE.md).
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from training.durable_files import write_durably
from training.engine import process_group
from training.engine.process_group import ProcessGroup
from training.fault_tolerance.lifeline import tie_to_launcher
from training.rank_environment import complete

_WARM_UP, _MEASURED = 2, 5


def measure(processes: ProcessGroup, num_bytes: int) -> float:
    """Return the bus bandwidth of an all-reduce in bytes per second, the median of five; collective."""
    content = torch.ones(max(1, num_bytes // 4), dtype=torch.float32, device=processes.device)
    seconds = []
    for round_number in range(_WARM_UP + _MEASURED):
        processes.agree(True)  # all begin together
        begun = time.perf_counter()
        dist.all_reduce(content)
        content[0].item()  # waits for the device
        if round_number >= _WARM_UP:
            seconds.append(time.perf_counter() - begun)
        content.fill_(1.0)
    world = processes.world_size
    return 2 * (world - 1) / world * content.numel() * 4 / sorted(seconds)[_MEASURED // 2]


def main(argv: Sequence[str]) -> int:
    """Measure and let rank 0 write the result."""
    result, num_bytes, limit_seconds = argv
    tie_to_launcher()
    os.environ |= complete(os.environ)
    processes = process_group.start(int(limit_seconds))
    slowest = processes.gather_text(str(measure(processes, int(num_bytes))))
    if processes.rank == 0:
        content = {"bytes_per_second": min(map(float, slowest)), "world_size": processes.world_size}
        write_durably(Path(result), json.dumps(content))
    process_group.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
