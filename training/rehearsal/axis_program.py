"""What a layer's forward does with other ranks, and where it uses its parameters. No torch.

sequence  all-to-alls of q, k, v before attention and of its result after (training/models/attention.py; Ulysses,
          arXiv:2309.14509, section 3.1), and the sums of a load-balancing loss (training/models/router.py)
expert    all-to-alls of how many rows go where, of rows to their experts and of results back
          (training/models/experts.py; arXiv:2006.16668, section 3.2)
tensor    an all-reduce after attention and one after the feed-forward layer (arXiv:1909.08053, section 3)

Sequence and expert axes are compared with engines (tests/distributed/test_rehearsal.py); no engine runs the tensor
axis. Rows on their way to experts are those of a balanced router: a real one's differ from rank to rank, not in their
sum over the ranks of the axis.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from training.config.model_schema import BalanceScope, ExpertsConfig, ModelConfig
from training.models.expert_memory import routed_rows
from training.models.sizes import dealt_kv_heads, head_sizes
from training.rehearsal.grid import Grid, GroupKind
from training.rehearsal.operations import Collective, CollectiveKind
from training.rehearsal.parameters import Layer, Parameter


@dataclass(frozen=True, slots=True)
class Exchange:
    """A collective of a layer's forward."""

    collective: Collective
    has_gradient: bool = True
    """Whether backward does the like for gradients."""


Step: TypeAlias = Exchange | Parameter
"""A parameter stands where it is used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisProgram:
    """Collectives inside the layers' passes; none where sequence, tensor and expert are 1."""

    grid: Grid
    model: ModelConfig
    num_sequences: int
    """Sequences of a micro-batch."""
    num_tokens: int
    """Tokens of a micro-batch on one rank: its part of each sequence."""
    dtype: str

    def trace(self, layer: Layer) -> list[Step]:
        """Return what one forward of a layer does, in order; autograd's backward goes through it in reverse."""
        if not layer.is_block:
            return list(layer.parameters)
        names = [parameter.name for parameter in layer.parameters]
        of_attention = [".self_attn." in name for name in names]
        first, end = of_attention.index(True), len(names) - of_attention[::-1].index(True)
        before, attention, after = layer.parameters[:first], layer.parameters[first:end], layer.parameters[end:]
        # Norms of queries and keys are registered last, but used before the output projection.
        attention = sorted(attention, key=lambda parameter: ".o_proj." in parameter.name)
        return [
            *before,
            *attention[:-1],
            *self._to_heads(layer),
            *self._to_tokens(layer),
            attention[-1],
            *self._sum(layer, "attention"),
            *(self._routed(layer, after) if layer.has_experts else after),
            *self._sum(layer, "mlp"),
            *self._balance(layer),
        ]

    def _to_heads(self, layer: Layer) -> Iterator[Exchange]:
        if self.grid.sequence == 1:
            return
        (key_size, value_size), tensor = head_sizes(self.model), self.grid.tensor
        num_heads = self.model.num_heads // tensor
        num_kv_heads = dealt_kv_heads(self.model, self.grid.sequence, tensor=tensor)
        for what, width in (
            ("queries", num_heads * key_size),
            ("keys", num_kv_heads * key_size),
            ("values", num_kv_heads * value_size),
        ):
            yield self._all_to_all(GroupKind.sequence, width, f"{layer.name} {what}")

    def _to_tokens(self, layer: Layer) -> Iterator[Exchange]:
        if self.grid.sequence > 1:
            width = self.model.num_heads // self.grid.tensor * head_sizes(self.model)[1]
            yield self._all_to_all(GroupKind.sequence, width, f"{layer.name} attention")

    def _routed(self, layer: Layer, parameters: tuple[Parameter, ...]) -> Iterator[Step]:
        """Yield a feed-forward layer of experts: norm, router, routed experts, shared ones."""
        routed = [*(parameter for parameter in parameters if parameter.is_expert), *layer.apart]
        shared = [parameter for parameter in parameters if ".shared_experts." in parameter.name]
        yield from (parameter for parameter in parameters if parameter not in (*routed, *shared))
        experts = self.model.experts
        assert experts is not None
        if self.grid.expert == 1:
            yield from routed
        else:
            counts = Collective(
                CollectiveKind.all_to_all,
                GroupKind.expert,
                experts.num_experts,
                "int64",
                about=f"{layer.name} rows of each expert",
            )
            yield Exchange(counts, has_gradient=False)
            yield self._rows(experts, f"{layer.name} dispatch")
            yield from routed
            yield self._rows(experts, f"{layer.name} combine")
        yield from shared

    def _balance(self, layer: Layer) -> Iterator[Exchange]:
        """Yield the sums of a load-balancing loss over the ranks that share a sequence: of choices, and of scores."""
        experts = self.model.experts
        if not layer.has_experts or experts is None or self.grid.sequence == 1 or experts.balance_loss == 0:
            return
        num_groups = self.num_sequences if experts.balance_scope is BalanceScope.sequence else 1
        for what in ("choices", "scores"):
            collective = Collective(
                CollectiveKind.all_reduce,
                GroupKind.sequence,
                num_groups * experts.num_experts,
                "float32",
                about=f"{layer.name} {what} of each expert",
            )
            yield Exchange(collective, has_gradient=False)

    def _rows(self, experts: ExpertsConfig, about: str) -> Exchange:
        num_rows = routed_rows(experts, self.num_tokens)
        exchange = self._all_to_all(GroupKind.expert, self.model.hidden_size, about)
        return Exchange(replace(exchange.collective, numel=num_rows * self.model.hidden_size))

    def _all_to_all(self, group: GroupKind, width: int, about: str) -> Exchange:
        return Exchange(Collective(CollectiveKind.all_to_all, group, self.num_tokens * width, self.dtype, about=about))

    def _sum(self, layer: Layer, about: str) -> Iterator[Exchange]:
        if self.grid.tensor > 1:
            numel = self.num_tokens * self.model.hidden_size
            about = f"{layer.name} {about}'s result"
            yield Exchange(Collective(CollectiveKind.all_reduce, GroupKind.tensor, numel, self.dtype, about=about))


def axis_groups(grid: Grid) -> list[GroupKind]:
    """Return the kinds of groups that the axes within layers need, in the order in which they are made."""
    sizes = {GroupKind.sequence: grid.sequence, GroupKind.tensor: grid.tensor, GroupKind.expert: grid.expert}
    kinds = [kind for kind, size in sizes.items() if size > 1]
    return [*kinds, GroupKind.expert_shards] if grid.expert > 1 else kinds
