"""Who competes with whom: the contestants of each contest and what they all share."""

from collections.abc import Mapping
from dataclasses import dataclass

_LAYOUT = "parallel@stages.pretrain.parallel"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineup:
    """One contest: the same model and batches for all; the first contestant is the one they are compared with."""

    num_ranks: int
    overrides: tuple[str, ...]
    """Shared by all contestants, on top of an experiment's."""
    contestants: Mapping[str, tuple[str, tuple[str, ...]]]
    """Title -> module of benchmarks, overrides."""

    @property
    def first(self) -> str:
        """Title of the contestant that the others are compared with."""
        return next(iter(self.contestants))


ENGINES = Lineup(
    num_ranks=2,
    overrides=(),
    contestants={
        "Autarky, ZeRO-3": ("autarky", (f"{_LAYOUT}=zero3",)),
        "HF Trainer, DeepSpeed ZeRO-3": ("hf_trainer", (f"{_LAYOUT}=zero3",)),
        "torch DDP": ("ddp", (f"{_LAYOUT}=zero1",)),
        "Autarky, 2 pipeline stages": ("autarky", (f"{_LAYOUT}=pipeline",)),
    },
)

PIPELINES = Lineup(
    num_ranks=4,
    # Twice the demo's sequences per step: with two replicas each pipeline then has four micro-batches.
    overrides=("cluster.processes_per_node=4", "stages.pretrain.global_batch_sequences=32"),
    contestants={
        "Autarky, pipeline over ZeRO-3, per_step": (
            "autarky",
            (f"{_LAYOUT}=pipeline_zero3", "stages.pretrain.parallel.regather=per_step"),
        ),
        "Autarky, pipeline over ZeRO-3, per_microbatch": (
            "autarky",
            (f"{_LAYOUT}=pipeline_zero3", "stages.pretrain.parallel.regather=per_microbatch"),
        ),
        "Autarky, pipeline over ZeRO-1": (
            "autarky",
            (f"{_LAYOUT}=pipeline_zero3", "stages.pretrain.parallel.zero_stage=1"),
        ),
        "DeepSpeed PipelineEngine, ZeRO-1": ("autarky", (f"{_LAYOUT}=pipeline",)),
        "torch pipelining over FSDP2": ("fsdp2_pipeline", (f"{_LAYOUT}=pipeline_zero3",)),
    },
)
