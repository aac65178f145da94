"""Layout -> engine."""

import gc
from functools import cache

from training.config.schema import RunConfig
from training.engine.base import Engine
from training.engine.deepspeed_private import import_all_of_deepspeed
from training.engine.pipeline import PipelineEngine
from training.engine.pipeline_zero import PipelineZeroEngine
from training.engine.process_group import ProcessGroup, groups_within
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
    _spare_collections()
    before = set(groups_within())
    layout = config.layout_of(training_stage)
    if layout.runs_in_chunks:
        engine = PipelineZeroEngine(config, training_stage, processes, initial_weights=initial_weights)
    elif layout.pipeline > 1:
        engine = PipelineEngine(config, training_stage, processes, initial_weights=initial_weights)
    else:
        engine = ZeroEngine(config, training_stage, processes, initial_weights=initial_weights)
    engine.groups_made = [group for group in groups_within() if group not in before]
    return engine


@cache
def _spare_collections() -> None:
    """Take what lives before the first engine, half a million objects of imports, out of garbage collection.

    To walk over them takes a quarter of a second of one core, at steps that differ from rank to rank, and then the
    other ranks wait.
    """
    import_all_of_deepspeed()
    gc.freeze()
