"""One of four ranks: runs layouts and tells how long a step takes, what it sends and what its tensors hold.

python -m benchmarks.plan_rank OUTPUT.json STEPS NAME…       started by torchrun; rank 0 writes all ranks' answers
"""

import gc
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.plan_layouts import LAYOUTS
from tests.distributed.configs import STAGE
from tests.distributed.ending import leave
from tests.distributed.recorded_program import Call, ProgramRecorder
from tests.unit.models.live_bytes import LiveBytes
from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.engine.build import build_engine
from training.engine.process_group import ProcessGroup, start

_WARM_UP_STEPS = 2
_DTYPE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "": 0}
_SHARES = {"allreduce": 2.0, "all_gather_single": 1.0, "reduce_scatter_single": 1.0}
"""Times (n-1)/n of a message that a rank sends: rings' counts, which planner/traffic.py has too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one rank did under one layout."""

    pipeline_stage: int
    step_seconds: float
    """Median; 0 if none was timed."""
    sent_bytes: float
    """In one step."""
    tensor_bytes: int
    """Alive at the highest moment of a step."""


def sent_bytes(call: Call, rank: int) -> float:
    """Return the bytes that this rank sends for one call."""
    size, members = call.numel * _DTYPE_BYTES[call.dtype], len(call.ranks)
    match call.method:
        case "send":
            return size
        case "recv" | "barrier":
            return 0
        case "broadcast":
            return size * (members - 1) / members  # a chain passes it on but for its end
        case "all_gather_single":
            return size * (members - 1)  # what is given is one member's part
        case method:
            return _SHARES[method] * size * (members - 1) / members


def batches_of(config: RunConfig) -> list[MicroBatch]:
    """Return micro-batches of the right shape."""
    stage = config.stages[STAGE]
    ids_BT = torch.arange(stage.micro_batch_sequences * stage.sequence_length).view(-1, stage.sequence_length)
    ids_BT = ids_BT % config.model.vocab_size
    return [MicroBatch(input_ids_BT=ids_BT, labels_BT=ids_BT)] * config.accumulation_steps(STAGE)


def measure(config: RunConfig, processes: ProcessGroup, num_steps: int) -> Measured:
    """Return what this rank does under a layout; collective."""
    batches = batches_of(config)
    with LiveBytes() as live:  # slow: in an engine of its own
        engine = build_engine(config, STAGE, processes)
        engine.train_batch(batches, lr=1e-3)
        gc.collect()
        live.highest = live.now
        engine.train_batch(batches, lr=1e-3)
        highest = live.highest
    with ProgramRecorder() as recorder:
        recorder.take()
        engine.train_batch(batches, lr=1e-3)
        calls = recorder.take()
    place = engine.layout.pipeline_stage_of(processes.rank)
    engine.close()
    del engine
    seconds = []
    if num_steps:
        engine = build_engine(config, STAGE, processes)
        for number in range(_WARM_UP_STEPS + num_steps):
            processes.agree(True)
            began = time.perf_counter()
            engine.train_batch(batches, lr=1e-3)
            if number >= _WARM_UP_STEPS:
                seconds.append(time.perf_counter() - began)
        engine.close()
        del engine
    gc.collect()
    return Measured(
        pipeline_stage=place,
        step_seconds=statistics.median(seconds) if seconds else 0.0,
        sent_bytes=sum(sent_bytes(call, processes.rank) for call in calls if call.method != "new_group"),
        tensor_bytes=highest,
    )


def main() -> None:
    """Run the layouts that are named."""
    output, num_steps, *names = sys.argv[1:]
    processes = start(timeout_seconds=300)
    seen = {}
    for name in names:
        mine = measure(LAYOUTS[name].config(), processes, int(num_steps))
        seen[name] = [json.loads(text) for text in processes.gather_text(json.dumps(asdict(mine)))]
    if processes.rank == 0:
        Path(output).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
    leave()
