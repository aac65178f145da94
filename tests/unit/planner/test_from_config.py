"""A config's numbers reach the planner's job; what a plan needs and the config does not say is asked for."""

import pytest

from training.config.load import compose
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.planner.from_config import job_of
from training.planner.job import NumberFormat, Recompute
from training.planner.this_machine import with_this_machine


def planned(*overrides: str) -> RunConfig:
    return compose(list(overrides), to_plan=True)


def test_every_axis_reaches_the_job() -> None:
    config = planned("experiment=mai1_500b", "parallel.tensor=2", "parallel.sequence=4", "parallel.expert=4")
    job = job_of(config, "pretrain")
    split = job.split
    assert (split.pipeline, split.tensor, split.context, split.expert) == (15, 2, 4, 4)
    assert split.world_size == config.world_size == 15_000
    assert (split.replicas, job.batch.accumulation, job.batch.micro_batch) == (125, 32, 2)
    assert job.tokens_per_step == 8000 * 8192
    assert split.recompute is Recompute.full
    assert split.chunks_per_rank == 4
    assert job.model.experts is not None
    assert (job.model.experts.num_experts, job.model.experts.num_shared_experts) == (64, 1)
    assert job.number_format is NumberFormat.bf16
    assert job.device.peak_flops == {NumberFormat.bf16: 989e12}
    assert (job.network.node_bandwidth, job.network.cluster_bandwidth) == (450e9, 50e9)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("cluster.network=null", "cluster.network"),
        ("cluster.accelerator.memory_bytes_per_second=null", "cluster.accelerator.memory_bytes_per_second"),
        ("cluster.accelerator.peak_flops_per_second=null", "cluster.accelerator.peak_flops_per_second"),
        ("cluster.accelerator.memory_bytes=null", "cluster.accelerator.memory_bytes"),
    ],
)
def test_what_a_plan_needs_is_asked_for_by_name(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        job_of(planned("experiment=mai1_500b", override), "pretrain")
    assert raised.value.key == key


def test_a_cpu_is_measured_where_the_config_does_not_know_it() -> None:
    config = with_this_machine(planned("experiment=demo"))
    job = job_of(config, "pretrain")
    assert job.device.peak_flops[NumberFormat.fp32] > 1e9
    assert job.device.memory_bandwidth > 1e8
    assert job.network.node_bandwidth > 1e7
    known = "cluster.accelerator.peak_flops_per_second=5e9"
    assert with_this_machine(planned("experiment=demo", known)).cluster.accelerator.peak_flops_per_second == 5e9
    gpus = planned("experiment=mai1_500b")
    assert with_this_machine(gpus) is gpus
