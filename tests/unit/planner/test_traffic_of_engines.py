"""The bytes that a plan counts are those of the rehearsed program, which is what real engines send.

tests/distributed/test_rehearsal.py holds the program to the engines, call by call.
"""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.plan_layouts import LAYOUTS
from tests.distributed.configs import STAGE
from training.config.cluster_schema import NetworkConfig
from training.config.load import compose
from training.config.schema import PipelineEngineKind, RunConfig
from training.planner.from_config import job_of
from training.planner.pipeline_time import chunks_of
from training.planner.regather import chosen_regather
from training.planner.traffic import traffic
from training.rehearsal.plan import plan_of
from training.rehearsal.program import Phase
from training.rehearsal.rehearsal import Rehearsal
from training.rehearsal.report import ring_bytes

LINKS = NetworkConfig(node_bytes_per_second=1e9, cluster_bytes_per_second=1e9)
SMALL = {
    name: layout
    for name, layout in LAYOUTS.items()
    if layout.config().parallel.pipeline_engine is not PipelineEngineKind.deepspeed
}
LARGE: dict[str, list[str]] = {
    "8B, ZeRO-3": ["model=llama3_8b", "parallel=zero3"],
    "8B, ZeRO-3, fp32": ["model=llama3_8b", "parallel=zero3", "precision=fp32"],
    "8B, ZeRO-2": ["model=llama3_8b", "parallel=zero2"],
    "70B, pipeline 8, ZeRO-1": [
        "model=llama3_70b",
        "parallel=pipeline_zero3",
        "parallel.pipeline=8",
        "parallel.zero_stage=1",
    ],
    "70B, pipeline 8, ZeRO-3": ["model=llama3_70b", "parallel=pipeline_zero3", "parallel.pipeline=8"],
    "70B, pipeline 8, ZeRO-3, per micro-batch, 2 chunks": [
        *("model=llama3_70b", "parallel=pipeline_zero3_interleaved", "parallel.pipeline=8"),
        "parallel.regather=per_microbatch",
    ],
}
PLANNED = {
    "500B": ["experiment=mai1_500b"],
    "500B, full recompute": ["experiment=mai1_500b", "parallel.recompute=full"],
    "500B, ZeRO-3": ["experiment=mai1_500b", "parallel.zero_stage=3"],
    "500B, tensor": ["experiment=mai1_500b", "parallel.tensor=2", "parallel.sequence=4", "parallel.expert=4"],
    "1.8T": ["experiment=gpt4o_1800b"],
    "405B, tensor": ["experiment=llama3_405b"],
}
"""Layouts that no engine runs: what the plan and the rehearsal make of them is the same, at least."""


def sent(config: RunConfig, training_stage: str) -> tuple[float, float]:
    """Return bytes of the rank that sends most: planned, and in the rehearsed program."""
    accelerator = replace(config.cluster.accelerator, peak_flops_per_second=1e12, memory_bytes_per_second=1e12)
    config = replace(config, cluster=replace(config.cluster, accelerator=accelerator, network=LINKS))
    job, _ = chosen_regather(job_of(config, training_stage), config.layout_of(training_stage).regather)
    rehearsal = Rehearsal.of(config, training_stage)
    texts = rehearsal.phases[Phase.step].texts
    return traffic(job).total_bytes, max(ring_bytes(text, rehearsal.plan.grid) for text in texts)


@pytest.mark.parametrize("name", SMALL)
def test_small_layouts(name: str) -> None:
    planned, rehearsed = sent(SMALL[name].config(), STAGE)
    assert planned == pytest.approx(rehearsed, rel=0.05)


@pytest.mark.parametrize("name", LARGE)
def test_large_layouts(name: str) -> None:
    settings: list[Any] = ["cluster=azure_nd_h100_v5", "cluster.num_nodes=16", "data=corpora", "stages=pretrain"]
    settings += ["precision=bf16", "eval.suites.quick.held_out_source=web", *LARGE[name]]
    planned, rehearsed = sent(compose(settings, to_plan=True), "pretrain")
    assert planned == pytest.approx(rehearsed, rel=0.05)


@pytest.mark.parametrize("name", PLANNED)
def test_planned_layouts(name: str) -> None:
    config = compose(PLANNED[name], to_plan=True)
    planned, rehearsed = sent(config, "pretrain")
    assert planned == pytest.approx(rehearsed, rel=0.05)
    plan = plan_of(config, "pretrain")
    assert plan.job is not None
    sizes = [chunk.dense_blocks + chunk.expert_blocks for chunk in chunks_of(plan.job, "balance")]
    num_layers = config.model.num_layers
    assert sizes == [sum(1 <= layer <= num_layers for layer in part) for part in plan.parts]
