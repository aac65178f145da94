"""Weights & Biases as a view: a process of its own follows metrics.jsonl and feeds wandb.

Why a process and not a thread: wandb's exit hook waits for its service (0.31: as long as the network is gone), and a
job of thousands of devices must never wait for a dashboard. A process can be left behind or killed; it needs no
queue, because the log on disk is one; and when training dies, it still delivers the last lines.

No secret goes through here: the process finds WANDB_API_KEY in its environment or its user's netrc by itself.
"""

import json
import logging
import os
import re
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from training.errors import StorageError
from training.reporting.records import Record

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_SECONDS = 15.0
"""Longest wait at the end of a job for a server to take the last records."""
OFFLINE_CLOSE_TIMEOUT_SECONDS = 60.0
"""The same without a server: only a busy machine makes it longer than a second or two."""


class WandbView:
    """One wandb run per run directory, fed from its metrics.jsonl by `training.reporting.wandb_follower`.

    Nothing that wandb does or fails to do raises here; it is said once in the log.
    """

    def __init__(self, run_directory: Path, *, mode: str) -> None:
        self._close_seconds = OFFLINE_CLOSE_TIMEOUT_SECONDS if mode == "offline" else CLOSE_TIMEOUT_SECONDS
        self._run_directory = run_directory
        self._output_path = run_directory / "logs" / "wandb.log"
        self._complained = False
        settings = {"run_directory": str(run_directory.resolve()), "trainer_pid": os.getpid()}
        self._process = self._start()
        self._send(json.dumps(settings).encode() + b"\n")

    def _start(self) -> subprocess.Popen[bytes]:
        package_root = str(Path(__file__).parents[2])
        python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        try:
            self._output_path.parent.mkdir(exist_ok=True)
            with self._output_path.open("ab") as output:
                return subprocess.Popen(
                    [sys.executable, "-m", "training.reporting.wandb_follower"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    env=self._environment() | {"PYTHONPATH": python_path, "WANDB_SILENT": "true"},
                    start_new_session=True,  # Ctrl-C is for the trainer; the follower ends when its input does
                )
        except OSError as error:
            raise StorageError(f"{self._output_path}: {error}\n  -> make the run directory writable") from error

    def _environment(self) -> dict[str, str]:
        """Return the follower's environment, in which tables that wait for `wandb sync` stay in the run directory."""
        # wandb's own place for them is the home directory, which a compute node may not have or not share.
        environment = {"WANDB_DATA_DIR": str(self._run_directory.resolve() / "wandb")} | _without_password(os.environ)
        environment.pop("WANDB_SERVICE", None)  # another program's wandb, which may end with it
        return environment

    def _hear(self) -> None:
        """Pass on, once, what the follower has to say; nothing if it has said nothing."""
        assert self._process.stdout is not None
        if select.select([self._process.stdout], [], [], 0)[0] and (line := self._process.stdout.readline()):
            self._complain(line.decode(errors="replace").strip())

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._complain("ended at once")

    def append(self, record: Record) -> None:
        """Notice, once, that the follower is in trouble; it reads the record from metrics.jsonl itself."""
        if self._complained:
            return
        self._hear()
        if self._process.poll() is not None:
            self._complain(f"ended early with exit code {self._process.returncode}")

    def close(self) -> None:
        """Let the follower deliver the rest; give up after the timeout of the mode."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            exit_code = self._process.wait(timeout=self._close_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._complain(f"did not finish within {self._close_seconds:.0f} s")
            return
        self._hear()
        if exit_code:
            self._complain(f"ended with exit code {exit_code}")

    def _complain(self, what: str) -> None:
        if self._complained:
            return
        self._complained = True
        _log.warning(
            "wandb %s; training is not affected and metrics.jsonl has every record. Its output: %s. "
            "What it lacks is sent by the next start, or by: python -m training.reporting.send_to_wandb %s",
            what,
            self._output_path,
            self._run_directory,
        )


def _without_password(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without user and password in the server's address: wandb logs it, and uses its key."""
    address = environment.get("WANDB_BASE_URL", "")
    return {**environment, **({"WANDB_BASE_URL": re.sub(r"//[^/]*@", "//", address)} if address else {})}
