"""What the planned axes add to a layer's passes: exchanges among sequence, tensor and expert ranks. No torch.

No engine runs these axes yet: this is the program that one would have to have, not one that was compared with it.

sequence  all-to-alls of q, k, v before attention and of its result after (Ulysses, arXiv:2309.14509, section 3.1)
tensor    an all-reduce after attention and one after the feed-forward layer (arXiv:1909.08053, section 3)
expert    all-to-alls that dispatch tokens to their experts and bring results back (arXiv:2006.16668, section 3.2)

Sizes of expert exchanges are those of a balanced router.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.config.model_schema import ModelConfig
from training.config.schema import Recompute
from training.rehearsal.grid import Grid, GroupKind
from training.rehearsal.operations import Collective, CollectiveKind
from training.rehearsal.parameters import Layer


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisProgram:
    """Collectives inside the layers' passes; none where sequence, tensor and expert are 1."""

    grid: Grid
    model: ModelConfig
    num_tokens: int
    """Tokens of a micro-batch on one rank: its part of each sequence."""
    dtype: str
    recompute: Recompute

    def forward(self, layer: Layer) -> list[Collective]:
        """Return what one forward of a layer exchanges."""
        if not layer.is_block:
            return []
        return [*self._attention(layer), *self._feed_forward(layer)]

    def backward(self, layer: Layer) -> list[Collective]:
        """Return what one backward exchanges: the same again in reverse, after the second forward of recompute."""
        forward = self.forward(layer)
        again = forward if self.recompute is Recompute.full else []
        return [*again, *reversed(forward)]

    def _attention(self, layer: Layer) -> list[Collective]:
        D, N = self.model.hidden_size, self.model.num_heads
        kv_size = self.model.num_kv_heads * (D // N)
        operations: list[Collective] = []
        if self.grid.sequence > 1:
            for name, width in (("queries", D), ("keys", kv_size), ("values", kv_size)):
                operations.append(self._exchange(GroupKind.sequence, width // self.grid.tensor, f"{layer.name} {name}"))
            operations.append(self._exchange(GroupKind.sequence, D // self.grid.tensor, f"{layer.name} attention"))
        return [*operations, *self._sum(layer, "attention")]

    def _feed_forward(self, layer: Layer) -> Sequence[Collective]:
        experts = self.model.experts
        if not layer.has_experts or experts is None or self.grid.expert == 1:
            return self._sum(layer, "mlp")
        width = experts.experts_per_token * self.model.hidden_size
        return [
            self._exchange(GroupKind.expert, width, f"{layer.name} dispatch"),
            self._exchange(GroupKind.expert, width, f"{layer.name} combine"),
            *self._sum(layer, "mlp"),
        ]

    def _exchange(self, group: GroupKind, width: int, about: str) -> Collective:
        return Collective(CollectiveKind.all_to_all, group, self.num_tokens * width, self.dtype, about=about)

    def _sum(self, layer: Layer, about: str) -> list[Collective]:
        if self.grid.tensor == 1:
            return []
        numel = self.num_tokens * self.model.hidden_size
        return [
            Collective(
                CollectiveKind.all_reduce, GroupKind.tensor, numel, self.dtype, about=f"{layer.name} {about}'s result"
            )
        ]


def planned_groups(grid: Grid) -> list[GroupKind]:
    """Return the kinds of groups that planned axes need, in the order in which they are made."""
    sizes = {GroupKind.sequence: grid.sequence, GroupKind.tensor: grid.tensor, GroupKind.expert: grid.expert}
    kinds = [kind for kind, size in sizes.items() if size > 1]
    return [*kinds, GroupKind.expert_shards] if grid.expert > 1 else kinds
