"""The process that feeds wandb (started by wandb_view): it follows metrics.jsonl until standard input ends.

Standard input holds one line, the settings; its end, however it comes, means that the trainer is done or dead.
Standard output carries one line at most, for the trainer's log: what went wrong.

A server that cannot be used is asked again every minute. Until then, and if it never can, the rows are where they
always are: in metrics.jsonl.
"""

import contextlib
import json
import logging
import os
import select
import signal
import sys
from pathlib import Path

import wandb

from training.errors import StorageError
from training.reporting.wandb_feed import WandbFeed

_log = logging.getLogger(__name__)

_POLL_SECONDS = 2.0
_RETRY_SECONDS = 60.0
_FINISH_TIMEOUT_SECONDS = 60.0
_ORPHAN_LIMIT_SECONDS = 300
"""A follower whose trainer was killed ends itself after this, whatever wandb waits for."""
_NICENESS = 10
"""Low, but not so low that it starves where ranks keep every core busy."""


def main() -> None:
    """Follow one job from its settings line to the end of its input."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a job's SIGTERM goes to all its processes; our end is stdin's
    _give_way()
    tell = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to our log, not to the trainer
    settings = json.loads(sys.stdin.readline())
    feed = WandbFeed(
        Path(settings["run_directory"]),
        trainer_pid=settings["trainer_pid"],
        finish_timeout_seconds=_FINISH_TIMEOUT_SECONDS,
    )
    with feed:
        while not feed.lock():  # by the follower of the start before, on its way out, or by send_to_wandb
            if not _goes_on(_POLL_SECONDS):
                sys.exit("another process feeds this run")
        has_told = False
        while not _feed_to_the_end(feed):
            if not has_told:
                os.write(tell, f"cannot be used in mode {feed.mode} for now; it is tried again\n".encode())
                has_told = True
            if not _goes_on(_RETRY_SECONDS):
                sys.exit("wandb could not be used until the end")


def _feed_to_the_end(feed: WandbFeed) -> bool:
    """Feed until standard input ends; return False if wandb fails before."""
    try:
        feed.start()
        feed.feed(lambda: _goes_on(_POLL_SECONDS))
        signal.alarm(_ORPHAN_LIMIT_SECONDS)
        feed.finish()
    except (wandb.Error, OSError, StorageError) as error:  # of the network, of the disk, or of wandb's own process
        _log.error("wandb cannot be used in mode %s: %s: %s", feed.mode, type(error).__name__, error)
        with contextlib.suppress(wandb.Error, OSError):
            wandb.teardown(exit_code=1)
        return False
    return True


def _goes_on(wait_seconds: float) -> bool:
    """Wait; return False as soon as standard input ends."""
    readable, _, _ = select.select([sys.stdin], [], [], wait_seconds)
    return not readable or bool(sys.stdin.read(1))


def _give_way() -> None:
    """Let training's processes have the processor whenever they want it; wandb's own processes inherit that."""
    os.nice(_NICENESS)
    # Linux may weigh sessions first and processes within them only then; this process leads a session.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_NICENESS))


if __name__ == "__main__":
    main()
