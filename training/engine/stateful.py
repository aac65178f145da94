"""What all engines over DeepSpeed share: saving, loading and freeing; the global token count of a batch."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from training.checkpoint.load import Loaded, WeightSource, load_checkpoint, load_weights
from training.checkpoint.snapshot import Snapshot
from training.config.model_schema import ModelConfig
from training.data.batch import MicroBatch
from training.engine.base import WeightCopies
from training.engine.deepspeed_private import Part, TrainingState, forget_engines, is_kept, whole_shape
from training.engine.layer_norms import LayerMeter
from training.engine.muon import eager_on, has_muon
from training.engine.process_group import ProcessGroup, leave_groups
from training.engine.routing import Routing
from training.models.experts import Experts
from training.parallel.layout import Layout


class StatefulEngine:
    """Holds a rank's DeepSpeed engines (one, or one per model chunk) and their state; subclasses train and score."""

    notes: tuple[str, ...] = ()
    """Sentences for people: what was decided when the engine was built, and why."""
    groups_made: Sequence[dist.ProcessGroup] = ()
    """Process groups that were made for it, and end with it."""

    def __init__(
        self,
        model: ModelConfig,
        layout: Layout,
        processes: ProcessGroup,
        parts: Sequence[tuple[Any, Iterable[tuple[str, nn.Parameter]]]],
        routing: Routing,
        experts: Sequence[tuple[Any, Iterable[tuple[str, Experts]]]] = (),
    ) -> None:
        self.layout = layout
        self._model = model
        self._processes = processes
        self._routing = routing
        self._engines = [engine for engine, _ in (*parts, *experts)]
        shard = layout.shard_of(processes.rank)
        self._dense_states = [TrainingState(engine, parameters, shard=shard) for engine, parameters in parts]
        self._expert_states = [
            TrainingState(engine, *_parameters(modules), shard=shard // layout.expert) for engine, modules in experts
        ]
        self._states = [*self._dense_states, *self._expert_states]
        fragments = [fragment for state in self._states for fragment in state.fragments]
        self.snapshot = Snapshot([*fragments, *routing.fragments()])
        for state in self._states:
            state.before_update(self.snapshot.settle)
        self._layers = LayerMeter(model, self._states, processes)
        self._has_muon = any(has_muon(engine.optimizer) for engine in self._engines)

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """DeepSpeed's dictionary, as the engine was built with it."""
        return self._engines[0].config

    def load(self, checkpoint: Path) -> Loaded:
        """Load a checkpoint of any layout; see `Engine.load`."""
        loaded = load_checkpoint(checkpoint, self.snapshot, self._processes)
        self._restored(loaded.progress.optimizer_updates)
        return loaded

    def load_weights(self, open_source: Callable[[], WeightSource]) -> None:
        """Start from a source's weights; see `Engine.load_weights`."""
        load_weights(open_source, self.snapshot, self._processes)
        self._restored(0)

    def _step(self, engine: Any) -> None:
        """Let an engine's optimizer use its gradients, or throw away what is not finite."""
        if not self._has_muon:
            engine.step()
            return
        self.snapshot.settle()  # the momentum changes before the step of the optimizer that `before_update` knows
        with eager_on(self._processes.device):
            engine.step()

    def _restored(self, num_updates: int) -> None:
        for state in self._states:
            state.set_updates(num_updates)
            state.publish()

    def weight_copies(self) -> list[WeightCopies]:
        """Return views of the weights the model runs with and of the fp32 ones; see `Engine.weight_copies`."""
        rank = self._processes.rank
        dense = self.layout.shard_group(self.layout.pipeline_stage_of(rank))
        found = [_copies(self._dense_states, dense)]
        if self._expert_states:
            [same] = [ranks for ranks in self.layout.expert_shard_groups() if rank in ranks]
            found.append(_copies(self._expert_states, same))
        return found

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes this rank holds between steps, by what they are: weights, gradients, optimizer."""
        held = [state.held_bytes() for state in self._states]
        return {kind: sum(part[kind] for part in held) for kind in held[0]}

    def close(self) -> None:
        """Free the engine; see `Engine.close`."""
        forget_engines(self._engines)
        del self._engines, self._states, self._dense_states, self._expert_states, self.snapshot, self._layers
        leave_groups([group for group in self.groups_made if not is_kept(group)])
        self.groups_made = ()

    def _my_part(self, micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """Return this rank's part of its replica's sequences."""
        part = self.layout.sequence_part_of(self._processes.rank)
        if num_depths := self._model.num_prediction_blocks:
            micro_batches = [batch.with_later_tokens(num_depths) for batch in micro_batches]
        return [batch.part_of_sequences(part, self.layout.sequence) for batch in micro_batches]

    def _count(self, micro_batches: Sequence[MicroBatch]) -> tuple[int, int]:
        """Return (targets, tokens) of the global batch, of which every rank passes its part; each is counted once."""
        rank, mine = self._processes.rank, [0.0, 0.0]
        if self.layout.pipeline_stage_of(rank) == 0:
            for batch in micro_batches:
                counts_pairs = batch.references_BA is not None  # which all that share a sequence have
                if not counts_pairs or self.layout.sequence_part_of(rank) == 0:
                    mine[0] += batch.num_targets
                mine[1] += batch.num_tokens
        num_targets, num_tokens = self._processes.sum(mine)
        return int(num_targets), int(num_tokens)


def _copies(states: Sequence[TrainingState], ranks: list[int]) -> WeightCopies:
    by_owner: dict[int, list[Tensor]] = {}
    kept: list[Tensor] = []
    for state in states:
        copies, own = state.copied_weights()
        for owner, parts in copies.items():
            by_owner.setdefault(owner, []).extend(parts)
        kept += own
    return WeightCopies(ranks=ranks, by_owner=by_owner, kept=kept)


def _parameters(modules: Iterable[tuple[str, Experts]]) -> tuple[list[tuple[str, nn.Parameter]], dict[str, Part]]:
    """Return the parameters of experts that are spread over ranks, and which part of the whole tensor each is."""
    parameters: list[tuple[str, nn.Parameter]] = []
    parts: dict[str, Part] = {}
    for block, experts in modules:
        for name, parameter in experts.named_parameters():
            shape = whole_shape(parameter)
            start = experts.first_expert * prod(shape[1:])
            parameters.append((f"{block}.{name}", parameter))
            parts[f"{block}.{name}"] = Part(start=start, whole_shape=(experts.num_experts, *shape[1:]))
    return parameters, parts
