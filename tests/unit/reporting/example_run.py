"""A run directory as training writes it: three training stages, a crash with redone steps, evaluations and gates."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from training.reporting.metrics import MetricsLog
from training.reporting.records import (
    CheckpointRecord,
    EvalRecord,
    GateRecord,
    IncidentRecord,
    Record,
    StageRecord,
    StepRecord,
)

STAGES = [("pretrain", 60), ("anneal", 30), ("long_context", 20)]
HOSTILE_TEXT = "and <script>alert('x')</script> & the LORD said"
LAYOUT = "pipeline 2 × data 1, ZeRO-1, 2 ranks"


def step_record(step: int, *, stage: str = "pretrain", attempt: int = 0, loss: float | None = None) -> StepRecord:
    return StepRecord(
        step=step,
        stage=stage,
        loss=8.4 * math.exp(-step / 60) + 0.1 * math.sin(step) + 2.0 if loss is None else loss,
        grad_norm=1.0 + 0.5 * math.cos(step),
        lr=1e-3 * min(1.0, step / 10),
        tokens=step * 2048,
        tokens_per_second=3000.0 + 10 * (step % 7),
        mfu=0.31,
        batch_id=f"{step:016x}",
        attempt=attempt,
        seconds=0.7,
    )


def eval_record(step: int, stage: str, bits_per_byte: float, attempt: int = 0) -> EvalRecord:
    return EvalRecord(
        step=step,
        stage=stage,
        suite="quick",
        bits_per_byte=bits_per_byte,
        metrics={"bits_per_byte": bits_per_byte, "choice_accuracy": 0.25 + step / 400},
        samples=[
            {"prompt": "In the beginning", "text": f"{HOSTILE_TEXT} ({stage})"},
            {"prompt": "And it came to pass", "text": f"that he went up to the mountain and the people ({stage})"},
        ],
        seconds=4.2,
        attempt=attempt,
    )


def _gate(step: int, stage: str, decision: str, reason: str) -> GateRecord:
    return GateRecord(step=step, stage=stage, decision=decision, reasons=[reason], attempt=1)


def records(*, blocked: bool) -> list[Record]:
    first: dict[str, Any] = {"attempt": 0}
    second: dict[str, Any] = {"attempt": 1}
    before_crash: list[Record] = [
        StageRecord(step=0, stage="pretrain", event="begin", layout=LAYOUT, **first),
        eval_record(0, "start", 3.02),
        *(step_record(step) for step in range(1, 48)),
        CheckpointRecord(
            step=40,
            stage="pretrain",
            directory="checkpoints/step-00000040",
            num_bytes=47_400_000,
            seconds=0.3,
            stall_seconds=0.012,
            bytes_per_second=158e6,
            **first,
        ),
    ]
    after_crash: list[Record] = [
        IncidentRecord(step=40, stage="pretrain", what="restart", message="continued from step 40", **second),
        *(step_record(step, attempt=1) for step in range(41, 61)),
        eval_record(60, "pretrain", 2.11, attempt=1),
        _gate(60, "pretrain", "promote", "bits per byte 2.11 <= 2.50 (stages.pretrain.gate.max_bits_per_byte)"),
        StageRecord(step=60, stage="pretrain", event="end", layout=LAYOUT, **second),
        StageRecord(step=60, stage="anneal", event="begin", layout=LAYOUT, **second),
        *(step_record(step, stage="anneal", attempt=1) for step in range(61, 91)),
        eval_record(90, "anneal", 2.31 if blocked else 1.95, attempt=1),
        StageRecord(step=90, stage="anneal", event="end", layout=LAYOUT, **second),
    ]
    if blocked:
        end: list[Record] = [
            _gate(90, "anneal", "block", "bits per byte rose by 0.20 over pretrain's 2.11, allowed is 0.00"),
            StageRecord(step=90, stage="run", event="blocked", layout="", **second),
        ]
    else:
        end = [
            _gate(90, "anneal", "promote", "bits per byte fell by 0.16 under pretrain's 2.11"),
            *(step_record(step, stage="long_context", attempt=1) for step in range(91, 111)),
            eval_record(110, "long_context", 1.9, attempt=1),
            StageRecord(step=110, stage="run", event="done", layout="", **second),
        ]
    return before_crash + after_crash + end


def write_frozen_config(run_directory: Path, mode: str, **wandb: Any) -> None:
    """Write config.yaml as far as wandb's feeder reads it."""
    section = {"mode": mode, "project": "autarky-test", "entity": None, "group": None, "tags": [], "alerts": True}
    config = {
        "run": {"name": "demo"},
        "optimizer": {"lr": 0.001},
        "reporting": {"wandb": section | {"system_every_seconds": 1.0} | wandb},
    }
    (run_directory / "config.yaml").write_text(yaml.safe_dump(config))


def write_example_run(run_directory: Path, *, blocked: bool = False) -> Path:
    """Return the run directory, filled."""
    run_directory.mkdir()
    log = MetricsLog(run_directory / "metrics.jsonl")
    for record in records(blocked=blocked):
        log.append(record)
    log.close()
    ledger = {
        "version": 1,
        "state": "blocked" if blocked else "done",
        "stages": [{"name": name} for name, _ in STAGES],
    }
    (run_directory / "stages.json").write_text(json.dumps(ledger))
    (run_directory / "overrides.yaml").write_text("- experiment=demo\n- run.name=it's mine\n- resume=never\n")
    environment = {"python": "3.11.7", "packages": {"torch": "2.13.0", "deepspeed": "0.19.8"}}
    (run_directory / "environment.json").write_text(json.dumps(environment))
    return run_directory
