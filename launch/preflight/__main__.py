"""Check the nodes of a run before a GPU-hour is spent.

    python -m launch.preflight [RUN_DIR | experiment=… key=value …] [--json]
    python -m launch.preflight RUN_DIR --node-only [--json]

Checks disk space and speed, the shared folder, versions, clocks, the rendezvous port, GPUs, NVLink, InfiniBand and the
bandwidth of a collective, on all nodes at the same time and each bounded in time. With --node-only just this machine,
without what only several nodes can show. Exit code 0, or 13 with a table of nodes, what was seen and what to do.
Limits: cluster.preflight in conf/README.md.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.preflight.across import to_json
from launch.preflight.before_start import check_all, remedy
from launch.preflight.findings import NodeReport, table
from launch.preflight.node import Place, blind, check_node, to_line
from training.config.load import FROZEN_NAME, compose, load_frozen
from training.config.schema import RunConfig
from training.errors import AutarkyError, ExitCode


def main(argv: Sequence[str]) -> int:
    """Print the table, or JSON, and return the exit code."""
    begun = time.time()
    options = _parser().parse_args(argv)
    try:
        if options.number is not None:
            place = Place(folder=Path(options.words[0]), number=options.number, count=options.count, meet=options.meet)
            report = check_node(load_frozen(place.folder), place) if _is_run_directory(options.words) else blind(place)
            print(to_line(report, place, begun=begun), flush=True)
            return ExitCode.DONE  # whoever asked judges
        config = _config(options.words)
        reports = [check_node(config)] if options.node_only else check_all(config)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return _tell(config, reports, as_json=options.json)


def _tell(config: RunConfig, reports: Sequence[NodeReport], *, as_json: bool) -> ExitCode:
    failed = any(report.failed for report in reports)
    print(to_json(reports) if as_json else table(reports))
    if failed and not as_json:
        print(f"  -> {remedy(config, reports)}", file=sys.stderr)
    return ExitCode.PREFLIGHT if failed else ExitCode.DONE


def _config(words: list[str]) -> RunConfig:
    if _is_run_directory(words):
        return load_frozen(Path(words[0]))
    return compose(words)


def _is_run_directory(words: list[str]) -> bool:
    return len(words) == 1 and (Path(words[0]) / FROZEN_NAME).is_file()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch.preflight", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="RUN_DIR or key=value", help="a run directory, or overrides")
    parser.add_argument("--json", action="store_true", help="print JSON: the bad nodes, and all findings")
    parser.add_argument("--node-only", action="store_true", help="check only the machine that this runs on")
    parser.add_argument("--number", type=int, help="for the one who asks all nodes: index of this node")
    parser.add_argument("--count", type=int, default=1, help="… number of nodes")
    parser.add_argument("--meet", help="… HOST:PORT on node 0 that all others connect to")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
