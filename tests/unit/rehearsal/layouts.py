"""Layouts of a small model of all sizes."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from tests.distributed.configs import STAGE, small_config
from training.config.model_schema import ExpertsConfig
from training.config.schema import AcceleratorConfig, PipelineSchedule, Precision, Recompute, Regather, RunConfig
from training.rehearsal.rehearsal import Rehearsal

EXPERTS = ExpertsConfig(
    num_experts=4,
    experts_per_token=2,
    expert_ffn_size=64,
    num_shared_experts=1,
    bias_update_rate=0.01,
    balance_loss=0.1,
)
INTERLEAVED = {"schedule": PipelineSchedule.interleaved, "chunks_per_rank": 2}


def run_config(
    *, pipeline: int = 1, data: int = 4, accumulation: int = 2, experts: bool = False, **layout: Any
) -> RunConfig:
    """A run of pipeline x data x sequence x tensor ranks, two to a node."""
    axes = {axis: layout.pop(axis, 1) for axis in ("sequence", "tensor", "expert")}
    world_size = pipeline * data * axes["sequence"] * axes["tensor"]
    config = small_config(world_size=world_size, pipeline=pipeline, **layout)
    batch = accumulation * data * config.stages[STAGE].micro_batch_sequences
    return replace(
        config,
        model=replace(
            config.model,
            num_layers=8,
            experts=EXPERTS if experts else None,
        ),
        parallel=replace(config.parallel, **axes),
        stages={STAGE: replace(config.stages[STAGE], global_batch_sequences=batch)},
        cluster=replace(
            config.cluster,
            num_nodes=max(1, world_size // 2),
            processes_per_node=min(2, world_size),
            accelerator=AcceleratorConfig(name="CPU", memory_bytes=8e9),
        ),
    )


def rehearsal(**layout: Any) -> Rehearsal:
    """The rehearsal of a layout."""
    return Rehearsal.of(run_config(**layout), STAGE)


@st.composite
def any_layout(draw: st.DrawFn) -> dict[str, Any]:
    """Any layout that our engines run."""
    pipeline = draw(st.integers(1, 4))
    interleaved = pipeline > 1 and draw(st.booleans())
    zero_stage = draw(st.integers(0 if pipeline == 1 else 1, 3))
    layout: dict[str, Any] = {
        "pipeline": pipeline,
        "data": 2 * draw(st.integers(1, 5)),
        "zero_stage": zero_stage,
        "accumulation": pipeline * draw(st.integers(1, 3)),
        "tied": draw(st.booleans()),
        "micro_batch": draw(st.integers(1, 2)),
        "precision": draw(st.sampled_from([Precision.fp32, Precision.bf16])) if zero_stage else Precision.fp32,
        "recompute": draw(st.sampled_from(Recompute)),
        "narrow": draw(st.booleans()),
    }
    if draw(st.booleans()):
        layout["sequence"] = draw(st.sampled_from([1, 2] if layout["narrow"] is False else [1]))
        layout["experts"] = True
        layout["expert"] = draw(st.sampled_from([1, 2])) if zero_stage else 1
    if pipeline > 1 and zero_stage == 3:
        layout["regather"] = draw(st.sampled_from([Regather.per_step, Regather.per_microbatch]))
    return {**layout, **(INTERLEAVED if interleaved else {})}
