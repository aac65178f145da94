"""A step computed twice: hardware that computes something else the second time is named, before anything is updated.

Every layer's outputs, the gradients that leave it and those of its parameters are digested in both passes. Forward, a
wrong number spreads to later layers; backward, to earlier ones. So the rank is to blame that holds the first layer
whose output differs, or, where none does, the last layer whose gradients differ. A fault that gives the same wrong
result twice is not seen.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from training.checkpoint.digest import MODULUS
from training.checkpoint.tensor_digest import tensor_digest
from training.engine.process_group import ProcessGroup
from training.errors import SilentCorruption
from training.parallel.layout import Layout
from training.process_identity import host_name


class StepTrace:
    """Digests of what one rank computes while the trace is entered.

    Args:
        layers: (place in the model, layer) of this rank; a layer that stands there twice counts for its first place.
    """

    def __init__(self, layers: Iterable[tuple[int, nn.Module]]) -> None:
        self.forward: Counter[int] = Counter()
        """Place of a layer -> sum of its outputs' digests over all micro-batches: their order does not matter."""
        self.backward: Counter[int] = Counter()
        """Place of a layer -> the same of its input's and parameters' gradients, before they are reduced."""
        self.reduced = 0
        """Of this rank's part of the reduced gradient."""
        self._layers = {id(layer): (place, layer) for place, layer in reversed(list(layers))}.values()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "StepTrace":
        for place, layer in self._layers:
            self._handles.append(layer.register_forward_pre_hook(self._input_hook(place)))
            self._handles.append(layer.register_forward_hook(self._output_hook(place)))
            for name, parameter in layer.named_parameters():
                factor = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") | 1
                self._handles.append(
                    parameter.register_hook(lambda gradient, at=place, by=factor: self._add_backward(at, by, gradient))
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def note_gradients(self, gradients: Iterable[Tensor]) -> None:
        """Note this rank's part of the step's gradient as all ranks together have made it."""
        for number, gradient in enumerate(gradients):
            self.reduced = (self.reduced + tensor_digest(gradient) * (2 * number + 1)) % MODULUS

    def differences(self, other: "StepTrace") -> dict[str, list[int]]:
        """Return the places of layers whose outputs, and whose gradients, differ; `reduced` is [0] if that does."""
        return {
            "forward": _differing(self.forward, other.forward),
            "backward": _differing(self.backward, other.backward),
            "reduced": [0] if self.reduced != other.reduced else [],
        }

    def _input_hook(self, place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """Digest the gradient that leaves the layer: rounding may hide from its weights' what goes on to others."""

        def watch(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda gradient: self._add_backward(place, 1, gradient))

        return watch

    def _output_hook(self, place: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.forward[place] = (self.forward[place] + tensor_digest(output)) % MODULUS

        return add

    def _add_backward(self, place: int, factor: int, gradient: Tensor) -> None:
        self.backward[place] = (self.backward[place] + tensor_digest(gradient) * factor) % MODULUS


def compare(first: StepTrace, second: StepTrace, processes: ProcessGroup, layout: Layout) -> None:
    """Return if both passes came out alike on all ranks; collective.

    Raises:
        SilentCorruption: on every rank, naming the rank and host to blame.
    """
    mine = first.differences(second)
    if processes.agree(not any(mine.values())):
        return
    told = [json.loads(text) for text in processes.gather_text(json.dumps({"host": host_name(), **mine}))]
    where = blamed(told, [layout.replica_of(rank) for rank in range(layout.world_size)])
    hosts = {rank: told[rank]["host"] for rank in where}
    named = "; ".join(f"rank {rank} on {hosts[rank]}: {what}" for rank, what in where.items())
    raise SilentCorruption(
        f"a step computed twice came out differently: {named}\n"
        "  -> nothing of this step is used or saved; take that node out and test it, then resume=auto",
        blamed=hosts,
    )


def blamed(told: Sequence[Mapping[str, list[int]]], replicas: Sequence[int]) -> dict[int, str]:
    """Return rank -> what it did, for the ranks to blame; of each data replica's pipeline at most one is.

    Args:
        told: of every rank: places of layers that differ in `forward` and `backward`, and `reduced`.
        replicas: of every rank: its data replica.
    """
    found: dict[int, str] = {}
    for replica in sorted(set(replicas)):
        ranks = [rank for rank, its in enumerate(replicas) if its == replica]
        if forward := [(min(told[rank]["forward"]), rank) for rank in ranks if told[rank]["forward"]]:
            layer, rank = min(forward)
            found[rank] = f"the output of layer {layer} differs"
        elif backward := [(max(told[rank]["backward"]), rank) for rank in ranks if told[rank]["backward"]]:
            layer, rank = max(backward)
            found[rank] = f"the gradient of layer {layer} differs"
    if found:
        return found
    what = "its part of the reduced gradient differs, though every rank computed the same twice: it, or the network"
    return {rank: what for rank, its in enumerate(told) if its["reduced"]}


def _differing(first: Mapping[int, int], second: Mapping[int, int]) -> list[int]:
    return sorted(place for place in first.keys() | second.keys() if first.get(place) != second.get(place))
