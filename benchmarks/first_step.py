"""One rank of the Hugging Face Trainer up to its first step: python -m benchmarks.first_step FILE [override …].

Rank 0 writes FILE when the step is done, which is what `benchmarks.start_up` waits for.
"""

import os
import sys
import time
from pathlib import Path

from benchmarks.hf_trainer import train
from training.config.load import compose


class _FirstStep:
    """Ends the process after the first step."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, reference_seconds: float = 0.0) -> None:
        """Nothing to wait for."""

    def after_step(self, loss_share: float, bubble: float | None = None) -> None:
        """Write the time and end."""
        if os.environ["RANK"] == "0":
            temporary = self._path.with_suffix(".part")
            temporary.write_text(repr(time.time()))
            temporary.replace(self._path)
        os._exit(0)


if __name__ == "__main__":
    config = compose(sys.argv[2:])
    train(config, next(iter(config.stages)), _FirstStep(Path(sys.argv[1])))
