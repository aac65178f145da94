"""How long each section of a run may take; that of a step follows from the steps before."""

from collections import deque

from training.config.schema import FaultToleranceConfig
from training.fault_tolerance.heartbeat import Section

_SHORTEST_SECONDS = {"cpu": 10.0}
_SHORTEST_SECONDS_ELSEWHERE = 60.0
"""By experience a step gets no less than this."""
_TIMES_THE_SLOWEST = 3
_STEPS_REMEMBERED = 100
_OF_A_COLLECTIVE = 0.9


class Limits:
    """Says how long a section may take; learns from those that ended."""

    def __init__(self, config: FaultToleranceConfig, *, commit_timeout_seconds: float, device: str) -> None:
        self._hang = config.hang
        self._collective_seconds = _OF_A_COLLECTIVE * config.collective_timeout_seconds
        self._commit_seconds = _OF_A_COLLECTIVE * commit_timeout_seconds
        self._shortest_seconds = _SHORTEST_SECONDS.get(device, _SHORTEST_SECONDS_ELSEWHERE)
        self._steps: deque[float] = deque(maxlen=_STEPS_REMEMBERED)

    def ended(self, section: Section, seconds: float) -> None:
        """Take note of how long a section took."""
        if section is Section.step:
            self._steps.append(seconds)
        elif section is Section.build:
            self._steps.clear()

    def of(self, section: Section) -> float:
        """Return the limit of a section, in seconds."""
        if section is Section.save:
            return min(self._hang.save_seconds, self._commit_seconds)
        return min(self._own(section), self._collective_seconds)

    def _own(self, section: Section) -> float:
        if section is Section.step:
            if not self._steps:
                return self._hang.first_step_seconds
            by_experience = max(_TIMES_THE_SLOWEST * max(self._steps), self._shortest_seconds)
            return self._hang.step_seconds or by_experience
        return getattr(self._hang, f"{Section.between if section is Section.end else section}_seconds")
