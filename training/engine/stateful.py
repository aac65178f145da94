"""What all engines over DeepSpeed share: saving, loading and freeing; the global token count of a batch."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from training.checkpoint.manifest import Progress
from training.checkpoint.store import load_fragments, save_checkpoint
from training.data.batch import MicroBatch
from training.engine.deepspeed_private import TrainingState, forget_engine
from training.engine.process_group import ProcessGroup
from training.parallel.layout import Layout


class StatefulEngine:
    """Holds a DeepSpeed engine and its training state; subclasses train and score."""

    def __init__(
        self,
        engine: Any,
        layout: Layout,
        processes: ProcessGroup,
        parameters: Iterable[tuple[str, nn.Parameter]],
    ) -> None:
        self.layout = layout
        self._engine = engine
        self._processes = processes
        self._state = TrainingState(engine, parameters, replica=layout.replica_of(processes.rank))

    def save(self, directory: Path, progress: Progress) -> Path:
        """Write and commit a checkpoint; see `Engine.save`."""
        return save_checkpoint(
            directory,
            progress=progress,
            layout=self.layout.describe(),
            fragments=self._state.fragments,
            rank=self._processes.rank,
            world_size=self._processes.world_size,
            agree=self._processes.agree,
        )

    def load(self, checkpoint: Path) -> Progress:
        """Load a checkpoint of any layout; see `Engine.load`."""
        progress = load_fragments(checkpoint, self._state.fragments)
        self._state.set_updates(progress.optimizer_updates)
        self._state.publish()
        return progress

    def close(self) -> None:
        """Free the engine; see `Engine.close`."""
        forget_engine(self._engine)
        del self._engine, self._state

    def _count_tokens(self, micro_batches: Sequence[MicroBatch]) -> int:
        """Return the valid targets of the global batch: all replicas, each counted once."""
        mine = sum(batch.num_tokens for batch in micro_batches)
        first_of_pipeline = self.layout.pipeline_stage_of(self._processes.rank) == 0
        return int(self._processes.sum([mine if first_of_pipeline else 0.0])[0])
