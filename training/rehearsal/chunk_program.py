"""What the engines of one chunk of the model do together: at the start, in a forward and in a backward. No torch.

A chunk's layers have one DeepSpeedEngine, and experts that are spread over ranks another one, which shards them over
the ranks that hold the same (training/engine/chunk.py). Without a pipeline and an expert axis the only chunk is the
model, run by training/engine/zero.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from training.rehearsal.axis_program import AxisProgram, Exchange
from training.rehearsal.buckets import in_release_order
from training.rehearsal.engine_program import EngineProgram, Reductions
from training.rehearsal.operations import Collective
from training.rehearsal.parameters import Layer, Parameter

Event: TypeAlias = Collective | Parameter
"""A parameter stands where its gradient is complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkProgram:
    """The collectives of one chunk."""

    layers: Sequence[Layer]
    dense: EngineProgram
    """Of all but experts that are spread over ranks."""
    experts: EngineProgram | None
    """Of those; None without any."""
    axes: AxisProgram
    recomputes: bool
    """Whether backward runs each block's forward a second time, all of it or what it kept nothing of."""

    @property
    def engines(self) -> list[EngineProgram]:
        """Both, or the only one."""
        return [self.dense] if self.experts is None else [self.dense, self.experts]

    def initial_weights(self) -> list[Collective]:
        """Return how weights come to be the same on all shards: under ZeRO-3 layer by layer, as they are built."""
        if self.dense.zero_stage < 3:
            return [engine.broadcast(parameter) for engine in self.engines for parameter in engine.parameters]
        weights = {parameter.name: parameter for layer in self.layers for parameter in layer.all_parameters}
        return [self._engine_of(parameter).broadcast(parameter) for parameter in weights.values()]

    def set_up(self) -> list[Collective]:
        """Return how ZeRO-3 sets itself up; nothing below it."""
        if self.dense.zero_stage < 3:
            return []
        return [operation for engine in self.engines for operation in engine.set_up()]

    def gather_all(self) -> list[Collective]:
        """Return how all weights become whole at the beginning of a step, layer by layer."""
        return [
            operation
            for layer in self.layers
            for operation in (*self._gather(layer.parameters), *self._gather(layer.apart))
        ]

    def forward(self, *, gathers: bool) -> list[Collective]:
        """Return the collectives of one forward; `gathers` says whether each layer's weights have to be gathered."""
        operations: list[Collective] = []
        for layer in self.layers:
            operations += self._gather(layer.parameters) if gathers else []
            operations += self.forward_of(layer, gathers=gathers)
        return operations

    def backward(self, *, gathers: bool, is_last: bool) -> list[Collective]:
        """Return the collectives of one backward; `is_last` says whether it is a step's last one."""
        events: list[Event] = []
        for index, layer in reversed(list(enumerate(self.layers))):
            events += self._gather(layer.parameters) if gathers else []
            events += self.backward_of(index, gathers=gathers)
        return self.with_reductions(events, is_last=is_last)

    def forward_of(self, layer: Layer, *, gathers: bool = False) -> Iterator[Collective]:
        """Yield the collectives of one layer's forward, its own weights being whole.

        Experts that are apart are gathered where they are called.
        """
        waits = bool(layer.apart) and gathers
        for step in self.axes.trace(layer):
            if isinstance(step, Exchange):
                yield step.collective
            elif waits and step in layer.apart:
                waits = False
                yield from self._gather(layer.apart)

    def backward_of(self, index: int, *, gathers: bool = False) -> Iterator[Event]:
        """Yield the collectives of one layer's backward, and its parameters as their gradients are complete."""
        layer = self.layers[index]
        if layer.is_block and self.recomputes:
            yield from self.forward_of(layer, gathers=gathers)
        waits = bool(layer.apart) and gathers
        released = [] if self.dense.zero_stage < 3 else in_release_order(layer, self.dense.optimizer)
        for step in reversed(self.axes.trace(layer)):
            if isinstance(step, Exchange):
                if step.has_gradient:
                    yield step.collective
                continue
            if waits and step in layer.apart:
                waits = False
                yield from self._gather(layer.apart)
            if step not in released:
                yield from self._complete([step], index)
        yield from self._complete(released, index)

    def with_reductions(self, events: Iterable[Event], *, is_last: bool) -> list[Collective]:
        """Return the collectives of a backward: those that come, and reductions as gradients fill buckets."""
        streams = {engine.group: Reductions(engine, is_last=is_last) for engine in self.engines}
        operations: list[Collective] = []
        for event in events:
            if isinstance(event, Collective):
                operations.append(event)
            else:
                operations += streams[self._engine_of(event).group].add(event)
        for stream in streams.values():
            operations += stream.end()
        return operations

    def _complete(self, parameters: Iterable[Parameter], index: int) -> Iterator[Parameter]:
        """Yield those that no earlier layer uses too: a tied weight's gradient is complete after the earlier one."""
        earlier = {parameter.name for layer in self.layers[:index] for parameter in layer.parameters}
        yield from (parameter for parameter in parameters if parameter.name not in earlier)

    def _gather(self, parameters: Sequence[Parameter]) -> list[Collective]:
        return [self._engine_of(parameters[0]).gather(parameters)] if parameters else []

    def _engine_of(self, parameter: Parameter) -> EngineProgram:
        return self.experts if self.experts is not None and parameter.num_parts > 1 else self.dense
