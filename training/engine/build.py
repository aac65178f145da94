"""Layout -> engine."""

from training.config.schema import RunConfig
from training.engine.base import Engine
from training.engine.pipeline import PipelineEngine
from training.engine.process_group import ProcessGroup
from training.engine.zero import ZeroEngine


def build_engine(config: RunConfig, training_stage: str, processes: ProcessGroup) -> Engine:
    """Return the engine for a training stage's layout, with the run's initial weights; collective."""
    if config.layout_of(training_stage).pipeline > 1:
        return PipelineEngine(config, training_stage, processes)
    return ZeroEngine(config, training_stage, processes)
