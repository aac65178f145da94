"""Say what a run will take before it starts: memory, time, traffic, goodput, price. Needs neither torch nor the data.

    python -m launch.plan [group=choice …] [key=value …] [--json] [--html FILE]
                          [--search [--nodes N,N,…] [--top N] [--ours]] [--software NAME]
    python -m launch.plan --calibrate FILE RUN_DIR …

--search plans every legal layout of the first training stage's model and batch on the cluster and ranks those that
fit; --nodes adds other sizes of the cluster, --ours leaves out what no engine of this version runs, --top says how many
are shown. --software plans as another program would run it. --json prints all numbers, --html writes them as a page
with charts. --calibrate reads real runs and writes the constants that fit them best; cluster.calibration=FILE uses
them. Exit code 0 also if a plan does not fit: it says so. Others: docs/exit_codes.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.plan_numbers import plan_numbers, search_numbers
from launch.plan_page import write_plan_page
from launch.plan_text import plan_text, search_text
from training.config.load import compose
from training.config.schema import RunConfig
from training.errors import AutarkyError, ConfigError, ExitCode
from training.planner.calibration import calibrate, constants_of, write_calibration
from training.planner.from_config import as_program, job_of
from training.planner.layouts import Limits
from training.planner.run_plan import plan_run
from training.planner.search import SearchResult, search
from training.planner.software import OURS, SOFTWARE
from training.planner.this_machine import with_this_machine

_SHOWN = 10


def main(argv: Sequence[str]) -> int:
    """Print the plan or the error of a command line; return the exit code."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    if (arguments.nodes or arguments.ours) and not arguments.search:
        parser.error("--nodes and --ours say what to search: give --search with them")
    try:
        if arguments.calibrate:
            return _calibrate(arguments.calibrate, [Path(word) for word in arguments.words])
        config = compose(arguments.words, to_plan=True)
        config = with_this_machine(config)
        constants = constants_of(config.cluster)
        plan = plan_run(config, constants, software=arguments.software)
        found, seconds = None, 0.0
        if arguments.search:
            began = time.perf_counter()
            found = _search(config, arguments)
            seconds = time.perf_counter() - began
        if arguments.html:
            write_plan_page(arguments.html, plan, found)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.json:
        numbers = plan_numbers(plan)
        if found is not None:
            numbers["search"] = search_numbers(found, most=arguments.top)
        print(json.dumps(numbers, indent=2))
        return ExitCode.DONE
    print(plan_text(plan))
    if found is not None:
        print("\n" + search_text(found, most=arguments.top, seconds=seconds))
    if arguments.html:
        print(f"\npage: {arguments.html}")
    return ExitCode.DONE


def _search(config: RunConfig, arguments: argparse.Namespace) -> SearchResult:
    """Search for the layout of the first training stage."""
    name, stage = next(iter(config.stages.items()))
    return search(
        as_program(job_of(config, name), arguments.software or OURS[0]),
        [
            Limits(
                world_size=num_nodes * config.cluster.processes_per_node,
                global_batch=stage.global_batch_sequences,
                only_ours=arguments.ours,
            )
            for num_nodes in sorted({config.cluster.num_nodes, *arguments.nodes})
        ],
        constants_of(config.cluster),
    )


def _calibrate(file: Path, run_directories: Sequence[Path]) -> int:
    if not run_directories:
        raise ConfigError("--calibrate", file, "there is nothing to learn from", "name run directories behind it")
    calibration = calibrate(run_directories)
    write_calibration(file, calibration)
    print(calibration.describe())
    print(f"written: {file}; cluster.calibration={file} uses it")
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="as launch.submit takes them")
    parser.add_argument("--search", action="store_true", help="rank all legal layouts")
    parser.add_argument(
        "--nodes", type=_numbers, default=[], metavar="N,N", help="search these sizes of the cluster too"
    )
    parser.add_argument("--ours", action="store_true", help="search only what an engine of this version runs")
    parser.add_argument(
        "--software",
        choices=sorted(SOFTWARE),
        metavar="NAME",
        help=f"plan as another program would run it: {', '.join(sorted(SOFTWARE))}",
    )
    parser.add_argument(
        "--top", type=_positive, default=_SHOWN, metavar="N", help=f"layouts to show (default {_SHOWN})"
    )
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts")
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="write constants that fit the runs named")
    return parser


def _numbers(text: str) -> list[int]:
    numbers = [int(number) for number in text.split(",")]
    if min(numbers) < 1:
        raise ValueError("a cluster has a node at least")
    return numbers


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError("at least 1")
    return int(text)


_numbers.__name__, _positive.__name__ = "numbers of nodes, such as 512,1024:", "number, at least 1:"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
