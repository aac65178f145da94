"""A parallel layout in small: an axis of a cluster becomes two processes of one machine, or one. Pure."""

from dataclasses import replace

from training.config.model_schema import ModelConfig
from training.config.schema import AttentionImplementation, ParallelConfig, PipelineSchedule, Regather

_LEAST_LAYERS = 4


def twin_pipeline(layout: ParallelConfig, processes: int) -> int:
    """Return the pipeline stages of a layout's twin."""
    return 2 if layout.pipeline > 1 and processes % 2 == 0 else 1


def twin_layers(layout: ParallelConfig, processes: int) -> int:
    """Return the blocks that a layout's twin asks of the model."""
    pipeline = twin_pipeline(layout, processes)
    chunks = layout.chunks_per_rank if pipeline > 1 else 1
    return max(_LEAST_LAYERS, pipeline * chunks)


def twin_layout(layout: ParallelConfig, model: ModelConfig, *, processes: int, length_ratio: float) -> ParallelConfig:
    """Return the twin of a layout: an axis becomes 2 where processes and model allow it, else 1; ZeRO stays.

    Processes go to the pipeline first, then to sequences; the rest are replicas. Experts are spread over ranks that
    are there already. Tensor parallelism and hpZ are left out, as no engine runs them, and so are kernels that need an
    accelerator.

    Args:
        layout: the original.
        model: the twin's model.
        processes: ranks of the twin.
        length_ratio: the twin's sequences' length over the original's.
    """
    pipeline = twin_pipeline(layout, processes)
    holders = processes // pipeline  # ranks of a pipeline stage: replicas times sequence
    shares = layout.sequence > 1 and holders % 2 == 0 and model.num_heads % 2 == 0
    spreads = (
        layout.expert > 1 and holders % 2 == 0 and model.experts is not None and model.experts.num_experts % 2 == 0
    )
    chunk = layout.loss_chunk_tokens
    return replace(
        layout,
        pipeline=pipeline,
        tensor=1,
        sequence=2 if shares else 1,
        expert=2 if spreads else 1,
        zero_secondary_ranks=None,
        layers_per_pipeline_stage=None,
        schedule=layout.schedule if pipeline > 1 else PipelineSchedule.one_forward_one_backward,
        chunks_per_rank=layout.chunks_per_rank if pipeline > 1 else 1,
        regather=layout.regather if pipeline > 1 else Regather.auto,
        loss_chunk_tokens=None if chunk is None else max(1, round(chunk * length_ratio)),
        attention=AttentionImplementation.auto,
    )
