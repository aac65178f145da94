"""One rank of a contestant: python -m benchmarks.rank MODULE [override …]."""

import importlib
import sys

from benchmarks.turns import Turns
from training.config.load import compose


def main() -> None:
    """Train the named contestant, turn by turn, until the command ends it."""
    turns = Turns()
    config = compose(sys.argv[2:])
    # Only this one: the libraries of the others take seconds and memory, and change settings of torch.
    contestant = importlib.import_module(f"benchmarks.{sys.argv[1]}")
    contestant.train(config, next(iter(config.stages)), turns)


if __name__ == "__main__":
    main()
