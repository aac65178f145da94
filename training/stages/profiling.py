"""torch's profiler around chosen steps: those of the config, and those that RUN_DIR/profile.json asks for.

Each rank decides by itself, from step numbers that all read alike, so that profiling needs no collective. Steps that
follow each other are one trace, RUN_DIR/profiles/step-00000123-rank-00000.json.gz, named after its last step.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

from training.config.profile_request import FILE_NAME, read_profile_request
from training.config.reporting_schema import ProfileConfig
from training.errors import DataError
from training.fault_tolerance.heartbeat import Heartbeat, Section
from training.stages.journal import Journal

FOLDER = "profiles"
LOOK_SECONDS = 1.0
"""Between two looks at profile.json."""
_NUM_OPERATORS = 20
_MOST_ALLOCATIONS = 100_000
"""That a memory snapshot remembers."""

_log = logging.getLogger(__name__)


class Profiling:
    """Is told before and after each step. A profile that fails is an incident, and the run goes on without it."""

    def __init__(
        self,
        config: ProfileConfig,
        run_directory: Path,
        *,
        rank: int,
        device: torch.device,
        journal: Journal,
        heartbeat: Heartbeat,
    ) -> None:
        self._directory = run_directory
        self._rank = rank
        self._device = device
        self._history = _memory_history(device)
        self._journal = journal
        self._heartbeat = heartbeat
        self._memory_of = {step: config.memory for step in config.steps} if rank in config.ranks else {}
        """Step -> whether with a memory snapshot; of this rank's."""
        self._looked_at = -LOOK_SECONDS
        self._seen = 0
        """When the request that was read last was written, in nanoseconds."""
        self._profiler: profile | None = None
        self._first_step = 0

    def before_step(self, step: int) -> None:
        """Begin a trace if this step is to be in one and none is under way."""
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._look(step)
        if self._profiler is None and step in self._memory_of:
            self._heartbeat.section(Section.between)
            self._begin(step)

    def after_step(self, step: int) -> None:
        """End the trace and write it unless the next step is in it too."""
        if self._profiler is not None and step + 1 not in self._memory_of:
            self._heartbeat.section(Section.between)
            self._end(step)

    def close(self) -> None:
        """Write what is under way: the training stage ends, or the run goes back."""
        if self._profiler is not None:
            self._end(self._journal.steps_done)

    def _look(self, step: int) -> None:
        self._looked_at = time.monotonic()
        try:
            written = os.stat(self._directory / FILE_NAME).st_mtime_ns
        except FileNotFoundError:
            return
        except OSError as error:
            self._fail(f"{FILE_NAME}: {error}")
            return
        if written == self._seen:
            return
        self._seen = written
        try:
            request = read_profile_request(self._directory)
        except DataError as error:
            self._fail(str(error))
            return
        if request is not None and self._rank in request.ranks:
            ahead = {asked: request.memory for asked in request.steps if asked >= step}
            self._memory_of |= ahead
            _log.info("%s asks for steps %s; %d of them are ahead", FILE_NAME, request.steps, len(ahead))

    def _begin(self, step: int) -> None:
        self._first_step = step
        if self._memory_of[step]:
            if self._history is not None:
                self._history._record_memory_history(max_entries=_MOST_ALLOCATIONS)
            else:
                _log.warning("torch keeps no memory history of %s; the trace says what was allocated", self._device)
        self._profiler = profile(profile_memory=self._memory_of[step])  # of the CPU, and of devices that it knows
        self._profiler.start()

    def _end(self, step: int) -> None:
        profiler, self._profiler = self._profiler, None
        assert profiler is not None
        profiler.stop()
        name = f"step-{step:08d}-rank-{self._rank:05d}"
        trace, memory = f"{FOLDER}/{name}.json.gz", None
        history = self._history if self._memory_of[self._first_step] else None
        try:
            (self._directory / FOLDER).mkdir(exist_ok=True)
            unfinished = self._directory / FOLDER / f".{name}.json.gz"
            profiler.export_chrome_trace(str(unfinished))
            unfinished.replace(self._directory / trace)
            if history is not None:
                memory = f"{FOLDER}/{name}-memory.pickle"
                history._dump_snapshot(str(self._directory / memory))
        except OSError as error:
            self._fail(f"the profile of steps {self._first_step} to {step} cannot be written: {error}")
            return
        finally:
            if history is not None:
                history._record_memory_history(enabled=None)
        self._journal.profile(
            first_step=self._first_step,
            rank=self._rank,
            trace=trace,
            memory=memory,
            operators=_costliest(profiler, on_device=self._device.type != "cpu"),
        )

    def _fail(self, message: str) -> None:
        _log.warning(message)
        self._journal.incident("profile_failed", message)


def _memory_history(device: torch.device) -> Any:
    """Return torch's module that remembers a device's allocations; None if there is none, as for the CPU."""
    memory = getattr(torch.get_device_module(device), "memory", None)
    return memory if hasattr(memory, "_record_memory_history") else None


def _costliest(profiler: profile, *, on_device: bool) -> list[dict[str, Any]]:
    """Return the operators with most time of their own."""
    found = [
        {
            "name": event.key,
            "calls": event.count,
            "seconds": (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e6,
        }
        for event in profiler.key_averages()
    ]
    return sorted(found, key=lambda operator: -operator["seconds"])[:_NUM_OPERATORS]
