"""One rank's side of a turn: train some steps between two barriers, and tell the command how that went."""

import json
import os
import sys
import time
from typing import Protocol

import torch
import torch.distributed as dist

from training.engine.matmul_rate import measured_matmul_rate


class Steps(Protocol):
    """Whom a contestant tells about its steps."""

    def open(self, reference_seconds: float = 0.0) -> None:
        """Say that everything is built and the first step comes next.

        Args:
            reference_seconds: what the reference's log-probabilities of all pairs took, if it has them beforehand.
        """
        ...

    def after_step(self, loss_share: float, bubble: float | None = None) -> None:
        """Say that a step is done.

        Args:
            loss_share: what this rank adds to the global batch's mean loss per token.
            bubble: the step's measured pipeline bubble, mean over ranks, if the contestant measures it.
        """
        ...


class Turns:
    """Lets a contestant train only when it is its turn; never returns once the command has gone.

    Every turn stands between two measurements of the matrix-multiply rate that all ranks make at once, and waits for
    the slowest rank before both clock readings. stdout belongs to the answers; what libraries print goes to stderr.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def open(self, reference_seconds: float = 0.0) -> None:
        """Wait for the first turn."""
        self._reference_seconds = reference_seconds
        self._begin()

    def after_step(self, loss_share: float, bubble: float | None = None) -> None:
        """Note a step; after the last one of the turn, answer and wait for the next turn."""
        self._losses.append(loss_share)
        if bubble is not None:
            self._bubbles.append(bubble)
        if len(self._losses) == self._num_steps:
            self._end()
            self._begin()

    def _begin(self) -> None:
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self._num_steps = int(line)
        self._losses: list[float] = []
        self._bubbles: list[float] = []
        self._rate_before = _matmul_rate()
        dist.barrier()
        self._cpu_started, self._started = time.process_time(), time.perf_counter()

    def _end(self) -> None:
        cpu_seconds = time.process_time() - self._cpu_started
        dist.barrier()
        answer = {
            "seconds": time.perf_counter() - self._started,
            "cpu_seconds": cpu_seconds,
            "loss_shares": self._losses,
            "bubbles": self._bubbles,
            "reference_seconds": self._reference_seconds,
            "matmul_flops_per_second": (self._rate_before + _matmul_rate()) / 2,
        }
        print(json.dumps(answer), file=self._answers, flush=True)


def _matmul_rate() -> float:
    dist.barrier()  # ranks share cores, so they measure at the same time
    return measured_matmul_rate(torch.device("cpu"), torch.float32)
