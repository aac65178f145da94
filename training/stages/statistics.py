"""Numbers beside the step's own, each at its own interval (`reporting.*_every_steps`): layers, experts, memory."""

import os
from pathlib import Path

from training.config.reporting_schema import ReportingConfig
from training.engine.base import Engine, StepResult
from training.engine.process_group import ProcessGroup
from training.stages.journal import Journal

_UNIT_BYTES = 1024
"""Of memory in the collective: with the rank it has to fit into 63 bits."""
_RANK_BITS = 20


class Statistics:
    """Every rank has one and calls it after each step, alike: what is due is a matter of the step's number alone."""

    def __init__(self, config: ReportingConfig, *, processes: ProcessGroup, journal: Journal) -> None:
        self._config = config
        self._processes = processes
        self._journal = journal

    def measures_layers(self, step: int) -> bool:
        """Return whether a step of the run is to measure layers."""
        return _is_due(step, self._config.layers_every_steps)

    def after_step(self, engine: Engine, result: StepResult) -> None:
        """Write down what is due after the step that the journal has just written down; collective if memory is."""
        step = self._journal.steps_done
        if result.layers is not None:
            self._journal.layers(result.layers)
        if result.routing is not None and _is_due(step, self._config.experts_every_steps):
            self._journal.experts(result.routing.loads)
        if _is_due(step, self._config.memory_every_steps):
            self._look_at_memory(engine)

    def _look_at_memory(self, engine: Engine) -> None:
        """Find the ranks that use most, in one collective of two numbers."""
        device = self._processes.peak_memory_bytes()
        mine = [resident_bytes(), -1 if device is None else int(device)]
        (host_bytes, host_rank), (device_bytes, device_rank) = largest_with_rank(self._processes, mine)
        is_counted = device_bytes >= 0
        self._journal.memory(
            host_bytes=host_bytes,
            host_rank=host_rank,
            device_bytes=device_bytes if is_counted else None,
            device_rank=device_rank if is_counted else None,
            held_bytes=engine.held_bytes(),
        )


def largest_with_rank(processes: ProcessGroup, values: list[int]) -> list[tuple[int, int]]:
    """Return (the largest of each value over all ranks, to 1024 below it; the lowest rank that has it); collective.

    Args:
        processes: at most a million ranks.
        values: bytes below 2^53; a negative one counts as none and loses against all others.
    """
    last = 2**_RANK_BITS - 1
    keys = [(value // _UNIT_BYTES << _RANK_BITS) + last - processes.rank for value in values]
    found = processes.largest(keys)
    return [((key >> _RANK_BITS) * _UNIT_BYTES, last - (key & last)) for key in found]


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM: the second number of /proc/self/statm, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _is_due(step: int, every_steps: int) -> bool:
    return every_steps > 0 and step % every_steps == 0
