from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.planner.jobs import CPU, H100, LLAMA_8B, MOE, job
from training.config.load import compose
from training.config.model_schema import ExpertsConfig
from training.config.schema import PipelineSchedule, Precision, Regather, RunConfig
from training.config.schema import Recompute as ConfiguredRecompute
from training.models.cut import cut
from training.models.memory import rank_memory
from training.planner.constants import CONSTANTS
from training.planner.from_config import shape_of
from training.planner.job import Job, NumberFormat, Recompute
from training.planner.memory import TIGHT_SHARE, Fit, memory, verdict
from training.planner.own_memory import own_memory, runs_in_our_engines
from training.planner.program_memory import kept_bytes, program_memory
from training.planner.software import KERNELS, SOFTWARE

GIB = 2**30
BASE = compose([])


EXPERTS = ExpertsConfig(
    num_experts=4, experts_per_token=2, expert_ffn_size=64, num_shared_experts=1, num_dense_layers=1, z_loss=0.1
)


def configured(*, precision: Precision, num_replicas: int, layout: dict[str, Any]) -> RunConfig:
    name = "interleaved" if layout["chunks_per_rank"] > 1 else "1f1b"
    parallel = replace(BASE.parallel, schedule=PipelineSchedule(name), **layout)
    pretrain = replace(
        BASE.stages["pretrain"], micro_batch_sequences=2, global_batch_sequences=8 * parallel.pipeline * num_replicas
    )
    return replace(
        BASE,
        precision=precision,
        model=replace(
            BASE.model,
            num_layers=8,
            num_heads=8,
            num_kv_heads=2,
            tied_embeddings=False,
            vocab_size=512,
            dropout=0.0,
            experts=EXPERTS if parallel.expert > 1 else None,
        ),
        parallel=parallel,
        stages={"pretrain": pretrain},
        cluster=replace(BASE.cluster, num_nodes=num_replicas, processes_per_node=parallel.pipeline * parallel.sequence),
    )


def planned(config: RunConfig, *, gathers_per_step: bool) -> Job:
    layout, stage = config.layout_of("pretrain"), config.stages["pretrain"]
    return job(
        model=shape_of(config.model),
        device=CPU,
        number_format=NumberFormat(config.precision),
        software="autarky",
        sequence_length=stage.sequence_length,
        micro_batch=stage.micro_batch_sequences,
        accumulation=config.accumulation_steps("pretrain"),
        recompute=Recompute(layout.recompute),
        replicas=config.num_replicas("pretrain"),
        pipeline=layout.pipeline,
        context=layout.sequence,
        expert=layout.expert,
        chunks_per_rank=layout.chunks_per_rank,
        zero_stage=layout.zero_stage,
        gathers_per_step=gathers_per_step,
    )


@settings(max_examples=60, deadline=None)
@given(
    layout=st.fixed_dictionaries(
        {
            "pipeline": st.sampled_from([1, 2, 4]),
            "zero_stage": st.sampled_from([1, 2, 3]),
            "recompute": st.sampled_from(ConfiguredRecompute),
            "chunks_per_rank": st.sampled_from([1, 2]),
            "layers_per_pipeline_stage": st.just(None),
            "sequence": st.sampled_from([1, 2, 4]),
            "expert": st.sampled_from([1, 2]),
        }
    ),
    precision=st.sampled_from([Precision.fp32, Precision.bf16]),
    num_replicas=st.sampled_from([2, 4, 6]),
    per_step=st.booleans(),
)
def test_for_our_engines_it_is_the_plan_that_they_follow(
    layout: dict[str, Any], precision: Precision, num_replicas: int, per_step: bool
) -> None:
    if layout["pipeline"] == 1:
        layout["chunks_per_rank"] = 1
    config = configured(precision=precision, num_replicas=num_replicas, layout=layout)
    if layout["pipeline"] > 1:
        # Blocks alike in number, which both cut the same way by hand.
        each = 8 // (layout["pipeline"] * layout["chunks_per_rank"])
        by_hand = [each] * (layout["pipeline"] * layout["chunks_per_rank"])
        config = replace(config, parallel=replace(config.parallel, layers_per_pipeline_stage=by_hand))
    plan = planned(config, gathers_per_step=per_step)
    assert runs_in_our_engines(plan)
    software = replace(SOFTWARE["autarky"], cut="blocks")
    stages = own_memory(plan, software)
    regather = Regather.per_step if per_step and layout["pipeline"] > 1 else Regather.per_microbatch
    parts = cut(config, "pretrain")
    for place, stage in enumerate(stages):
        live = rank_memory(config, "pretrain", pipeline_stage=place, regather=regather, parts=parts)
        for part in (
            "weights",
            "gradients",
            "optimizer",
            "gathered",
            "activations",
            "block",
            "logits",
            "buffers",
            "update",
        ):
            assert getattr(stage, f"{part}_bytes") == getattr(live, f"{part}_bytes"), part
        assert stage.tensors_bytes == live.total_bytes


@settings(max_examples=60, deadline=None)
@given(
    pipeline=st.sampled_from([1, 4]),
    zero_stage=st.sampled_from([1, 2, 3]),
    recompute=st.sampled_from([Recompute.none, Recompute.selective, Recompute.full]),
    replicas=st.sampled_from([8, 64]),
    per_step=st.booleans(),
)
def test_what_is_only_planned_is_counted_as_what_runs(
    pipeline: int, zero_stage: int, recompute: Recompute, replicas: int, per_step: bool
) -> None:
    plan = job(
        software="autarky",
        pipeline=pipeline,
        zero_stage=zero_stage,
        recompute=recompute,
        replicas=replicas,
        gathers_per_step=per_step and pipeline > 1 and zero_stage == 3,
    )
    assert runs_in_our_engines(plan)
    for ours, counted in zip(memory(plan), program_memory(plan, CONSTANTS), strict=True):
        assert counted.total_bytes == pytest.approx(ours.total_bytes, rel=0.08)


LAYOUTS = st.fixed_dictionaries(
    {
        "tensor": st.sampled_from([1, 8]),
        "pipeline": st.sampled_from([1, 4]),
        "replicas": st.sampled_from([1, 16]),
        "software": st.sampled_from(sorted(SOFTWARE)),
    }
)


@settings(max_examples=80, deadline=None)
@given(LAYOUTS, st.sampled_from([LLAMA_8B, MOE]), st.sampled_from([0, 1, 2, 3]))
def test_memory_grows_with_the_micro_batch_and_falls_with_recompute(
    layout: dict[str, Any], model: Any, zero_stage: int
) -> None:
    def most(**more: Any) -> float:
        return max(stage.total_bytes for stage in memory(job(model=model, zero_stage=zero_stage, **layout, **more)))

    # Equal where the update, not the passes, is the highest.
    assert most(micro_batch=1) <= most(micro_batch=2) <= most(micro_batch=4) < most(micro_batch=64)
    kept = [
        memory(job(model=model, zero_stage=zero_stage, recompute=recompute, **layout))[0].activations_bytes
        for recompute in (Recompute.none, Recompute.selective, Recompute.full)
    ]
    assert kept[0] >= kept[1] >= kept[2] > 0


@settings(max_examples=40, deadline=None)
@given(LAYOUTS)
def test_a_higher_zero_stage_keeps_no_more(layout: dict[str, Any]) -> None:
    resident = [memory(job(zero_stage=stage, **layout))[0].resident_bytes for stage in (0, 1, 2, 3)]
    # DeepSpeed without ZeRO keeps no master weights (training/models/zero_memory.py).
    assert resident[1] >= resident[2] >= resident[3] or layout["replicas"] == 1


def test_resident_bytes_are_those_of_the_zero_paper() -> None:
    # arXiv:1910.02054, figure 1: 2 + 2 + 12 bytes a parameter, sharded stage by stage.
    plans = [memory(job(zero_stage=stage, replicas=64))[0].resident_bytes for stage in (0, 1, 2, 3)]
    parameters = 8_030_261_248 - 4096
    assert plans == [pytest.approx(parameters * bytes_each) for bytes_each in (16, 4 + 12 / 64, 2 + 14 / 64, 16 / 64)]


def test_kept_activations_are_megatrons_formula() -> None:
    # arXiv:2205.05198, section 4.2: without attention's scores, 34 s b h bytes a block with a plain feed-forward layer
    # of 4 h, of which 10 (2 dropout masks, which pre-training has no more, and their operands) are outside the product
    # regions and the rest inside.
    shape = replace(LLAMA_8B, num_kv_heads=32, ffn_matrices=2, ffn_size=4 * 4096)
    plan = job(model=shape)
    kept = kept_bytes(plan, SOFTWARE["megatron"], KERNELS["flash_2"], Recompute.none, is_dense=True)
    log_sums = 4 * 32 * 4096
    assert kept - log_sums == pytest.approx((34 - 2) * 4096 * 4096, rel=0.01)


def test_unfused_attention_keeps_scores_unless_recomputed() -> None:
    kernel, software = KERNELS["unfused"], SOFTWARE["megatron_2021"]
    scores = 5 * 4096 * 4096 * 32
    kept, again = (
        kept_bytes(job(), software, kernel, recompute, is_dense=True)
        for recompute in (Recompute.none, Recompute.attention)
    )
    assert kept - again == scores


def test_the_verdict_names_amounts_and_the_largest_parts() -> None:
    plan = job(replicas=8, micro_batch=16)
    says = verdict(plan)
    assert says.fit is Fit.does_not_fit
    assert says.reason.startswith("does not fit: each rank needs ")
    assert " too much; the most is activations " in says.reason
    roomy = replace(plan, device=replace(H100, memory_bytes=2 * says.needed_bytes))
    assert verdict(roomy).fit is Fit.fits
    just = replace(plan, device=replace(H100, memory_bytes=says.needed_bytes / (TIGHT_SHARE + 0.02)))
    assert verdict(just).fit is Fit.tight
    staged = verdict(job(pipeline=4))
    assert f"pipeline stage {staged.pipeline_stage} needs" in staged.reason


def test_a_second_copy_of_the_weights_takes_its_shard() -> None:
    plans = [job(software="megatron", zero_stage=3, replicas=64, zero3_group=group) for group in (None, 8)]
    one, two = (memory(plan)[0].weights_bytes for plan in plans)
    assert two == pytest.approx(one + one * 64 / 8)


def test_experts_are_resident_where_they_live() -> None:
    alone, spread = (memory(job(model=MOE, replicas=8, expert=n))[0] for n in (1, 8))
    assert spread.weights_bytes < alone.weights_bytes / 3
    assert spread.buffers_bytes > alone.buffers_bytes


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, st.sampled_from([LLAMA_8B, MOE]), st.sampled_from([1, 3]), st.sampled_from([1, 2]))
def test_the_fullest_pipeline_stage_is_found_without_looking_at_all(
    layout: dict[str, Any], model: Any, zero_stage: int, chunks_per_rank: int
) -> None:
    chunks = chunks_per_rank if layout["pipeline"] > 1 else 1
    plan = job(model=model, zero_stage=zero_stage, chunks_per_rank=chunks, **layout)
    assert verdict(plan).needed_bytes == max(stage.total_bytes for stage in memory(plan))
