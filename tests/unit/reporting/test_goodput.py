"""The goodput ledger: every second of a run's wall time is in one category, whatever happened to the run."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.reporting.goodput import Goodput, Spent, goodput
from training.reporting.metrics import Metrics
from training.reporting.records import Record, StartRecord, StepRecord, TimeRecord
from training.reporting.starts import end_times

LAUNCH = 1_000_000.0


class Clock:
    """Writes records as rank 0 does: at the end of what they tell."""

    def __init__(self) -> None:
        self.now = LAUNCH
        self.records: list[Record] = []
        self.times: list[float] = []
        self.attempt = -1

    def start(self, *, pause: float = 0.0, start_up: float = 8.0) -> None:
        self.attempt += 1
        self.now += pause
        launched = self.now
        self.now += start_up
        self._write(
            StartRecord(
                step=0,
                stage="pretrain",
                attempt=self.attempt,
                launched_seconds=launched,
                world_size=2,
                hosts={"node": "0-1"},
                peak_flops_per_second=1e12,
                peak_source="a data sheet",
            )
        )
        self._write(TimeRecord(step=0, stage="pretrain", attempt=self.attempt, spent={"start_up": start_up}))

    def spend(self, **spent: float) -> None:
        self.now += sum(spent.values())
        self._write(TimeRecord(step=0, stage="pretrain", attempt=self.attempt, spent=spent))

    def step(
        self, number: int, seconds: float = 1.0, data: float = 0.1, other: float = 0.01, skipped: bool = False
    ) -> None:
        self.now += seconds + other
        self._write(
            StepRecord(
                step=number,
                stage="pretrain",
                loss=1.0,
                grad_norm=1.0,
                lr=1.0,
                tokens=number,
                tokens_per_second=1.0,
                mfu=0.5,
                batch_id="",
                attempt=self.attempt,
                seconds=seconds,
                data_seconds=data,
                waited_seconds=0.25,
                other_seconds=other,
                skipped=skipped,
            )
        )

    def _write(self, record: Record) -> None:
        self.records.append(record)
        self.times.append(self.now)

    def ledger(self, *ends: float) -> Goodput:
        metrics = Metrics(
            records=self.records, times_seconds=self.times, line_numbers=list(range(len(self.times))), num_torn_lines=0
        )
        found = goodput(metrics, ends)
        assert found is not None
        assert sum(found.spent.values()) == pytest.approx(found.wall_seconds, abs=1e-6)
        for attempt in found.attempts:
            assert sum(attempt.spent.values()) == pytest.approx(attempt.end_seconds - attempt.begin_seconds, abs=1e-6)
        return found


def test_an_undisturbed_run() -> None:
    clock = Clock()
    clock.start()
    clock.spend(build=4.0, load=1.0, evaluation=2.0)
    clock.step(1)
    clock.step(2, skipped=True)
    clock.spend(save=0.5)
    clock.spend(other=0.5, evaluation=3.0, between=0.25, build=2.0)
    clock.step(3)
    found = clock.ledger()
    assert found.wall_seconds == pytest.approx(8 + 7 + 3.03 + 0.5 + 5.75)
    assert {what: seconds for what, seconds in found.spent.items() if abs(seconds) > 1e-6} == {
        Spent.compute: pytest.approx(1.8),
        Spent.data: pytest.approx(0.2),
        Spent.checkpoint: pytest.approx(0.5),
        Spent.evaluation: pytest.approx(5.0),
        Spent.stage_change: pytest.approx(2.25),
        Spent.other: pytest.approx(0.53),
        Spent.skipped: pytest.approx(1.0),
        Spent.start: pytest.approx(13.0),
    }
    assert found.share == pytest.approx(1.8 / found.wall_seconds)
    assert found.waited_seconds == pytest.approx(0.5)


def test_a_crash_costs_the_steps_that_are_done_again_the_noticing_the_pause_and_the_restart() -> None:
    clock = Clock()
    clock.start()
    for number in (1, 2, 3, 4):
        clock.step(number)
    died = clock.now
    clock.start(pause=30.0, start_up=6.0)  # goes on from step 2, and is at step 3 now: step 4 is lost as well
    clock.step(3)
    found = clock.ledger(died + 12.0)
    assert found.spent[Spent.undone] == pytest.approx(2 * 1.01)
    assert found.spent[Spent.compute] == pytest.approx(3 * 0.9)
    assert (found.spent[Spent.ending], found.spent[Spent.down]) == (pytest.approx(12.0), pytest.approx(18.0))
    assert (found.spent[Spent.start], found.spent[Spent.restart]) == (pytest.approx(8.0), pytest.approx(6.0))
    assert [attempt.attempt for attempt in found.attempts] == [0, 1]
    unseen = clock.ledger()
    assert (unseen.spent[Spent.ending], unseen.spent[Spent.down]) == (0.0, pytest.approx(30.0))


def test_a_rollback_undoes_steps_within_an_attempt() -> None:
    clock = Clock()
    clock.start()
    for number in (1, 2, 3):
        clock.step(number)
    clock.spend(load=0.5, build=1.5)
    for number in (2, 3):
        clock.step(number, seconds=2.0)
    found = clock.ledger()
    assert found.spent[Spent.undone] == pytest.approx(2 * 1.01)
    assert found.spent[Spent.compute] == pytest.approx(0.9 + 2 * 1.9)
    assert found.spent[Spent.stage_change] == pytest.approx(2.0)


def test_what_the_books_do_not_explain_is_said() -> None:
    clock = Clock()
    clock.start()
    clock.now += 5.0  # nobody wrote down what this was
    clock.step(1)
    assert clock.ledger().spent[Spent.unaccounted] == pytest.approx(5.0)


def test_a_run_of_a_version_without_starts_has_no_ledger() -> None:
    assert goodput(Metrics(records=[], times_seconds=[], line_numbers=[], num_torn_lines=0)) is None


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.floats(0.01, 1e4), st.integers(0, 3)), max_size=8),
            st.floats(0.0, 1e5),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_happens_the_categories_add_up_to_the_wall_time(
    attempts: list[tuple[list[tuple[float, int]], float, bool]],
) -> None:
    clock, step, ends = Clock(), 0, []
    for events, pause, is_seen in attempts:
        clock.start(pause=pause)
        step = max(0, step - 2)
        for seconds, what in events:
            if what == 0:
                clock.spend(evaluation=seconds)
            elif what == 1:
                step = max(0, step - 1)
                clock.spend(load=seconds)
            else:
                step += 1
                clock.step(step, seconds=seconds, data=seconds / 7, skipped=what == 3)
        if is_seen:
            ends.append(clock.now)
    found = clock.ledger(*ends)
    assert abs(found.spent[Spent.unaccounted]) < 1e-5
    assert all(seconds >= -1e-5 for seconds in found.spent.values())


def test_ends_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    assert end_times(tmp_path) == []
    (tmp_path / "attempts.jsonl").write_text(
        '{"event": "start", "time": 1.0}\n{"event": "end", "time": 2.5}\n{"event": "end", "time": "x"}\n{"event": "en'
    )
    assert end_times(tmp_path) == [2.5]
