"""One rank of training.train whose logging is timed: python -m benchmarks.logging_rank RUN_DIRECTORY.

Two ways, in one run. By parts: what the training thread spends in logging's functions, the wall time of each step and
whether it measured layers, and the processor time of all that logging runs beside it. And on and off: it logs in every
other block of steps; in a block that is off there are no statistics, no forecast and no records, and wandb's processes
stand still (SIGSTOP). Functions are wrapped, nothing else is changed. Rank 0 writes <run directory>/timed.json.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

BLOCK_STEPS = 4
"""So few that neighbours are alike whatever else the machine does, and that steps 50, 100, 250, 300, … are in blocks
that log: statistics every 50 and 100 steps come as often among those as in a run that always logs."""
WARM_UP_BLOCKS = 8
"""For libraries to warm up and wandb to start."""
FILE_NAME = "timed.json"


def is_on(step: int) -> bool:
    """Return whether a step is one of a block that logs; step 1 is the first."""
    return (step - 1) // BLOCK_STEPS % 2 == 0


@dataclass
class Timed:
    """What was timed after the warm-up; seconds."""

    block_seconds: list[float] = field(default_factory=list)
    """Wall time of each whole block: off, on, off, …"""
    in_training_thread: float = 0.0
    """In functions of logging, in blocks that log."""
    beside: float = 0.0
    """Processor time of rank 0's threads for views and of wandb's processes."""
    plain_steps: list[float] = field(default_factory=list)
    measured_steps: list[float] = field(default_factory=list)
    """Of steps that measured layers, and of the others in blocks that log."""


class _Clock:
    """Of rank 0: it is told of every step, and lets wandb's processes go or stand."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._timed = Timed()
        self._block_began: float | None = None
        self._step_began = time.perf_counter()
        self._beside_before = 0.0
        self._thread = threading.get_ident()
        self._depth = 0
        self.measures_layers = False

    def timed(self, step: int, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function of logging; what it calls of logging itself is not counted twice."""
        if threading.get_ident() != self._thread or self._depth or step <= (WARM_UP_BLOCKS + 1) * BLOCK_STEPS:
            return function(*arguments, **named)
        self._depth, began = 1, time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            self._depth = 0
            self._timed.in_training_thread += time.perf_counter() - began

    def step_is_done(self, step: int) -> None:
        now, first = time.perf_counter(), (WARM_UP_BLOCKS + 1) * BLOCK_STEPS
        if step > first and is_on(step):
            (self._timed.measured_steps if self.measures_layers else self._timed.plain_steps).append(
                now - self._step_began
            )
        if step % BLOCK_STEPS == 0:
            self.let(wandb_runs=is_on(step + 1))
            if step == first:
                self._beside_before = _beside()
            if step > first:
                assert self._block_began is not None
                self._timed.block_seconds.append(now - self._block_began)
                self._timed.beside = _beside() - self._beside_before
                self._path.write_text(json.dumps(asdict(self._timed)))
            self._block_began = time.perf_counter()
        self._step_began = time.perf_counter()

    def let(self, *, wandb_runs: bool) -> None:
        """Let wandb's processes run or stand still."""
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT if wandb_runs else signal.SIGSTOP)


def _beside() -> float:
    """Return the processor time so far of this process's threads for views, and of its child processes."""
    total = 0.0
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    for thread in psutil.Process().threads():
        if names.get(thread.id) in ("metrics log", "console", "wandb", "tensorboard"):
            total += thread.user_time + thread.system_time
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()  # with that of children of its own that have ended
            total += times.user + times.system + times.children_user + times.children_system
    return total


def main() -> None:
    """Run the rank."""
    from training import train
    from training.reporting.records import StepRecord
    from training.reporting.reporter import Reporter
    from training.stages.forecasting import Forecasting
    from training.stages.statistics import Statistics

    clock = _Clock(Path(sys.argv[1]) / FILE_NAME)
    is_first = os.environ.get("RANK", "0") == "0"
    record, close = Reporter.record, Reporter.close
    measures_layers, after_step, forecast = Statistics.measures_layers, Statistics.after_step, Forecasting.after_step

    def record_if_on(reporter: Reporter, what: Any) -> None:
        if not isinstance(what, StepRecord) or is_on(what.step):
            clock.timed(what.step, record, reporter, what)

    def close_all(reporter: Reporter) -> None:
        if is_first:
            clock.let(wandb_runs=True)
        close(reporter)

    def measures_if_on(statistics: Any, step: int) -> bool:
        clock.measures_layers = is_on(step) and measures_layers(statistics, step)
        return clock.measures_layers

    def after_step_if_on(statistics: Any, *arguments: Any) -> None:
        step = statistics._journal.steps_done
        if is_on(step):
            clock.timed(step, after_step, statistics, *arguments)

    def forecast_if_on(forecasting: Any, *arguments: Any, **named: Any) -> None:
        step = forecasting._journal.steps_done
        if is_on(step):
            clock.timed(step, forecast, forecasting, *arguments, **named)
        if is_first:
            clock.step_is_done(step)  # the last of logging in a step

    for owner, name, wrapped in (
        (Reporter, "record", record_if_on),
        (Reporter, "close", close_all),
        (Statistics, "measures_layers", measures_if_on),
        (Statistics, "after_step", after_step_if_on),
        (Forecasting, "after_step", forecast_if_on),
    ):
        setattr(owner, name, wrapped)
    os._exit(train.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
