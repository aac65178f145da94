"""A run on this machine or on hosts of a file, started again by itself as often as `cluster.max_restarts` allows.

Slurm's jobs do the same by going back into the queue (launch/slurm/start.py); both ask launch/requeue.py.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from launch import attempts
from launch.requeue import Attempt, Limits, Requeue, Stop, decide
from launch.supervise import Outcome
from training.config.schema import RunConfig
from training.errors import ExitCode
from training.process_identity import start_time

_NO_PROGRESS_STARTS = 3
"""Starts in a row that may fail at the same step."""
_LONGEST_PAUSE_SECONDS = 60.0


def run_with_restarts(
    start: Callable[[bool], Outcome],
    directory: Path,
    config: RunConfig,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Run starts until the run is done, somebody stops it, or another start would not help; return the last outcome.

    Args:
        start: runs one start to its end; True goes on from what an earlier one has left.
        directory: the run's; attempts.jsonl is written there.
        config: its config.
        pause: waits some seconds before the next start.
    """
    job = f"{socket.gethostname()}:{os.getpid()}:{start_time(os.getpid())}"
    limits = Limits(max_requeues=config.cluster.max_restarts, no_progress_starts=_NO_PROGRESS_STARTS)
    restarts = 0
    while True:
        attempts.write_start(directory, job=job, restarts=restarts, nodes=[], allocated=[])
        outcome = start(restarts > 0)
        known = attempts.history(directory, job=job)
        known.append(Attempt(exit_code=outcome.exit_code, step=attempts.last_step(directory)))
        decision = decide(known, blamed=[], restarts=restarts, limits=limits)
        code = decision.exit_code if isinstance(decision, Stop) else outcome.exit_code
        if outcome.interrupted or not config.cluster.max_restarts:
            decision, code = None, outcome.exit_code
        attempts.write_end(
            directory,
            job=job,
            restarts=restarts,
            exit_code=code,
            blamed=[],
            decision=f"restart: {decision.reason}" if isinstance(decision, Requeue) else "stop",
        )
        if not isinstance(decision, Requeue):
            if decision is not None and code is not ExitCode.DONE:
                print(decision.reason, file=sys.stderr, flush=True)
            return replace(outcome, exit_code=code)
        seconds = min(2.0**restarts, _LONGEST_PAUSE_SECONDS)
        restarts += 1
        print(f"restart {restarts} in {seconds:.0f} s: {decision.reason}", file=sys.stderr, flush=True)
        pause(seconds)
