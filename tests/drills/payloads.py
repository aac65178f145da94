"""Malicious files in every place that a command or a start reads: no code of theirs runs, no memory is filled.

    python -m tests.drills.payloads --count 1 --seed 0

Every payload is opened through the real entry point in a process of its own with limits on time and memory. It has to
end with the exit code of one of our errors (or do its work without the file, where that is right), without a
traceback, and the marker that the payload's code would make must not exist. --count repeats all of them.
"""

import argparse
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.drills.bounded import bounded
from tests.drills.payload_cases import Case, all_cases
from tests.drills.payload_places import Places, make_places


@dataclass(kw_only=True)
class Tally:
    """What a drill did and what went wrong."""

    cases: int = 0
    slowest_seconds: float = 0.0
    slowest: str = ""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"payloads: {self.cases} opened, no code of theirs ran; the slowest took {self.slowest_seconds:.1f} s "
            f"({self.slowest}); {len(self.problems)} problems"
        )


def main(argv: list[str]) -> int:
    """Run the drill and print its line."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.payloads", description=__doc__)
    parser.add_argument("--count", type=int, default=1, help="how often each payload is opened")
    parser.add_argument("--seed", type=int, default=0, help="of their order")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args(argv)
    cases = [case for case in all_cases() if options.only in case.name] * options.count
    tally = drill(cases, options.seed)
    print(*tally.problems, sep="\n", end="\n" if tally.problems else "")
    print(tally)
    return int(bool(tally.problems))


def drill(cases: list[Case], seed: int) -> Tally:
    """Open every payload, in an order drawn from the seed."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as root:
        good = make_places(Path(root) / "good")
        for number, case in enumerate(random.Random(seed).sample(cases, len(cases))):
            places = good.copied(Path(root) / str(number), case.needs)
            try:
                _open(case, places, tally)
            finally:
                shutil.rmtree(places.root)
    return tally


def _open(case: Case, places: Places, tally: Tally) -> None:
    case.plant(places)
    ended = bounded(case.work(places), places.root / "output")
    tally.cases += 1
    if ended.seconds > tally.slowest_seconds:
        tally.slowest_seconds, tally.slowest = ended.seconds, case.name
    problems = []
    if ended.code not in case.codes:
        problems.append(f"ended with {ended.code}, expected {sorted(map(int, case.codes))}")
    if "Traceback" in ended.output:
        problems.append("showed a traceback")
    if len(ended.output) > 100_000:
        problems.append(f"printed {len(ended.output):,} characters")
    if ended.code != 0 and not ended.output.strip():
        problems.append("said nothing")
    if places.marker.exists():
        problems.append("RAN CODE of the payload")
    if problems:
        tally.problems.append(f"{case.name}: {'; '.join(problems)}\n{ended.output[-1500:]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
