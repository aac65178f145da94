import math
from dataclasses import fields

import pytest

from training.config.schema import FaultToleranceConfig
from training.config.watchdog_schema import HangConfig
from training.fault_tolerance.heartbeat import Section
from training.fault_tolerance.limits import Limits


def limits(hang: HangConfig | None = None, *, device: str = "cpu", collective: int = 10**6) -> Limits:
    config = FaultToleranceConfig(hang=hang or HangConfig(), collective_timeout_seconds=collective)
    return Limits(config, commit_timeout_seconds=math.inf, device=device)


def test_every_section_has_its_limit_and_every_limit_its_section() -> None:
    assert {section: limits().of(section) for section in Section} == {
        section: {Section.end: 300.0, Section.step: 600.0}.get(section) or getattr(HangConfig(), f"{section}_seconds")
        for section in Section
    }
    assert {f.name for f in fields(HangConfig)} == {
        *(f"{section}_seconds" for section in Section if section is not Section.end),
        "first_step_seconds",
    }


@pytest.mark.parametrize(("device", "shortest"), [("cpu", 10.0), ("cuda", 60.0)])
def test_a_step_may_take_three_times_the_slowest_and_no_less_than_a_minimum(device: str, shortest: float) -> None:
    learning = limits(device=device)
    learning.ended(Section.step, 0.1)
    assert learning.of(Section.step) == shortest
    learning.ended(Section.step, 40.0)
    learning.ended(Section.step, 0.1)
    assert learning.of(Section.step) == 120.0
    for _ in range(100):
        learning.ended(Section.step, 0.1)
    assert learning.of(Section.step) == shortest, "a slow step is not remembered for ever"
    learning.ended(Section.build, 3.0)
    assert learning.of(Section.step) == 600.0, "a new engine's first step is the first one again"


def test_a_configured_limit_counts_and_no_limit_outlasts_a_collective() -> None:
    learning = limits(HangConfig(step_seconds=3.0, build_seconds=1000.0), collective=100)
    learning.ended(Section.step, 5.0)
    assert learning.of(Section.step) == 3.0
    assert learning.of(Section.build) == 90.0
