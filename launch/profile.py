"""Ask a run for a profile of its next steps, while it goes on.

    python -m launch.profile RUN_DIR --steps 3 [--ranks 0,1] [--memory]

Each rank looks at RUN_DIR/profile.json at most once a second, so the steps begin a few seconds ahead. The traces are
RUN_DIR/profiles/step-*-rank-*.json.gz; https://ui.perfetto.dev opens them.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from training.config.load import load_frozen
from training.config.profile_request import write_profile_request
from training.config.reporting_schema import ProfileConfig
from training.config.run_directory import is_done
from training.errors import AutarkyError, ConfigError, ExitCode
from training.reporting.metrics import FILE_NAME as METRICS_NAME
from training.reporting.metrics import last_record
from training.reporting.records import StartRecord, StepRecord

MOST_STEPS = 50
"""A trace of more would be too large for any viewer."""
_LEAD_SECONDS = 5.0
"""Until the first step: what the ranks take to look, and a shared file system to show them the file."""


def main(argv: Sequence[str]) -> int:
    """Write the request."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_directory", type=Path)
    parser.add_argument("--steps", type=int, default=3, help=f"how many, 1 to {MOST_STEPS}")
    parser.add_argument("--ranks", default="0", help="which write, for example 0,8")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="also what was allocated; a snapshot by line where the device's torch keeps one",
    )
    options = parser.parse_args(argv)
    try:
        request = request_for(
            options.run_directory, num_steps=options.steps, ranks=options.ranks, memory=options.memory
        )
        path = write_profile_request(options.run_directory, request)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    ranks = ", ".join(map(str, request.ranks))
    print(f"{path}: steps {request.steps[0]} to {request.steps[-1]} of rank {ranks}")
    return ExitCode.DONE


def request_for(run_directory: Path, *, num_steps: int, ranks: str, memory: bool) -> ProfileConfig:
    """Return a request for steps that no rank has begun when it sees the file.

    Raises:
        ConfigError: it is no run directory, the run is done or too near its end, or it has no such ranks.
    """
    config = load_frozen(run_directory)
    if is_done(run_directory):
        raise ConfigError("RUN_DIR", run_directory, "the run is done", "profile a run that still trains")
    if not 1 <= num_steps <= MOST_STEPS:
        raise ConfigError("--steps", num_steps, f"it is not 1 to {MOST_STEPS}", "--steps 3 is usual")
    start = last_record(run_directory / METRICS_NAME, StartRecord.kind) or {}
    world_size = start.get("world_size", config.world_size)
    last = last_record(run_directory / METRICS_NAME, StepRecord.kind) or {"step": 0, "seconds": 1.0}
    first = last["step"] + 2 + math.ceil(_LEAD_SECONDS / max(last["seconds"], 1e-3))
    total = sum(config.num_steps(name) for name in config.stages)
    if first + num_steps - 1 > total:
        raise ConfigError(
            "--steps",
            num_steps,
            f"the run is at step {last['step']} of {total}, and ranks see the request by step {first}",
            "reporting.profile.steps=[…] of another start chooses steps beforehand",
        )
    return ProfileConfig(steps=list(range(first, first + num_steps)), ranks=_ranks(ranks, world_size), memory=memory)


def _ranks(text: str, world_size: int) -> list[int]:
    try:
        ranks = sorted({int(rank) for rank in text.split(",")})
    except ValueError:
        ranks = []
    if not ranks or ranks[0] < 0 or ranks[-1] >= world_size:
        reason = f"the run has ranks 0 to {world_size - 1}"
        raise ConfigError("--ranks", text, reason, "give their numbers with commas between, for example 0,1")
    return ranks


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
