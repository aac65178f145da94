"""What one DeepSpeedEngine does over its part of the model: at the start, around forwards and backwards, at the update.

Sources: our training/engine/{zero,chunk,pipeline_zero,deepspeed_private}.py over DeepSpeed 0.19.8: runtime/engine.py,
runtime/zero/stage3.py, runtime/zero/stage_1_and_2.py and runtime/bf16_optimizer.py (ZeRO-1 in bf16). That the order and
the sizes are what they really do is checked by tests/distributed/test_rehearsal.py, call by call. No torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.config.optimizer_schema import OptimizerConfig
from training.config.schema import Precision
from training.models.zero_memory import element_bytes
from training.rehearsal.axis_program import AxisProgram
from training.rehearsal.buckets import (
    Bucket,
    Filling,
    engine_buckets,
    in_arrival_order,
    in_release_order,
    names,
    partition_numel,
    partitioned_buckets,
    shard_numel,
    sharded_bucket,
)
from training.rehearsal.grid import GroupKind
from training.rehearsal.operations import Collective, CollectiveKind
from training.rehearsal.parameters import Layer, Parameter, Sharing, distinct, optimizer_groups

_GROUPS = {Sharing.dense: GroupKind.shards, Sharing.expert: GroupKind.expert_shards}


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineProgram:
    """The collectives of one engine.

    Experts are reduced and gathered like other parameters, over the ranks that hold the same ones, in collectives of
    their own. No engine runs experts yet.
    """

    layers: Sequence[Layer]
    zero_stage: int
    precision: Precision
    optimizer: OptimizerConfig
    num_shards: dict[Sharing, int]
    """Ranks that ZeRO shards over."""
    bucket_elements: int
    sub_group_elements: int
    """Elements of a rank that ZeRO-3 updates at once."""
    in_pipeline: bool
    """Whether it is a chunk of a pipeline, whose layers are called one by one and are all sharded."""
    axes: AxisProgram

    @property
    def weights_dtype(self) -> str:
        """Dtype of weights and activations."""
        return "bfloat16" if self.precision is Precision.bf16 else "float32"

    @property
    def sharings(self) -> list[Sharing]:
        """What kinds of parameters there are."""
        present = {parameter.sharing for parameter in distinct(self.layers)}
        return [sharing for sharing in Sharing if sharing in present]

    def groups(self, sharing: Sharing) -> list[list[Parameter]]:
        """Return the optimizer's groups of one sharing."""
        return optimizer_groups(self.optimizer, [p for p in distinct(self.layers) if p.sharing is sharing])

    def sub_groups(self, sharing: Sharing) -> list[list[Parameter]]:
        """Return what ZeRO-3 updates at once (stage3.py, `_create_fp16_sub_groups`)."""
        found = []
        for group in self.groups(sharing):
            part: list[Parameter] = []
            held = 0
            for parameter in group:
                part.append(parameter)
                held += shard_numel(parameter.numel, self.num_shards[sharing])
                if held >= self.sub_group_elements:
                    found.append(part)
                    part, held = [], 0
            if part:
                found.append(part)
        return found

    def start(self) -> list[Collective]:
        """Return how a chunk of a pipeline is made: its weights alike on all replicas and, under ZeRO-3, sharded."""
        return [*self.initial_weights(), *(self.set_up() if self.zero_stage == 3 else [])]

    def initial_weights(self) -> list[Collective]:
        """Return how weights come to be the same on all replicas."""
        return [self._broadcast(parameter) for parameter in distinct(self.layers)]

    def set_up(self) -> list[Collective]:
        """Return how ZeRO-3 sets itself up over weights that are sharded."""
        # stage3.py, `__init__` and `_setup_for_real_optimizer`: over all ranks, whatever the engine's group is.
        operations = [Collective(CollectiveKind.barrier, GroupKind.world, about="ZeRO-3 is set up")] * 3
        # stage3.py, `create_reduce_and_remove_grad_hooks` makes each whole for a moment.
        for sharing in self.sharings:
            for group in self.groups(sharing):
                operations += [self.gather([parameter]) for parameter in group]
        return operations

    def gather_layer(self, layer: Layer) -> list[Collective]:
        """Return how a layer's weights become whole under ZeRO-3."""
        by_sharing = [[p for p in layer.parameters if p.sharing is sharing] for sharing in Sharing]
        return [self.gather(parameters) for parameters in by_sharing if parameters]

    def gather(self, parameters: Sequence[Parameter]) -> Collective:
        """Return the collective that makes ZeRO-3 parameters of one sharing whole."""
        sharing = parameters[0].sharing
        numel = sum(shard_numel(parameter.numel, self.num_shards[sharing]) for parameter in parameters)
        return Collective(
            CollectiveKind.all_gather, _GROUPS[sharing], numel, self.weights_dtype, about=f"weights {names(parameters)}"
        )

    def forward(self, *, gathers: bool) -> list[Collective]:
        """Return the collectives of one forward of a pipeline's chunk."""
        operations: list[Collective] = []
        for layer in self.layers:
            operations += self.gather_layer(layer) if gathers else []
            operations += self.axes.forward(layer)
        return operations

    def backward(self, *, gathers: bool, is_last: bool) -> list[Collective]:
        """Return the collectives of one backward of a pipeline's chunk."""
        events: list[Collective | Parameter] = []
        for layer in reversed(self.layers):
            events += self.gather_layer(layer) if gathers else []
            events += self.axes.backward(layer)
            events += in_release_order(layer, self.optimizer)
        if self.zero_stage == 3:
            return self.with_reductions(events)
        exchanges = [event for event in events if isinstance(event, Collective)]
        return [*exchanges, *self.reductions(is_last=is_last)]

    def reductions(self, *, is_last: bool) -> list[Collective]:
        """Return the reductions of one micro-batch below ZeRO-3: ZeRO-2's after each, others' after the last."""
        if self.zero_stage < 2 and not is_last:
            return []
        operations = []
        for sharing in self.sharings:
            groups = self.groups(sharing)
            if self.zero_stage == 0:
                order = [(p.numel, p.name) for p in distinct(self.layers) if p.sharing is sharing]
                buckets = engine_buckets(order)
            elif self._is_bf16_optimizer:
                shards = self.num_shards[sharing]
                padded = [(shards * self._partition(group, sharing), names(group)) for group in groups]
                buckets = engine_buckets(padded)
            else:
                arriving = [p for p in in_arrival_order(self.layers) if p.sharing is sharing]
                order = arriving if self.zero_stage == 2 else [p for group in groups for p in group]
                buckets = partitioned_buckets(
                    order, groups, bucket_elements=self.bucket_elements, num_shards=self.num_shards[sharing]
                )
            operations += [self._reduce(CollectiveKind.all_reduce, bucket, sharing) for bucket in buckets]
        return operations

    def with_reductions(self, events: Iterable[Collective | Parameter]) -> list[Collective]:
        """Return the collectives of a ZeRO-3 backward: gathers as they come, and reductions as gradients fill buckets.

        Args:
            events: gathers, and parameters whose gradients are complete.
        """
        operations: list[Collective] = []
        filling = {sharing: Filling(self.bucket_elements) for sharing in self.sharings}

        def reduce(parameters: list[Parameter], sharing: Sharing) -> None:
            if parameters:
                bucket = sharded_bucket(parameters, num_shards=self.num_shards[sharing])
                operations.append(self._reduce(CollectiveKind.reduce_scatter, bucket, sharing))

        for event in events:
            if isinstance(event, Collective):
                operations.append(event)
            else:
                reduce(filling[event.sharing].add(event), event.sharing)
        for sharing, rest in filling.items():
            reduce(rest.take(), sharing)
        return operations

    def update(self) -> list[Collective]:
        """Return the collectives of the optimizer's step."""
        operations: list[Collective] = []
        if self._is_bf16_optimizer and self.in_pipeline:
            # It takes an absent axis for the world (training/engine/deepspeed_private.py, PipelineStagePlace).
            operations.append(Collective(CollectiveKind.all_reduce, GroupKind.world, 1, "float32", about="norm"))
        for sharing in self.sharings:
            over, norm_dtype = _GROUPS[sharing], "float64" if self.zero_stage == 3 else "float32"
            num_norms = len(self.sub_groups(sharing) if self.zero_stage == 3 else self.groups(sharing))
            norm = Collective(CollectiveKind.all_reduce, over, 1, norm_dtype, about="norm of one parameter group")
            if self.zero_stage == 3:
                operations += [norm] * num_norms
            elif self._is_bf16_optimizer:
                operations += self._publish(sharing)
            elif self.zero_stage > 0:
                if self.precision is Precision.bf16:
                    operations.append(Collective(CollectiveKind.all_reduce, over, 1, "uint8", about="is it finite"))
                operations += [norm] * num_norms
                operations += self._publish(sharing)
        return operations

    @property
    def _is_bf16_optimizer(self) -> bool:
        """Whether DeepSpeed takes BF16_Optimizer rather than ZeRO's own."""
        return self.zero_stage == 1 and self.precision is Precision.bf16

    def _publish(self, sharing: Sharing) -> list[Collective]:
        """Return how updated weights reach all replicas under ZeRO-1 and 2."""
        return [
            Collective(
                CollectiveKind.all_gather,
                _GROUPS[sharing],
                self._partition(group, sharing),
                self.weights_dtype,
                about=f"updated weights {names(group)}",
            )
            for group in self.groups(sharing)
        ]

    def _partition(self, group: Sequence[Parameter], sharing: Sharing) -> int:
        return partition_numel(sum(parameter.numel for parameter in group), self.num_shards[sharing])

    def _reduce(self, kind: CollectiveKind, bucket: Bucket, sharing: Sharing) -> Collective:
        return Collective(kind, _GROUPS[sharing], bucket.numel, "float32", about=f"gradients {bucket.about}")

    def _broadcast(self, parameter: Parameter) -> Collective:
        return Collective(
            CollectiveKind.broadcast,
            _GROUPS[parameter.sharing],
            element_bytes(self.precision) * parameter.numel,
            "uint8",
            root=0,
            about=f"initial weights {parameter.name}",
        )
