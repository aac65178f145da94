"""`python -m training.reporting RUN_DIR`: write or refresh report.html and say in ten lines how the run stands."""

import argparse
import sys
from pathlib import Path

from training.errors import AutarkyError
from training.reporting.report import text_summary, write_report
from training.reporting.summary import read_run


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.reporting", description=__doc__)
    parser.add_argument("run_directory", type=Path, metavar="RUN_DIR", help="for example runs/<run id>")
    run_directory: Path = parser.parse_args().run_directory
    try:
        path = write_report(run_directory)
        print(path)
        print(text_summary(read_run(run_directory)))
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
