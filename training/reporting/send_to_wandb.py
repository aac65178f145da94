"""Send what Weights & Biases lacks of a run, from its metrics.jsonl: after an outage, or of an offline run.

    python -m training.reporting.send_to_wandb RUN_DIR

The key is taken from WANDB_API_KEY or ~/.netrc; project, entity, group and tags from the run's config.yaml. What the
server has already is not sent again, so the command may be given at any time and more than once, also between the
starts of a run. While a job feeds the run itself, it is refused.
"""

import argparse
import sys
from pathlib import Path

import wandb

from training.errors import ConfigError, ExitCode, StorageError
from training.reporting.metrics import FILE_NAME
from training.reporting.wandb_feed import WandbFeed


def main() -> None:
    """Send, and say what was sent."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reporting.send_to_wandb",
        description="Send what Weights & Biases lacks of a run, from its metrics.jsonl.",
    )
    parser.add_argument("run_directory", type=Path, help="for example runs/20260101-120000-demo-0a1b2c")
    try:
        num_rows, address = send(parser.parse_args().run_directory)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(ExitCode.BAD_CONFIG)
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(ExitCode.STORAGE)
    sys.stdout.write(f"{num_rows:,} rows sent to {address}\n")


def send(run_directory: Path) -> tuple[int, str | None]:
    """Return how many rows were sent, and the address of the run.

    Raises:
        ConfigError: the directory holds no run, its job feeds wandb itself, or the server cannot be used.
        StorageError: metrics.jsonl cannot be read.
    """
    if not (run_directory / FILE_NAME).is_file():
        reason, remedy = f"there is no {FILE_NAME} in it", "give the directory of a run, for example runs/<run id>"
        raise ConfigError("run directory", run_directory, reason, remedy)
    try:
        with WandbFeed(run_directory, mode="online") as feed:
            if not feed.lock():
                reason, remedy = "a job feeds wandb from it", "wait for its end; it delivers what is there"
                raise ConfigError("run directory", run_directory, reason, remedy)
            address = feed.start()
            feed.feed(lambda: False)
            feed.finish()
            return feed.num_rows, address
    except wandb.Error as error:
        remedy = "set WANDB_API_KEY (and WANDB_BASE_URL for a server of your own), then give the command again"
        raise ConfigError("wandb", type(error).__name__, str(error), remedy) from error
    except (OSError, ValueError, KeyError) as error:
        remedy = "repair it, or give the directory of a run that launch.submit made"
        raise ConfigError("run directory", run_directory, f"it cannot be read: {error}", remedy) from error


if __name__ == "__main__":
    main()
