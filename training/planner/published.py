"""Published runs -> jobs: rows of JSON or CSV with the fields of `published/runs.csv`. No torch."""

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.planner.job import (
    Batch,
    Device,
    Experts,
    Job,
    ModelShape,
    Network,
    NumberFormat,
    Recompute,
    Split,
)

_AWS = Network(devices_per_node=8, node_bandwidth=450e9, cluster_bandwidth=50e9, cluster_latency_seconds=41e-6)
"""AWS p5: 32 EFA cards of 100 Gb/s a node."""


Row = Mapping[str, Any]


def _device(
    name: str, bf16: float, memory_gb: float, bandwidth_tb: float, power: float, fp8: float | None = None
) -> Device:
    peak = {NumberFormat.fp32: bf16 / 2 * 1e12, NumberFormat.bf16: bf16 * 1e12}
    if fp8:
        peak[NumberFormat.fp8] = fp8 * 1e12
    return Device(
        name=name,
        peak_flops=peak,
        memory_bytes=memory_gb * 1e9,
        memory_bandwidth=bandwidth_tb * 1e12,
        power_watts=power,
    )


DEVICES = {
    "A100 SXM4 40GB": _device("A100 40GB", 312, 42.9, 1.555, 400),
    "A100": _device("A100 80GB", 312, 85.9, 2.0, 400),
    "H100 SXM 96GB HBM2E": _device("H100 96GB 500W", 989, 102.0, 2.4, 500, 1979),
    "H100": _device("H100 80GB", 989, 85.9, 3.35, 700, 1979),
    "H800": _device("H800", 989, 85.9, 3.35, 700, 1979),
    "H200": _device("H200", 989, 151.0, 4.8, 700, 1979),
    "GB200": _device("GB200", 2500, 199.0, 8.0, 1200, 5000),
    "B200": _device("B200", 2250, 193.0, 8.0, 1000, 4500),
}
NODE_BANDWIDTH = {"A100": 300e9, "H100": 450e9, "H800": 160e9, "H200": 450e9, "GB200": 900e9, "B200": 900e9}
CLUSTER_GBPS = {"A100": 200, "H100": 400, "H800": 400, "H200": 400, "GB200": 400, "B200": 400}


def _software(row: Row) -> str:
    framework = str(row["framework"])
    features = str(row.get("features") or "")
    if framework.startswith("torchtitan"):
        if "async TP" in features:
            return "torchtitan_async_tensor"
        return "torchtitan_compile" if "compile" in features else "torchtitan_eager"
    if "nanotron" in framework:
        return "nanotron_pipelined" if _slow(row) else "nanotron"
    if "HybridEP" in features:
        return "megatron_hybrid_ep" if "overlap off" in features else "megatron_hybrid_ep_overlap"
    for word, name in (
        ("Composer", "llm_foundry"),
        ("Megatron-DeepSpeed", "deepspeed_megatron"),
        ("Megatron-LM (2021)", "megatron_2021"),
        ("Megatron-Bridge", "megatron"),
        ("NeMo", "megatron"),
        ("Megatron-Core", "megatron"),
    ):
        if word in framework:
            return name
    raise ConfigError("framework", framework, "no profile", "known: ...")


def _slow(row: Row) -> bool:
    n = int(row["num_gpus"])
    if int(row["pp"]) > 1:
        return True
    m = re.search(r"allreduce ([0-9.]+)", str(row.get("inter_node") or ""))
    measured = m.group(1) if m else row.get("allreduce_gbps")
    return n >= 64 and bool(measured) and float(measured) * n < 8500


def _recompute(text: str) -> Recompute:
    text = text.lower()
    if text.startswith("full"):
        return Recompute.full
    if "core" in text:
        return Recompute.attention
    if text.startswith("selective"):
        return Recompute.selective
    return Recompute.none


def job_of(row: Row) -> Job:
    """Return the job of a row."""
    number = lambda key, default=1: int(float(row.get(key) or default))  # noqa: E731
    experts = None
    if row.get("num_experts"):
        experts = Experts(
            num_experts=number("num_experts"),
            experts_per_token=number("moe_top_k"),
            expert_ffn_size=number("moe_ffn_hidden"),
            num_dense_blocks=number("moe_dense_layers", 0),
        )
    precision = str(row["precision"]).lower()
    gpu = str(row["gpu"]).upper()
    word = next(w for w in ("GB200", "B200", "H200", "H800", "H100", "A100") if w in gpu)
    device = next(d for w, d in DEVICES.items() if w in gpu)
    tensor, context, pipeline = number("tp"), number("cp"), number("pp")
    sp = row.get("sequence_parallel")
    software = _software(row)
    shards = (
        True
        if software.startswith(("megatron", "nanotron")) and software != "megatron_2021"
        else str(sp).lower() == "true"
    )
    return Job(
        model=ModelShape(
            num_blocks=number("layers"),
            hidden_size=number("hidden"),
            num_heads=number("heads"),
            num_kv_heads=number("kv_heads"),
            head_size=number("head_dim", number("hidden") // number("heads")),
            ffn_size=number("ffn_hidden"),
            ffn_matrices=number("ffn_mats", 3),
            vocab_size=number("vocab"),
            tied_embeddings=str(row.get("tied_embeddings")).lower() == "true",
            experts=experts,
        ),
        split=Split(
            replicas=number("dp"),
            pipeline=pipeline,
            chunks_per_rank=number("vpp"),
            tensor=tensor,
            tensor_shards_sequence=shards,
            context=context,
            context_exchange="keys",
            expert=number("ep"),
            zero_stage=number("zero_stage", 0),
            recompute=_recompute(str(row["recompute"])),
        ),
        batch=Batch(
            sequence_length=number("seq_len"), micro_batch=number("micro_batch"), accumulation=number("grad_accum")
        ),
        number_format=NumberFormat.fp8 if "fp8" in precision else NumberFormat.bf16,
        device=device,
        network=_AWS
        if software.startswith("nanotron")
        else Network(
            devices_per_node=number("gpus_per_node", 8),
            node_bandwidth=NODE_BANDWIDTH[word],
            cluster_bandwidth=float(row.get("inter_node_gbps_per_gpu") or CLUSTER_GBPS[word]) / 8 * 1e9,
        ),
        software=software,
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON or CSV file."""
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
