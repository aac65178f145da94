"""One rank of training.train that logs in every other block of steps: python -m benchmarks.logging_rank RUN_DIRECTORY.

A block that is off has no statistics, no forecast and no record of its steps, and wandb's processes stand still in it
(SIGSTOP), so that what they take of the machine's cores is in the difference. Functions are wrapped, nothing else is
changed. Rank 0 writes <run directory>/blocks.json: of each whole block so far, but for the first, the wall time and the
processor time of the launcher, all ranks and wandb's processes together, in seconds.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

BLOCK_STEPS = 4
"""So few that neighbours are alike whatever else the machine does, and that steps 50, 100, 250, 300, … are in blocks
that log: statistics every 50 and 100 steps come as often among those as in a run that always logs."""
WARM_UP_BLOCKS = 8
"""For libraries to warm up and wandb to start."""
FILE_NAME = "blocks.json"


def is_on(step: int) -> bool:
    """Return whether a step is one of a block that logs; step 1 is the first."""
    return (step - 1) // BLOCK_STEPS % 2 == 0


class _Blocks:
    """The clock of rank 0: it is told of every step, and lets wandb's processes go or stand."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begins: list[tuple[float, float]] = []

    def step_is_done(self, step: int) -> None:
        if step % BLOCK_STEPS == 0:
            self._let(wandb_runs=is_on(step + 1))
            self._begins.append((time.perf_counter(), _cpu_seconds()))
            seconds = [
                [end - begin for begin, end in zip(one, other, strict=True)]
                for one, other in zip(self._begins, self._begins[1:], strict=False)
            ]
            self._path.write_text(json.dumps(seconds))

    def let_all_run(self) -> None:
        self._let(wandb_runs=True)

    def _let(self, *, wandb_runs: bool) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT if wandb_runs else signal.SIGSTOP)


def _cpu_seconds() -> float:
    """Return the processor time so far of this rank's launcher and all below it."""
    total, launcher = 0.0, psutil.Process(os.getppid())
    for process in (launcher, *launcher.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def main() -> None:
    """Run the rank."""
    from training import train
    from training.reporting.records import StepRecord
    from training.reporting.reporter import Reporter
    from training.stages.forecasting import Forecasting
    from training.stages.statistics import Statistics

    blocks = _Blocks(Path(sys.argv[1]) / FILE_NAME)
    is_first = os.environ.get("RANK", "0") == "0"
    record, close = Reporter.record, Reporter.close
    measures_layers, after_step, forecast = Statistics.measures_layers, Statistics.after_step, Forecasting.after_step

    def record_if_on(reporter: Reporter, what: Any) -> None:
        if not isinstance(what, StepRecord) or is_on(what.step):
            record(reporter, what)
        if isinstance(what, StepRecord) and is_first:
            blocks.step_is_done(what.step)

    def close_all(reporter: Reporter) -> None:
        if is_first:
            blocks.let_all_run()
        close(reporter)

    def after_step_if_on(statistics: Any, *arguments: Any) -> None:
        if is_on(statistics._journal.steps_done):
            after_step(statistics, *arguments)

    def forecast_if_on(forecasting: Any, *arguments: Any, **named: Any) -> None:
        if is_on(forecasting._journal.steps_done):
            forecast(forecasting, *arguments, **named)

    def measures_if_on(statistics: Any, step: int) -> bool:
        return is_on(step) and measures_layers(statistics, step)

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
