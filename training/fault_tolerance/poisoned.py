"""Wrong numbers on request, for drills on real runs: a spike, a NaN, a flipped bit.

AUTARKY_POISON=<what>=<number>:<rank>:<sample>      rank and sample may be *

logits=F          the model's logits are multiplied by F (1e4: a huge loss; nan: nothing is finite); where logits are
                  never whole (parallel.loss_chunk_tokens), the loss is
gradient=F        the logits' gradient is multiplied by F; the loss is as it should be
activation_bit=B  bit B of one element of a decoder block's output is flipped, once
copy_bit=B        after the step, bit B of one weight that the model runs with is flipped in this rank's copy, once
shard_bit=B       before the step, bit B of one of this rank's fp32 weights is flipped, once

It acts in the step whose batch holds the sample (by its index in the run), on ranks that read it: so it belongs to the
data, not to the step, and is gone when the run goes back and leaves that batch out.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from training.data.batch import MicroBatch
from training.engine.base import Engine, StepResult
from training.errors import ConfigError
from training.models.layers import DecoderBlock, OutputProjection, TokenEmbedding

VARIABLE = "AUTARKY_POISON"
_KINDS = ("logits", "gradient", "activation_bit", "copy_bit", "shard_bit")
_FORM = re.compile(rf"({'|'.join(_KINDS)})=(nan|inf|\d+(?:\.\d+)?(?:e\d+)?):(\*|\d+):(\*|\d+)")
_INTEGERS = {2: torch.int16, 4: torch.int32}


def poisoned(engine: Engine, environment: Mapping[str, str], *, rank: int) -> Engine:
    """Return the engine, made to go wrong on this rank if the environment says so.

    Raises:
        ConfigError: the variable is set and says something else.
    """
    text = environment.get(VARIABLE, "")
    if not text:
        return engine
    form = _FORM.fullmatch(text)
    if form is None:
        raise ConfigError(
            VARIABLE,
            text,
            "is not <what>=<number>:<rank>:<sample>",
            f"what: {', '.join(_KINDS)}; * is any rank or sample",
        )
    if form[3] in ("*", str(rank)):
        _Poison(form[1], float(form[2]), form[4]).into(engine)
    return engine


class _Poison:
    """One fault, and whether it has happened."""

    def __init__(self, kind: str, number: float, sample: str) -> None:
        self._kind = kind
        self._number = number
        self._sample = sample
        self._has_happened = False

    def into(self, engine: Engine) -> None:
        """Put itself around the engine's steps."""
        train_batch: Callable[..., StepResult] = engine.train_batch

        def poisoned_step(micro_batches: Sequence[MicroBatch], **rest: Any) -> StepResult:
            if not self._is_in(micro_batches):
                return train_batch(micro_batches, **rest)
            if self._kind == "shard_bit":
                self._flip(next(piece.live for piece in engine.snapshot.pieces if piece.kind == "weight"))
            with self._hooked():
                result = train_batch(micro_batches, **rest)
            if self._kind == "copy_bit":
                self._flip(next(iter(engine.weight_copies()[0].by_owner.values()))[0])
            return result

        engine.train_batch = poisoned_step  # type: ignore[method-assign]

    def _is_in(self, micro_batches: Sequence[MicroBatch]) -> bool:
        ids = [int(i) for batch in micro_batches if batch.sample_ids_B is not None for i in batch.sample_ids_B]
        return self._sample == "*" or int(self._sample) in ids

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        hook = register_module_forward_hook(self._after_forward)
        try:
            yield
        finally:
            hook.remove()

    def _after_forward(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        makes_logits = isinstance(module, OutputProjection | TokenEmbedding) and inputs[0].is_floating_point()
        if self._kind == "logits" and makes_logits:
            return output * self._number
        if self._kind == "gradient" and makes_logits and output.requires_grad:
            output.register_hook(lambda gradient: gradient * self._number)
        if self._kind == "activation_bit" and isinstance(module, DecoderBlock) and not self._has_happened:
            output = output.clone()
            self._flip(output.detach())
            return output
        return None

    def _flip(self, values: Tensor) -> None:
        """Flip the bit of the element in the middle, if that has not happened yet."""
        if self._has_happened:
            return
        self._has_happened = True
        flip_bit(values, element=values.numel() // 2, bit=int(self._number))


@torch.no_grad()
def flip_bit(values: Tensor, *, element: int, bit: int) -> None:
    """Change one bit of one element in place; bit 0 is the lowest of the mantissa."""
    integers = _INTEGERS[values.element_size()]
    bits = values.detach().view(-1)[element : element + 1].view(integers)
    mask = 1 << bit
    bits.bitwise_xor_(mask - (1 << 8 * values.element_size()) if bit == 8 * values.element_size() - 1 else mask)
