"""Every use of a private part of DeepSpeed but those of pipeline_module.py, with the reason and its place in 0.19.8.

A newer DeepSpeed may move any of it: requirements.txt pins the version, and
tests/unit/engine/test_deepspeed_private.py says which part has gone.
"""

import gc
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK, DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partition_parameters import Init
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups
from torch import Tensor, nn

from training.checkpoint.manifest import MOMENTS, MOMENTUM, WEIGHT
from training.checkpoint.snapshot import Fragment

_IMPORTED_BY_ENGINES = (
    "torch._dynamo",  # torch/optim/optimizer.py, `add_param_group`
    "torch._inductor.compile_fx",  # by the next one, which decorates a function with torch.compile
    "deepspeed.runtime.zero.muon.muon_optimizer",  # runtime/zero/utils.py, `is_zero_supported_optimizer`
    "deepspeed.runtime.superoffload.superoffload_stage3",  # runtime/engine.py, `_configure_zero_optimizer`
)
_HELD = -1
"""Stands among the ids of the submodules that are using a weight; DeepSpeed's own count from 0."""


def skip_shared_memory_op() -> None:
    """Keep `init_distributed` from compiling an op on CPU (comm/torch.py, `build_shm_op`).

    Training never calls the op (only `inference_all_reduce` does), it takes a compiler and up to two minutes, and a
    process killed while building leaves a lock on which every later start waits for ever (pytorch#189245).
    """
    # `import deepspeed.comm.torch` would give torch itself: a star import shadows the name.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]


def import_all_of_deepspeed() -> None:
    """Import what DeepSpeed and torch's optimizers otherwise import while the first engine is built."""
    for module in _IMPORTED_BY_ENGINES:
        importlib.import_module(module)


def forget_engines(engines: Iterable[Any]) -> None:
    """Free all engines of this process so that others, with another layout, can be built in it.

    `deepspeed.utils.groups` keeps the last engine's topology in module globals (utils/groups.py, `mpu`). ZeRO-3 counts
    modules and parameters over the life of the process (runtime/zero/parameter_offload.py,
    `_register_deepspeed_module`, and partition_parameters.py, `Init.param_id`) and later compares the numbers over the
    whole world: they must not tell how many modules each rank has had in a pipeline before. The same file keeps every
    engine's module in a list for ever (`FWD_MODULE_STACK`), and with it the optimizer and all its memory.
    """
    for engine in engines:
        engine.destroy()
    groups.mpu = None
    module_count = DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
    assert module_count is not None
    module_count[0][0] = 0
    Init.param_id = 0
    FWD_MODULE_STACK.clear()
    gc.collect()


def is_kept(group: dist.ProcessGroup) -> bool:
    """Return whether DeepSpeed keeps a group for all engines to come (utils/groups.py, `_clone_world_group`)."""
    return group is groups._WORLD_GROUP


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineStagePlace:
    """What a DeepSpeedEngine asks of its `mpu` (runtime/engine.py, utils/groups.py): only its shards concern it.

    Nothing is said of other pipeline stages, so that no collective of an engine ever leaves its own.
    """

    data_parallel_group: dist.ProcessGroup
    shard: int
    num_shards: int
    has_bf16_optimizer: bool = False
    """Whether DeepSpeed takes its BF16_Optimizer: ZeRO-1 in bf16 (runtime/engine.py, `_configure_bf16_optimizer`)."""

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Return the group that ZeRO shards over."""
        return self.data_parallel_group

    def get_data_parallel_rank(self) -> int:
        """Return the place in that group."""
        return self.shard

    def get_data_parallel_world_size(self) -> int:
        """Return the size of that group."""
        return self.num_shards

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        """Return no group: ZeRO takes None for an absent axis (comm/pg_utils.py, `is_parallel`).

        BF16_Optimizer would take None for the world, and sum a norm over it in every step of every engine; pipeline
        stages have unequally many of them. Nobody uses that norm (clipping is ours), so it stays among the shards.
        """
        return self.data_parallel_group if self.has_bf16_optimizer else None

    def get_model_parallel_rank(self) -> int:
        """Return 0: this rank counts every parameter of its pipeline stage in the norm."""
        return 0

    def get_model_parallel_world_size(self) -> int:
        """Return 1: no axis shares the parameters of a pipeline stage."""
        return 1


@contextmanager
def without_barriers() -> Iterator[None]:
    """Keep engines that are built inside from waiting for the whole world.

    ZeRO-3 does it three times for each engine (runtime/zero/stage3.py, `_create_fp16_partitions_with_defragmentation`
    and `_setup_for_real_optimizer`), and pipeline stages may have unequally many engines. Nothing depends on it: what
    the ranks of an engine exchange is in its own group.
    """
    barrier = deepspeed.comm.barrier
    deepspeed.comm.barrier = lambda *_arguments, **_options: None
    try:
        yield
    finally:
        deepspeed.comm.barrier = barrier


def backward(engines: Sequence[Any], output: Tensor, gradient: Tensor | None, *, is_last: bool) -> None:
    """Run one micro-batch's backward through the modules of engines and reduce what ZeRO reduces then.

    `engine.backward` takes a loss only, and the public route for other tensors counts on forwards and backwards in
    turn, which a pipeline schedule has not. So what `engine.backward` does around the call of autograd is done here
    (runtime/engine.py, `backward`); and before it what ZeRO does at the next forward: to count the micro-batch whose
    backward was the last one (runtime/zero/stage3.py, `clear_backward_seen_flag`), else gradients are overwritten.

    Args:
        engines: those of one model chunk: its own, and that of its experts if they are spread over ranks.
        output: what the module's forward returned, or the loss.
        gradient: the loss's gradient with respect to `output`; None if it is the loss.
        is_last: whether the step's gradients are complete after this one.
    """
    for engine in engines:
        engine.optimizer.clear_backward_seen_flag()
        engine.set_gradient_accumulation_boundary(is_last)
        engine._running_engine_backward = True
    try:
        for engine in engines:
            engine._backward_prologue()
        torch.autograd.backward(output, gradient)
        for engine in engines:
            # The epilogue of bf16 ZeRO-1 asks a module global for the group to reduce in (runtime/engine.py,
            # `_reduce_non_expert_gradients`), which has the place of whichever engine was built last.
            groups.mpu = engine.mpu
            engine._backward_epilogue()
    finally:
        for engine in engines:
            engine._running_engine_backward = False


def hold_weights(layer: nn.Module) -> Callable[[], None]:
    """Start to gather a ZeRO-3 layer's weights in one collective; call the result before they are used.

    They then stay whole until the optimizer's step, which releases everything
    (runtime/zero/partitioned_param_coordinator.py, `release_and_reset_all`): until then a weight that some submodule
    is using is not released (`__release_param`), and one more such user is named.
    """
    parameters = list(layer.parameters())
    handle = parameters[0].all_gather_coalesced(parameters)  # type: ignore[attr-defined]

    def finish() -> None:
        handle.wait()
        for parameter in parameters:
            parameter.ds_active_sub_modules.add(_HELD)  # type: ignore[attr-defined]

    return finish


def whole_numel(parameter: nn.Parameter) -> int:
    """Return the elements of a weight on all its replicas together: ZeRO-3 leaves an empty tensor behind.

    runtime/zero/partition_parameters.py, `_convert_to_deepspeed_param`, keeps the number in `ds_numel`.
    """
    return getattr(parameter, "ds_numel", parameter.numel())


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the shape of a weight that ZeRO-3 may have cut (`ds_shape`, as above)."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def tie_across_pipeline_stages(parameter: nn.Parameter, *, is_copy: bool) -> None:
    """Mark a weight that another pipeline stage holds too; a copy as runtime/pipe/module.py does it."""
    parameter.tied_across_pipeline_stages = True  # type: ignore[attr-defined]
    parameter.ds_pipe_replicated = is_copy  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Which part of a canonical parameter a module's parameter is: a range of the flattened whole."""

    start: int
    """First element."""
    whole_shape: tuple[int, ...]
    """Shape of the canonical parameter."""


class TrainingState:
    """The fp32 weights, optimizer state and gradients that this rank holds, as parts of canonical parameters.

    Works on the live buffers of the engine's optimizer, whichever of DeepSpeed's four kinds it is.

    Args:
        engine: the engine.
        parameters: (canonical name, parameter) of its module.
        parts: of those that are a part of their canonical parameter: which.
        shard: this rank's place among those that the engine's state is divided among.
    """

    def __init__(
        self,
        engine: Any,
        parameters: Iterable[tuple[str, nn.Parameter]],
        parts: Mapping[str, Part] = MappingProxyType({}),
        *,
        shard: int,
    ) -> None:
        self._engine = engine
        self._shard = shard
        self._parts = parts
        self._optimizer = engine.optimizer
        self._base: torch.optim.Optimizer = getattr(self._optimizer, "optimizer", self._optimizer)
        for flat, uses_muon in zip(self._flat_weights(), self._flats_of_muon(), strict=True):
            # DeepSpeed leaves its state to the first step; it must exist to be loaded into before that.
            kinds = (MOMENTUM,) if uses_muon else MOMENTS
            state = {kind: torch.zeros_like(flat) for kind in kinds}
            self._base.state[flat] = state if uses_muon else {"step": torch.zeros((), dtype=torch.float32), **state}
        named = list(parameters)
        self._names = {id(parameter): name for name, parameter in named}
        if isinstance(self._optimizer, DeepSpeedZeroOptimizer_Stage3):
            self.fragments = list(self._sharded_fragments(named))
        elif isinstance(self._optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
            self.fragments = list(self._partitioned_fragments(named))
        else:
            self.fragments = list(self._replicated_fragments(named))

    def before_update(self, act: Callable[[], None]) -> None:
        """Let `act` be called before weights and moments change, in every step of the optimizer that does it."""
        self._base.register_step_pre_hook(lambda _optimizer, _arguments, _keywords: act())

    def set_updates(self, num_updates: int) -> None:
        """Set AdamW's count of updates, from which it computes its bias correction."""
        for flat in self._flat_weights():
            if "step" in self._base.state[flat]:  # Muon corrects no bias
                self._base.state[flat]["step"].fill_(num_updates)

    def publish(self) -> None:
        """Copy the fp32 weights into the weights the model runs with; collective."""
        optimizer = self._optimizer
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            # As step() does after its update (runtime/zero/stage3.py, `step` and `_post_step`).
            optimizer._partition_all_parameters()
            for sub_group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        elif isinstance(optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
            optimizer.update_lp_params()

    def copied_weights(self) -> tuple[dict[int, list[Tensor]], list[Tensor]]:
        """Return (shard -> flat parts of the weights the model runs with, which it owns; the fp32 parts kept here).

        runtime/zero/stage_1_and_2.py and runtime/bf16_optimizer.py cut each group into as many parts as there are
        replicas; each updates its own in fp32 and all gather the results. Under ZeRO-3 a rank has its own parts only;
        in fp32 runs DeepSpeed uses one memory for both (runtime/zero/stage3.py, `_create_fp32_partitions`). Without
        ZeRO nothing is owned: everything, moments too, is held by all replicas alike.
        """
        optimizer = self._optimizer
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            return {self._shard: list(optimizer.fp16_partitioned_groups_flat)}, self._flat_weights()
        if isinstance(optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
            is_bf16 = isinstance(optimizer, BF16_Optimizer)
            groups = optimizer.bf16_partitioned_groups if is_bf16 else optimizer.parallel_partitioned_bit16_groups
            owners = range(len(groups[0]))
            return {owner: [group[owner] for group in groups] for owner in owners}, self._flat_weights()
        everything = [values for fragment in self.fragments for values in fragment.tensors.values()]
        return {0: everything}, everything

    def gradients(self) -> list["Gradient"]:
        """Return this rank's part of the step's reduced gradients: after the last backward, before the step.

        Where ZeRO keeps a part of each parameter they are 1-D; padding is left out. Without ZeRO there are none.
        """
        optimizer = self._optimizer
        if isinstance(optimizer, BF16_Optimizer):
            parts = zip(self._partitioned_parameters(), self._bf16_gradients(), strict=True)
        elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            # Padding at the end of a part is never written again: what is put there stays for ever.
            parts = (
                (parameter, gradient.view(-1)[: self._numel_held(parameter)])
                for sub_group, parameters in enumerate(optimizer.fp16_groups)
                for parameter, gradient in zip(parameters, optimizer.averaged_gradients[sub_group], strict=True)
            )
        else:
            parts = (
                (parameter, gradient)
                for group, parameters in enumerate(optimizer.params_in_partition)
                for parameter, gradient in zip(
                    parameters, _without_padding(optimizer.averaged_gradients[group]), strict=False
                )
            )
        return [
            Gradient(
                parameter=self._names[id(parameter)],
                values=values.data,
                is_tied=getattr(parameter, "tied_across_pipeline_stages", False),
                is_owner=not _is_tied_copy(parameter),
            )
            for parameter, values in parts
        ]

    def held_bytes(self) -> dict[str, int]:
        """Return bytes held between two steps, by what they are: weights, gradients, optimizer."""
        optimizer, module = self._optimizer, self._engine.module
        flats = self._flat_weights()
        weights = [parameter.data for parameter in module.parameters()]
        weights += [parameter.ds_tensor for parameter in module.parameters() if hasattr(parameter, "ds_tensor")]
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            gradients.append(optimizer.grad_partitions_flat_buffer)
        elif isinstance(optimizer, BF16_Optimizer):
            gradients += optimizer.fp32_groups_gradients_flat
        moments = [tensor for flat in flats for tensor in self._kept(flat).values()]
        return {
            "weights": _storage_bytes(weights),
            "gradients": _storage_bytes(gradients),
            "optimizer": _storage_bytes([*flats, *moments]),
        }

    def _numel_held(self, parameter: nn.Parameter) -> int:
        """Return how many elements of a ZeRO-3 parameter this rank holds, without padding."""
        _, _, padded = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        return max(0, min(padded, parameter.ds_numel - self._shard * padded))  # type: ignore[attr-defined]

    def _bf16_gradients(self) -> Iterator[Tensor]:
        flats = self._optimizer.fp32_groups_gradient_flat_partition
        for parameter in self._partitioned_parameters():
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            flat = mapping.hp_fragment_address
            yield flats[mapping.param_group_index].narrow(0, flat.start, flat.numel)

    def _partitioned_parameters(self) -> list[nn.Parameter]:
        parameters = [parameter for group in self._optimizer.bf16_groups for parameter in group]
        return [parameter for parameter in parameters if parameter._hp_mapping is not None]

    def _flat_weights(self) -> list[Tensor]:
        """Return the tensors AdamW updates: flat fp32 partitions, or the parameters themselves without ZeRO."""
        optimizer = self._optimizer
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            return optimizer.fp32_partitioned_groups_flat
        if isinstance(optimizer, DeepSpeedZeroOptimizer):
            return optimizer.single_partition_of_fp32_groups
        if isinstance(optimizer, BF16_Optimizer):
            return optimizer.fp32_groups_flat_partition
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def _flats_of_muon(self) -> list[bool]:
        """Return which of `_flat_weights` Muon updates; its momentum is cut as they are (docs/adr/0015)."""
        optimizer = self._optimizer
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            places = [optimizer.sub_group_to_group_id[number] for number in range(len(optimizer.fp16_groups))]
            return [self._base.param_groups[place]["use_muon"] for place in places]
        if isinstance(optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
            return [group["use_muon"] for group in self._base.param_groups]
        return [False] * len(self._flat_weights())

    def _kept(self, flat: Tensor) -> dict[str, Tensor]:
        """Return what the optimizer keeps of each element."""
        return {kind: self._base.state[flat][kind] for kind in (*MOMENTS, MOMENTUM) if kind in self._base.state[flat]}

    def _views(self, flat: Tensor, start: int, numel: int) -> dict[str, Tensor]:
        tensors = {WEIGHT: flat, **self._kept(flat)}
        return {kind: tensor.data.view(-1).narrow(0, start, numel) for kind, tensor in tensors.items()}

    def _fragment(self, name: str, parameter: nn.Parameter, start: int, tensors: dict[str, Tensor]) -> Fragment:
        part = self._parts.get(name)
        return Fragment(
            parameter=name,
            shape=whole_shape(parameter) if part is None else part.whole_shape,
            start=start if part is None else part.start + start,
            tensors=tensors,
            is_owner=not _is_tied_copy(parameter),
        )

    def _replicated_fragments(self, named: list[tuple[str, nn.Parameter]]) -> Iterator[Fragment]:
        for name, parameter in named:
            fragment = self._fragment(name, parameter, 0, self._views(parameter, 0, parameter.numel()))
            yield replace(fragment, is_owner=self._shard == 0)

    def _partitioned_fragments(self, named: list[tuple[str, nn.Parameter]]) -> Iterator[Fragment]:
        # utils/tensor_fragment.py: `_hp_mapping` is where this rank's flat partition overlaps a parameter, or None.
        flats = self._flat_weights()
        for name, parameter in named:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is None:
                continue
            inside, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
            views = self._views(flats[mapping.param_group_index], flat.start, flat.numel)
            yield self._fragment(name, parameter, inside.start, views)

    def _sharded_fragments(self, named: list[tuple[str, nn.Parameter]]) -> Iterator[Fragment]:
        # runtime/zero/stage3.py, `grad_position`: parameter -> (sub-group, offset in its flat partition, padded size).
        optimizer = self._optimizer
        flats = self._flat_weights()
        for name, parameter in named:
            sub_group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            numel = self._numel_held(parameter)
            if numel == 0:
                continue
            views = self._views(flats[sub_group], offset, numel)
            yield self._fragment(name, parameter, self._shard * padded, views)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradient:
    """This rank's part of one parameter's reduced gradient; writing into `values` changes what the step uses."""

    parameter: str
    """Canonical name."""
    values: Tensor
    is_tied: bool
    """Whether another pipeline stage of ours holds the same range of it too."""
    is_owner: bool
    """Whether it counts: False for the copy of a weight that another pipeline stage owns."""


def _without_padding(tensors: Iterable[Tensor]) -> list[Tensor]:
    # runtime/zero/stage_1_and_2.py, `get_flat_partition`: parts of parameters in order, padding marked among them.
    return [tensor for tensor in tensors if not getattr(tensor, "_zero_padding", False)]


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _is_tied_copy(parameter: nn.Parameter) -> bool:
    # runtime/pipe/module.py, `_index_tied_modules`: set on every copy of a tied weight but the first pipeline stage's.
    return getattr(parameter, "ds_pipe_replicated", False)
