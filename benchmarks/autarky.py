"""Contestant: Autarky's engine for the config's layout, fed by its loader."""

from itertools import count

from benchmarks.turns import Steps
from training.config.schema import RunConfig
from training.data.loader import StageLoader
from training.data.prepare import ensure
from training.engine import process_group
from training.engine.build import build_engine


def train(config: RunConfig, training_stage: str, steps: Steps) -> None:
    """Train for ever, as training.stages.runner does between two records."""
    processes = process_group.start(config.fault_tolerance.collective_timeout_seconds)
    loader = StageLoader(ensure(config.data), config, training_stage)
    engine = build_engine(config, training_stage, processes)
    replica, num_replicas = engine.layout.replica_of(processes.rank), engine.layout.num_replicas
    steps.open()
    for step in count():
        batches = loader.micro_batches(step, replica=replica, num_replicas=num_replicas)
        result = engine.train_batch(batches, lr=config.optimizer.lr)
        steps.after_step(result.loss / processes.world_size, result.bubble)
