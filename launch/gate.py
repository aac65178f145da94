"""Say what a run's gates decided, or decide in their place.

    python -m launch.gate RUN_DIR
    python -m launch.gate RUN_DIR TRAINING_STAGE approve|reject --by NAME --because TEXT

An answer counts for the evaluation that was made, and no later one; `resume=auto` goes on from it.
"""

import argparse
import datetime
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.config.approval import Answer, Approval, sha256_of, write_approval
from training.config.run_directory import LEDGER_NAME
from training.errors import AutarkyError, ConfigError, ExitCode
from training.plain_files import read_json


def main(argv: Sequence[str]) -> int:
    """Print the gates of a run, or write an answer."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.gate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_directory", type=Path)
    parser.add_argument("training_stage", nargs="?")
    parser.add_argument("answer", nargs="?", choices=[answer.value for answer in Answer])
    parser.add_argument("--by", help="who decides")
    parser.add_argument("--because", help="why")
    options = parser.parse_args(argv)
    try:
        stages, rolled_back = _ledger(options.run_directory)
        if options.answer is None:
            for line in _described(stages, rolled_back, options.training_stage):
                print(line)
        else:
            print(_answer(options, stages))
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return ExitCode.DONE


def _answer(options: argparse.Namespace, stages: list[dict[str, Any]]) -> str:
    for option in ("by", "because"):
        if not (getattr(options, option) or "").strip():
            reason = "an answer says who gave it and why; both stay in the ledger"
            raise ConfigError(f"--{option}", getattr(options, option), reason, "--by NAME --because TEXT")
    entry = _entry(stages, options.training_stage)
    if entry["status"] != "blocked" or entry["evaluation"] is None:
        reason = f"training stage {entry['name']} is {entry['status']}: its gate asks nobody"
        blocked = [stage["name"] for stage in stages if stage["status"] == "blocked"]
        raise ConfigError("TRAINING_STAGE", entry["name"], reason, f"blocked now: {', '.join(blocked) or 'none'}")
    report = options.run_directory / entry["evaluation"]["path"]
    try:
        sha256 = sha256_of(report)
    except OSError as error:
        raise ConfigError(
            "RUN_DIR", options.run_directory, f"its report cannot be read: {error}", "restore it"
        ) from error
    approval = Approval(
        answer=options.answer,
        by=options.by.strip(),
        because=options.because.strip(),
        time=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        report_sha256=sha256,
    )
    path = write_approval(options.run_directory, entry["name"], approval)
    again = f"run.id={options.run_directory.resolve().name} resume=auto"
    return f"{path}: {approval.reason}\n  -> the same launch.submit command with {again} goes by it"


def _described(stages: list[dict[str, Any]], rolled_back: list[dict[str, Any]], name: str | None) -> Iterator[str]:
    for entry in stages if name is None else [_entry(stages, name)]:
        gate = entry["gate"]
        yield f"{entry['name']}: {entry['status']}" + (f", gate: {gate['decision']}" if gate else "")
        yield from (f"  {reason}" for reason in (gate["reasons"] if gate else []))
        for left in rolled_back:
            if left["name"] == entry["name"]:
                yield f"  rolled back, its weights are in {left['checkpoint']}:"
                yield from (f"    {reason}" for reason in left["gate"]["reasons"])


def _ledger(run_directory: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the entries of all training stages, and of those that were rolled back, as JSON objects."""
    path = run_directory / LEDGER_NAME
    try:
        ledger = read_json(path)
        stages, rolled_back = ledger["stages"], ledger.get("rolled_back", [])
        for entry in [*stages, *rolled_back]:
            _ = entry["name"], entry["status"], entry["evaluation"], entry["gate"]
        for entry in rolled_back:
            _ = entry["checkpoint"], entry["gate"]["reasons"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{path} is no ledger ({type(error).__name__}: {error})"
        raise ConfigError("RUN_DIR", run_directory, reason, "give a run directory, runs/RUN_ID") from error
    return stages, rolled_back


def _entry(stages: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for entry in stages:
        if entry["name"] == name:
            return entry
    names = ", ".join(entry["name"] for entry in stages)
    raise ConfigError("TRAINING_STAGE", name, "the run has no such training stage", f"it has: {names}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
