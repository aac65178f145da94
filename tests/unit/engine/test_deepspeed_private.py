"""Every private part of DeepSpeed that we use is there, so that an upgrade fails with words."""

import ast
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK, DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partition_parameters import Init
from torch import nn

import training.engine.deepspeed_private as ours

SOURCE = Path(inspect.getsourcefile(ours) or "")

ATTRIBUTES = [
    # (module, dotted attribute): what we replace or call.
    ("deepspeed.comm.torch", "build_shm_op"),
    ("deepspeed.utils.groups", "mpu"),
    ("deepspeed.utils.groups", "_WORLD_GROUP"),
    ("torch.distributed.distributed_c10d", "_world.pg_map"),  # training/engine/process_group.py
    ("deepspeed.runtime.engine", "DeepSpeedEngine.destroy"),
    ("deepspeed.runtime.engine", "DeepSpeedEngine._backward_prologue"),
    ("deepspeed.runtime.engine", "DeepSpeedEngine._backward_epilogue"),
    ("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3.clear_backward_seen_flag"),
    ("deepspeed.runtime.zero.stage_1_and_2", "DeepSpeedZeroOptimizer.clear_backward_seen_flag"),
    ("deepspeed.runtime.zero.parameter_offload", "DeepSpeedZeRoOffload._register_deepspeed_module"),
    ("deepspeed.runtime.zero.partition_parameters", "Init.param_id"),
    ("deepspeed.runtime.zero.partition_parameters", "Init._convert_to_deepspeed_param"),
    ("deepspeed.runtime.zero.parameter_offload", "DeepSpeedZeRoOffload._convert_to_zero_parameters"),
    ("deepspeed.runtime.engine", "DeepSpeedEngine._cast_module_mixed_precision"),
    ("deepspeed.comm.pg_utils", "is_parallel"),
    ("deepspeed.runtime.engine", "DeepSpeedEngine.get_global_grad_norm"),
    ("deepspeed.runtime.pipe.module", "PipelineModule._partition_layers"),
    ("deepspeed.runtime.pipe.module", "PipelineModule._set_bounds"),
    ("deepspeed.runtime.pipe.module", "LayerSpec.build"),
    ("deepspeed.runtime.pipe.module", "TiedLayerSpec.build"),
    ("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3._partition_all_parameters"),
    ("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3._reassign_or_swap_out_partitioned_parameters"),
    ("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3.get_param_id"),
    ("deepspeed.runtime.zero.stage_1_and_2", "DeepSpeedZeroOptimizer.update_lp_params"),
    ("deepspeed.runtime.bf16_optimizer", "BF16_Optimizer.update_lp_params"),
    ("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3._apply_muon_to_accumulated_grads"),
    ("deepspeed.runtime.bf16_optimizer", "BF16_Optimizer._prepare_muon_updates"),
]

ASSIGNED = [
    # (module, name): attributes that DeepSpeed sets in code, so only its source tells.
    ("deepspeed.runtime.zero.stage3", "self.fp32_partitioned_groups_flat"),
    ("deepspeed.runtime.zero.stage3", "self.fp16_groups"),
    ("deepspeed.runtime.zero.stage3", "self.sub_group_to_group_id"),
    # training/engine/muon.py and deepspeed_private.py: Muon's momentum, and which parameters have one.
    ("deepspeed.runtime.zero.stage3", "getattr(param_group['params'][0], 'use_muon', False)"),
    ("deepspeed.runtime.zero.stage3", '["momentum_buffer"]'),
    ("deepspeed.runtime.bf16_optimizer", "state['momentum_buffer']"),
    ("deepspeed.runtime.zero.stage3", "self.fp16_partitioned_groups_flat"),
    ("deepspeed.runtime.zero.stage_1_and_2", "self.parallel_partitioned_bit16_groups"),
    ("deepspeed.runtime.bf16_optimizer", "self.bf16_partitioned_groups"),
    ("deepspeed.runtime.zero.stage3", "self.persistent_parameters"),
    ("deepspeed.runtime.zero.stage3", "self.grad_position"),
    ("deepspeed.runtime.zero.stage_1_and_2", "self.single_partition_of_fp32_groups"),
    ("deepspeed.runtime.zero.stage3", "self.averaged_gradients"),
    ("deepspeed.runtime.zero.stage3", "self.grad_partitions_flat_buffer"),
    ("deepspeed.runtime.zero.stage_1_and_2", "self.averaged_gradients"),
    ("deepspeed.runtime.zero.stage_1_and_2", "self.params_in_partition"),
    ("deepspeed.runtime.zero.stage_1_and_2", "_zero_padding = True"),
    ("deepspeed.runtime.engine", "_running_engine_backward"),
    # training/engine/sharded_layers.py: shards are left as they are, neither cut nor cast again.
    ("deepspeed.runtime.zero.parameter_offload", "for p in module.parameters() if not is_zero_param(p)"),
    ("deepspeed.runtime.engine", "param_dtype is not None and not is_zero_init_model"),
    ("deepspeed.runtime.zero.partition_parameters", "param.all_gather_coalesced = "),
    ("deepspeed.runtime.zero.partition_parameters", "ds_active_sub_modules"),
    ("deepspeed.runtime.zero.partitioned_param_coordinator", "param.ds_active_sub_modules.clear()"),
    ("deepspeed.runtime.zero.partitioned_param_coordinator", "not param.ds_active_sub_modules"),
    ("deepspeed.runtime.bf16_optimizer", "self.bf16_groups"),
    ("deepspeed.runtime.bf16_optimizer", "self.fp32_groups_gradient_flat_partition"),
    ("deepspeed.runtime.bf16_optimizer", "self.fp32_groups_gradients_flat"),
    ("deepspeed.runtime.bf16_optimizer", "self.fp32_groups_flat_partition"),
    ("deepspeed.runtime.pipe.module", "self._topo"),
    ("deepspeed.runtime.pipe.module", "self.global_rank"),
    ("deepspeed.runtime.pipe.module", "self.parts"),
    ("deepspeed.runtime.pipe.module", "ds_pipe_replicated"),
    ("deepspeed.runtime.zero.partition_parameters", "ds_shape"),
    ("deepspeed.runtime.zero.partition_parameters", "ds_numel"),
    ("deepspeed.utils.tensor_fragment", "lp_fragment_address"),
    ("deepspeed.utils.tensor_fragment", "hp_fragment_address"),
    ("deepspeed.utils.tensor_fragment", "param_group_index"),
    ("deepspeed.utils.tensor_fragment", "_hp_mapping"),
]

ADVICE = "; DeepSpeed has moved it: mend training/engine/deepspeed_private.py, then this list"


@pytest.mark.parametrize(("module", "name"), ATTRIBUTES, ids=lambda text: text)
def test_what_we_call_or_replace_is_there(module: str, name: str) -> None:
    value: Any = importlib.import_module(module)
    if module == "deepspeed.comm.torch":
        value = sys.modules[module]
    for part in name.split("."):
        assert hasattr(value, part), f"{module}.{name} is gone{ADVICE}"
        value = getattr(value, part)


@pytest.mark.parametrize(("module", "name"), ASSIGNED, ids=lambda text: text)
def test_what_we_read_is_still_written(module: str, name: str) -> None:
    text = inspect.getsource(importlib.import_module(module))
    assert name in text, f"{module} no longer has {name}{ADVICE}"


def test_no_private_name_is_used_that_this_list_does_not_know() -> None:
    known = {part for _, name in ATTRIBUTES + ASSIGNED for part in name.split(".")}
    tree = ast.parse(SOURCE.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {
        node.value.id if isinstance(node.value, ast.Name) and node.value.id != "self" else node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    assert used - own <= known, f"used but not watched: {sorted(used - own - known)}"


def test_counters_of_modules_and_parameters_start_again_when_engines_are_forgotten() -> None:
    defaults = inspect.signature(DeepSpeedZeRoOffload._register_deepspeed_module).parameters["count"].default
    assert isinstance(defaults, list), f"modules are counted in another place now{ADVICE}"
    before = (defaults[0], Init.param_id)
    try:
        defaults[0], Init.param_id = 7, 7
        ours.forget_engines([])
        assert (defaults[0], Init.param_id) == (0, 0)
    finally:
        defaults[0], Init.param_id = before


def test_modules_of_forgotten_engines_are_not_kept() -> None:
    assert "FWD_MODULE_STACK.append(self.module)" in inspect.getsource(DeepSpeedZeRoOffload), (
        f"modules are kept in another place now, or no longer{ADVICE}"
    )
    FWD_MODULE_STACK.append(nn.Linear(1, 1))
    ours.forget_engines([])
    assert FWD_MODULE_STACK == []


def test_a_finished_module_can_be_sharded_over_a_group() -> None:
    taken = inspect.signature(Init.__init__).parameters
    for name in ("module", "data_parallel_group", "config_dict_or_path", "mpu"):
        assert name in taken, f"zero.Init no longer takes {name}; mend training/engine/sharded_layers.py"


def test_the_shared_memory_op_is_not_built_after_we_said_so() -> None:
    module = sys.modules["deepspeed.comm.torch"]
    before = module.build_shm_op  # type: ignore[attr-defined]
    try:
        ours.skip_shared_memory_op()
        assert module.build_shm_op is not before  # type: ignore[attr-defined]
        assert module.build_shm_op() is None  # type: ignore[attr-defined]
        assert "build_shm_op()" in inspect.getsource(module), "the op is built by another name now" + ADVICE
    finally:
        module.build_shm_op = before  # type: ignore[attr-defined]
