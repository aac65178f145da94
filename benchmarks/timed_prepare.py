"""Prepare data and print the seconds that it took, the start of the process left out.

python -m benchmarks.timed_prepare [override …]
"""

import json
import sys
import time

from training.config.load import compose
from training.data.prepare import prepare
from training.data.progress import reporter_on_stderr


def main(overrides: list[str]) -> None:
    """Do what `python -m training.data prepare` does, and print the seconds of the preparation as JSON."""
    config = compose(overrides)
    begun = time.perf_counter()
    with reporter_on_stderr() as reporter:
        prepare(config.data, reporter=reporter)
    print(json.dumps({"seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main(sys.argv[1:])
