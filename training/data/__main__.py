"""Prepare training data, or look at it.

python -m training.data prepare experiment=demo [key=value …]
python -m training.data inspect experiment=demo [key=value …] [--batch STAGE:STEP]
"""

import argparse
import json
import shlex
import sys
import time
from dataclasses import asdict

from training.config.load import compose
from training.config.schema import RunConfig
from training.data.loader import StageLoader
from training.data.prepare import prepare
from training.data.shards import PreparedData
from training.errors import AutarkyError, ConfigError

_SHOWN_CHARACTERS = 72


def main(arguments: list[str]) -> int:
    """Run one command and return the exit code of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data", description="Prepare training data, or look at it."
    )
    parser.add_argument("command", choices=["prepare", "inspect"])
    parser.add_argument("overrides", nargs="*", help="experiment=NAME key=value …, as for launch.submit")
    parser.add_argument("--batch", metavar="STAGE:STEP", help="inspect: show a global batch (steps count from 0)")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = compose(options.overrides)
        if options.command == "prepare":
            _prepare(config)
        else:
            _inspect(config, options.batch, options.overrides)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _prepare(config: RunConfig) -> None:
    start_seconds = time.perf_counter()
    prepared = prepare(config.data)
    seconds = time.perf_counter() - start_seconds
    header = ["source", "documents", "held out", "tokens", "bytes", "bytes/token", "skipped", "licence"]
    rows = [header]
    for name, source in prepared.manifest.sources.items():
        num_tokens = source.train.num_tokens + source.held_out.num_tokens
        num_bytes = source.train.num_bytes + source.held_out.num_bytes
        rows.append(
            [
                name,
                f"{source.train.num_records + source.held_out.num_records:,}",
                f"{source.held_out.num_records:,}",
                f"{num_tokens:,}",
                f"{num_bytes:,}",
                f"{num_bytes / num_tokens:.2f}",
                ", ".join(f"{count} {reason}" for reason, count in source.quarantined.items()) or "0",
                source.licence,
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{prepared.directory}: {prepared.tokenizer.vocab_size:,} tokens in the vocabulary, {seconds:.1f} s")


def _inspect(config: RunConfig, batch: str | None, overrides: list[str]) -> None:
    prepare_command = shlex.join(["python", "-m", "training.data", "prepare", *overrides])
    prepared = PreparedData.open(config.data, verify=True, prepare_command=prepare_command)
    if batch is None:
        print(json.dumps({"fingerprint": prepared.fingerprint, **asdict(prepared.manifest)}, indent=1))
        return
    training_stage, _, step = batch.rpartition(":")
    if training_stage not in config.stages or not step.isdecimal():
        raise ConfigError(
            "--batch", batch, "it is not STAGE:STEP", f"a stage of {list(config.stages)} and a step counted from 0"
        )
    loader = StageLoader(prepared, config, training_stage)
    print(f"training stage {training_stage}, step {step}, batch_id {loader.batch_id(int(step))}")
    for index in loader.batch_samples(int(step)):
        sample = loader.sample(index)
        text = prepared.tokenizer.decode(sample.token_ids[:_SHOWN_CHARACTERS].tolist())[:_SHOWN_CHARACTERS]
        print(f"{index:>8}  {sample.source} window {sample.window}: {text!r}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
