"""What a contestant of the checkpoint contest does, and the training that all of them do alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from training.config.schema import RunConfig
from training.data.batch import MicroBatch

_SMALLEST_VOCABULARY = 97
"""Token ids stay below it, so that a few steps teach something and a loss tells how many were made."""


class Contestant(Protocol):
    """A model, its optimizer and a way to save and load them. All methods are collective."""

    def step(self, number: int) -> float:
        """Do a numbered optimizer step on `micro_batches`; return the global batch's mean loss per token before it."""
        ...

    def save(self, directory: Path, step: int) -> None:
        """Start to save the state after that many steps under a directory; return once training may go on."""
        ...

    def held_seconds(self) -> float:
        """Return how long steps since the last `save` have stood still for it on this rank."""
        ...

    def is_written(self) -> bool:
        """Return whether `finish` would return at once, on this rank."""
        ...

    def finish(self) -> None:
        """Wait until the save is complete."""
        ...

    def load(self, directory: Path) -> None:
        """Replace the state by the one that was saved under a directory."""
        ...


Build = Callable[[RunConfig, str, str], Contestant]
"""(config, training stage, variant) -> contestant, its process group joined: `build` of a contestant's module."""


def micro_batches(config: RunConfig, step: int, *, replica: int, num_replicas: int) -> list[MicroBatch]:
    """Return a replica's share of a step's global batch, in micro-batches of one sequence; the same in any layout."""
    stage = next(iter(config.stages.values()))
    G, T = stage.global_batch_sequences, stage.sequence_length
    generator = torch.Generator().manual_seed(step)
    starts_G1 = torch.randint(_SMALLEST_VOCABULARY, (G, 1), generator=generator)
    tokens_GT = (starts_G1 + 7 * torch.arange(T + 1)) % _SMALLEST_VOCABULARY
    return [
        MicroBatch(
            input_ids_BT=tokens_GT[sequence : sequence + 1, :-1].contiguous(),
            labels_BT=tokens_GT[sequence : sequence + 1, 1:].contiguous(),
            sample_ids_B=torch.tensor([step * G + sequence]),
        )
        for sequence in range(replica * G // num_replicas, (replica + 1) * G // num_replicas)
    ]
