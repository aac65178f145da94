"""One rank: trains whole sequences and then halves of them, and writes what a step took on every rank (by rank 0).

python -m tests.distributed.sequence_memory_worker OUTPUT.json SEQUENCE_LENGTH
"""

import gc
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tests.distributed.configs import STAGE, small_config
from tests.distributed.ending import leave
from tests.unit.models.live_bytes import LiveBytes
from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.engine.build import build_engine
from training.engine.process_group import ProcessGroup, start

WORLD_SIZE = 2
SEQUENCE_SIZES = (1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBytes:
    """Bytes of living tensors of one rank."""

    held: int
    """Between two steps: weights and AdamW's moments."""
    highest: int
    """At the highest point of the next step."""

    @property
    def activations(self) -> int:
        """What the step took besides: activations, logits, and the gradients, which are as many as the weights."""
        return self.highest - self.held


def config_of(sequence: int, sequence_length: int) -> RunConfig:
    """A model whose state is small beside the activations of one long sequence, and the same global batch for all.

    Two ranks are two replicas with a whole sequence each, or one that shares each of two sequences. Without ZeRO there
    is no bucket for gradients, which DeepSpeed would allocate whole: 2 GB, whatever the model's size. Neither has more
    logits at a time than the other.
    """
    small = small_config(world_size=WORLD_SIZE, sequence=sequence, zero_stage=0, micro_batch=1, loss_chunk_tokens=1024)
    stage = replace(small.stages[STAGE], sequence_length=sequence_length, global_batch_sequences=2)
    return replace(
        small, model=replace(small.model, num_layers=2, max_sequence_length=sequence_length), stages={STAGE: stage}
    )


def measure(config: RunConfig, processes: ProcessGroup) -> StepBytes:
    """Return what this rank holds between two steps and at the highest point of the second one."""
    stage = config.stages[STAGE]
    ids_BT = torch.arange(stage.sequence_length)[None] % config.model.vocab_size
    batches = [MicroBatch(input_ids_BT=ids_BT, labels_BT=ids_BT)] * config.accumulation_steps(STAGE)
    with LiveBytes() as live:
        engine = build_engine(config, STAGE, processes)
        engine.train_batch(batches, lr=1e-3)
        gc.collect()
        live.highest = held = live.now
        engine.train_batch(batches, lr=1e-3)
    engine.close()
    return StepBytes(held=held, highest=live.highest)


def read(path: Path) -> dict[int, list[StepBytes]]:
    """Return what a worker wrote: ranks that share a sequence -> each rank's bytes."""
    written = json.loads(path.read_text())
    return {int(sequence): [StepBytes(**rank) for rank in ranks] for sequence, ranks in written.items()}


def ratios(seen: Mapping[int, list[StepBytes]]) -> tuple[float, float]:
    """Return sequence=2 over sequence=1, each of the rank that took most: of a step's activations, and of all."""
    one, two = (seen[sequence] for sequence in SEQUENCE_SIZES)
    return (
        max(rank.activations for rank in two) / max(rank.activations for rank in one),
        max(rank.highest for rank in two) / max(rank.highest for rank in one),
    )


def main() -> None:
    processes = start(timeout_seconds=120)
    output, sequence_length = Path(sys.argv[1]), int(sys.argv[2])
    seen = {}
    for sequence in SEQUENCE_SIZES:
        mine = measure(config_of(sequence, sequence_length), processes)
        gc.collect()
        seen[sequence] = [json.loads(text) for text in processes.gather_text(json.dumps(asdict(mine)))]
    if processes.rank == 0:
        output.write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
    leave()
