"""One rank of 2 pipeline stages × 2 replicas: what our pipeline costs, holds, ties and survives (written by rank 0).

python -m tests.distributed.pipeline_drills_worker OUTPUT.json
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.distributed.collectives import CollectiveCounter
from tests.distributed.configs import LENGTH, STAGE, micro_batches, small_config
from tests.distributed.ending import leave
from tests.distributed.engine_checks import one_step
from training.config.schema import PipelineSchedule, Precision, Recompute, Regather, RunConfig
from training.data.batch import IGNORED_LABEL, MicroBatch
from training.engine.build import build_engine
from training.engine.pipeline_zero import PipelineZeroEngine
from training.engine.process_group import ProcessGroup, start
from training.models.cut import cut

WORLD_SIZE, PIPELINE = 4, 2
INTERLEAVED = {"schedule": PipelineSchedule.interleaved, "chunks_per_rank": 2}
COUNTED: dict[str, dict[str, Any]] = {
    "per_step": {"regather": Regather.per_step},
    "per_step_recompute": {"regather": Regather.per_step, "recompute": Recompute.full},
    "per_microbatch": {"regather": Regather.per_microbatch},
    "per_microbatch_recompute": {"regather": Regather.per_microbatch, "recompute": Recompute.full},
    "interleaved_per_step": {"regather": Regather.per_step, **INTERLEAVED},
    "bf16_per_microbatch": {"regather": Regather.per_microbatch, "precision": Precision.bf16},
}
HELD: dict[str, dict[str, Any]] = {"1f1b": {}, "interleaved": INTERLEAVED}
TIED: dict[str, dict[str, Any]] = {
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "zero3_interleaved": {"zero_stage": 3, **INTERLEAVED},
}
LRS = [1.5e-3] * 24


def config_of(**options: Any) -> RunConfig:
    return small_config(world_size=WORLD_SIZE, pipeline=PIPELINE, **{"zero_stage": 3, **options})


def counted(processes: ProcessGroup, options: dict[str, Any]) -> dict[str, Any]:
    """Collectives of the second step (the first one makes buffers), of this rank's layers."""
    config = config_of(**options)
    engine = build_engine(config, STAGE, processes)
    one_step(engine, config, processes, 0, LRS)
    with CollectiveCounter() as counter:
        loss = one_step(engine, config, processes, 1, LRS).loss
    parts = cut(config, STAGE)[engine.layout.pipeline_stage_of(processes.rank) :: PIPELINE]
    engine.close()
    return {
        "counts": dict(counter.counts),
        "dtypes": {kind: sorted(dtypes) for kind, dtypes in counter.dtypes.items()},
        "num_layers": sum(len(part) for part in parts),
        "loss": loss,
    }


def held(processes: ProcessGroup, options: dict[str, Any]) -> dict[str, int]:
    """Bytes after two steps, of a model whose pipeline stages have equally many parameters."""
    config = evenly_cut(config_of(regather=Regather.per_step, **options))
    engine = build_engine(config, STAGE, processes)
    assert isinstance(engine, PipelineZeroEngine)
    for step in range(2):
        one_step(engine, config, processes, step, LRS)
    found = engine.held_bytes()
    engine.close()
    return found


def evenly_cut(config: RunConfig) -> RunConfig:
    chunks = PIPELINE * config.parallel.chunks_per_rank
    by_hand = [config.model.num_layers // chunks] * chunks
    return replace(config, parallel=replace(config.parallel, layers_per_pipeline_stage=by_hand))


def tied(processes: ProcessGroup, options: dict[str, Any]) -> dict[str, Any]:
    """This rank's range of the embedding and its moments after 20 steps, as text; and how far it has moved."""
    config = config_of(tied=True, **options)
    engine = build_engine(config, STAGE, processes)
    assert isinstance(engine, PipelineZeroEngine)
    before = embedding(engine)
    for step in range(20):
        one_step(engine, config, processes, step, LRS)
    after = embedding(engine)
    engine.close()
    return {"bits": hashlib.sha256(after.numpy().tobytes()).hexdigest(), "moved": (after - before).abs().max().item()}


def embedding(engine: PipelineZeroEngine) -> torch.Tensor:
    """This rank's range of the embedding and of its moments: both pipeline stages hold one."""
    fragments = [fragment for state in engine._states for fragment in state.fragments]
    ranges = [f for f in fragments if f.parameter == "model.embed_tokens.weight"]
    return torch.cat([values for piece in ranges for values in piece.tensors.values()])


def shapes(processes: ProcessGroup) -> dict[str, list[float]]:
    """Losses and norms where micro-batches have different lengths, beside the same batches padded to one length."""
    found: dict[str, list[float]] = {}
    for name, cut_off in (("different", True), ("padded", False)):
        config = config_of(**INTERLEAVED)
        engine = build_engine(config, STAGE, processes)
        found[name] = []
        for step in range(4):
            batches = micro_batches(
                step, replica=engine.layout.replica_of(processes.rank), num_replicas=2, micro_batch=2
            )
            result = engine.train_batch([shortened(b, n, cut_off) for n, b in enumerate(batches)], lr=LRS[step])
            found[name] += [result.loss, result.grad_norm]
        engine.close()
    return found


def shortened(batch: MicroBatch, number: int, cut_off: bool) -> MicroBatch:
    """The batch with targets in its first tokens only; what follows is cut off or left without targets."""
    length = LENGTH - 5 * number
    labels_BT = batch.labels_BT.clone()
    labels_BT[:, length:] = IGNORED_LABEL
    end = length if cut_off else LENGTH
    return MicroBatch(
        input_ids_BT=batch.input_ids_BT[:, :end].contiguous(),
        labels_BT=labels_BT[:, :end].contiguous(),
        sample_ids_B=batch.sample_ids_B,
    )


def main(output: Path) -> None:
    processes = start(60)
    seen: dict[str, Any] = {
        "counted": {name: counted(processes, options) for name, options in COUNTED.items()},
        "held": {name: held(processes, options) for name, options in HELD.items()},
        "tied": {name: tied(processes, options) for name, options in TIED.items()},
        "shapes": shapes(processes),
    }
    everyone = processes.gather_text(json.dumps(seen))
    if processes.rank == 0:
        output.write_text("[" + ",".join(everyone) + "]")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
