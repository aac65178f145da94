"""Any world, pipeline and batch either fits exactly or is refused with a value that fits."""

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from training.config.checks import check
from training.config.load import compose
from training.config.schema import ParallelConfig, RunConfig
from training.errors import ConfigError

SINGLE = compose([])
"""One training stage, called pretrain, with its layout from the top level."""

counts = st.integers(min_value=1, max_value=48)


def with_numbers(*, world: int, num_layers: int, pipeline: int, batch: int, micro: int) -> RunConfig:
    stage = replace(SINGLE.stages["pretrain"], global_batch_sequences=batch, micro_batch_sequences=micro)
    return replace(
        SINGLE,
        cluster=replace(SINGLE.cluster, processes_per_node=world),
        model=replace(SINGLE.model, num_layers=num_layers),
        parallel=ParallelConfig(pipeline=pipeline, zero_stage=1),
        stages={"pretrain": stage},
    )


def take_advice(config: RunConfig, error: ConfigError) -> RunConfig:
    """Return the config with the first `key=value` of the remedy applied."""
    advice = re.match(r"(\S+)=(\d+)", error.remedy)
    assert advice, f"the remedy starts with a value that works: {error.remedy}"
    key, value = advice[1], int(advice[2])
    if key == "parallel.pipeline":
        return replace(config, parallel=replace(config.parallel, pipeline=value))
    assert key == "stages.pretrain.global_batch_sequences"
    return replace(config, stages={"pretrain": replace(config.stages["pretrain"], global_batch_sequences=value)})


@given(world=counts, num_layers=counts, pipeline=counts, batch=counts, micro=counts)
def test_numbers_fit_exactly_or_the_advice_makes_them_fit(
    world: int, num_layers: int, pipeline: int, batch: int, micro: int
) -> None:
    config = with_numbers(world=world, num_layers=num_layers, pipeline=pipeline, batch=batch, micro=micro)
    complaints = []
    for _ in range(3):  # one complaint about the pipeline and one about the batch at most
        try:
            check(config)
            break
        except ConfigError as error:
            complaints.append(error.key)
            config = take_advice(config, error)
    assert len(set(complaints)) == len(complaints) <= 2
    stage, layout = config.stages["pretrain"], config.parallel
    replicas = config.num_replicas("pretrain")
    assert replicas * layout.pipeline == world
    assert layout.pipeline <= num_layers
    accumulated = replicas * config.accumulation_steps("pretrain") * stage.micro_batch_sequences
    assert accumulated == stage.global_batch_sequences
    if world % pipeline == 0 and pipeline <= num_layers and batch % (micro * world // pipeline) == 0:
        assert complaints == []


@given(world=counts, batch=counts, micro=counts)
def test_the_advised_batch_is_the_closest_one(world: int, batch: int, micro: int) -> None:
    config = with_numbers(world=world, num_layers=1, pipeline=1, batch=batch, micro=micro)
    try:
        check(config)
    except ConfigError as error:
        advised = take_advice(config, error).stages["pretrain"].global_batch_sequences
        fitting = [n for n in range(1, 48 * 48 * 2) if n % (world * micro) == 0]
        assert abs(advised - batch) == min(abs(n - batch) for n in fitting)


@given(
    num_layers=counts,
    pipeline=st.integers(min_value=1, max_value=8),
    by_hand=st.lists(st.integers(min_value=0, max_value=9), min_size=1, max_size=8),
)
def test_layers_by_hand_are_right_or_the_advice_is(num_layers: int, pipeline: int, by_hand: list[int]) -> None:
    config = with_numbers(world=pipeline, num_layers=max(num_layers, pipeline), pipeline=pipeline, batch=8, micro=1)
    config = replace(config, parallel=replace(config.parallel, layers_per_pipeline_stage=by_hand))
    try:
        check(config)
        used = by_hand
    except ConfigError as error:
        advice = re.match(r"parallel\.layers_per_pipeline_stage=\[([\d,]+)\] works", error.remedy)
        assert advice
        used = [int(number) for number in advice[1].split(",")]
        check(replace(config, parallel=replace(config.parallel, layers_per_pipeline_stage=used)))
    assert len(used) == pipeline
    assert sum(used) == config.model.num_layers
    assert min(used) >= 1
