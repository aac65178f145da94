"""Which pipelines, schedules, chunks and engines fit each other; every refusal offers a way out that works."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.config.test_layout_checks import with_numbers
from training.config.checks import check
from training.config.schema import (
    AttentionImplementation,
    ParallelConfig,
    PipelineEngineKind,
    PipelineSchedule,
    Regather,
    RunConfig,
)
from training.errors import ConfigError
from training.parallel.schedule import interleaving_fits

OURS, DEEPSPEED = PipelineEngineKind
ONE_F_ONE_B, INTERLEAVED = PipelineSchedule


def with_layout(*, dropout: float = 0.0, batch: int = 8, **layout: Any) -> RunConfig:
    parallel = ParallelConfig(**layout)
    config = with_numbers(world=4, num_layers=8, pipeline=parallel.pipeline, batch=batch, micro=1)
    return replace(config, parallel=parallel, model=replace(config.model, dropout=dropout))


@pytest.mark.parametrize("pipeline", [2, 4])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize(("schedule", "chunks"), [(ONE_F_ONE_B, 1), (INTERLEAVED, 2)])
def test_our_pipeline_runs_over_every_zero_stage(
    pipeline: int, zero_stage: int, schedule: PipelineSchedule, chunks: int
) -> None:
    check(with_layout(pipeline=pipeline, zero_stage=zero_stage, schedule=schedule, chunks_per_rank=chunks))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_every_zero_stage_runs_without_a_pipeline(zero_stage: int) -> None:
    check(with_layout(pipeline=1, zero_stage=zero_stage))


@pytest.mark.parametrize(
    ("layout", "key", "reason", "remedy"),
    [
        ({"pipeline": 2, "zero_stage": 0}, "zero_stage", "1, 2 or 3", "parallel.zero_stage=1 works"),
        (
            {"pipeline": 2, "zero_stage": 3, "pipeline_engine": DEEPSPEED},
            "zero_stage",
            "DeepSpeed's PipelineEngine refuses ZeRO-2 and ZeRO-3",
            "parallel.pipeline_engine=autarky can, or parallel.zero_stage=1",
        ),
        (
            {"pipeline": 2, "pipeline_engine": DEEPSPEED, "schedule": INTERLEAVED, "chunks_per_rank": 2},
            "schedule",
            "knows 1f1b only",
            "parallel.pipeline_engine=autarky",
        ),
        ({"pipeline": 2, "schedule": INTERLEAVED}, "chunks_per_rank", "at least 2", "parallel.chunks_per_rank=2"),
        ({"pipeline": 2, "chunks_per_rank": 2}, "chunks_per_rank", "one chunk", "parallel.schedule=interleaved"),
        ({"pipeline": 1, "schedule": INTERLEAVED, "chunks_per_rank": 2}, "schedule", "no pipeline", "schedule=1f1b"),
        ({"pipeline": 1, "chunks_per_rank": 2}, "chunks_per_rank", "no pipeline", "parallel.chunks_per_rank=1"),
        (
            {"pipeline": 4, "schedule": INTERLEAVED, "chunks_per_rank": 3},
            "chunks_per_rank",
            "need 12 blocks, the model has 8",
            "parallel.chunks_per_rank=2 works",
        ),
        (
            {"pipeline": 2, "zero_stage": 2, "regather": Regather.per_step},
            "regather",
            "only a pipeline under ZeRO-3",
            "parallel.regather=auto",
        ),
        (
            {"pipeline": 2, "schedule": INTERLEAVED, "chunks_per_rank": 2, "layers_per_pipeline_stage": [4, 4]},
            "layers_per_pipeline_stage",
            "4 numbers",
            "=[2,2,2,2] works",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(
    layout: dict[str, Any], key: str, reason: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(with_layout(**layout))
    assert caught.value.key == f"parallel.{key}"
    assert reason in caught.value.reason
    assert remedy in caught.value.remedy


def test_dropout_is_refused_where_samples_lose_their_identity() -> None:
    check(with_layout(pipeline=2, zero_stage=1, dropout=0.1))
    with pytest.raises(ConfigError, match="does not travel through DeepSpeed's PipelineEngine"):
        check(with_layout(pipeline=2, zero_stage=1, dropout=0.1, pipeline_engine=DEEPSPEED))


def test_documents_are_refused_where_layers_cannot_know_them() -> None:
    ours, theirs = (with_layout(pipeline=2, zero_stage=1, pipeline_engine=engine) for engine in (OURS, DEEPSPEED))
    masked = {"pretrain": replace(ours.stages["pretrain"], document_mask=True)}
    check(replace(ours, stages=masked))
    check(theirs)
    with pytest.raises(ConfigError, match=r"does not travel through DeepSpeed's PipelineEngine") as caught:
        check(replace(theirs, stages=masked))
    assert caught.value.key == "stages.pretrain.document_mask"
    assert "parallel.pipeline_engine=autarky can, or stages.pretrain.document_mask=false" in caught.value.remedy


@pytest.mark.parametrize("option", [{"loss_chunk_tokens": 512}, {"attention": AttentionImplementation.sdpa}])
def test_what_deepspeeds_pipeline_would_ignore_is_refused(option: dict[str, Any]) -> None:
    (key,) = option
    check(with_layout(pipeline=2, zero_stage=1, **option))
    check(with_layout(pipeline=1, zero_stage=1, pipeline_engine=DEEPSPEED, **option))
    with pytest.raises(ConfigError) as caught:
        check(with_layout(pipeline=2, zero_stage=1, pipeline_engine=DEEPSPEED, **option))
    assert caught.value.key == f"parallel.{key}"
    assert "parallel.pipeline_engine=autarky can" in caught.value.remedy


def test_deepspeeds_pipeline_has_all_logits_at_once_and_ours_4096_tokens_of_them() -> None:
    assert with_layout(pipeline=2, pipeline_engine=DEEPSPEED).parallel.logits_at_once_tokens is None
    assert with_layout(pipeline=1, pipeline_engine=DEEPSPEED).parallel.logits_at_once_tokens == 4096
    assert with_layout(pipeline=2).parallel.logits_at_once_tokens == 4096
    assert with_layout(pipeline=2, loss_chunk_tokens=7).parallel.logits_at_once_tokens == 7


@given(num_micro_batches=st.integers(min_value=1, max_value=40), pipeline=st.sampled_from([2, 4]))
def test_interleaving_is_refused_exactly_where_it_cannot_be_scheduled(num_micro_batches: int, pipeline: int) -> None:
    replicas = 4 // pipeline
    layout = {"pipeline": pipeline, "schedule": INTERLEAVED, "chunks_per_rank": 2}
    config = with_layout(batch=num_micro_batches * replicas, **layout)
    if interleaving_fits(pipeline, num_micro_batches):
        check(config)
        return
    with pytest.raises(ConfigError) as caught:
        check(config)
    advised = int(caught.value.remedy.split("global_batch_sequences=")[1].split()[0])
    check(with_layout(batch=advised, **layout))
