"""A run's twin: ratios are kept, whatever cluster run it is of can be started here, overrides say all of it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config.checks import check
from training.config.differences import differences
from training.config.load import compose, compose_unchecked
from training.config.model_checks import check_sizes
from training.config.model_schema import ExpertsConfig, LatentAttentionConfig, ModelConfig, RopeScaling, YarnScaling
from training.config.overrides import group_choices
from training.config.schema import (
    ParallelConfig,
    PipelineSchedule,
    Precision,
    Recompute,
    Regather,
    RunConfig,
    StageConfig,
)
from training.config.twin import Laptop, twin_of
from training.config.twin_model import TwinSizes, twin_model

EXPERIMENTS = group_choices("experiment")
LOCAL = compose(["cluster=local"])
CLUSTER_RUN = compose(["experiment=llama3_8b"])
RANKS = 384
COUNTS = st.integers(1, 8)


def laptop(processes: int = 4, steps: int = 200) -> Laptop:
    return Laptop(
        cluster=replace(LOCAL.cluster, processes_per_node=processes),
        data=replace(LOCAL.data, tokenizer_vocab_size=512),
        steps=steps,
    )


@st.composite
def rope(draw: st.DrawFn) -> tuple[RopeScaling | None, YarnScaling | None]:
    length, factor = 1024 * draw(st.integers(1, 64)), draw(st.floats(1.0, 64.0))
    match draw(st.sampled_from(["none", "llama3", "yarn"])):
        case "llama3":
            low = draw(st.floats(0.5, 2.0))
            return RopeScaling(
                factor=factor, low_freq_factor=low, high_freq_factor=4 * low, original_max_sequence_length=length
            ), None
        case "yarn":
            return None, YarnScaling(factor=factor, original_max_sequence_length=length)
    return None, None


@st.composite
def experts(draw: st.DrawFn, num_layers: int) -> ExpertsConfig | None:
    if not draw(st.booleans()):
        return None
    groups, group = draw(st.sampled_from([1, 2, 3, 8])), draw(st.integers(2, 32))
    groups_per_token = draw(st.integers(1, groups))
    return ExpertsConfig(
        num_experts=groups * group,
        experts_per_token=draw(st.integers(1, groups_per_token * group)),
        expert_ffn_size=64 * draw(st.integers(1, 200)),
        num_shared_experts=draw(st.integers(0, 2)),
        num_dense_layers=draw(st.integers(0, num_layers - 1)),
        num_groups=groups,
        groups_per_token=groups_per_token,
    )


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    num_kv_heads, per_kv = draw(st.sampled_from([1, 2, 3, 4, 8, 16])), draw(st.sampled_from([1, 2, 3, 4, 6, 7, 12, 16]))
    head_size, num_layers = draw(st.sampled_from([32, 64, 96, 128])), draw(st.integers(2, 128))
    num_heads = num_kv_heads * per_kv
    latent = None
    if per_kv == 1 and draw(st.booleans()):
        latent = LatentAttentionConfig(
            kv_rank=64 * draw(COUNTS),
            query_rank=draw(st.one_of(st.none(), st.just(1536))),
            head_size=128,
            rope_head_size=64,
            value_head_size=128,
        )
    scaling, yarn = draw(rope())
    own_head = latent is None and draw(st.booleans())
    hidden = 512 * draw(st.integers(1, 32)) if own_head or latent else num_heads * head_size
    return ModelConfig(
        vocab_size=100_000 + draw(st.integers(0, 1000)),
        hidden_size=hidden,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size if own_head else None,
        qk_norm=latent is None and draw(st.booleans()),
        latent_attention=latent,
        ffn_size=256 * draw(st.integers(1, 200)),
        max_sequence_length=8192 * draw(st.integers(1, 32)),
        rope_scaling=scaling,
        yarn=yarn,
        experts=draw(experts(num_layers)),
    )


def dividing(sizes: Sequence[int], *counts: int) -> st.SearchStrategy[int]:
    return st.sampled_from([size for size in sizes if all(count % size == 0 for count in counts)])


@st.composite
def layouts(draw: st.DrawFn, model: ModelConfig) -> ParallelConfig:
    pipeline = draw(st.sampled_from([size for size in (1, 2, 3, 8) if size <= model.num_layers]))
    tensor = draw(dividing([1, 2], model.num_kv_heads, model.vocab_size))
    zero_stage = draw(st.sampled_from([1, 2, 3]))
    chunks = draw(st.sampled_from([n for n in (1, 2, 4) if n * pipeline <= model.num_layers])) if pipeline > 1 else 1
    return ParallelConfig(
        pipeline=pipeline,
        tensor=tensor,
        sequence=draw(dividing([1, 2, 3, 8], model.num_heads // tensor, 1024)),
        expert=draw(dividing([1, 2, 3, 8], model.experts.num_experts, RANKS // pipeline // tensor))
        if model.experts
        else 1,
        zero_stage=zero_stage,
        recompute=draw(st.sampled_from(Recompute)),
        schedule=PipelineSchedule.interleaved if chunks > 1 else PipelineSchedule.one_forward_one_backward,
        chunks_per_rank=chunks,
        regather=draw(st.sampled_from(Regather)) if pipeline > 1 and zero_stage == 3 else Regather.auto,
        loss_chunk_tokens=draw(st.sampled_from([None, 2048])),
    )


@st.composite
def cluster_runs(draw: st.DrawFn) -> RunConfig:
    """Draw a run that can be planned: of a random model, in a random layout for each of one or two training stages."""
    model, stages = draw(models()), dict[str, StageConfig]()
    for name in ("pretrain", "long")[: draw(st.integers(1, 2))]:
        layout = draw(layouts(model))
        replicas = RANKS // (layout.pipeline * layout.tensor * layout.sequence)
        stages[name] = replace(
            CLUSTER_RUN.stages["pretrain"],
            sequence_length=1024 * draw(st.sampled_from([1, 2, 4, 8])),
            global_batch_sequences=replicas * 48 * draw(COUNTS),
            micro_batch_sequences=draw(st.sampled_from([1, 2])),
            parallel=layout,
            lr=draw(st.one_of(st.none(), st.floats(1e-5, 1e-3))),
            document_mask=draw(st.booleans()),
        )
    config = replace(
        CLUSTER_RUN,
        model=model,
        stages=stages,
        cluster=replace(CLUSTER_RUN.cluster, num_nodes=RANKS // 8),
        precision=draw(st.sampled_from([Precision.bf16, Precision.fp8])),
    )
    check(config, to_plan=True)
    return config


@settings(max_examples=60, deadline=None)
@given(cluster_runs(), st.integers(1, 8), st.integers(1, 400))
def test_the_twin_of_any_run_that_can_be_planned_can_be_started_here(
    config: RunConfig, processes: int, steps: int
) -> None:
    twin = twin_of(config, laptop(processes, steps))
    check(twin)
    assert twin.world_size == processes
    assert sum(twin.num_steps(name) for name in twin.stages) == max(steps, len(config.stages))
    for name in twin.stages:
        assert twin.micro_batch_counts(name)[0] >= 1
        assert twin.layout_of(name).zero_stage == config.layout_of(name).zero_stage


@settings(deadline=None)
@given(models(), st.integers(4, 16))
def test_a_twin_keeps_the_ratios_of_its_model(one: ModelConfig, num_layers: int) -> None:
    other = twin_model(one, TwinSizes(num_layers=num_layers, vocab_size=512, length_ratio=1 / 128))
    check_sizes(other)
    share = other.hidden_size / one.hidden_size
    assert min(64, one.hidden_size) <= other.hidden_size <= 256
    assert one.num_heads * other.num_kv_heads == other.num_heads * one.num_kv_heads
    assert abs(other.ffn_size - one.ffn_size * share) <= 0.5
    assert _small_part(one) == _small_part(other)
    if one.latent_attention is None:
        widths = one.num_heads * one.attention_head_size, other.num_heads * other.attention_head_size
        assert abs(widths[1] - widths[0] * share) <= other.num_heads or other.attention_head_size == 2
    if one.experts is not None:
        assert other.experts is not None
        assert abs(other.experts.expert_ffn_size - one.experts.expert_ffn_size * share) <= 0.5 or (
            other.experts.expert_ffn_size == 1
        )
        assert bool(one.experts.num_dense_layers) == bool(other.experts.num_dense_layers)
        enough = 2 * one.experts.experts_per_token
        assert other.experts.num_experts >= min(enough, one.experts.num_experts)


def _small_part(model: ModelConfig) -> dict[str, object]:
    """Return what is no size."""
    kept = {name: getattr(model, name) for name in ("qk_norm", "tied_embeddings", "rope_theta", "init_std", "dropout")}
    for section in (model.rope_scaling, model.yarn, model.experts):
        sizes = ("original_max_sequence_length", "num_experts", "expert_ffn_size", "num_dense_layers")
        fields = dataclasses.fields(section) if section is not None else ()
        kept |= {field.name: getattr(section, field.name) for field in fields if field.name not in sizes}
    return kept


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_overrides_of_a_twin_compose_to_it(experiment: str) -> None:
    words = [f"experiment={experiment}"]
    here = compose_unchecked([*words, "cluster=local", "data=demo"])
    twin = twin_of(compose(words, to_plan=True), laptop())
    overrides = [change.override for change in differences(here, twin)]
    assert compose([*words, "cluster=local", "data=demo", *overrides]) == twin


def test_a_twin_of_an_experts_pipeline_has_an_axis_of_two_for_each_of_the_original() -> None:
    twin = twin_of(compose(["experiment=mai1_500b"]), laptop())
    layout = twin.layout_of("pretrain")
    assert (layout.pipeline, layout.sequence, layout.expert, twin.num_replicas("pretrain")) == (2, 2, 2, 1)
    assert (layout.schedule, layout.chunks_per_rank, layout.zero_stage) == (PipelineSchedule.interleaved, 4, 1)
    assert twin.model.experts is not None
    assert (twin.model.experts.num_experts, twin.model.experts.experts_per_token) == (8, 4)


def test_what_no_engine_runs_and_what_means_nothing_in_small_is_left_out() -> None:
    words = ["experiment=llama3_405b", "precision=fp8", "parallel.zero_stage=3", "parallel.zero_secondary_ranks=8"]
    words += ["stages.pretrain.batch_ramp=[{until_tokens:1000000000,global_batch_sequences:1024}]"]
    words += ["+stages.pretrain.gate.conditions.quality={metric:bits_per_byte,at_most:0.6}"]
    original = compose(words, to_plan=True)
    twin = twin_of(original, laptop())
    check(twin)
    stage, layout = twin.stages["pretrain"], twin.layout_of("pretrain")
    assert original.stages["pretrain"].gate is not None
    assert (stage.gate, stage.batch_ramp, layout.tensor, layout.zero_secondary_ranks) == (None, [], 1, None)
    assert twin.precision is Precision.bf16


def test_training_stages_keep_the_ratios_of_their_lengths_and_rates() -> None:
    twin = twin_of(compose(["experiment=coder_long_context"]), laptop())
    first, second = twin.stages.values()
    assert (first.sequence_length, second.sequence_length) == (64, 1024)
    assert (twin.optimizer.lr, second.lr) == (2e-3, 4e-4)
    assert first.document_mask
    assert twin.model.max_sequence_length == 2048
