"""Every use of a private part of DeepSpeed, with the reason and where it stands in 0.19.8.

A newer DeepSpeed may move any of it: requirements.txt pins the version, and
tests/unit/engine/test_deepspeed_private.py says which part has gone.
"""

import gc
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.pipe.module import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups
from torch import Tensor, nn

from training.checkpoint.store import Fragment
from training.models.decoder import LayerDefinition

MOMENTS = ("exp_avg", "exp_avg_sq")


def skip_shared_memory_op() -> None:
    """Keep `init_distributed` from compiling an op on CPU (comm/torch.py, `build_shm_op`).

    Training never calls the op (only `inference_all_reduce` does), it takes a compiler and up to two minutes, and a
    process killed while building leaves a lock on which every later start waits for ever (pytorch#189245).
    """
    # `import deepspeed.comm.torch` would give torch itself: a star import shadows the name.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]


def forget_engine(engine: Any) -> None:
    """Free an engine so that another one, with another layout, can be built in this process.

    `deepspeed.utils.groups` keeps the last engine's topology in module globals (utils/groups.py, `mpu`).
    """
    engine.destroy()
    groups.mpu = None
    gc.collect()


class ManualPipelineModule(PipelineModule):
    """A PipelineModule cut where we say, from our own list of layers.

    `partition_method` cannot take a partition (runtime/pipe/module.py, `_partition_layers`), and its "parameters"
    method builds every layer on every rank to count it.
    """

    def __init__(self, layers: list[LayerDefinition], parts: list[range], **kwargs: Any) -> None:
        self._ranges = parts
        self._names = [layer.tied_to or layer.name for layer in layers]
        tied = {layer.tied_to for layer in layers if layer.tied_to}
        specs = [_TiedSpec(layer) if (layer.tied_to or layer.name) in tied else _Spec(layer) for layer in layers]
        super().__init__(specs, num_stages=len(parts), **kwargs)

    def _partition_layers(self, method: str = "manual") -> None:
        self.parts = [self._ranges[0].start, *[part.stop for part in self._ranges]]
        mine = self._ranges[self._topo.get_coord(self.global_rank).pipe]
        self._set_bounds(start=mine.start, stop=mine.stop)

    def canonical_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (canonical name, parameter) of this pipeline stage's layers.

        DeepSpeed names them "<layer index>.<rest>" and "tied_modules.<key>.<rest>".
        """
        for name, parameter in self.named_parameters():
            head, _, rest = name.partition(".")
            if head == "tied_modules":
                key, _, rest = rest.partition(".")
                yield f"{key.replace('/', '.')}.{rest}", parameter
            else:
                yield f"{self._names[int(head)]}.{rest}", parameter


class _Spec(LayerSpec):
    def __init__(self, layer: LayerDefinition) -> None:
        super().__init__(nn.Module)
        self.layer = layer

    def build(self, log: bool = False) -> nn.Module:
        return self.layer.build()


class _TiedSpec(TiedLayerSpec):
    def __init__(self, layer: LayerDefinition) -> None:
        super().__init__((layer.tied_to or layer.name).replace(".", "/"), nn.Module)
        self.layer = layer

    def build(self, log: bool = False) -> nn.Module:
        return self.layer.build()


class TrainingState:
    """The fp32 weights and AdamW moments that this rank holds, as fragments of canonical parameters.

    Works on the live buffers of the engine's optimizer, whichever of DeepSpeed's four kinds it is.
    """

    def __init__(self, engine: Any, parameters: Iterable[tuple[str, nn.Parameter]], *, replica: int) -> None:
        self._optimizer = engine.optimizer
        self._base: torch.optim.AdamW = getattr(self._optimizer, "optimizer", self._optimizer)
        for flat in self._flat_weights():
            # DeepSpeed leaves the moments to the first step; they must exist to be loaded into before that.
            self._base.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        named = list(parameters)
        if isinstance(self._optimizer, DeepSpeedZeroOptimizer_Stage3):
            self.fragments = list(self._sharded_fragments(named, replica))
        elif isinstance(self._optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
            self.fragments = list(self._partitioned_fragments(named))
        else:
            self.fragments = list(self._replicated_fragments(named, replica))

    def set_updates(self, num_updates: int) -> None:
        """Set AdamW's count of updates, from which it computes its bias correction."""
        for flat in self._flat_weights():
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

    def _views(self, flat: Tensor, start: int, numel: int) -> dict[str, Tensor]:
        state = self._base.state[flat]
        tensors = {"weight": flat, **{moment: state[moment] for moment in MOMENTS}}
        return {kind: tensor.data.view(-1).narrow(0, start, numel) for kind, tensor in tensors.items()}

    def _replicated_fragments(self, named: list[tuple[str, nn.Parameter]], replica: int) -> Iterator[Fragment]:
        for name, parameter in named:
            yield Fragment(
                parameter=name,
                shape=tuple(parameter.shape),
                start=0,
                tensors=self._views(parameter, 0, parameter.numel()),
                is_owner=replica == 0,
            )

    def _partitioned_fragments(self, named: list[tuple[str, nn.Parameter]]) -> Iterator[Fragment]:
        # utils/tensor_fragment.py: `_hp_mapping` is where this rank's flat partition overlaps a parameter, or None.
        flats = self._flat_weights()
        for name, parameter in named:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is None:
                continue
            inside, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Fragment(
                parameter=name,
                shape=tuple(parameter.shape),
                start=inside.start,
                tensors=self._views(flats[mapping.param_group_index], flat.start, flat.numel),
                is_owner=not _is_tied_copy(parameter),
            )

    def _sharded_fragments(self, named: list[tuple[str, nn.Parameter]], replica: int) -> Iterator[Fragment]:
        # runtime/zero/stage3.py, `grad_position`: parameter -> (sub-group, offset in its flat partition, padded size).
        optimizer = self._optimizer
        flats = self._flat_weights()
        for name, parameter in named:
            sub_group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = replica * padded
            numel = min(padded, parameter.ds_numel - start)  # type: ignore[attr-defined]
            if numel <= 0:
                continue
            yield Fragment(
                parameter=name,
                shape=tuple(parameter.ds_shape),  # type: ignore[attr-defined]
                start=start,
                tensors=self._views(flats[sub_group], offset, numel),
                is_owner=True,
            )


def _is_tied_copy(parameter: nn.Parameter) -> bool:
    # runtime/pipe/module.py, `_index_tied_modules`: set on every copy of a tied weight but the first pipeline stage's.
    return getattr(parameter, "ds_pipe_replicated", False)
