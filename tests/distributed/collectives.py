"""Counts the collectives and transfers that a rank starts, whoever starts them."""

from collections import Counter, defaultdict
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_KINDS = {
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "receive",
    "barrier": "barrier",
}
"""Operators of torch.distributed's dispatcher namespace, by what they are."""


class CollectiveCounter(TorchDispatchMode):
    """Inside, every operator of torch.distributed is counted, in backward too.

    Raises:
        KeyError: an operator is not known; a count that leaves some out proves nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.dtypes: dict[str, set[str]] = defaultdict(set)
        """What travels in each kind of operator."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            kind = _KINDS[func.overloadpacket.__name__]
            self.counts[kind] += 1
            self.dtypes[kind] |= {str(leaf.dtype) for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        return func(*args, **(kwargs or {}))
