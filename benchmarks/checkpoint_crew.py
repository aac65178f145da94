"""The processes of one task of a checkpoint contestant: started, awaited for a bounded time, ended."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.crew import free_port, kill, rank_environment, rendezvous

_TIMEOUT_SECONDS = 1200.0


def run_task(
    module: str, variant: str, task: str, directory: Path, overrides: Sequence[str], *, num_ranks: int
) -> tuple[float, list[dict[str, Any]]]:
    """Return the time of day of the start, and every rank's answer.

    Raises:
        RuntimeError: a rank ended without an answer, or ran into the time limit; with the end of its log.
    """
    command = [sys.executable, "-m", "benchmarks.checkpoint_rank", module, variant, task, str(directory), *overrides]
    port = free_port()
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    started = time.time()
    with tempfile.TemporaryFile() as log:
        ranks = [
            subprocess.Popen(
                command,
                env=rank_environment() | rendezvous(rank, port, num_ranks),
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
            for rank in range(num_ranks)
        ]
        try:
            # The answers are one short line, which no pipe is too small for.
            while running := [rank for rank in ranks if rank.poll() is None]:
                has_failed = any(rank.returncode for rank in ranks if rank not in running)
                if has_failed or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            if any(rank.returncode != 0 for rank in ranks):
                log.seek(0)
                what = "a rank still ran at the time limit" if time.monotonic() > deadline else "a rank failed"
                raise RuntimeError(f"{' '.join(command)}: {what}\n{log.read()[-3000:].decode(errors='replace')}")
            return started, [json.loads(rank.stdout.read()) for rank in ranks if rank.stdout is not None]
        finally:
            for rank in ranks:
                kill(rank)


def convert_to_universal(directory: Path, *, num_workers: int) -> float:
    """Convert the newest DeepSpeed checkpoint of a folder to its universal format; return the seconds.

    Raises:
        RuntimeError: the converter failed, or ran into the time limit; with the end of its log.
    """
    source = directory / (directory / "latest").read_text()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source), "--output_folder", f"{source}_universal"]
    command += ["--num_extract_workers", str(num_workers), "--num_merge_workers", str(num_workers)]
    started = time.time()
    with tempfile.TemporaryFile() as log:
        converter = subprocess.Popen(command, env=rank_environment(), stdout=log, stderr=log, start_new_session=True)
        try:
            code = converter.wait(timeout=_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            kill(converter)
        if code != 0:
            log.seek(0)
            what = "still ran at the time limit" if code is None else f"exit code {code}"
            raise RuntimeError(f"{' '.join(command)}: {what}\n{log.read()[-3000:].decode(errors='replace')}")
    return time.time() - started
