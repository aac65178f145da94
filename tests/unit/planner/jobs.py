"""Jobs for the planner's tests."""

from dataclasses import replace
from typing import Any

from training.planner.job import Batch, Device, Experts, Job, ModelShape, Network, NumberFormat, Recompute, Split

H100 = Device(
    name="H100 80GB",
    peak_flops={NumberFormat.bf16: 989e12, NumberFormat.fp8: 1979e12},
    memory_bytes=80 * 2**30,
    memory_bandwidth=3.35e12,
    power_watts=700,
)
CPU = Device(name="CPU", peak_flops={NumberFormat.fp32: 1e11}, memory_bytes=8e9, memory_bandwidth=1e10)
CLUSTER = Network(devices_per_node=8, node_bandwidth=450e9, cluster_bandwidth=50e9)
LLAMA_8B = ModelShape(
    num_blocks=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    ffn_size=14336,
    ffn_matrices=3,
    vocab_size=128256,
)
EXPERTS = Experts(num_experts=64, experts_per_token=4, expert_ffn_size=1024, num_shared_experts=1, num_dense_blocks=2)
MOE = replace(LLAMA_8B, experts=EXPERTS)


def job(
    *,
    model: ModelShape = LLAMA_8B,
    device: Device = H100,
    network: Network = CLUSTER,
    number_format: NumberFormat = NumberFormat.bf16,
    software: str = "megatron",
    sequence_length: int = 4096,
    micro_batch: int = 1,
    accumulation: int = 8,
    recompute: Recompute = Recompute.none,
    **split: Any,
) -> Job:
    return Job(
        model=model,
        split=Split(recompute=recompute, **split),
        batch=Batch(sequence_length=sequence_length, micro_batch=micro_batch, accumulation=accumulation),
        number_format=number_format,
        device=device,
        network=network,
        software=software,
    )
