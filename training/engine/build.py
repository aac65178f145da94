"""Layout -> engine."""

import gc

from training.config.schema import RunConfig
from training.engine.base import Engine
from training.engine.pipeline import PipelineEngine
from training.engine.pipeline_zero import PipelineZeroEngine
from training.engine.process_group import ProcessGroup
from training.engine.zero import ZeroEngine


def build_engine(
    config: RunConfig, training_stage: str, processes: ProcessGroup, *, initial_weights: bool = True
) -> Engine:
    """Return the engine for a training stage's layout, with the run's initial weights; collective.

    Args:
        config: the run.
        training_stage: its training stage.
        processes: the job.
        initial_weights: False leaves the weights at zero: a checkpoint is loaded before anything else, and drawing the
            weights of a large model takes minutes.
    """
    gc.collect()  # engines are webs of cycles: one that was closed before must be gone before this one takes its memory
    layout = config.layout_of(training_stage)
    if layout.runs_in_chunks:
        return PipelineZeroEngine(config, training_stage, processes, initial_weights=initial_weights)
    if layout.pipeline > 1:
        return PipelineEngine(config, training_stage, processes, initial_weights=initial_weights)
    return ZeroEngine(config, training_stage, processes, initial_weights=initial_weights)
