"""One rank of a contestant: python -m benchmarks.rank NAME [override …]."""

import sys
from collections.abc import Callable

from benchmarks import autarky, ddp, fsdp2_pipeline, hf_trainer
from benchmarks.turns import Steps, Turns
from training.config.load import compose
from training.config.schema import RunConfig

TRAIN: dict[str, Callable[[RunConfig, str, Steps], None]] = {
    "autarky": autarky.train,
    "ddp": ddp.train,
    "fsdp2_pipeline": fsdp2_pipeline.train,
    "hf_trainer": hf_trainer.train,
}


def main() -> None:
    """Train the named contestant, turn by turn, until the command ends it."""
    turns = Turns()
    config = compose(sys.argv[2:])
    TRAIN[sys.argv[1]](config, next(iter(config.stages)), turns)


if __name__ == "__main__":
    main()
