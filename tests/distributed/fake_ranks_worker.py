"""One process is some of 15,000 ranks in turn: real engines over torch's fake process group, beside the rehearsal.

A fake group does nothing for a collective but copy a rank's own input, and takes any number of ranks to be there. So
what is shown is what a rank starts, and what it holds; not what comes out.

python -m tests.distributed.fake_ranks_worker OUTPUT.json
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import deepspeed
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.distributed.configs import STAGE, micro_batches, small_config
from tests.distributed.ending import leave
from tests.distributed.recorded_program import ProgramRecorder, predicted
from tests.distributed.rehearsal_worker import differing, held, rehearsed_state
from training.config.schema import PipelineSchedule, Precision, Regather, RunConfig
from training.data.batch import MicroBatch
from training.engine import links, pipeline_step
from training.engine.build import build_engine
from training.engine.deepspeed_private import skip_shared_memory_op
from training.engine.process_group import ProcessGroup
from training.rehearsal.program import Phase
from training.rehearsal.rehearsal import Rehearsal

WORLD_SIZE = 15_000
LAYOUTS: dict[str, dict[str, Any]] = {
    "zero3_per_microbatch": {"pipeline": 10, "zero_stage": 3, "regather": Regather.per_microbatch},
    "zero3_per_step_bf16_interleaved": {
        "pipeline": 5,
        "zero_stage": 3,
        "regather": Regather.per_step,
        "schedule": PipelineSchedule.interleaved,
        "chunks_per_rank": 2,
        "precision": Precision.bf16,
    },
    "zero1_tied": {"pipeline": 10, "zero_stage": 1, "tied": True},
}
RANKS = (0, 7_001, WORLD_SIZE - 1)
"""The last one has nothing but padding of this small model."""


class FakeProcesses(ProcessGroup):
    """The job as a rank sees it, where no other rank says anything: sums are at least 1, texts what was agreed on."""

    def sum(self, values: list[float]) -> list[float]:
        return [max(1.0, value) for value in super().sum(values)]

    def broadcast_text(self, text: str | None) -> str:
        assert text is not None
        size = torch.tensor([len(text)])
        dist.broadcast(size, src=0, group=self.cpu_group)
        dist.broadcast(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8), src=0, group=self.cpu_group)
        return text


def config_of(**layout: Any) -> RunConfig:
    """The run of a layout, with enough blocks for its pipeline, and a few micro-batches of 1 sample."""
    config = small_config(world_size=WORLD_SIZE, micro_batch=1, **layout)
    replicas = WORLD_SIZE // config.parallel.pipeline
    micro_batches = max(4, config.parallel.pipeline) if config.parallel.chunks_per_rank > 1 else 4
    return replace(
        config,
        model=replace(config.model, num_layers=20),
        optimizer=replace(config.optimizer, gradient_clip_norm=0.0),  # the norm that a fake sum gives means nothing
        stages={STAGE: replace(config.stages[STAGE], global_batch_sequences=micro_batches * replicas)},
    )


def join(rank: int) -> FakeProcesses:
    """Become one of the ranks."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORLD_SIZE), "LOCAL_RANK": "0"}
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=WORLD_SIZE)
    deepspeed.init_distributed(dist_backend="fake", verbose=False)
    cpu_group = dist.new_group(backend="fake")
    assert isinstance(cpu_group, dist.ProcessGroup)
    return FakeProcesses(rank, WORLD_SIZE, 0, torch.device("cpu"), cpu_group)


def zeros_like_hidden(ids_BT: torch.Tensor, hidden_size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What a rank receives into: nobody sends, and what was not written may be no number."""
    return torch.zeros((*ids_BT.shape, hidden_size), dtype=dtype, device=device)


def batches_of(config: RunConfig) -> list[MicroBatch]:
    (batch,) = micro_batches(0, replica=0, num_replicas=16, micro_batch=1)
    return [batch] * config.accumulation_steps(STAGE)


def compare(rehearsal: Rehearsal, rank: int) -> dict[str, Any]:
    """Return the calls of one rank that are not what the rehearsal says, and whether its state is."""
    config, seconds = rehearsal.plan.config, time.perf_counter()
    processes = join(rank)
    real = {}
    with ProgramRecorder() as recorder, patch.object(pipeline_step, "empty_like_hidden", zeros_like_hidden):
        engine = build_engine(config, STAGE, processes)
        real[Phase.start] = recorder.take()
        for phase in (Phase.first_step, Phase.second_step):
            assert not engine.train_batch(batches_of(config), lr=1e-3).skipped
            real[phase] = recorder.take()
    found = {
        phase: differing(calls, predicted(rehearsal.phases[phase].of(rank), rehearsal.plan.grid, rank))
        for phase, calls in real.items()
    }
    state = [held(engine.snapshot), rehearsed_state(rehearsal, rank)]
    owned_bytes = engine.snapshot.owned_bytes
    engine.close()
    dist.destroy_process_group()
    deepspeed.comm.comm.cdb = None
    return {
        "num_calls": {phase: len(calls) for phase, calls in real.items()},
        "differing": {phase: calls for phase, calls in found.items() if calls},
        "state": len(state[0]) if state[0] == state[1] else state,
        "file_bytes": [owned_bytes, int(rehearsal.file_bytes[rank])],
        "seconds": time.perf_counter() - seconds,
    }


def main(output: Path) -> None:
    assert links.empty_like_hidden is pipeline_step.empty_like_hidden
    skip_shared_memory_op()
    seen: dict[str, dict[str, Any]] = {}
    for name, layout in LAYOUTS.items():
        rehearsal = Rehearsal.of(config_of(**layout), STAGE)
        seen[name] = {str(rank): compare(rehearsal, rank) for rank in RANKS}
    output.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
