"""Show a pipeline schedule and prove that it runs.

python -m training.parallel --schedule interleaved --pipeline 4 --chunks 2 --micro-batches 8 [--backward-ratio 2]
"""

import argparse
import sys
from collections.abc import Callable
from math import inf
from typing import NoReturn

from training.errors import ConfigError, ExitCode
from training.parallel.program import Send, check_programs, programs
from training.parallel.schedule import SCHEDULE_NAMES, Schedule, check, make_schedule, peak_in_flight
from training.parallel.simulate import simulate, text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line on stderr, without the usage."""
        self.exit(ExitCode.BAD_CONFIG, f"{self.prog}: {message}\n")


def main(arguments: list[str]) -> ExitCode:
    """Print diagram, checks and figures of one schedule; returns the exit code."""
    parser = _Parser(prog="python -m training.parallel", description="Show a pipeline schedule and prove that it runs.")
    parser.add_argument("--schedule", choices=SCHEDULE_NAMES, default="1f1b")
    parser.add_argument("--pipeline", type=_positive(int), required=True, help="pipeline stages")
    parser.add_argument("--chunks", type=_positive(int), default=1, help="chunks of the model on each pipeline stage")
    parser.add_argument("--micro-batches", type=_positive(int), required=True, help="of one optimizer step")
    parser.add_argument("--backward-ratio", type=_positive(float), default=2.0, help="cost of backward over forward")
    options = parser.parse_args(arguments)
    try:
        schedule = make_schedule(
            options.schedule,
            num_pipeline_stages=options.pipeline,
            chunks_per_rank=options.chunks,
            num_micro_batches=options.micro_batches,
        )
    except ConfigError as error:
        parser.error(str(error).replace("\n ", ""))
    print(text(schedule))
    print("letter: chunk of the pipeline stage, capital when backward; number: micro-batch; dot: idle\n")
    print("\n".join(describe(schedule, backward_ratio=options.backward_ratio)))
    return ExitCode.DONE


def describe(schedule: Schedule, *, backward_ratio: float) -> list[str]:
    """Return lines for people: what was checked, the bubble, memory and traffic.

    Raises:
        ScheduleError: the schedule or its programs cannot run.
    """
    check(schedule)
    steps = programs(schedule)
    check_programs(steps)
    timeline = simulate(
        schedule,
        forward_seconds=[1.0] * schedule.num_chunks,
        backward_seconds=[backward_ratio] * schedule.num_chunks,
    )
    num_transfers = sum(isinstance(step, Send) for program in steps for step in program)
    return [
        "check      every pass once and in order; the programs end even if every send waits for its receive",
        f"bubble     {timeline.bubble:.1%} (equal chunks, backward = {backward_ratio:g} x forward, transfers free)",
        f"in flight  {' '.join(map(str, peak_in_flight(schedule)))} micro-batches x chunks, by pipeline stage",
        f"transfers  {num_transfers} each step",
    ]


def _positive(parse: Callable[[str], float]) -> Callable[[str], float]:
    def positive(value: str) -> float:
        number = parse(value)
        if not 0 < number < inf:
            raise ValueError
        return number

    positive.__name__ = f"positive {parse.__name__}"  # argparse: "invalid positive int value: '0'"
    return positive


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
