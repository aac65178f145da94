"""The memory of one rank of a pipeline stage, part by part. No torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """Bytes of one rank of a pipeline stage, each at its own highest."""

    weights_bytes: float = 0.0
    """Weights that stay, in the format of the products: a shard under ZeRO-3."""
    gradients_bytes: float = 0.0
    """Accumulated gradients."""
    optimizer_bytes: float = 0.0
    """Master weights and moments."""
    gathered_bytes: float = 0.0
    """Weights that ZeRO-3 has gathered, besides the shard."""
    activations_bytes: float = 0.0
    """Kept for the backward of all micro-batches in flight."""
    block_bytes: float = 0.0
    """Backward of one block, beyond what was kept for it."""
    logits_bytes: float = 0.0
    """Logits and loss of one micro-batch; 0 but on the last pipeline stage."""
    buffers_bytes: float = 0.0
    """Of communication: gradients, hidden states and tokens on their way."""
    update_bytes: float = 0.0
    """What the update needs besides gradients and state."""
    overhead_bytes: float = 0.0
    """Held beyond tensors: the allocator's fragments, the driver's context, communicators' own buffers."""

    @property
    def resident_bytes(self) -> float:
        """Weights, gradients and optimizer state: what every micro-batch finds."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def updating_bytes(self) -> float:
        """Tensors during the update."""
        return self.resident_bytes + self.buffers_bytes + self.update_bytes

    @property
    def tensors_bytes(self) -> float:
        """The highest sum of tensors at any time: loss and blocks' backwards take turns, as do passes and update."""
        passes = self.gathered_bytes + self.activations_bytes + max(self.block_bytes, self.logits_bytes)
        return self.resident_bytes + self.buffers_bytes + max(passes, self.update_bytes)

    @property
    def total_bytes(self) -> float:
        """Memory that the device must have."""
        return self.tensors_bytes + self.overhead_bytes

    def with_overhead(self, overhead_bytes: float) -> "StageMemory":
        """Return the same with what is held beyond tensors."""
        return replace(self, overhead_bytes=overhead_bytes)

    def largest(self) -> Iterator[tuple[str, float]]:
        """Yield the parts at the highest time, largest first."""
        parts = {name.removesuffix("_bytes"): count for name, count in asdict(self).items()}
        if parts["update"] > self.tensors_bytes - self.resident_bytes - self.buffers_bytes - 1:
            parts |= {"gathered": 0.0, "activations": 0.0, "block": 0.0, "logits": 0.0}
        else:
            parts["update"] = 0.0
            parts["block" if parts["block"] < parts["logits"] else "logits"] = 0.0
        yield from sorted(((name, count) for name, count in parts.items() if count), key=lambda part: -part[1])
