"""Which rank, pipeline stage, micro-batch and parameter a NaN or Inf came from."""

from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from training.engine.process_group import ProcessGroup


class NonFiniteWatch:
    """Notes the first parameter gradient that is not finite while a step is run again, before anything is reduced.

    After a reduction a NaN is everywhere; in one rank's own backward it begins somewhere. Gradients come from the last
    layer to the first, so the first one noted is the nearest to the cause. A check of every gradient would slow all
    steps down for the one that needs it, so only the repetition of a failed step is watched.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._parameters = list(parameters)
        self._handles: list[RemovableHandle] = []
        self._micro_batch = 0
        self._found: tuple[int, str] | None = None

    def __enter__(self) -> "NonFiniteWatch":
        for name, parameter in self._parameters:
            self._handles.append(parameter.register_hook(lambda gradient, name=name: self._look(name, gradient)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def begin_micro_batch(self, number: int) -> None:
        """Say which micro-batch the next gradients belong to."""
        self._micro_batch = number

    def _look(self, name: str, gradient: Tensor) -> None:
        if self._found is None and not torch.isfinite(gradient).all():
            self._found = (self._micro_batch, name)

    def report(self, processes: ProcessGroup, *, place: int) -> str:
        """Return the origin in words, the same on every rank; collective.

        A NaN travels from later pipeline stages to earlier ones, so the latest that saw it is named.
        """
        mine = ""
        if self._found is not None:
            micro_batch, name = self._found
            mine = f"rank {processes.rank}, pipeline stage {place}, micro-batch {micro_batch}, {name}"
        seen = processes.gather_text(mine)
        ordered = [text for text in reversed(seen) if text]
        if not ordered:
            return "not seen again when the step was repeated: suspect the hardware or the network"
        latest = ordered[0].partition("pipeline stage ")[2].partition(",")[0]
        origins = [text for text in ordered if f"pipeline stage {latest}," in text]
        return "; ".join(reversed(origins))
