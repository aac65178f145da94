"""Prepare training data, or look at it.

python -m training.data prepare experiment=demo [key=value …]
python -m training.data inspect RUN_DIR | experiment=demo [key=value …] [--batch STEP | STAGE:PLACE]
python -m training.data used RUN_DIR --record ID
"""

import argparse
import json
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path

from training.config.load import compose, load_frozen
from training.config.schema import RunConfig
from training.config.stage_schema import Packing
from training.data.preparation_report import describe_prepared, describe_unfinished
from training.data.prepare import prepare
from training.data.progress import reporter_on_stderr
from training.data.shards import PreparedData
from training.errors import AutarkyError, ConfigError


def main(arguments: list[str]) -> int:
    """Run one command and return the exit code of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data", description="Prepare training data, or look at it."
    )
    parser.add_argument("command", choices=["prepare", "inspect", "used"])
    parser.add_argument("overrides", nargs="*", help="experiment=NAME key=value …, or a run directory")
    parser.add_argument("--batch", metavar="STEP", help="inspect: that step's batch, or STAGE:PLACE in a stage's order")
    parser.add_argument("--record", metavar="ID", help="used: id of the document, conversation or pair")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = _config(options.overrides)
        if options.command == "prepare":
            _prepare(config)
        elif options.command == "inspect":
            _inspect(config, options.batch, options.overrides)
        else:
            _used(config, options.overrides, options.record)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _prepare(config: RunConfig) -> None:
    start_seconds = time.perf_counter()
    with reporter_on_stderr() as reporter:
        prepared = prepare(config.data, reporter=reporter)
    for line in describe_prepared(prepared, seconds=time.perf_counter() - start_seconds):
        print(line)
    _make_packs(prepared, config)
    for line in describe_unfinished(prepared):
        print(line, file=sys.stderr)


def _make_packs(prepared: PreparedData, config: RunConfig) -> None:
    """Make the tables of packs that training stages need and that are missing; print what is in them."""
    packed = [name for name, stage in config.stages.items() if stage.packs_by is Packing.best_fit]
    if not packed:
        return
    from training.data.loader import StageLoader  # torch, a second that other preparations need not spend

    for name in packed:
        for note in StageLoader(prepared, config, name).notes:
            print(f"training stage {name}: {note}")


def _inspect(config: RunConfig, batch: str | None, overrides: list[str]) -> None:
    from training.data.inspection import batch_place, describe_batch  # torch, as above
    from training.data.loader import StageLoader

    prepare_command = shlex.join(["python", "-m", "training.data", "prepare", *overrides])
    prepared = PreparedData.open(config.data, verify=True, prepare_command=prepare_command)
    if batch is None:
        print(json.dumps({"fingerprint": prepared.fingerprint, **asdict(prepared.manifest)}, indent=1))
        return
    training_stage, place = batch_place(config, batch)
    for line in describe_batch(prepared, StageLoader(prepared, config, training_stage), training_stage, place):
        print(line)


def _used(config: RunConfig, words: list[str], record_id: str | None) -> None:
    from training.data.inspection import describe_uses  # torch, as above
    from training.data.sample_ledger import SampleLedger
    from training.reporting.metrics import latest_steps, read_metrics

    if record_id is None or not _is_run_directory(words):
        reason = "it needs a run directory and the id of a record"
        raise ConfigError("used", shlex.join(words), reason, "used RUN_DIR --record ID")
    prepared = PreparedData.open(config.data, prepare_command=f"python -m training.data prepare {words[0]}")
    steps = latest_steps(read_metrics(Path(words[0]) / "metrics.jsonl").records)
    for line in describe_uses(record_id, SampleLedger(prepared, config, steps).uses(record_id)):
        print(line)


def _config(words: list[str]) -> RunConfig:
    return load_frozen(Path(words[0])) if _is_run_directory(words) else compose(words)


def _is_run_directory(words: list[str]) -> bool:
    return len(words) == 1 and (Path(words[0]) / "config.yaml").is_file()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
