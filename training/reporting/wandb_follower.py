"""The process that feeds wandb (started by wandb_view): follow metrics.jsonl until standard input ends.

Standard input holds one line, the settings; its end, however it comes, means that the trainer is done or dead.
Standard output carries one line at most, for the trainer's log: what went wrong.

Where the server cannot be used (gone, silent, an error, no key) the run is kept offline, for `wandb sync` to send.
"""

import json
import logging
import os
import select
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import wandb

from training.reporting.item_tables import items_in_run
from training.reporting.metrics import FILE_NAME, MetricsReader
from training.reporting.records import EvalRecord, GateRecord, Record, StageRecord, StepRecord

_log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_INIT_TIMEOUT_SECONDS = 60.0
_FINISH_TIMEOUT_SECONDS = 60.0
_MOST_ROWS = 1000
"""Items of a benchmark in a table of one evaluation."""
_ORPHAN_LIMIT_SECONDS = 300
"""A follower whose trainer was killed ends itself after this, whatever wandb waits for."""


def wandb_row(record: Record) -> dict[str, Any]:
    """Return what one record logs: `step`, `tokens` where known, and its fields under the record's namespace.

    wandb's own `_step` starts again at 0 when an offline run is resumed, so it is never used as an axis.
    """
    values = {name: value for name, value in asdict(record).items() if name not in ("step", "tokens")}
    row: dict[str, Any] = {"step": record.step}
    match record:
        case StepRecord():
            row["tokens"] = record.tokens
            experts = values.pop("experts") or {}
            numbers = {f"train/{name}": value for name, value in values.items()}
            return row | numbers | {f"experts/{name}": value for name, value in experts.items()}
        case EvalRecord():
            texts = [f"{sample['prompt']}|{sample['text']}" for sample in values.pop("samples")]
            if record.bits_per_byte is None:
                del values["bits_per_byte"]
            numbers = values.pop("metrics") | values | {"samples": "\n\n".join(texts)}
            return row | {f"eval/{record.suite}/{name}": value for name, value in numbers.items()}
        case GateRecord():
            values["reasons"] = "\n".join(record.reasons)
            values["promoted"] = int(record.decision == "promote")
    return row | {f"{record.kind}/{name}": value for name, value in values.items()}


def item_tables(record: Record, run_directory: Path) -> dict[str, wandb.Table]:
    """Return the tables of items that a record logs: those of an evaluation at the start or a training stage's end."""
    if not isinstance(record, EvalRecord) or record.in_between or not record.report:
        return {}
    found = items_in_run(run_directory, record.report, most_rows=_MOST_ROWS)
    if found.fault is not None:
        _log.error("the items of %s are not in wandb: %s", found.path, found.fault)
    tables = {}
    for table in found.tables:
        if table.num_left_out:
            _log.info("wandb has the first %d items of %s in %s", len(table.rows), table.task, found.path)
        tables[f"eval/{record.suite}/{table.task}/per_item"] = wandb.Table(
            columns=["after", *table.columns],
            data=[[record.stage, *row] for row in table.rows],
            allow_mixed_types=True,  # cells are numbers, texts or nothing, as the items have them
        )
    return tables


def _start_run(settings: dict[str, Any], mode: Literal["online", "offline"]) -> wandb.Run:
    run = wandb.init(
        id=settings["run_id"],
        name=settings["run_id"],
        resume="allow",
        dir=settings["run_directory"],
        mode=mode,
        project=settings["project"],
        entity=settings["entity"],
        config=settings["config"],
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=_INIT_TIMEOUT_SECONDS,
            finish_timeout=_FINISH_TIMEOUT_SECONDS,
            x_stats_pid=settings["trainer_pid"],
            # A git remote may hold a password, an argument anything: what matters of both is in the config.
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
        ),
    )
    run.define_metric("step")
    run.define_metric("tokens", step_metric="step")
    for namespace in ("train", "eval", "gate", "checkpoint", "incident", "stage"):
        run.define_metric(f"{namespace}/*", step_metric="step")
    return run


def _start_run_somewhere(settings: dict[str, Any], tell: int) -> wandb.Run:
    """Return the run as it is configured, or, after a line to the trainer, an offline one."""
    mode = settings["mode"]
    try:
        return _start_run(settings, mode)
    except (wandb.Error, OSError) as error:
        if mode == "offline":
            raise
        _log.error("wandb could not start a run in mode %s: %s", mode, error)
        wandb.teardown()
        run = _start_run(settings, "offline")
        os.write(tell, f"could not start in mode {mode} ({type(error).__name__}) and keeps the run offline\n".encode())
        return run


def _follow(run: wandb.Run, reader: MetricsReader, run_directory: Path) -> bool:
    """Log records until standard input ends; return whether the last one said that the run is done."""
    done = False
    ended = False
    while not ended:
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
        ended = bool(readable) and not sys.stdin.read(1)
        for record in reader.read_new().records:  # once more after the end: the last lines are already written
            row = wandb_row(record)
            try:
                run.log(row | item_tables(record, run_directory))
            except OSError as error:  # where wandb keeps the files of tables until they are sent
                _log.error("the items of %s are not in wandb: %s", record.stage, error)
                run.log(row)
            done = isinstance(record, StageRecord) and record.event == "done"
    return done


def main() -> None:
    """Follow one job from its settings line to the end of its input."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a job's SIGTERM goes to all its processes; our end is stdin's
    tell = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to our log, not to the trainer
    settings = json.loads(sys.stdin.readline())
    run_directory = Path(settings["run_directory"])
    reader = MetricsReader(run_directory / FILE_NAME, offset_bytes=settings["offset_bytes"])
    try:
        run = _start_run_somewhere(settings, tell)
    except (wandb.Error, OSError) as error:
        _log.error("wandb could not start a run: %s", error)
        sys.exit(1)
    done = _follow(run, reader, run_directory)
    signal.alarm(_ORPHAN_LIMIT_SECONDS)
    run.finish(exit_code=0 if done else 1)


if __name__ == "__main__":
    main()
