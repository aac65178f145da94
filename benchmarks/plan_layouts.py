"""The small layouts whose plans are compared with what four processes on CPU really do."""

from dataclasses import dataclass, replace
from typing import Any

from tests.distributed.configs import STAGE, small_config
from training.config.schema import PipelineEngineKind, PipelineSchedule, Recompute, Regather, RunConfig

WORLD_SIZE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallLayout:
    """One layout, and whether the planner's constants are fitted to its step time or judged by it."""

    values: dict[str, Any]
    micro_batch: int = 2
    sequence_length: int = 128
    hidden_size: int = 256
    is_fitted: bool = False

    def config(self) -> RunConfig:
        """Return its run: a model large enough that its arithmetic, not Python's, takes most of a step."""
        values = {name: value for name, value in self.values.items() if name in ("pipeline", "zero_stage")}
        small = small_config(world_size=WORLD_SIZE, **values)
        return replace(
            small,
            model=replace(
                small.model,
                hidden_size=self.hidden_size,
                ffn_size=self.hidden_size * 11 // 4,
                vocab_size=1024,
                num_layers=8,
                max_sequence_length=self.sequence_length,
                tied_embeddings=self.values.get("tied", False),
            ),
            parallel=replace(small.parallel, **{k: v for k, v in self.values.items() if k != "tied"}),
            stages={
                STAGE: replace(
                    small.stages[STAGE],
                    sequence_length=self.sequence_length,
                    global_batch_sequences=32,
                    micro_batch_sequences=self.micro_batch,
                )
            },
        )


_PER_STEP = {"zero_stage": 3, "regather": Regather.per_step}
_PER_MICRO_BATCH = {"zero_stage": 3, "regather": Regather.per_microbatch}
_INTERLEAVED = {"schedule": PipelineSchedule.interleaved, "chunks_per_rank": 2}

LAYOUTS: dict[str, SmallLayout] = {
    "ZeRO-0": SmallLayout(values={"zero_stage": 0}),
    "ZeRO-1": SmallLayout(values={"zero_stage": 1}, is_fitted=True),
    "ZeRO-1, micro-batch 8": SmallLayout(values={"zero_stage": 1}, micro_batch=8),
    "ZeRO-2": SmallLayout(values={"zero_stage": 2}, is_fitted=True),
    "ZeRO-2, 256 tokens": SmallLayout(values={"zero_stage": 2}, sequence_length=256),
    "ZeRO-3": SmallLayout(values={"zero_stage": 3}, is_fitted=True),
    "ZeRO-3, micro-batch 4": SmallLayout(values={"zero_stage": 3}, micro_batch=4),
    "ZeRO-3, recompute full": SmallLayout(values={"zero_stage": 3, "recompute": Recompute.full}),
    "ZeRO-3, width 384": SmallLayout(values={"zero_stage": 3}, hidden_size=384),
    "pipeline 2, ZeRO-1": SmallLayout(values={"pipeline": 2, "zero_stage": 1}, is_fitted=True),
    "pipeline 2, ZeRO-1, DeepSpeed's engine": SmallLayout(
        values={"pipeline": 2, "zero_stage": 1, "pipeline_engine": PipelineEngineKind.deepspeed}
    ),
    "pipeline 2, ZeRO-2": SmallLayout(values={"pipeline": 2, "zero_stage": 2}),
    "pipeline 2, ZeRO-3 per step": SmallLayout(values={"pipeline": 2, **_PER_STEP}, is_fitted=True),
    "pipeline 2, ZeRO-3 per micro-batch": SmallLayout(values={"pipeline": 2, **_PER_MICRO_BATCH}),
    "pipeline 2, ZeRO-3 per step, 2 chunks": SmallLayout(values={"pipeline": 2, **_PER_STEP, **_INTERLEAVED}),
    "pipeline 2, ZeRO-3 per step, tied": SmallLayout(values={"pipeline": 2, **_PER_STEP, "tied": True}),
    "pipeline 2, ZeRO-3 per micro-batch, selective": SmallLayout(
        values={"pipeline": 2, **_PER_MICRO_BATCH, "recompute": Recompute.selective}
    ),
    "pipeline 4, ZeRO-1": SmallLayout(values={"pipeline": 4, "zero_stage": 1}, is_fitted=True),
    "pipeline 4, ZeRO-1, 2 chunks": SmallLayout(values={"pipeline": 4, "zero_stage": 1, **_INTERLEAVED}),
    "pipeline 4, ZeRO-1, recompute full": SmallLayout(
        values={"pipeline": 4, "zero_stage": 1, "recompute": Recompute.full}, micro_batch=4
    ),
}
"""Name -> layout. Which ones are fitted was chosen before any was measured: one of each kind."""
