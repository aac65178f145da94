"""One rank: trains under several layouts and writes how many bytes of tensors were alive beside the plan (rank 0).

python -m tests.distributed.memory_worker OUTPUT.json
"""

import gc
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.distributed.configs import STAGE, small_config
from tests.distributed.ending import leave
from tests.unit.models.live_bytes import LiveBytes
from training.config.model_schema import ExpertsConfig
from training.config.schema import PipelineSchedule, Precision, Recompute, Regather, RunConfig
from training.data.batch import MicroBatch
from training.engine.build import build_engine
from training.engine.process_group import ProcessGroup, start
from training.models.cut import cut
from training.models.memory import rank_memory

WORLD_SIZE = 4
PIPELINE = 2
EXPERTS = ExpertsConfig(
    num_experts=4, experts_per_token=2, expert_ffn_size=352, num_shared_experts=1, num_dense_layers=0
)
LAYOUTS: dict[str, dict[str, Any]] = {
    "zero3_per_step": {"zero_stage": 3, "regather": Regather.per_step},
    "zero3_per_microbatch_bf16": {
        "zero_stage": 3,
        "regather": Regather.per_microbatch,
        "precision": Precision.bf16,
        "recompute": Recompute.selective,
    },
    "zero3_interleaved_bf16": {
        "zero_stage": 3,
        "regather": Regather.per_step,
        "schedule": PipelineSchedule.interleaved,
        "chunks_per_rank": 2,
        "precision": Precision.bf16,
        "recompute": Recompute.full,
    },
    "zero2_bf16": {"zero_stage": 2, "precision": Precision.bf16},
    "zero1": {"zero_stage": 1, "recompute": Recompute.full},
    "zero1_bf16": {"zero_stage": 1, "precision": Precision.bf16},
    "sequence_zero3": {"zero_stage": 3, "regather": Regather.per_step, "sequence": 2},
    "expert_zero3_per_microbatch": {
        "zero_stage": 3,
        "regather": Regather.per_microbatch,
        "expert": 2,
        "sequence": 2,
        "recompute": Recompute.full,
    },
    "expert_without_pipeline_zero2": {"zero_stage": 2, "pipeline": 1, "expert": 2},
}


def config_of(zero_stage: int, precision: Precision = Precision.fp32, **layout: Any) -> RunConfig:
    """A model large enough that its tensors, not the bookkeeping, are what is counted."""
    small = small_config(world_size=WORLD_SIZE, pipeline=PIPELINE, zero_stage=zero_stage, precision=precision)
    parallel = replace(small.parallel, **layout)
    return replace(
        small,
        model=replace(
            small.model,
            experts=EXPERTS if parallel.expert > 1 else None,
            hidden_size=256,
            ffn_size=704,
            vocab_size=512,
            num_layers=8,
            max_sequence_length=128,
        ),
        parallel=parallel,
        stages={STAGE: replace(small.stages[STAGE], sequence_length=128)},
    )


def measure(config: RunConfig, processes: ProcessGroup) -> dict[str, Any]:
    """Bytes alive between two steps and at the highest point of a step, and what the plan says."""
    stage = config.stages[STAGE]
    ids_BT = torch.arange(stage.micro_batch_sequences * stage.sequence_length).view(-1, stage.sequence_length)
    ids_BT = ids_BT % config.model.vocab_size
    batches = [MicroBatch(input_ids_BT=ids_BT, labels_BT=ids_BT)] * config.accumulation_steps(STAGE)
    with LiveBytes() as live:
        engine = build_engine(config, STAGE, processes)
        engine.train_batch(batches, lr=1e-3)
        gc.collect()
        live.highest = between_steps = live.now
        engine.train_batch(batches, lr=1e-3)
    place = engine.layout.pipeline_stage_of(processes.rank)
    engine.close()
    del engine
    gc.collect()
    plan = rank_memory(
        config,
        STAGE,
        pipeline_stage=place,
        regather=config.parallel.regather,
        parts=cut(config, STAGE),
    )
    return {
        "pipeline_stage": place,
        "between_steps": between_steps,
        "highest": live.highest,
        "total": plan.total_bytes,
        "plan": asdict(plan),
    }


def main() -> None:
    processes = start(timeout_seconds=120)
    seen = {}
    for name, layout in LAYOUTS.items():
        mine = json.dumps(measure(config_of(**layout), processes)).encode()
        padded = torch.zeros(4096, dtype=torch.uint8)
        padded[: len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        everyone = [torch.empty_like(padded) for _ in range(WORLD_SIZE)]
        dist.all_gather(everyone, padded, group=processes.cpu_group)
        texts = [bytes(tensor.tolist()).rstrip(b"\0").decode() for tensor in everyone]
        seen[name] = [json.loads(text) for text in texts]
    if processes.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
    leave()
