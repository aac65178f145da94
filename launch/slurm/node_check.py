"""What every allocated node shows before ranks start on it: it starts processes, and sees the run directory.

    srun python -m launch.slurm.node_check RUN_DIR/slurm/checks/JOB.RESTARTS JOB RESTARTS

Each node writes one file, named after itself, with a port that is free on it. A node without a file is not used.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from training.durable_files import write_durably
from training.errors import AutarkyError, ExitCode
from training.plain_files import read_json
from training.slurm_rendezvous import rendezvous_port


def main(argv: Sequence[str]) -> int:
    """Write this node's file."""
    folder, job, start = Path(argv[0]), argv[1], int(argv[2])
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    try:
        port = rendezvous_port(job, start=start, taken=_is_taken)
        write_durably(folder / f"{node}.json", json.dumps({"port": port}))
    except AutarkyError as error:
        print(f"{node}: {error}", file=sys.stderr)
        return error.exit_code
    return ExitCode.DONE


def read_checks(folder: Path, nodes: Sequence[str]) -> dict[str, int]:
    """Return node -> a port that is free there, of those nodes that passed."""
    passed = {}
    for node in nodes:
        try:
            port = read_json(folder / f"{node}.json")["port"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no file, or half of one: it did not pass
        if isinstance(port, int) and 0 < port < 65536:
            passed[node] = port
    return passed


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the rendezvous does: a closed one is free
        try:
            probe.bind(("", port))
        except OSError:
            return True
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
