"""A run directory with every kind of record: experts, layers, memory, profiles, incidents, three attempts, a plan."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.unit.reporting.example_run import HOSTILE_TEXT, LAYOUT, STAGES, eval_record
from training.reporting.planned import PlannedStage, write_plan
from training.reporting.records import (
    CheckpointRecord,
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
    to_json_object,
)

BEGIN_SECONDS = 1_790_000_000.0
STEP_SECONDS = 2.0
TRACE = "profiles/step-00000060-rank-00000.json.gz"
NUM_STEPS = sum(steps for _, steps in STAGES)
LAYERS = ["model.embed_tokens", *(f"model.layers.{number}" for number in range(8)), "model.norm", "lm_head"]
_RESTARTS = {41: 48, 101: 104}
"""Step at which a later attempt begins -> first step that the one before it did not do."""


def full_records() -> list[tuple[float, Record]]:
    """Every record with the time it was written."""
    random.seed(7)
    written: list[tuple[float, Record]] = []
    now, attempt, step = BEGIN_SECONDS, 0, 1

    def write(*records: Record, after: float = 0.0) -> None:
        nonlocal now
        now += after
        written.extend((now, record) for record in records)

    write(*_start(attempt, 0, now), after=30.0)
    write(_with_scores(0, "start", 3.02, 0), after=4.0)
    write(TimeRecord(step=0, stage="start", attempt=0, spent={"evaluation": 4.0}))
    for stage, num_steps in STAGES:
        first = sum(n for name, n in STAGES[: [name for name, _ in STAGES].index(stage)]) + 1
        write(_stage(first - 1, stage, "begin", attempt), after=6.0)
        write(TimeRecord(step=first - 1, stage=stage, attempt=attempt, spent={"build": 6.0}))
        while step < first + num_steps:
            if attempt < 2 and step == list(_RESTARTS.values())[attempt]:
                step, attempt = list(_RESTARTS)[attempt], attempt + 1
                now += 95.0  # a hang until it was seen, and the pause
                write(*_start(attempt, step - 1, now, stage), after=30.0)
                write(_incident(step - 1, stage, attempt, "restart", f"continues from step-{step - 1:08d}"))
            write(_step(step, stage, attempt), after=STEP_SECONDS + 0.05)
            write(*_now_and_then(step, stage, attempt))
            step += 1
        bits = {"pretrain": 2.11, "anneal": 1.95, "long_context": 1.9}[stage]
        write(_with_scores(step - 1, stage, bits, attempt), after=4.2)
        write(TimeRecord(step=step - 1, stage=stage, attempt=attempt, spent={"evaluation": 4.2}))
        write(replace(_stage(step - 1, stage, "end", attempt), peak_memory_bytes=61e9))
        if stage != STAGES[-1][0]:
            reason = f"bits per byte {bits} <= 2.50 (stages.{stage}.gate)"
            write(GateRecord(step=step - 1, stage=stage, decision="promote", reasons=[reason], attempt=attempt))
    write(_stage(step - 1, "run", "done", attempt))
    return written


def write_full_example(run_directory: Path) -> Path:
    """Return the run directory, filled."""
    run_directory.mkdir()
    lines = [json.dumps(to_json_object(record, time_seconds=seconds)) for seconds, record in full_records()]
    (run_directory / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    ledger = {"version": 1, "state": "done", "stages": [{"name": n, "status": "promoted"} for n, _ in STAGES]}
    (run_directory / "stages.json").write_text(json.dumps(ledger))
    (run_directory / "overrides.yaml").write_text("- experiment=demo\n- optimizer.lr=1e-3\n")
    (run_directory / "config.yaml").write_text(
        "model: {num_layers: 8, hidden_size: 512}\ncluster: {accelerator: {name: H100}}\n"
        "optimizer: {lr: 0.001}\nrun: {name: demo}\nstages:\n"
        + "".join(
            f"  {name}: {{tokens: {4096 * n}, sequence_length: 128, global_batch_sequences: 32}}\n"
            for name, n in STAGES
        )
    )
    environment = {
        "python": "3.11.7",
        "git_commit": "0123abcd",
        "git_changed_files": 2,
        "packages": {"torch": "2.13.0"},
    }
    (run_directory / "environment.json").write_text(json.dumps(environment))
    planned = PlannedStage(
        layout=LAYOUT, step_seconds=1.9, tokens_per_second=2200.0, mfu=0.42, memory_bytes=64e9, num_ramp_steps=0
    )
    write_plan(run_directory, {name: planned for name, _ in STAGES})
    (run_directory / TRACE).parent.mkdir()
    (run_directory / TRACE).write_bytes(b"\x1f\x8b not really a trace")
    return run_directory


def _start(attempt: int, step: int, launched: float, stage: str = "pretrain") -> list[Record]:
    start = StartRecord(
        step=step,
        stage=stage,
        attempt=attempt,
        launched_seconds=launched,
        world_size=16,
        hosts={"node-1": "0-7", "node-2": "8-15"},
        peak_flops_per_second=989e12,
        peak_source="cluster.accelerator.peak_flops_per_second",
        price_per_hour=2.5,
        data_fingerprint="95472f700d17",
        tokenizer_hash="ea59fce1098e",
        num_parameters=1_850_000_000,
        num_active_parameters=420_000_000,
    )
    return [start, TimeRecord(step=step, stage=stage, attempt=attempt, spent={"start_up": 12.0, "load": 18.0})]


def _step(step: int, stage: str, attempt: int) -> StepRecord:
    norm = 1.0 + 0.5 * math.cos(step) + (4.0 if step == 77 else 0.0)
    return StepRecord(
        step=step,
        stage=stage,
        loss=2.0 + 6.4 * math.exp(-step / 30) + random.gauss(0, 0.05) + (1.5 if step == 77 else 0.0),
        grad_norm=norm,
        clipped_grad_norm=min(norm, 1.0),
        lr=1e-3 * min(1.0, step / 10),
        tokens=step * 4096,
        tokens_per_second=2048.0 * random.gauss(1, 0.02),
        tokens_per_second_per_device=128.0 * random.gauss(1, 0.02),
        mfu=0.39 * random.gauss(1, 0.02),
        hfu=0.51 * random.gauss(1, 0.02),
        batch_id=f"{step:016x}",
        attempt=attempt,
        seconds=STEP_SECONDS,
        data_seconds=0.02,
        waited_seconds=0.3 * random.gauss(1, 0.1),
        other_seconds=0.05,
        bubble=0.2,
        experts={
            "worst_load": 1.4 + 1.2 * math.exp(-step / 20),
            "worst_block": 3.0,
            "worst_rank_load": 1.15,
            "dead": float(max(0, 6 - step // 8)),
            "entropy": 1.9,
            "entropy_of_even": 0.99 - 0.002 * step,
            "balance_loss": 0.01,
            "z_loss": 0.001,
        },
    )


def _now_and_then(step: int, stage: str, attempt: int) -> list[Record]:
    common: dict[str, Any] = {"step": step, "stage": stage, "attempt": attempt}
    found: list[Record] = []
    if step % 10 == 0:
        weights = [100.0 + number for number in range(len(LAYERS))]
        ratios = [10 ** random.gauss(-3, 0.2) for _ in LAYERS]
        ratios[4] *= 30 if step >= 80 else 1
        found += [
            LayersRecord(
                names=LAYERS,
                weight_norms=weights,
                grad_norms=[0.1 * random.lognormvariate(0, 0.5) for _ in LAYERS],
                update_norms=[weight * ratio for weight, ratio in zip(weights, ratios, strict=True)],
                **common,
            ),
            ExpertsRecord(loads=[[max(0, int(random.gauss(512, 120))) for _ in range(16)] for _ in range(8)], **common),
            MemoryRecord(
                host_bytes=8.2e9 + 2e6 * step,
                host_rank=3,
                device_bytes=58e9 + 1e7 * step,
                device_rank=7,
                held_bytes={"weights": 3_700_000_000, "gradients": 7_400_000_000, "optimizer": 14_800_000_000},
                **common,
            ),
        ]
    if step % 20 == 0:
        found.append(
            CheckpointRecord(
                directory=f"checkpoints/step-{step:08d}",
                num_bytes=25_900_000_000,
                seconds=14.2,
                stall_seconds=0.21,
                bytes_per_second=1.82e9,
                **common,
            )
        )
    if step == 60:
        found.append(
            ProfileRecord(
                first_step=58,
                rank=0,
                trace=TRACE,
                memory=None,
                operators=[
                    {"name": "aten::mm", "calls": 4210, "seconds": 1.31},
                    {"name": "ncclDevKernel_AllGather_RING_LL", "calls": 96, "seconds": 0.42},
                    {"name": HOSTILE_TEXT, "calls": 12, "seconds": 0.01},
                ],
                **common,
            )
        )
    if step == 77:
        found.append(_incident(77, stage, attempt, "loss_spike", "loss 3.94 is 8.1 sigmas above 2.49; logged"))
    if step == 95:
        found.append(
            _incident(95, stage, attempt, "slow_rank", f"rank 11 on node-2 is 1.4 times slower; {HOSTILE_TEXT}")
        )
    return found


def _incident(step: int, stage: str, attempt: int, what: str, message: str) -> IncidentRecord:
    return IncidentRecord(step=step, stage=stage, what=what, message=message, attempt=attempt)


def _stage(step: int, stage: str, event: str, attempt: int) -> StageRecord:
    return StageRecord(step=step, stage=stage, event=event, layout="" if stage == "run" else LAYOUT, attempt=attempt)


def _with_scores(step: int, stage: str, bits: float, attempt: int) -> Any:
    record = eval_record(step, stage, bits, attempt=attempt)
    accuracy = 0.25 + step / 400
    return replace(
        record,
        metrics={
            "bits_per_byte": bits,
            "bits_per_byte_low": bits - 0.05,
            "bits_per_byte_high": bits + 0.06,
            "multiple_choice_accuracy": accuracy,
            "multiple_choice_standard_error": 0.03,
            "multiple_choice_items": 200.0,
            "cissp/acc": accuracy + 0.1,
            "cissp/items": 40.0,
        },
    )
