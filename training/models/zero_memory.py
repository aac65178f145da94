"""What a DeepSpeedEngine under ZeRO (arXiv:1910.02054) holds of a model chunk, in closed form. No torch.

Dtypes and buffers are those of DeepSpeed 0.19.8: runtime/zero/stage3.py, runtime/zero/stage_1_and_2.py and
runtime/bf16_optimizer.py (ZeRO-1 in bf16). tests/distributed/test_memory.py counts the tensors of live engines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.config.schema import Precision
from training.models.sizes import EngineSize

FP32_BYTES = 4
SUB_GROUP_ELEMENTS = 1_000_000_000
"""DeepSpeed's default `sub_group_size`: elements that ZeRO-3 updates at once."""


def element_bytes(precision: Precision) -> int:
    """Return bytes of one weight or activation."""
    return FP32_BYTES if precision is Precision.fp32 else 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroMemory:
    """Bytes of one rank for the parameters of one engine."""

    zero_stage: int
    precision: Precision
    """Dtype of weights."""
    num_replicas: int
    """Ranks that the engine shards over."""

    def weights_bytes(self, num_parameters: int) -> int:
        """Return weights in the run's dtype: a shard under ZeRO-3, else whole."""
        held = self._shard(num_parameters) if self.zero_stage == 3 else num_parameters
        return element_bytes(self.precision) * held

    def gradients_bytes(self, num_parameters: int) -> int:
        """Return accumulated gradients, from the first backward of a step on; ZeRO-3 keeps them between steps too."""
        if self.zero_stage >= 2:
            return FP32_BYTES * self._shard(num_parameters)
        if self.precision is Precision.fp32:
            return FP32_BYTES * num_parameters
        # BF16_Optimizer adds each gradient to an fp32 one, and keeps both.
        return (element_bytes(self.precision) + FP32_BYTES) * num_parameters

    def optimizer_bytes(self, num_parameters: int) -> int:
        """Return both moments and the fp32 master weights, which in an fp32 run are a copy too, but without ZeRO."""
        if self.zero_stage == 0:
            return 2 * FP32_BYTES * num_parameters
        return 3 * FP32_BYTES * self._shard(num_parameters)

    def update_bytes(self, num_parameters: int) -> int:
        """Return the most that an update needs: gradients in one piece, the root of the second moments, its quotient.

        ZeRO-3 updates a sub-group at a time; without ZeRO the gradients stay where they are.
        """
        if self.zero_stage == 0:
            return 2 * FP32_BYTES * num_parameters
        shard = self._shard(num_parameters)
        return 3 * FP32_BYTES * (min(shard, SUB_GROUP_ELEMENTS) if self.zero_stage == 3 else shard)

    def bucket_bytes(self, bucket_elements: int) -> int:
        """Return the bucket that collects gradients for one collective; it is allocated whole, by ZeRO-3 for good."""
        if self.zero_stage == 0:
            return 0
        return (element_bytes(self.precision) if self.zero_stage == 2 else FP32_BYTES) * bucket_elements

    def reduction_bytes(self, bucket_elements: int, engine: EngineSize) -> int:
        """Return what gradients take besides the bucket on their way from backward to where they accumulate.

        The bucket's content is copied for the collective, in fp32; so is, by itself, a gradient that is larger than
        the bucket. Below ZeRO-2 all gradients are kept whole anyway.
        """
        copied = FP32_BYTES * max(min(bucket_elements, engine.num_parameters), engine.largest_parameter)
        return copied + (element_bytes(self.precision) * engine.largest_parameter if self.zero_stage >= 2 else 0)

    def gathered_bytes(self, engines: Sequence[EngineSize], *, whole: bool) -> int:
        """Return weights that ZeRO-3 has gathered, besides the shard: all of the engines, or two layers at a time."""
        if self.zero_stage < 3 or self.num_replicas == 1:
            return 0
        layers = sorted(size for engine in engines for size in engine.layers)
        # One layer more than is in use: it arrives in one piece, from which its weights are copied.
        held = sum(layers) + layers[-1] if whole else sum(layers[-2:])
        return element_bytes(self.precision) * held

    def _shard(self, num_parameters: int) -> int:
        return -(-num_parameters // self.num_replicas)
