"""Where a pipeline is cut: every layer once, no chunk empty, the head and the embedding weighed, imbalance said."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.load import compose
from training.config.schema import ParallelConfig, PipelineSchedule, RunConfig
from training.models.cut import WARN_IMBALANCE, cut, describe, imbalance, running_costs
from training.models.sizes import layer_costs

SINGLE = compose([])


def with_model(parallel: ParallelConfig, **model: int | bool) -> RunConfig:
    return replace(SINGLE, model=replace(SINGLE.model, **model), parallel=parallel)


@given(
    num_layers=st.integers(min_value=4, max_value=40),
    pipeline=st.integers(min_value=2, max_value=4),
    chunks=st.integers(min_value=1, max_value=4),
    vocab_size=st.sampled_from([4_096, 128_256, 1_000_000]),
    tied=st.booleans(),
)
def test_every_layer_is_in_one_chunk_and_none_is_empty(
    num_layers: int, pipeline: int, chunks: int, vocab_size: int, tied: bool
) -> None:
    if pipeline * chunks > num_layers:
        return
    parallel = ParallelConfig(pipeline=pipeline, chunks_per_rank=chunks, schedule=PipelineSchedule.interleaved)
    config = with_model(parallel, num_layers=num_layers, vocab_size=vocab_size, tied_embeddings=tied)
    parts = cut(config, "pretrain")
    assert len(parts) == pipeline * chunks
    assert [layer for part in parts for layer in part] == list(range(num_layers + 3))
    assert all(parts)


def test_the_head_is_weighed_so_that_its_pipeline_stage_gets_fewer_blocks() -> None:
    config = with_model(ParallelConfig(pipeline=2), num_layers=16, vocab_size=128_256)
    first, last = cut(config, "pretrain")
    assert len(last) < len(first) - 4


def test_an_embedding_costs_its_gradient_and_a_block_its_products() -> None:
    config = SINGLE
    costs = running_costs(config, "pretrain")
    layers = layer_costs(config.model, config.stages["pretrain"].sequence_length)
    stage = config.stages["pretrain"]
    tokens = stage.micro_batch_sequences * stage.sequence_length
    assert costs[0] == 300.0 * 8 * config.model.vocab_size * config.model.hidden_size
    assert costs[1] >= 3 * layers[1].forward_flops_per_token * tokens
    long = replace(stage, micro_batch_sequences=1_000)
    many = running_costs(replace(config, stages={"pretrain": long}), "pretrain")
    assert many[0] == costs[0], "the look-up is free, however many tokens there are"
    assert many[1] == pytest.approx(3 * layers[1].forward_flops_per_token * 1_000 * stage.sequence_length)


def test_chunks_by_hand_are_taken() -> None:
    config = with_model(ParallelConfig(pipeline=2, layers_per_pipeline_stage=[1, 3]), num_layers=4)
    assert cut(config, "pretrain") == [range(2), range(2, 7)]


def test_imbalance_is_the_excess_over_the_mean() -> None:
    assert imbalance([1.0, 1.0, 1.0, 1.0], [range(2), range(2, 4)]) == 0.0
    assert imbalance([1.0, 1.0, 4.0], [range(2), range(2, 3)]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("by_hand", "warned"), [([8, 8], False), ([4, 12], True)])
def test_more_than_15_percent_is_warned_about(by_hand: list[int], warned: bool) -> None:
    parallel = ParallelConfig(pipeline=2, layers_per_pipeline_stage=by_hand)
    config = with_model(parallel, num_layers=16, vocab_size=4_096)
    lines = describe(config, "pretrain", cut(config, "pretrain"))
    assert any(line.startswith("WARNING: the costliest chunk costs") for line in lines) == warned
    assert (imbalance(running_costs(config, "pretrain"), cut(config, "pretrain")) > WARN_IMBALANCE) == warned


def test_interleaved_chunks_are_described_by_pipeline_stage() -> None:
    parallel = ParallelConfig(pipeline=2, chunks_per_rank=2, layers_per_pipeline_stage=[1, 1, 1, 1])
    config = with_model(parallel, num_layers=4)
    lines = describe(config, "pretrain", cut(config, "pretrain"))
    assert lines[0] == "pipeline stage 0: the embedding to block 0; block 2"
    assert lines[1] == "pipeline stage 1: block 1; block 3 to the head"
