"""Is our model on par with the partner's? Two reports of the same suite, compared item by item.

    python -m eval.compare OURS.json PARTNERS.json [--margin 0.02] [--confidence 0.95] [--output FILE.json]

--margin says how much worse still counts as on par, in units of each metric (shares of right answers, bits per byte).
Prints yes, no or "not enough data", with about how many more items would tell. Exit code 0 for yes, 3 otherwise.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from eval.comparison import Comparison, Verdict, compare
from eval.evidence import read_items
from training.durable_files import write_durably
from training.errors import AutarkyError, ExitCode


def main(argv: list[str]) -> ExitCode:
    """Print the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ours", type=Path)
    parser.add_argument("partners", type=Path)
    parser.add_argument("--margin", type=float, default=0.02)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(argv)
    try:
        found = compare(
            read_items(options.ours), read_items(options.partners), margin=options.margin, confidence=options.confidence
        )
        if options.output is not None:
            write_durably(options.output, json.dumps(asdict(found), indent=2) + "\n")
    except AutarkyError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    print("\n".join(lines(found)))  # noqa: T201
    return ExitCode.DONE if found.verdict is Verdict.yes else ExitCode.GATE_BLOCKED


def lines(comparison: Comparison) -> list[str]:
    """Return a sentence per task, what could not be compared, and the verdict."""
    told = [task.reason for task in comparison.tasks.values()]
    if comparison.not_compared:
        told.append(f"only one of the reports has: {', '.join(comparison.not_compared)}")
    return [*told, comparison.reason]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
