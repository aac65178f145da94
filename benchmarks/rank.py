"""One rank of a contestant: python -m benchmarks.rank MODULE [override …]."""

import importlib
import sys
from collections.abc import Callable

from benchmarks.turns import Steps, Turns
from training.config.load import compose
from training.config.schema import RunConfig

Train = Callable[[RunConfig, str, Steps], None]


def main() -> None:
    """Train the named contestant, turn by turn, until the command ends it."""
    turns = Turns()
    config = compose(sys.argv[2:])
    contestant(sys.argv[1])(config, next(iter(config.stages)), turns)


def contestant(module: str) -> Train:
    """Return the `train` of a module of benchmarks.

    No other is imported: their libraries take seconds and memory, and change settings of torch.
    """
    return importlib.import_module(f"benchmarks.{module}").train


if __name__ == "__main__":
    main()
