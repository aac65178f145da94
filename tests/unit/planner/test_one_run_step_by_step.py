"""The simulation against a second one: a single run, checkpoint by checkpoint, with the same random numbers."""

import math
from collections import defaultdict
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.planner.checkpoint_cost import CheckpointCost
from training.planner.goodput_simulation import simulate
from training.planner.reliability import SECONDS_PER_DAY, Interruptions


class OneRun:
    """One run as a person would tell it, an event at a time."""

    def __init__(
        self, work: float, interval: float, checkpoint: CheckpointCost, job: Interruptions, *, seed: int
    ) -> None:
        self.work, self.checkpoint, self.job = work, checkpoint, job
        self.interval = max(interval, checkpoint.write_seconds - checkpoint.stall_seconds)
        self.luck = np.random.default_rng(seed)
        self.luck.standard_normal(1)
        doubt = min(2.0, max(-2.0, float(self.luck.standard_normal(1)[0])))
        self.rate = job.failures_per_day * math.exp(job.failure_rate_sigma * doubt)
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.clock = self.saved = 0.0
        self.spares_whole_at = [0.0] * job.spare_nodes
        self.num_failures = 0

    def spend(self, entry: str, seconds: float) -> None:
        self.spent[entry] += seconds
        self.clock += seconds

    def run(self) -> None:
        is_first = True
        while True:
            waiting = float(self.luck.standard_exponential(1)[0])
            kind, manual, loss = (float(row[0]) for row in self.luck.random((3, 1)))
            events = self.rate + self.job.planned_per_day
            remaining = waiting * SECONDS_PER_DAY / events if events else math.inf
            is_failure = kind * events < self.rate
            if not is_first:
                for entry, seconds in (("restart", self.job.restart_seconds), ("reload", self.job.reload_seconds)):
                    spent = min(seconds, remaining)
                    self.spend(entry, spent)
                    remaining -= spent
            is_first = False
            if remaining > 0 and self.train(remaining, is_failure):
                return
            if is_failure:
                self.fail(manual, loss)
            else:
                self.spend("planned", self.job.planned_seconds)

    def train(self, remaining: float, is_failure: bool) -> bool:
        """Train for so long, and return whether the run is over."""
        stall, write = self.checkpoint.stall_seconds, self.checkpoint.write_seconds
        begun, worked, holds = 0.0, 0.0, [(0.0, 0.0)]  # (time since the start, work in the checkpoint)
        left = self.work - self.saved
        stalled = 0.0
        while True:
            segment = min(self.interval, left - worked)
            if begun + segment > remaining:
                worked += remaining - begun
                break
            begun, worked = begun + segment, worked + segment
            if left - worked <= 1e-9 * self.interval:
                if begun + write <= remaining:
                    self.spend("checkpoint_stall", stalled + write)
                    self.spend("compute", left)
                    return True
                stalled += remaining - begun
                break
            holds.append((begun + write, worked))
            if begun + stall > remaining:
                stalled += remaining - begun
                break
            begun, stalled = begun + stall, stalled + stall
        kept = worked
        if is_failure:
            kept = max(work for time, work in holds if time <= remaining)
        else:
            stalled += write
        self.spend("compute", kept)
        self.spend("lost_work", worked - kept)
        self.spend("checkpoint_stall", stalled)
        self.saved += kept
        return False

    def fail(self, manual: float, loss: float) -> None:
        self.num_failures += 1
        back_at = self.clock + self.job.repair_seconds
        self.spend("detection", self.job.detection_seconds)
        if manual < self.job.manual_share:
            self.spend("manual", self.job.manual_seconds)
        if loss < self.job.node_loss_share:
            self.spares_whole_at.append(back_at)
            first = min(self.spares_whole_at)
            self.spares_whole_at.remove(first)
            self.spend("spare_wait", max(0.0, first - self.clock))


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Interruptions,
        failures_per_day=st.just(0.0) | st.floats(0.01, 40),
        detection_seconds=st.floats(0, 600),
        restart_seconds=st.floats(0, 600),
        reload_seconds=st.floats(0, 200),
        manual_share=st.floats(0, 1),
        manual_seconds=st.floats(0, 7200),
        node_loss_share=st.floats(0, 1),
        spare_nodes=st.integers(0, 5),
        repair_seconds=st.floats(0, SECONDS_PER_DAY),
        planned_per_day=st.just(0.0) | st.floats(0.01, 10),
        planned_seconds=st.floats(0, 3600),
        failure_rate_sigma=st.floats(0, 0.3),
    ),
    st.floats(0, 60),
    st.floats(0, 900),
    st.floats(60, 1800),
    st.floats(0.01, 1.5),
    st.integers(0, 10**6),
)
def test_a_simulated_run_is_what_a_step_by_step_run_is(
    job: Interruptions, stall: float, behind: float, interval: float, days: float, seed: int
) -> None:
    checkpoint = CheckpointCost(stall_seconds=stall, write_seconds=stall + behind)
    work = days * SECONDS_PER_DAY
    runs = simulate(
        work_seconds=work, interval_seconds=interval, checkpoint=checkpoint, interruptions=job, num_runs=1, seed=seed
    )
    told = OneRun(work, interval, checkpoint, job, seed=seed)
    told.run()
    assert runs.num_failures[0] == told.num_failures
    assert runs.end_seconds[0] == pytest.approx(told.clock, abs=0.01)
    for entry in fields(runs.ledger):
        ours, theirs = getattr(runs.ledger, entry.name)[0], told.spent[entry.name.removesuffix("_seconds")]
        assert ours == pytest.approx(theirs, abs=0.01), entry.name
