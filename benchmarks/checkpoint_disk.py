"""The disk's own rate: some processes write sequentially at once and wait until all of it is on disk.

python -m benchmarks.checkpoint_disk PATH BYTES is one of them.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

_BLOCK_BYTES = 16 * 2**20
_TIMEOUT_SECONDS = 900.0


def disk_rate(directory: Path, *, num_processes: int, num_bytes: int) -> float:
    """Return bytes per second of `num_bytes` in all, from the first write to the end of the last fsync."""
    directory.mkdir()
    os.sync()
    paths = [directory / f"{number}" for number in range(num_processes)]
    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.checkpoint_disk", str(path), str(num_bytes // num_processes)],
            stdout=subprocess.PIPE,
        )
        for path in paths
    ]
    try:
        times = [json.loads(writer.communicate(timeout=_TIMEOUT_SECONDS)[0]) for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
        for path in paths:
            path.unlink(missing_ok=True)
    seconds = max(ended for _, ended in times) - min(started for started, _ in times)
    return num_bytes // num_processes * num_processes / seconds


def main() -> None:
    """Write one file; print when that began and ended."""
    path, num_bytes = sys.argv[1], int(sys.argv[2])
    block = os.urandom(_BLOCK_BYTES)  # nothing a file system could make smaller
    started = time.time()
    with open(path, "wb", buffering=0) as file:
        left = num_bytes
        while left > 0:
            left -= file.write(block[:left])
        os.fsync(file.fileno())
    print(json.dumps([started, time.time()]))


if __name__ == "__main__":
    main()
