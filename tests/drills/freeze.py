"""Ranks that stop in the middle of a save: at no moment is a committed checkpoint not whole, or the newest one gone.

    python -m tests.drills.freeze --count 1000 --seed 0

Two or three real ranks save a tiny state over and over, waiting for each save or not. Again and again one of them is
stopped (SIGSTOP) for a moment, mostly inside a save, and the folder is looked at meanwhile. After some hundreds of
saves all are killed while one is stopped, and started again.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from training.checkpoint.catalog import committed, step_of, verify
from training.errors import CorruptCheckpoint

REPOSITORY = Path(__file__).parents[2]
SAVES_PER_START = 200
KEEP_LAST = 2
"""Checkpoints that pruning leaves."""
_IN_A_SAVE = 0.8
"""Share of stops for which a save is waited for."""
_SILENT_SECONDS = 180.0
"""After so long without a new checkpoint a start has failed."""


@dataclass(kw_only=True)
class Tally:
    """What a drill did and saw."""

    saves: int = 0
    starts: int = 0
    stops: int = 0
    stops_in_a_save: int = 0
    kills: int = 0
    looks: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"freeze: {self.saves} saves in {self.starts} starts; a rank stopped {self.stops} times, "
            f"{self.stops_in_a_save} inside a save; all killed {self.kills} times; {self.looks} looks at the folder; "
            f"{len(self.problems)} problems"
        )


def main(argv: list[str]) -> int:
    """Run the drill and print its line."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.freeze", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="saves")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    tally = drill(options.count, options.seed)
    print(*tally.problems, sep="\n", end="\n" if tally.problems else "")
    print(tally)
    return int(bool(tally.problems))


def drill(count: int, seed: int, *, saves_per_start: int = SAVES_PER_START) -> Tally:
    """Save so many times; where ranks are stopped and how long is drawn from the seed."""
    tally, draw = Tally(), random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        watch = Watch(Path(root) / "checkpoints", tally)
        while tally.saves < count and not tally.problems:
            goal = min(count, tally.saves + saves_per_start)
            mode = "waiting" if tally.starts % 2 else "asynchronous"
            tally.starts += 1
            with _ranks(draw.randint(2, 3), Path(root), count, mode) as ranks:
                _hurt(ranks, watch, goal, count, draw)
            watch.look()
            if watch.newest < goal:
                tally.problems.append(f"start {tally.starts} ended at step {watch.newest}: {_words(Path(root))}")
    return tally


class Watch:
    """Looks at the folder of checkpoints and remembers the newest one it has seen."""

    def __init__(self, folder: Path, tally: Tally) -> None:
        self.newest = 0
        self._folder = folder
        self.tally = tally

    def save_is_running(self) -> bool:
        return any(self._folder.glob("*.tmp"))

    def look(self) -> None:
        """Check every committed checkpoint, while ranks go on or stand still."""
        paths = committed(self._folder)
        self.tally.looks += 1
        newest = step_of(paths[0]) if paths else 0
        if newest < self.newest:
            self.tally.problems.append(f"step {self.newest} was committed, now the newest is {newest}")
        for path in paths:
            try:
                verify(path)
            except CorruptCheckpoint as error:
                # Only the pruning of an older one may have taken it away in this moment.
                later = committed(self._folder)
                if path in later or len([other for other in later if other > path]) < KEEP_LAST:
                    self.tally.problems.append(f"a committed checkpoint is not whole: {error}")
        self.newest = max(self.newest, newest)
        self.tally.saves = self.newest


def _hurt(ranks: list[subprocess.Popen[bytes]], watch: Watch, goal: int, last_step: int, draw: random.Random) -> None:
    """Stop one rank after the other until the goal is reached; then kill all, unless it is the last step."""
    tally, seen, deadline = watch.tally, watch.newest, time.monotonic() + _SILENT_SECONDS
    while all(rank.poll() is None for rank in ranks) and not tally.problems:
        if watch.newest > seen:
            seen, deadline = watch.newest, time.monotonic() + _SILENT_SECONDS
        if time.monotonic() > deadline:
            return
        if draw.random() < _IN_A_SAVE:
            if not _wait_for_save(ranks, watch):
                continue
            time.sleep(draw.uniform(0, 0.006))
        else:
            time.sleep(draw.uniform(0, 0.03))
        with _stopped(draw.choice(ranks)):
            tally.stops += 1
            tally.stops_in_a_save += watch.save_is_running()
            watch.look()
            if goal < last_step and watch.newest >= goal and watch.save_is_running():
                for rank in ranks:
                    rank.kill()
                tally.kills += 1
                return
            time.sleep(0.3 if draw.random() < 0.03 else draw.uniform(0, 0.02))
            watch.look()
    for rank in ranks:
        rank.wait(timeout=60)
    failed = [rank.returncode for rank in ranks if rank.returncode]
    if failed:
        tally.problems.append(f"ranks ended by themselves with {failed}")


def _wait_for_save(ranks: list[subprocess.Popen[bytes]], watch: Watch) -> bool:
    """Return True as soon as a save runs, False if none begins within a second or a rank has ended."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and all(rank.poll() is None for rank in ranks):
        if watch.save_is_running():
            return True
        time.sleep(0.0005)
    return False


@contextmanager
def _stopped(rank: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hold a process still."""
    rank.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        rank.send_signal(signal.SIGCONT)  # nothing, if it was killed meanwhile


@contextmanager
def _ranks(number: int, root: Path, last_step: int, mode: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the ranks of a run; none outlives the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.drills.freeze_worker", str(root), str(last_step), mode]
    launcher = {
        "WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(number):
            with (root / f"rank-{rank}.log").open("wb") as log:
                environment = os.environ | launcher | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                ranks.append(
                    subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.wait(timeout=60)


def _words(root: Path) -> str:
    """Return the last words of all ranks."""
    return "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(root.glob("rank-*.log")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
