"""Every start of a run, for those who decide about the next one and for people: RUN_DIR/attempts.jsonl.

Two lines a start, `start` and `end`. A start whose end is missing was lost together with the process that watched it.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.requeue import Attempt
from training.durable_files import fsync
from training.errors import ExitCode, StorageError
from training.reporting import metrics
from training.reporting.starts import FILE_NAME, read_starts


def write_start(directory: Path, *, job: str, restarts: int, nodes: Sequence[str], allocated: Sequence[str]) -> None:
    """Write down that a start begins: which job, on which of its allocated nodes."""
    _append(
        directory,
        {"event": "start", "job": job, "restarts": restarts, "nodes": list(nodes), "allocated": list(allocated)},
    )


def write_end(
    directory: Path, *, job: str, restarts: int, exit_code: ExitCode, blamed: Sequence[str], decision: str
) -> None:
    """Write down how a start ended, and what follows."""
    _append(
        directory,
        {
            "event": "end",
            "job": job,
            "restarts": restarts,
            "exit_code": int(exit_code),
            "name": exit_code.name,
            "blamed": list(blamed),
            "decision": decision,
        },
    )


def history(directory: Path, *, job: str) -> list[Attempt]:
    """Return the ended starts of a job, in order; one whose end is missing got as far as where the next one began.

    Starts of other jobs do not count: whoever submitted this one has looked at them.
    """
    attempts: list[Attempt] = []
    is_open = False
    for record in read_starts(directory):
        if record.get("job") != job:
            continue
        if record["event"] == "start":
            if is_open:
                attempts.append(Attempt(exit_code=None, step=_whole(record.get("step"))))
            is_open = True
        elif record["event"] == "end":
            code, step = _exit_code(record.get("exit_code")), _whole(record.get("step"))
            attempts.append(Attempt(exit_code=code, step=step, blamed=_texts(record.get("blamed"))))
            is_open = False
    return attempts


def last_step(directory: Path) -> int:
    """Return the step of the last whole step record of a run, 0 if there is none."""
    return metrics.last_step(directory / metrics.FILE_NAME)


def _append(directory: Path, record: dict[str, Any]) -> None:
    line = json.dumps({"time": time.time(), "step": last_step(directory), **record}) + "\n"
    path = directory / FILE_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (("\n" if torn else "") + line).encode())
        finally:
            os.close(descriptor)
        fsync(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}\n  -> free space or mend the storage") from error


def _exit_code(value: object) -> ExitCode | None:
    return ExitCode(value) if value in list(ExitCode) else None


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _texts(value: object) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()
