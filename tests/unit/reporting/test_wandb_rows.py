"""What becomes of each record in wandb, and what becomes of steps that are done again."""

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.reporting.example_run import records, step_record
from training.reporting.records import (
    ExpertsRecord,
    GateRecord,
    IncidentRecord,
    LayersRecord,
    MemoryRecord,
    ProfileRecord,
    Record,
    StageRecord,
    StartRecord,
    StepRecord,
    TimeRecord,
)
from training.reporting.wandb_rows import NAMESPACES, WandbRows, alert_of, config_of

START = StartRecord(
    step=0,
    stage="pretrain",
    attempt=0,
    launched_seconds=1e9,
    world_size=16,
    hosts={"node-1": "0-7", "node-2": "8-15"},
    peak_flops_per_second=989e12,
    peak_source="data sheet",
    data_fingerprint="fe",
    tokenizer_hash="ed",
)
BASE: dict[str, Any] = {"stage": "pretrain", "attempt": 0}
LAYERS = LayersRecord(
    step=3, names=["a", "b"], weight_norms=[2.0, 0.0], grad_norms=[1.0, 3.0], update_norms=[0.5, 0.5], **BASE
)
EXPERTS = ExpertsRecord(step=3, loads=[[2, 6, 4, 4], [0, 0, 0, 0]], **BASE)
MEMORY = MemoryRecord(
    step=3,
    host_bytes=10.0,
    host_rank=1,
    device_bytes=None,
    device_rank=None,
    held_bytes={"weights": 4, "gradients": 2},
    **BASE,
)
PROFILE = ProfileRecord(
    step=3,
    first_step=2,
    rank=0,
    trace="profiles/x.json",
    memory=None,
    operators=[{"name": "mm", "calls": 2, "seconds": 0.5}],
    **BASE,
)


def incident(what: str) -> IncidentRecord:
    return IncidentRecord(step=5, what=what, message="m", **BASE)


def rows_of(given: list[Record]) -> list[dict[str, Any]]:
    rows = WandbRows()
    return [rows.row(record) for record in given]


def test_a_step_is_a_row_over_step_and_tokens_without_what_it_does_not_know():
    record = replace(step_record(7), preference={"margin": 0.5}, experts={"dead": 2.0}, hfu=0.4, skipped=True)
    (row,) = rows_of([record])
    assert (row["step"], row["tokens"]) == (7, 7 * 2048)
    assert (row["train/loss"], row["train/hfu"], row["train/skipped"]) == (record.loss, 0.4, 1)
    assert (row["preference/margin"], row["experts/dead"], row["counts/skipped_steps"]) == (0.5, 2.0, 1)
    assert "train/bubble" not in row
    assert None not in row.values()


def test_what_is_done_again_never_touches_what_grows():
    done = [records(blocked=False), [step_record(1)], [step_record(111)]]
    rows = rows_of([record for part in done for record in part])
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == list(range(1, 112))
    tokens = [row["tokens"] for row in rows if "tokens" in row]
    assert tokens == [step * 2048 for step in steps]
    again = [row for row in rows if "redone/train/loss" in row]
    assert [row["step"] for row in again] == [*range(41, 48), 1]
    assert again[0]["redone/tokens"] == 41 * 2048
    assert [row["counts/redone_steps"] for row in again] == list(range(1, 9))
    by_step = {r.step: r.loss for r in records(blocked=False) if isinstance(r, StepRecord) and r.attempt == 1}
    assert all(row["redone/train/loss"] == by_step[row["step"]] for row in again[:-1])


def test_statistics_of_a_step_done_again_too():
    rows = rows_of([LAYERS, EXPERTS, MEMORY, LAYERS, EXPERTS, MEMORY, replace(LAYERS, step=4)])
    assert rows[0] == {
        "step": 3,
        "layers/a/weight_norm": 2.0,
        "layers/a/grad_norm": 1.0,
        "layers/a/update_ratio": 0.25,
        "layers/b/weight_norm": 0.0,
        "layers/b/grad_norm": 3.0,
    }
    assert rows[3] == {"step": 3} | {f"redone/{name}": n for name, n in rows[0].items() if name != "step"}
    assert all(name == "step" or name.startswith("redone/") for row in rows[3:6] for name in row)
    assert rows[6]["layers/b/grad_norm"] == 3.0


def test_loads_are_shown_over_their_mean_where_there_is_one():
    (row,) = rows_of([EXPERTS])
    assert row == {
        "step": 3,
        "experts/block_0/largest_load": 1.5,
        "experts/block_0/smallest_load": 0.5,
        "experts/block_0/load_deviation": pytest.approx((0.125) ** 0.5),
    }


def test_memory_profile_and_time():
    spent = [TimeRecord(step=n, spent={"save": 1.5, "build": 2.0}, **BASE) for n in (1, 2)]
    memory, profile, _, later = rows_of([MEMORY, PROFILE, *spent])
    assert (memory["memory/held_weights_bytes"], memory["memory/host_rank"]) == (4, 1)
    assert "memory/device_bytes" not in memory
    assert profile["profile/operators"] == "mm: 0.500000 s, 2 calls"
    assert later == {"step": 2, "time/save_seconds": 3.0, "time/build_seconds": 4.0}


def test_incidents_are_counted_by_kind_and_starts_by_number():
    rows = rows_of([START, incident("hang"), incident("slow_rank"), incident("hang"), replace(START, attempt=2)])
    assert rows[0] == {"step": 0, "counts/starts": 1, "counts/ranks": 16}
    assert rows[3]["counts/incidents"] == 3
    assert rows[3]["counts/incidents/hang"] == 2
    assert rows[4]["counts/starts"] == 3


def test_every_name_lies_in_a_namespace_that_is_drawn_over_step():
    given = [START, LAYERS, EXPERTS, MEMORY, PROFILE, TimeRecord(step=1, spent={"save": 1.0}, **BASE)]
    names = {name for row in rows_of([*records(blocked=True), *given, *given]) for name in row} - {"step", "tokens"}
    assert {name.split("/")[0] for name in names} <= set(NAMESPACES)


def test_the_config_has_the_newest_start_and_each_layout():
    known: dict[str, Any] = {}
    given = [START, *records(blocked=False), replace(START, attempt=1), incident("restart")]
    for record in given:
        known |= config_of(record, known)
    assert known["start"]["rank_map"] == {"node-1": "0-7", "node-2": "8-15"}
    assert (known["start"]["attempt"], known["start"]["is_fresh"]) == (1, False)
    assert known["start"]["resumed"] == "m"
    assert known["start"]["peak_source"] == "data sheet"
    assert set(known["layouts"]) == {"pretrain", "anneal"}
    assert known["layouts"]["anneal"]["layout"].startswith("pipeline 2")


def test_alerts_are_for_lost_work_and_for_gates_that_stop_the_run():
    def gate(decision: str) -> GateRecord:
        return GateRecord(step=9, decision=decision, reasons=["too high"], **BASE)

    failed = StageRecord(step=9, stage="run", event="failed", layout="", attempt=0)
    levels = {
        what: getattr(alert_of(incident(what)), "level", None)
        for what in ("hang", "silent_corruption", "slow_rank", "rollback", "non_finite", "restart", "config_changed")
    }
    assert levels == {
        "hang": "ERROR",
        "silent_corruption": "ERROR",
        "slow_rank": "WARN",
        "rollback": "WARN",
        "non_finite": None,
        "restart": None,
        "config_changed": None,
    }
    assert [
        getattr(alert_of(gate(d)), "level", None) for d in ("block", "roll_back", "ask", "promote", "more_items")
    ] == [
        "ERROR",
        "ERROR",
        "WARN",
        None,
        None,
    ]
    blocked = alert_of(gate("block"))
    assert blocked is not None
    assert blocked.text == "step 9, after pretrain: too high"
    assert alert_of(failed) is not None
    assert alert_of(step_record(1)) is None
