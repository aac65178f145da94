"""Plans of small layouts beside real engines on four processes: bytes sent, memory of tensors. Time: make bench."""

import pytest

from benchmarks.plan_contest import PlanContest, compete_in_plans

NAMES = (
    "ZeRO-2",
    "ZeRO-3, micro-batch 4",
    "pipeline 2, ZeRO-1, DeepSpeed's engine",
    "pipeline 2, ZeRO-3 per step, 2 chunks",
    "pipeline 4, ZeRO-1, recompute full",
)
"""One of each kind; tests/unit/planner/test_traffic_of_engines.py has all against the rehearsed program."""


@pytest.fixture(scope="module")
def contest() -> PlanContest:
    return compete_in_plans(num_steps=0, names=NAMES, say=print)


@pytest.mark.timeout(300)
def test_bytes_sent_are_within_5_percent(contest: PlanContest) -> None:
    assert {layout.name: layout.sent_error for layout in contest.layouts} == {
        name: pytest.approx(0, abs=0.05) for name in NAMES
    }


@pytest.mark.timeout(300)
def test_memory_is_within_12_percent(contest: PlanContest) -> None:
    assert {layout.name: layout.memory_error for layout in contest.layouts} == {
        name: pytest.approx(0, abs=0.12) for name in NAMES
    }
