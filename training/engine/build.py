"""Layout -> engine."""

from training.config.schema import PipelineEngineKind, RunConfig
from training.engine.base import Engine
from training.engine.pipeline import PipelineEngine
from training.engine.pipeline_zero import PipelineZeroEngine
from training.engine.process_group import ProcessGroup
from training.engine.zero import ZeroEngine


def build_engine(config: RunConfig, training_stage: str, processes: ProcessGroup) -> Engine:
    """Return the engine for a training stage's layout, with the run's initial weights; collective."""
    layout = config.layout_of(training_stage)
    if layout.pipeline == 1:
        return ZeroEngine(config, training_stage, processes)
    if layout.pipeline_engine is PipelineEngineKind.deepspeed:
        return PipelineEngine(config, training_stage, processes)
    return PipelineZeroEngine(config, training_stage, processes)
