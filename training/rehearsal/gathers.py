"""The weight gathers of ZeRO-3 without a pipeline: DeepSpeed's prefetching, followed element by element. No torch.

Chunks call their layers one by one and have no prefetching; see `chunk_program`. Here DeepSpeed records the order of
modules in the first forward and backward, and from then on gathers ahead. This follows DeepSpeed 0.19.8,
runtime/zero/partitioned_param_coordinator.py (`fetch_sub_module`, `release_sub_module`, `__params_to_release`,
`reset_step`).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from training.parallel.schedule import Kind
from training.planner.replica_exchange import REUSE_ELEMENTS
from training.rehearsal.parameters import Layer, Parameter


@dataclass(frozen=True, kw_only=True, slots=True)
class GatherLimits:
    """Elements that DeepSpeed gathers ahead and holds; the defaults are its own (0.19.8, runtime/zero/config.py)."""

    prefetch: int = 50_000_000
    """`stage3_prefetch_bucket_size`."""
    live: int = 1_000_000_000
    """`stage3_max_live_parameters`."""
    reuse: int = REUSE_ELEMENTS
    """`stage3_max_reuse_distance`: how far ahead a use has to be for a weight to be let go."""
    persistent: int = 100_000
    """`stage3_param_persistence_threshold`: parameters that are not larger stay whole."""


_ROOT = 0
"""The module around the layers."""


@dataclass(frozen=True, slots=True)
class Gather:
    """One collective that makes parameters whole."""

    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True)
class LayerRuns:
    """A layer, whose parameters are whole, runs forward or backward."""

    layer: int
    kind: Kind


Event: TypeAlias = Gather | LayerRuns


@dataclass(slots=True)
class _Held:
    parameter: Parameter
    is_gathered: bool = False
    travels_with: "list[_Held] | None" = None
    """What one collective is bringing, this one among it, until somebody waits for it."""
    users: set[int] = field(default_factory=set)
    fetched_for: int = -1
    """Latest place in the recorded order that it was fetched for."""
    persists: bool = False
    """Whether it stays whole between micro-batches."""

    @property
    def is_away(self) -> bool:
        """Whether it has to be gathered."""
        return not self.is_gathered and self.travels_with is None


class Coordinator:
    """What one engine's parameters do over micro-batches and steps: which are gathered when.

    Args:
        layers: of the whole model, in running order.
        limits: of what is gathered ahead and held.
    """

    def __init__(self, layers: Sequence[Layer], limits: GatherLimits) -> None:
        self._limits = limits
        held: dict[str, _Held] = {}
        # The module around the layers has no parameters of its own, but is fetched too: there prefetching begins.
        self._modules: list[list[_Held]] = [[]]
        self._is_block = [False, *(layer.is_block for layer in layers)]
        for layer in layers:
            for p in layer.parameters:
                held.setdefault(p.name, _Held(p, persists=p.numel <= limits.persistent))
            self._modules.append([held[p.name] for p in layer.parameters])
        self._held = list(held.values())
        forward = list(range(len(self._modules)))
        self._module_order = [*forward, _ROOT, *forward[:0:-1]]
        self._order: list[tuple[_Held, int]] = []
        self._release_cache: dict[tuple[int, int], list[_Held]] = {}
        self.is_recording = True
        self._queue: deque[tuple[_Held, int]] = deque()
        self._place = 0
        self._live_elements = 0

    @property
    def persistent(self) -> list[Parameter]:
        """Parameters that stay whole; they are gathered one by one after each update."""
        return [held.parameter for held in self._held if held.persists]

    @property
    def is_recorded(self) -> bool:
        """Whether the order of modules is known."""
        return bool(self._order)

    @property
    def num_recorded(self) -> tuple[int, int]:
        """Modules and parameters of the recorded order."""
        return len(self._module_order), sum(len(self._modules[module]) for module in self._module_order)

    def begin_micro_batch(self) -> None:
        """Start over with the recorded order; the second call ends the recording."""
        for held in self._held:
            held.fetched_for = -1
        if self._order:
            self.is_recording = False
        self._queue = deque(self._order)
        self._place = 0
        self._live_elements = 0

    def run(self) -> Iterator[Event]:
        """Yield what happens in one forward and backward, in order."""
        last = len(self._modules) - 1
        yield from self._fetch(_ROOT)
        for module in range(1, last + 1):
            yield from self._fetch(module)
            yield LayerRuns(module - 1, Kind.forward)
            self._release(module)
        yield from self._fetch(_ROOT)
        for module in range(last, 0, -1):
            yield from self._fetch(module)
            yield LayerRuns(module - 1, Kind.backward)
            if module > 1:  # token ids have no gradient, so the first layer's backward never says that it has ended
                self._release(module)
        for held in self._modules[1]:  # `release_backward_leftovers`
            held.users.discard(1)
            if not held.persists:
                self._let_go(held)
        if self.is_recording:
            self._order = [
                (held, place) for place, module in enumerate(self._module_order) for held in self._modules[module]
            ]

    def update(self) -> None:
        """Let go of everything, as the optimizer's step does, and hold the small parameters again."""
        for held in self._held:
            held.users.clear()
            held.travels_with = None
            held.is_gathered = held.persists

    def _fetch(self, module: int) -> Iterator[Event]:
        needed = self._modules[module]
        away = [held for held in needed if held.is_away]
        if away:
            yield self._gather(away)
        for held in needed:
            held.users.add(module)
            self._wait(held)
        if not self.is_recording:
            self._drop_from_queue(needed)
            ahead = self._choose_ahead()
            if ahead:
                yield self._gather(ahead)
        self._place += 1

    def _drop_from_queue(self, needed: Sequence[_Held]) -> None:
        num_due = sum(held.fetched_for < self._place for held in needed)
        dropped = set[int]()
        while self._queue and len(dropped) < num_due:
            held, place = self._queue.popleft()
            held.fetched_for = place
            dropped.add(id(held))

    def _choose_ahead(self) -> list[_Held]:
        room = min(self._limits.live - self._live_elements, self._limits.prefetch)
        ahead: list[_Held] = []
        elements = 0
        while self._queue and elements < room:
            held, place = self._queue.popleft()
            is_new = held.is_away and not any(held is other for other in ahead)
            held.fetched_for = max(held.fetched_for, place)
            if is_new:
                ahead.append(held)
                elements += held.parameter.numel
        return ahead

    def _gather(self, bundle: list[_Held]) -> Gather:
        for held in bundle:
            held.travels_with = bundle
            self._live_elements += held.parameter.numel
        return Gather(tuple(held.parameter for held in bundle))

    def _wait(self, held: _Held) -> None:
        for arrived in held.travels_with or ():
            arrived.is_gathered, arrived.travels_with = True, None

    def _release(self, module: int) -> None:
        for held in self._modules[module]:
            held.users.discard(module)
        for held in self._to_release(module):
            self._let_go(held)

    def _to_release(self, module: int) -> list[_Held]:
        if self.is_recording:
            return self._modules[module]
        key = module, self._place  # DeepSpeed decides once and keeps the decision (lru_cache)
        if key not in self._release_cache:
            kept = {id(held) for held in self._modules[module] if held.persists or held.fetched_for > self._place}
            traversed = 0
            for later in self._module_order[self._place :]:
                if traversed >= self._limits.reuse:
                    break
                for held in self._seen_from(module, later):
                    kept.add(id(held))
                    traversed += held.parameter.numel
            self._release_cache[key] = [held for held in self._modules[module] if id(held) not in kept]
        return self._release_cache[key]

    def _seen_from(self, module: int, later: int) -> list[_Held]:
        """Return the parameters that DeepSpeed counts at a later place of the order when it releases a module.

        It asks whether the module that it releases is a leaf, not the later one: blocks are, and see all parameters in
        the module around the layers; other layers see none in a block.
        """
        if self._is_block[module]:
            return self._held if later == _ROOT else self._modules[later]
        return [] if self._is_block[later] else self._modules[later]

    def _let_go(self, held: _Held) -> None:
        if held.is_gathered and not held.users:
            held.is_gathered = False
            self._live_elements -= held.parameter.numel
