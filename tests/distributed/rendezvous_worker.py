"""One rank: joins the job, waits until FOLDER/go is there, and works together with the others once more.

python -m tests.distributed.rendezvous_worker FOLDER      makes FOLDER/joined-N, then FOLDER/done-N
"""

import sys
import time
from pathlib import Path

from tests.distributed.ending import leave
from training.engine import process_group

LIMIT_SECONDS = 100


def main(folder: Path) -> None:
    processes = process_group.start(LIMIT_SECONDS)
    assert processes.sum([1.0]) == [float(processes.world_size)]
    (folder / f"joined-{processes.rank}").touch()
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (folder / "go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    later = processes.with_own_group(LIMIT_SECONDS)  # meets through the store, and makes new connections
    texts = later.gather_text(f"rank {later.rank}")
    assert texts == ["rank 0", "rank 1"]
    (folder / f"done-{processes.rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
