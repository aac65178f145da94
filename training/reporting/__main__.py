"""`python -m training.reporting RUN_DIR`: write report.html and say in ten lines how the run stands.

With --serve the report follows the run that goes on; with several run directories it compares them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.errors import AutarkyError, ConfigError
from training.reporting.report.comparison_page import write_comparison
from training.reporting.report.live import LiveRun
from training.reporting.report.page import write_report
from training.reporting.report.server import ReportServer, serve_until_told
from training.reporting.report.text_summary import text_summary
from training.reporting.summary import read_run


def main(argv: Sequence[str]) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.reporting", description=__doc__)
    parser.add_argument(
        "run_directories", type=Path, nargs="+", metavar="RUN_DIR", help="for example runs/<run id>; several to compare"
    )
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the page that compares (compare.html)")
    parser.add_argument("--serve", action="store_true", help="show the report on 127.0.0.1 while the run goes on")
    parser.add_argument("--port", type=int, default=0, help="of --serve; 0, the default, takes a free one")
    arguments = parser.parse_args(argv)
    directories: list[Path] = arguments.run_directories
    try:
        if arguments.serve:
            _serve(directories, arguments.port)
        elif len(directories) > 1:
            print(write_comparison(directories, arguments.out))
        else:
            summary = read_run(directories[0])
            print(write_report(directories[0], summary))
            print(text_summary(summary))
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _serve(directories: Sequence[Path], port: int) -> None:
    if len(directories) > 1:
        raise ConfigError("--serve", f"{len(directories)} runs", "one run is served at a time", "give one RUN_DIR")
    run = LiveRun(directories[0])
    try:
        server = ReportServer(run, port=port)
    except (OSError, OverflowError) as error:
        raise ConfigError("--port", port, str(error), "give a free port, or 0 for any that is free") from error
    print(f"{server.address} shows {directories[0]} as it goes on; Ctrl-C ends it", flush=True)
    serve_until_told(server)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
