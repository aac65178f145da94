"""What one DeepSpeedEngine does with its parameters: at the start, as gradients come, at the update.

Sources: our training/engine/{zero,chunk,pipeline_zero,deepspeed_private}.py over DeepSpeed 0.19.8: runtime/engine.py,
runtime/zero/stage3.py, runtime/zero/stage_1_and_2.py and runtime/bf16_optimizer.py (ZeRO-1 in bf16). That the order and
the sizes are what they really do is checked by tests/distributed/test_rehearsal.py, call by call. No torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.config.optimizer_schema import OptimizerConfig
from training.config.schema import Precision
from training.models.zero_memory import element_bytes
from training.rehearsal.buckets import (
    Bucket,
    Filling,
    engine_buckets,
    full_buckets,
    names,
    partition_numel,
    partitioned_pieces,
    shard_numel,
    sharded_bucket,
)
from training.rehearsal.grid import GroupKind
from training.rehearsal.operations import Collective, CollectiveKind
from training.rehearsal.parameters import Parameter, optimizer_groups


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineProgram:
    """The collectives of one engine."""

    parameters: Sequence[Parameter]
    """In the order in which its module registers them, each once."""
    group: GroupKind
    """The ranks that ZeRO shards over."""
    num_shards: int
    """How many they are."""
    zero_stage: int
    precision: Precision
    optimizer: OptimizerConfig
    bucket_elements: int
    sub_group_elements: int
    """Elements of a rank that ZeRO-3 updates at once."""
    in_chunk: bool
    """Whether it belongs to a chunk of ours, whose layers are called one by one and are all sharded."""

    @property
    def weights_dtype(self) -> str:
        """Dtype of weights and activations."""
        return "bfloat16" if self.precision is Precision.bf16 else "float32"

    @property
    def groups(self) -> list[list[Parameter]]:
        """The optimizer's parameter groups."""
        return optimizer_groups(self.optimizer, self.parameters)

    @property
    def sub_groups(self) -> list[list[Parameter]]:
        """What ZeRO-3 updates at once (stage3.py, `_create_fp16_sub_groups`)."""
        found = []
        for group in self.groups:
            part: list[Parameter] = []
            held = 0
            for parameter in group:
                part.append(parameter)
                held += shard_numel(parameter.numel, self.num_shards)
                if held >= self.sub_group_elements:
                    found.append(part)
                    part, held = [], 0
            if part:
                found.append(part)
        return found

    def broadcast(self, parameter: Parameter) -> Collective:
        """Return how an initial weight comes to be the same on all shards."""
        return Collective(
            CollectiveKind.broadcast,
            self.group,
            element_bytes(self.precision) * parameter.numel,
            "uint8",
            root=0,
            about=f"initial weights {parameter.name}",
        )

    def set_up(self) -> list[Collective]:
        """Return how ZeRO-3 sets itself up over weights that are sharded."""
        # stage3.py, `__init__` and `_setup_for_real_optimizer`: over all ranks, whatever the engine's group is. Chunks
        # do without (training/engine/deepspeed_private.py, `without_barriers`).
        num_barriers = 0 if self.in_chunk else 3
        operations = [Collective(CollectiveKind.barrier, GroupKind.world, about="ZeRO-3 is set up")] * num_barriers
        # stage3.py, `create_reduce_and_remove_grad_hooks` makes each whole for a moment.
        return [*operations, *(self.gather([parameter]) for group in self.groups for parameter in group)]

    def gather(self, parameters: Sequence[Parameter]) -> Collective:
        """Return the collective that makes ZeRO-3 parameters whole."""
        numel = sum(shard_numel(parameter.numel, self.num_shards) for parameter in parameters)
        return Collective(
            CollectiveKind.all_gather, self.group, numel, self.weights_dtype, about=f"weights {names(parameters)}"
        )

    def update(self) -> list[Collective]:
        """Return the collectives of the optimizer's step."""
        operations: list[Collective] = []
        norm_dtype = "float64" if self.zero_stage == 3 else "float32"
        norm = Collective(CollectiveKind.all_reduce, self.group, 1, norm_dtype, about="norm of one parameter group")
        if self.zero_stage == 3:
            operations += [norm] * len(self.sub_groups)
        elif self.is_bf16_optimizer:
            if self.in_chunk:
                # It asks for another axis and is given its own (engine/deepspeed_private.py, PipelineStagePlace).
                operations.append(Collective(CollectiveKind.all_reduce, self.group, 1, "float32", about="norm"))
            operations += self._publish()
        elif self.zero_stage > 0:
            if self.precision is Precision.bf16:
                operations.append(Collective(CollectiveKind.all_reduce, self.group, 1, "uint8", about="is it finite"))
            operations += [norm] * len(self.groups)
            operations += self._publish()
        return operations

    @property
    def is_bf16_optimizer(self) -> bool:
        """Whether DeepSpeed takes BF16_Optimizer rather than ZeRO's own."""
        return self.zero_stage == 1 and self.precision is Precision.bf16

    def at_the_end(self) -> list[Collective]:
        """Return the reductions below ZeRO-2, which come after a step's last backward."""
        if self.zero_stage == 0:
            buckets = engine_buckets((p.numel, p.name) for p in self.parameters)
        elif self.is_bf16_optimizer:
            buckets = engine_buckets((self.num_shards * self._partition(group), names(group)) for group in self.groups)
        else:
            order = [parameter for group in self.groups for parameter in group]
            full = full_buckets(order, bucket_elements=self.bucket_elements)
            return [operation for bucket in full for operation in self.reduce(bucket)]
        return [self._reduction(CollectiveKind.all_reduce, bucket) for bucket in buckets]

    def reduce(self, bucket: Sequence[Parameter]) -> list[Collective]:
        """Return the reductions of a bucket of gradients that ZeRO has collected."""
        if not bucket:
            return []
        if self.zero_stage == 3:
            return [self._reduction(CollectiveKind.reduce_scatter, sharded_bucket(bucket, num_shards=self.num_shards))]
        pieces = partitioned_pieces(
            bucket, self.groups, bucket_elements=self.bucket_elements, num_shards=self.num_shards
        )
        return [self._reduction(CollectiveKind.all_reduce, piece) for piece in pieces]

    def _publish(self) -> list[Collective]:
        """Return how updated weights reach all shards under ZeRO-1 and 2."""
        return [
            Collective(
                CollectiveKind.all_gather,
                self.group,
                self._partition(group),
                self.weights_dtype,
                about=f"updated weights {names(group)}",
            )
            for group in self.groups
        ]

    def _partition(self, group: Sequence[Parameter]) -> int:
        return partition_numel(sum(parameter.numel for parameter in group), self.num_shards)

    def _reduction(self, kind: CollectiveKind, bucket: Bucket) -> Collective:
        return Collective(kind, self.group, bucket.numel, "float32", about=f"gradients {bucket.about}")


class Reductions:
    """The reductions of one backward of an engine, as gradients come.

    Args:
        engine: whose gradients.
        is_last: whether the step's gradients are complete after it: below ZeRO-2 nothing is reduced before.
    """

    def __init__(self, engine: EngineProgram, *, is_last: bool) -> None:
        self._engine, self._is_last = engine, is_last
        self._filling = Filling(engine.bucket_elements)

    def add(self, parameter: Parameter) -> list[Collective]:
        """Return what is reduced because this gradient finds no room."""
        return self._engine.reduce(self._filling.add(parameter)) if self._engine.zero_stage >= 2 else []

    def end(self) -> list[Collective]:
        """Return what is reduced at the end of the backward."""
        if self._engine.zero_stage >= 2:
            return self._engine.reduce(self._filling.take())
        return self._engine.at_the_end() if self._is_last else []
