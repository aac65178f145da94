"""Published runs -> jobs: rows of JSON or CSV with the fields of `published/runs.csv`. No torch."""

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.planner.job import Batch, Experts, Job, ModelShape, NumberFormat, Recompute, Split
from training.planner.published_hardware import aws_p5, device_named, network_between

Row = Mapping[str, Any]
FOLDER = Path(__file__).parent / "published"
RUNS, SWEEP = FOLDER / "runs.csv", FOLDER / "nanotron_sweep.csv"

# In a row's framework the first of these words decides; programs that nothing was fitted on take the nearest one's.
FRAMEWORKS: tuple[tuple[str, str], ...] = (
    ("nanotron", "nanotron"),
    ("torchtitan", "torchtitan_compile"),
    ("Composer", "llm_foundry"),
    ("llm-foundry", "llm_foundry"),
    ("Megatron-LM (2021)", "megatron_2021"),
    ("Megatron-DeepSpeed", "deepspeed_megatron"),
    ("GPT-NeoX", "deepspeed_megatron"),
    ("DeepSpeed", "deepspeed_megatron"),
    ("Megatron", "megatron"),
    ("NeMo", "megatron"),
    ("MegaScale", "megatron"),
    ("Llama 3", "megatron"),
    ("Meta", "megatron"),
    ("HAI-LLM", "megatron_hybrid_ep_overlap"),
    ("OLMo", "torchtitan_compile"),
    ("FSDP", "llm_foundry"),
)
_SLOW_ALL_REDUCE = 8_500.0
"""GB/s times GPUs: the sweep's second campaign measured an all-reduce of 6,700 GB/s over the number of GPUs from 64 on,
its first one 180 GB/s whatever the number."""
_SWEEP_CONSTANTS = {
    "source": "HuggingFace nanotron / Ultra-Scale Playbook sweep (H100)",
    "framework": "nanotron",
    "gpu": "H100 SXM5 80GB",
    "precision": "bf16",
    "recompute": "none",
    "ffn_mats": 3,
    "sequence_parallel": True,
}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON file (a list of objects) or of a CSV file.

    Raises:
        ConfigError: the file is not there, or neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError) as error:
        raise ConfigError("--runs", path, str(error), "give a JSON list of objects, or a CSV with a header") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError("--runs", path, "it is not a list of rows", "give a JSON list of objects")
    return rows


def sweep_rows() -> list[dict[str, Any]]:
    """Return the nanotron sweep's rows with what they have in common spelled out."""
    return [_SWEEP_CONSTANTS | row for row in read_rows(SWEEP)]


def job_of(row: Row) -> Job:
    """Return the job of a published row.

    Raises:
        ConfigError: a field is missing or not a number, its program or device is not known, or its layout does not fill
            its GPUs.
    """
    software = software_of(row)
    device = device_named(text(row, "gpu"))
    heads, hidden, pipeline = count(row, "heads"), count(row, "hidden"), count(row, "pp", 1)
    shards = str(row.get("sequence_parallel") or "").lower() == "true"
    if software.startswith(("megatron", "nanotron")) and software != "megatron_2021":
        shards = True  # their recipes shard it wherever tensor > 1; not every row says so
    card = row.get("inter_node_gbps_per_gpu")
    network = network_between(
        device,
        devices_per_node=count(row, "gpus_per_node", 8),
        card_gigabits=float(card) if card not in (None, "") else None,
    )
    number_format = NumberFormat.fp8 if "fp8" in text(row, "precision").lower() else NumberFormat.bf16
    if number_format not in device.peak_flops:
        raise ConfigError("precision", row["precision"], f"{device.name} has no such products", "bf16")
    job = Job(
        model=ModelShape(
            num_blocks=count(row, "layers"),
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=count(row, "kv_heads", heads),
            head_size=count(row, "head_dim", hidden // heads),
            ffn_size=count(row, "ffn_hidden"),
            ffn_matrices=count(row, "ffn_mats", 3),
            vocab_size=count(row, "vocab"),
            tied_embeddings=str(row.get("tied_embeddings")).lower() == "true",
            experts=_experts(row),
        ),
        split=Split(
            replicas=count(row, "dp"),
            pipeline=pipeline,
            chunks_per_rank=count(row, "vpp", 1) if pipeline > 1 else 1,
            tensor=count(row, "tp", 1),
            tensor_shards_sequence=shards,
            context=count(row, "cp", 1),
            context_exchange="keys",
            expert=count(row, "ep", 1),
            zero_stage=count(row, "zero_stage", 0),
            recompute=_recompute(text(row, "recompute")),
        ),
        batch=Batch(
            sequence_length=count(row, "seq_len"),
            micro_batch=count(row, "micro_batch"),
            accumulation=count(row, "grad_accum"),
        ),
        number_format=number_format,
        device=device,
        network=aws_p5() if software.startswith("nanotron") else network,
        software=software,
    )
    gpus = count(row, "num_gpus", job.split.world_size)
    if gpus != job.split.world_size:
        raise ConfigError("num_gpus", gpus, f"dp * tp * pp * cp is {job.split.world_size}", "give a layout of all GPUs")
    return job


def software_of(row: Row) -> str:
    """Return the profile of the program that a row names, by what it says of the program's settings.

    Raises:
        ConfigError: the program is not known.
    """
    framework, features = text(row, "framework"), str(row.get("features") or "")
    name = next((name for word, name in FRAMEWORKS if word in framework), None)
    if name is None:
        known = ", ".join(word for word, _ in FRAMEWORKS)
        raise ConfigError("framework", framework, "no profile of that program", f"one that has a word of: {known}")
    if name == "nanotron" and _in_second_campaign(row):
        return "nanotron_pipelined"
    if framework.startswith("torchtitan"):
        if "async TP" in features:
            return "torchtitan_async_tensor"
        return "torchtitan_compile" if "compile" in features else "torchtitan_eager"
    if "HybridEP" in features:
        return "megatron_hybrid_ep" if "overlap off" in features else "megatron_hybrid_ep_overlap"
    return name


def count(row: Row, key: str, default: int | None = None) -> int:
    """Return a whole number of a row.

    Raises:
        ConfigError: it is missing and has no default, or is not a number.
    """
    value = row.get(key)
    if value in (None, ""):
        if default is None:
            raise ConfigError(key, "(blank)", "the row does not say it", f"give {key}")
        return default
    try:
        return int(float(str(value)))
    except ValueError as error:
        raise ConfigError(key, value, "not a number", f"give {key} as a number") from error


def text(row: Row, key: str) -> str:
    """Return a text of a row.

    Raises:
        ConfigError: it is missing.
    """
    value = row.get(key)
    if value in (None, ""):
        raise ConfigError(key, "(blank)", "the row does not say it", f"give {key}")
    return str(value)


def _in_second_campaign(row: Row) -> bool:
    """Return whether a run of the sweep is of those in which every collective was slow to issue.

    All with a pipeline are, and those without one whose own measurement of the network shows it (`inter_node`).
    """
    gpus = count(row, "num_gpus")
    if count(row, "pp", 1) > 1:
        return True
    measured = re.search(r"allreduce ([0-9.]+)", str(row.get("inter_node") or ""))
    gigabytes = measured.group(1) if measured else row.get("allreduce_gbps")
    return gpus >= 64 and gigabytes not in (None, "") and float(str(gigabytes)) * gpus < _SLOW_ALL_REDUCE


def _experts(row: Row) -> Experts | None:
    if not count(row, "num_experts", 0):
        return None
    return Experts(
        num_experts=count(row, "num_experts"),
        experts_per_token=count(row, "moe_top_k"),
        expert_ffn_size=count(row, "moe_ffn_hidden"),
        num_shared_experts=count(row, "moe_shared_experts", 0),
        num_dense_blocks=count(row, "moe_dense_layers", 0),
    )


def _recompute(told: str) -> Recompute:
    """Return what a row's words mean; of a recipe that recomputes a few blocks, the nearest is none."""
    words = told.lower()
    if words.startswith("full"):
        return Recompute.full
    if "core" in words:
        return Recompute.attention
    return Recompute.selective if words.startswith("selective") else Recompute.none
