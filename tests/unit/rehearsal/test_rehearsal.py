import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.distributed.configs import STAGE
from tests.unit.rehearsal.layouts import INTERLEAVED, any_layout, rehearsal
from training.config.schema import Precision, Regather
from training.models.sizes import chunk_size
from training.rehearsal.grid import GroupKind
from training.rehearsal.operations import Collective, CollectiveKind
from training.rehearsal.program import Phase

REPOSITORY = Path(__file__).parents[3]


@settings(max_examples=60)
@given(any_layout())
def test_every_layout_that_our_engines_run_is_without_mistake(layout: dict[str, Any]) -> None:
    assert rehearsal(**layout).check() == []


@pytest.mark.parametrize(
    "layout",
    [
        {"sequence": 4, "zero_stage": 0},
        {"expert": 4, "experts": True, "sequence": 2, "zero_stage": 3, "pipeline": 2, "data": 2},
        {"expert": 2, "experts": True, "sequence": 2, "pipeline": 4, "data": 2, **INTERLEAVED},
    ],
)
def test_sequences_and_experts_over_ranks_fit_together(layout: dict[str, Any]) -> None:
    sound = rehearsal(**{"accumulation": 4, **layout})
    assert not sound.plan.is_planned_only
    assert len(sound.memory) == sound.plan.grid.pipeline
    assert sound.check() == []


@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 2},
        {"expert": 2, "experts": True, "tensor": 2, "sequence": 2, "pipeline": 4, "data": 2, **INTERLEAVED},
        {"expert": 2, "experts": True, "tensor": 4, "zero_stage": 3, "pipeline": 2, "precision": Precision.bf16},
    ],
)
def test_a_planned_axis_fits_together_too(layout: dict[str, Any]) -> None:
    planned = rehearsal(**{"accumulation": 4, **layout})
    assert planned.plan.is_planned_only
    assert planned.memory == (), "this cluster's config does not say what a plan of this axis needs"
    assert planned.check() == []


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_each_micro_batch_reduces_every_gradient_of_its_chunk_once(zero_stage: int) -> None:
    sound = rehearsal(pipeline=2, zero_stage=zero_stage, accumulation=3)
    plan = sound.plan
    for stage in range(2):
        (chunk,) = plan.chunks_of(stage)
        text = sound.phases[Phase.step].of(plan.pipeline_stage_ranks(stage).start)
        kind = CollectiveKind.reduce_scatter if zero_stage == 3 else CollectiveKind.all_reduce
        reduced = sum(
            op.numel
            for op in text
            if isinstance(op, Collective) and op.kind is kind and op.group is GroupKind.shards and op.numel > 1
        )
        size = chunk_size(plan.config.model, plan.parts[chunk])
        assert reduced == 3 * size.num_parameters  # this model's parameters divide among 4 replicas without padding


def test_gathering_once_a_step_gathers_each_weight_once() -> None:
    layout = {"pipeline": 2, "zero_stage": 3, "accumulation": 4}

    def gathered(regather: Regather) -> int:
        text = rehearsal(**layout, regather=regather).phases[Phase.step].of(0)
        return sum(op.numel for op in text if isinstance(op, Collective) and op.kind is CollectiveKind.all_gather)

    assert gathered(Regather.per_microbatch) == 2 * 4 * gathered(Regather.per_step)


def test_15_000_ranks_of_a_405b_model_take_less_than_4_gb() -> None:
    code = (
        "import json, resource, sys, time; begun = time.perf_counter();"
        "from launch.rehearse import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'deepspeed'} & set(sys.modules);"
        "peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "print(json.dumps({'code': int(code), 'seconds': time.perf_counter() - begun, 'peak_bytes': peak}))"
    )
    words = ["experiment=llama3_405b", "cluster=azure_nd_h200_v5", "cluster.num_nodes=1875", "parallel.pipeline=10"]
    words += [
        "parallel.zero_stage=3",
        "parallel.tensor=1",
        "parallel.recompute=full",
        "stages.pretrain.global_batch_sequences=6000",
    ]
    words += ["stages.pretrain.micro_batch_sequences=1"]
    finished = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=REPOSITORY, timeout=100, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "15,000 ranks as pipeline 10 x data 1500, ZeRO-3" in finished.stdout
    told = json.loads(finished.stdout.splitlines()[-1])
    print(f"{told['seconds']:.1f} s, {told['peak_bytes'] / 1e9:.2f} GB at the highest")
    assert told["code"] == 0
    assert told["peak_bytes"] < 4e9


def test_groups_of_axes_are_made_before_they_are_used() -> None:
    for pipeline in (1, 2):
        sound = rehearsal(pipeline=pipeline, sequence=2, expert=2, experts=True, accumulation=2)
        made = {
            op.members.partition(" group ")[0]
            for op in sound.phases[Phase.start].of(0)
            if isinstance(op, Collective) and op.kind is CollectiveKind.new_group
        }
        used = {op.group for op in sound.phases[Phase.step].of(0) if isinstance(op, Collective)}
        assert used - made <= {GroupKind.world, GroupKind.shards}
        assert {GroupKind.sequence, GroupKind.expert, GroupKind.expert_shards} <= made


def test_a_rehearsal_names_its_training_stage() -> None:
    assert rehearsal().plan.training_stage == STAGE
