"""One rank: trains the same model under many layouts and writes what it saw as JSON (rank 0).

    python -m tests.distributed.equivalence_worker OUTPUT.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.distributed.configs import STAGE, micro_batches, small_config
from training.checkpoint.manifest import Progress
from training.config.schema import Precision, Recompute, RunConfig
from training.engine.base import Engine
from training.engine.build import build_engine
from training.engine.process_group import ProcessGroup, start

NUM_STEPS = 20
LRS = [1e-2 * min(1.0, (step + 1) / 5) for step in range(NUM_STEPS)]

LAYOUTS: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "zero3_tied": {"zero_stage": 3, "tied": True},
    "zero3_full_recompute": {"zero_stage": 3, "recompute": Recompute.full},
    "zero3_selective_recompute": {"zero_stage": 3, "recompute": Recompute.selective},
    "pipeline": {"pipeline": 2, "zero_stage": 1, "micro_batch": 4},
    "pipeline_tied": {"pipeline": 2, "zero_stage": 1, "micro_batch": 4, "tied": True},
    "pipeline_full_recompute": {"pipeline": 2, "zero_stage": 1, "micro_batch": 4, "recompute": Recompute.full},
    "zero1_bf16": {"zero_stage": 1, "precision": Precision.bf16},
    "zero3_bf16": {"zero_stage": 3, "precision": Precision.bf16},
    "pipeline_bf16": {"pipeline": 2, "zero_stage": 1, "micro_batch": 4, "precision": Precision.bf16},
}


def steps(engine: Engine, config: RunConfig, processes: ProcessGroup, which: range) -> dict[str, list[float]]:
    losses, norms = [], []
    for step in which:
        batches = micro_batches(
            step,
            replica=engine.layout.replica_of(processes.rank),
            num_replicas=engine.layout.num_replicas,
            micro_batch=config.stages[STAGE].micro_batch_sequences,
        )
        result = engine.train_batch(batches, lr=LRS[step])
        assert not result.skipped
        losses.append(result.loss)
        norms.append(result.grad_norm)
    return {"losses": losses, "norms": norms}


def progress_at(step: int) -> Progress:
    return Progress(
        step=step,
        training_stage=STAGE,
        stage_step=step,
        tokens=0,
        optimizer_updates=step,
        config_hash="test",
        data_fingerprint="test",
    )


def main(output: Path) -> None:
    processes = start(60)
    seen: dict[str, Any] = {"layouts": {}}
    for name, options in LAYOUTS.items():
        config = small_config(world_size=processes.world_size, **options)
        engine = build_engine(config, STAGE, processes)
        seen["layouts"][name] = steps(engine, config, processes, range(NUM_STEPS))
        print(f"[rank {processes.rank}] {name} {seen['layouts'][name]['losses'][-1]}", flush=True)
        engine.close()
    if processes.rank == 0:
        output.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
