"""Seconds from the command to the first optimizer step, for `launch.submit` and for the Hugging Face Trainer.

All are started by the same launcher, on prepared data. `launch.submit` evaluates the untrained model before its first
step and the Trainer does not; the phases show how long that takes.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.crew import kill, rank_environment
from launch.local import environment, launcher_command
from training.config.load import compose, load_frozen
from training.config.run_directory import resolve

_TIMEOUT_SECONDS = 240.0
_POLL_SECONDS = 0.02


def submit_seconds(overrides: Sequence[str], root: Path) -> float:
    """Return the seconds of `launch.submit` to its first step record; the run is then ended."""
    command = [sys.executable, "-m", "launch.submit", *overrides, f"run.root={root}"]
    started = time.time()
    return _run_until(command, rank_environment(), lambda: _first_step_record(root)) - started


def trainer_seconds(overrides: Sequence[str], root: Path) -> float:
    """Return the seconds of the Trainer, under the same launcher, to the end of its first step."""
    root.mkdir()
    path = root / "first-step"
    config = compose(overrides)
    command = launcher_command(root, config)
    command = [*command[:-2], "benchmarks.first_step", str(path), *overrides]
    started = time.time()
    return _run_until(command, environment(root, config), lambda: _read_time(path)) - started


def submit_phases(overrides: Sequence[str], root: Path) -> dict[str, float]:
    """Return phase -> seconds, in order, of one start as `launch.submit` makes it; they add up to its total."""
    began = time.time()
    subprocess.run([sys.executable, "-c", "import launch.submit"], check=True, timeout=_TIMEOUT_SECONDS)
    imported = time.time()
    config = compose([*overrides, f"run.root={root}"])
    directory = resolve(config, overrides)
    frozen = load_frozen(directory)
    composed = time.time()
    command = launcher_command(directory, frozen)
    command = [*command[:-2], "benchmarks.timed_train", str(directory)]
    ended = _run_until(command, environment(directory, frozen), lambda: _first_step_record(root))
    rows = [json.loads(line) for line in (directory / "phases.jsonl").read_text().splitlines()]
    rows = sorted((row for row in rows if row["ended"] <= ended), key=lambda row: row["started"])
    seconds = {
        "import launch.submit": imported - began,
        "compose, check, freeze": composed - imported,
        "launcher, until a rank runs": rows[0]["started"] - composed,
    }
    seconds |= {row["phase"]: row["ended"] - row["started"] for row in rows}
    seconds["the rest: ledger, reporter, loader, first step"] = ended - began - sum(seconds.values())
    return seconds


def _read_time(path: Path) -> float | None:
    return float(path.read_text()) if path.exists() else None


def _first_step_record(root: Path) -> float | None:
    """Return the time of the first step record below a root of runs; None if there is none yet."""
    for path in root.glob("*/metrics.jsonl"):
        # The last line may be half written.
        for line in path.read_text().split("\n")[:-1]:
            record = json.loads(line)
            if record["kind"] == "step":
                return record["time"]
    return None


def _run_until(command: Sequence[str], environment: dict[str, str], done: Callable[[], float | None]) -> float:
    """Start a command, end it once `done` returns a time, and return that.

    Raises:
        RuntimeError: it ended, or ran into the time limit, before that.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + _TIMEOUT_SECONDS
            while (when := done()) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    text = log.read()[-3000:].decode(errors="replace")
                    raise RuntimeError(f"no first step from: {' '.join(command)}\n{text}")
                time.sleep(_POLL_SECONDS)
            return when
        finally:
            kill(process)
