"""Where ranks leave word of how a run ended; `launch/` reads it, and whoever starts the next attempt puts it away."""

import contextlib
import os
from pathlib import Path

RANK_EXIT = "exit.json"
"""{"exit_code": …, "error": …} of the first failing rank, in the run directory."""
EARLIER_EXIT = "exit.earlier.json"
"""What it is called once the next attempt begins, whose first rank records a hang."""
RANK_ERRORS = "rank-*.error"
"""Texts that failing ranks leave in RUN_DIR/logs."""


def put_away(run_directory: Path) -> None:
    """Put away what an earlier attempt reported, so that it is not taken for this one's."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(run_directory / RANK_EXIT, run_directory / EARLIER_EXIT)
    for file in (run_directory / "logs").glob(RANK_ERRORS):
        file.unlink(missing_ok=True)
