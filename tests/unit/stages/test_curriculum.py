import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from training.config.data_schema import DataConfig
from training.config.eval_schema import EvalConfig
from training.config.gate_schema import GateConfig
from training.config.reporting_schema import ReportingConfig
from training.config.schema import (
    AcceleratorConfig,
    CheckpointConfig,
    ClusterConfig,
    DeepSpeedSection,
    FaultToleranceConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    Precision,
    RunConfig,
    RunSection,
    ScheduleConfig,
    ScheduleKind,
    StageConfig,
)
from training.stages.curriculum import learning_rate, schedule_factor

PRETRAIN = StageConfig(
    mixture={"prose": 1.0}, tokens=10_000, sequence_length=64, global_batch_sequences=8, micro_batch_sequences=2
)
ANNEAL = replace(
    PRETRAIN,
    tokens=2_048,
    sequence_length=128,
    lr=0.5,
    schedule=ScheduleConfig(kind=ScheduleKind.constant),
    parallel=ParallelConfig(pipeline=2),
    eval_suite="quick",
    gate=GateConfig(confidence=0.9),
)
WSD = ScheduleConfig(kind=ScheduleKind.wsd, warmup_fraction=0.25, decay_fraction=0.5, final_ratio=0.1)


def run_config() -> RunConfig:
    return RunConfig(
        run=RunSection(name="test"),
        precision=Precision.fp32,
        model=ModelConfig(
            vocab_size=300,
            hidden_size=8,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            ffn_size=16,
            max_sequence_length=128,
        ),
        parallel=ParallelConfig(),
        data=DataConfig(sources={}),
        optimizer=OptimizerConfig(lr=1.0),
        schedule=WSD,
        stages={"pretrain": PRETRAIN, "anneal": ANNEAL},
        eval=EvalConfig(suites={}),
        checkpoint=CheckpointConfig(every_steps=10),
        fault_tolerance=FaultToleranceConfig(),
        reporting=ReportingConfig(),
        cluster=ClusterConfig(num_nodes=1, processes_per_node=2, accelerator=AcceleratorConfig(name="CPU")),
        deepspeed=DeepSpeedSection(),
    )


def test_steps_and_layout_follow_from_the_config() -> None:
    config = run_config()
    assert [config.first_step(name) for name in config.stages] == [0, 20]
    assert [config.num_steps(name) for name in config.stages] == [20, 2]
    assert [config.num_replicas(name) for name in config.stages] == [2, 1]
    assert [config.accumulation_steps(name) for name in config.stages] == [2, 4]


def test_a_training_stage_uses_its_own_peak_and_shape_where_it_has_them() -> None:
    config = run_config()
    assert [learning_rate(config, "anneal", step) for step in range(2)] == [0.5, 0.5]
    assert learning_rate(config, "pretrain", 4) == 1.0
    assert learning_rate(config, "pretrain", 19) == pytest.approx(0.1)


def test_a_step_outside_the_training_stage_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="has 2 steps"):
        learning_rate(run_config(), "anneal", 2)


def test_wsd_by_hand_over_eight_steps() -> None:
    factors = [schedule_factor(WSD, stage_step=s, num_steps=8) for s in range(8)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1])


def test_cosine_by_hand_over_five_steps() -> None:
    schedule = ScheduleConfig(kind=ScheduleKind.cosine, final_ratio=0.5)
    half = 0.5 + 0.25 * (1 + math.cos(math.pi / 4))
    factors = [schedule_factor(schedule, stage_step=s, num_steps=5) for s in range(5)]
    assert factors == pytest.approx([1.0, half, 0.75, 1.5 - half, 0.5])


def test_constant_stays_at_the_peak_after_warm_up() -> None:
    schedule = ScheduleConfig(kind=ScheduleKind.constant, warmup_fraction=0.5, final_ratio=0.0)
    assert [schedule_factor(schedule, stage_step=s, num_steps=4) for s in range(4)] == [0.5, 1.0, 1.0, 1.0]


@st.composite
def schedules(draw: st.DrawFn) -> ScheduleConfig:
    warmup = draw(st.floats(0, 1))
    return ScheduleConfig(
        kind=draw(st.sampled_from(ScheduleKind)),
        warmup_fraction=warmup,
        decay_fraction=draw(st.floats(0, 1)) * (1 - warmup),
        final_ratio=draw(st.floats(0, 1)),
    )


@example(ScheduleConfig(kind=ScheduleKind.cosine, final_ratio=0.9999999999999999), 300)
@given(schedules(), st.integers(1, 300))
def test_every_schedule_rises_to_the_peak_falls_to_the_end_and_never_jumps(
    schedule: ScheduleConfig, num_steps: int
) -> None:
    factors = [schedule_factor(schedule, stage_step=s, num_steps=num_steps) for s in range(num_steps)]
    warmup_steps = round(schedule.warmup_fraction * num_steps)
    decay_steps = min(round(schedule.decay_fraction * num_steps), num_steps - warmup_steps)
    rise, fall = factors[:warmup_steps], factors[max(warmup_steps - 1, 0) :]

    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert all(a < b for a, b in pairwise(rise))
    assert all(a >= b for a, b in pairwise(fall))
    if warmup_steps:
        assert rise[-1] == 1.0

    falls_over = {
        ScheduleKind.constant: 0,
        ScheduleKind.wsd: decay_steps,
        ScheduleKind.cosine: len(fall) - 1,
    }[schedule.kind]
    if falls_over:
        assert factors[-1] == schedule.final_ratio
        # A cosine is steepest in the middle: pi/2 times the straight line.
        largest_fall = (1 - schedule.final_ratio) / falls_over * (math.pi / 2)
        assert all(a - b <= largest_fall + 1e-12 for a, b in pairwise(fall))
    else:
        assert set(fall) <= {1.0}
    assert all(b - a <= 1 / warmup_steps + 1e-12 for a, b in pairwise(rise))
