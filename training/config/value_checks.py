"""What one number must be by itself: finite, and in its range."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from training.config.schema import RunConfig
from training.errors import ConfigError

_SMALLEST_VOCAB_SIZE = 257
"""256 bytes and the end-of-text token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both allowed."""

    low: float = -math.inf
    high: float = math.inf

    def nearest(self, value: float) -> float:
        """Return the allowed number closest to a value."""
        return min(max(value, self.low), self.high)

    def describe(self) -> str:
        """Return the range in words."""
        if math.isinf(self.high):
            return f"at least {self.low}"
        return f"between {self.low} and {self.high}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenRange:
    """Numbers above 0 (unless `zero_allowed`) and below `high`; there is no nearest one, so it carries a usual one."""

    high: float = math.inf
    zero_allowed: bool = False
    usual: float

    def nearest(self, value: float) -> float:
        """Return a usual number, or the value without its minus sign if that is allowed."""
        return -value if 0 < -value < self.high else self.usual

    def describe(self) -> str:
        """Return the range in words."""
        low = "at least 0" if self.zero_allowed else "above 0"
        return low if math.isinf(self.high) else f"{low} and below {self.high:g}"


_COUNT = Range(low=1)
_SHARE = Range(low=0.0, high=1.0)

_RANGES: list[tuple[str, Range | OpenRange]] = [
    ("run.seed", Range(low=0)),
    ("model.num_*", _COUNT),
    ("model.*_size", _COUNT),
    ("model.max_sequence_length", _COUNT),
    ("model.rope_theta", OpenRange(usual=500_000.0)),
    ("model.norm_epsilon", OpenRange(usual=1e-5)),
    ("model.init_std", OpenRange(usual=0.02)),
    ("model.dropout", OpenRange(high=1.0, zero_allowed=True, usual=0.1)),
    ("model.rope_scaling.factor", Range(low=1.0)),
    ("model.rope_scaling.low_freq_factor", OpenRange(usual=1.0)),
    ("model.rope_scaling.high_freq_factor", OpenRange(usual=4.0)),
    ("model.rope_scaling.original_max_sequence_length", _COUNT),
    ("model.yarn.factor", Range(low=1.0)),
    ("model.yarn.original_max_sequence_length", _COUNT),
    ("model.yarn.beta_fast", OpenRange(usual=32.0)),
    ("model.yarn.beta_slow", OpenRange(usual=1.0)),
    ("model.yarn.mscale*", Range(low=0.0)),
    ("model.latent_attention.*", _COUNT),
    ("model.experts.num_experts", Range(low=2)),
    ("model.experts.experts_per_token", _COUNT),
    ("model.experts.num_*_experts", Range(low=0)),
    ("model.experts.num_dense_layers", Range(low=0)),
    ("model.experts.weight_scale", OpenRange(usual=1.0)),
    ("model.experts.num_groups", _COUNT),
    ("model.experts.groups_per_token", _COUNT),
    ("model.experts.bias_update_rate", OpenRange(zero_allowed=True, usual=0.001)),
    ("model.experts.balance_loss", OpenRange(zero_allowed=True, usual=0.01)),
    ("model.experts.z_loss", OpenRange(zero_allowed=True, usual=0.001)),
    ("model.experts.capacity_factor", OpenRange(usual=1.25)),
    ("model.prediction.num_blocks", _COUNT),
    ("model.prediction.loss_weight", OpenRange(usual=0.3)),
    ("*parallel.pipeline", _COUNT),
    ("*parallel.tensor", _COUNT),
    ("*parallel.sequence", _COUNT),
    ("*parallel.expert", _COUNT),
    ("*parallel.zero_secondary_ranks", Range(low=2)),
    ("*parallel.chunks_per_rank", _COUNT),
    ("*parallel.loss_chunk_tokens", _COUNT),
    ("*parallel.zero_stage", Range(low=0, high=3)),
    ("data.tokenizer_vocab_size", Range(low=_SMALLEST_VOCAB_SIZE)),
    ("data.held_out_fraction", OpenRange(high=1.0, usual=0.05)),
    ("data.sources.*.max_documents", _COUNT),
    ("data.sources.*.max_record_bytes", _COUNT),
    ("data.sources.*.held_out_fraction", _SHARE),
    ("data.near_duplicates.similarity", OpenRange(high=1.0, usual=0.8)),
    ("data.near_duplicates.ngram_words", _COUNT),
    ("data.near_duplicates.num_hashes", Range(low=16)),
    ("data.shard_bytes", Range(low=2**16)),
    ("data.num_workers", _COUNT),
    ("optimizer.lr", OpenRange(usual=1e-3)),
    ("optimizer.beta1", OpenRange(high=1.0, zero_allowed=True, usual=0.9)),
    ("optimizer.beta2", OpenRange(high=1.0, zero_allowed=True, usual=0.95)),
    ("optimizer.epsilon", OpenRange(usual=1e-8)),
    ("optimizer.weight_decay", Range(low=0.0)),
    ("optimizer.gradient_clip_norm", Range(low=0.0)),
    ("optimizer.groups.*.lr_ratio", Range(low=0.0)),
    ("optimizer.muon.lr", OpenRange(usual=0.02)),
    ("optimizer.muon.momentum", OpenRange(high=1.0, zero_allowed=True, usual=0.95)),
    ("optimizer.muon.weight_decay", Range(low=0.0)),
    ("optimizer.groups.*.weight_decay", Range(low=0.0)),
    ("*schedule.*_fraction", _SHARE),
    ("*schedule.final_ratio", _SHARE),
    ("stages.*.mixture.*", OpenRange(usual=1.0)),
    ("stages.*.mixture_changes.*.from_fraction", OpenRange(high=1.0, usual=0.5)),
    ("stages.*.mixture_changes.*.mixture.*", OpenRange(usual=1.0)),
    ("stages.*.max_epochs.*", OpenRange(usual=1.0)),
    ("stages.*.skip_batches.*.first_batch", Range(low=0)),
    ("stages.*.skip_batches.*.num_batches", _COUNT),
    ("stages.*.min_document_tokens", _COUNT),
    ("stages.*.preference.beta", OpenRange(usual=0.1)),
    ("stages.*.preference.label_smoothing", OpenRange(high=0.5, zero_allowed=True, usual=0.1)),
    ("stages.*.preference.sft_weight", Range(low=0.0)),
    ("stages.*.tokens", _COUNT),
    ("stages.*.sequence_length", _COUNT),
    ("stages.*.*_batch_sequences", _COUNT),
    ("stages.*.batch_ramp.*.until_tokens", _COUNT),
    ("stages.*.lr", OpenRange(usual=1e-3)),
    ("stages.*.gate.confidence", OpenRange(high=1.0, usual=0.95)),
    ("stages.*.gate.max_looks", _COUNT),
    ("stages.*.gate.conditions.*.margin", Range(low=0.0)),
    ("stages.*.eval_every_steps", _COUNT),
    ("eval.silent_seconds", _COUNT),
    ("eval.suites.*.version", _COUNT),
    ("eval.suites.*.held_out_documents", Range(low=0)),
    ("eval.suites.*.max_length", Range(low=2)),
    ("eval.suites.*.seed", Range(low=0)),
    ("eval.suites.*.benchmarks.*.few_shot", Range(low=0)),
    ("eval.suites.*.benchmarks.*.temperature", Range(low=0.0)),
    ("eval.suites.*.benchmarks.*.top_p", Range(low=0.01, high=1.0)),
    ("eval.suites.*.benchmarks.*.items", _COUNT),
    ("eval.suites.*.benchmarks.*.tries", _COUNT),
    ("eval.suites.*.benchmarks.*.max_new_tokens", _COUNT),
    ("eval.suites.*.document_tokens", _COUNT),
    ("eval.suites.*.multiple_choice_items", Range(low=0)),
    ("eval.suites.*.sample_tokens", _COUNT),
    ("eval.suites.*.batch_sequences", _COUNT),
    ("checkpoint.*every_steps", _COUNT),
    ("checkpoint.keep_last", _COUNT),
    ("checkpoint.commit_timeout_seconds", _COUNT),
    ("checkpoint.max_stall_seconds", Range(low=0.0)),
    ("checkpoint.max_failed_saves", _COUNT),
    ("fault_tolerance.collective_timeout_seconds", _COUNT),
    ("fault_tolerance.max_consecutive_skips", Range(low=0)),
    ("fault_tolerance.hang.*_seconds", Range(low=1.0)),
    ("fault_tolerance.stragglers.ratio", Range(low=1.05)),
    ("fault_tolerance.stragglers.*", _COUNT),
    ("fault_tolerance.recovery.window_steps", Range(low=8)),
    ("fault_tolerance.recovery.min_steps", Range(low=4)),
    ("fault_tolerance.recovery.*_sigmas", OpenRange(usual=6.0)),
    ("fault_tolerance.recovery.patience_steps", _COUNT),
    ("fault_tolerance.recovery.*", Range(low=0)),
    ("fault_tolerance.corruption.*", _COUNT),
    ("reporting.console_every_steps", _COUNT),
    ("reporting.forecast.min_steps", Range(low=20)),
    ("reporting.forecast.sigmas", OpenRange(usual=6.0)),
    ("reporting.forecast.patience_steps", _COUNT),
    ("reporting.*every_steps", Range(low=0)),
    ("reporting.wandb.system_every_seconds", Range(low=0.1)),
    ("cluster.num_nodes", _COUNT),
    ("cluster.processes_per_node", _COUNT),
    ("cluster.threads_per_process", _COUNT),
    ("cluster.master_port", Range(low=1, high=65535)),
    ("cluster.hostfile.ssh_port", Range(low=1, high=65535)),
    ("cluster.preflight.check_seconds", OpenRange(usual=20.0)),
    ("cluster.preflight.clock_offset_seconds", OpenRange(usual=2.0)),
    ("cluster.preflight.free_bytes", Range(low=0)),
    ("cluster.preflight.write_bytes_per_second", Range(low=0)),
    ("cluster.preflight.gpu_*", Range(low=0)),
    ("cluster.preflight.correctable_ecc_errors", Range(low=0)),
    ("cluster.preflight.nvlinks_per_gpu", _COUNT),
    ("cluster.preflight.infiniband_ports", _COUNT),
    ("cluster.preflight.infiniband_bits_per_second", OpenRange(usual=400e9)),
    ("cluster.preflight.dcgm_level", Range(low=1, high=4)),
    ("cluster.preflight.collective_bytes", Range(low=1024)),
    ("cluster.preflight.collective_bytes_per_second", OpenRange(usual=1e9)),
    ("cluster.preflight.collective_seconds", OpenRange(usual=120.0)),
    ("cluster.max_restarts", Range(low=0)),
    ("cluster.slurm.signal_seconds", Range(low=1, high=65_535)),
    ("cluster.slurm.max_requeues", Range(low=0)),
    ("cluster.slurm.no_progress_starts", Range(low=2)),
    ("cluster.slurm.gpus_per_node", _COUNT),
    ("cluster.slurm.spare_nodes", Range(low=0)),
    ("cluster.slurm.array_limit", _COUNT),
    ("cluster.accelerator.peak_flops_per_second", OpenRange(usual=1e12)),
    ("cluster.accelerator.fp8_flops_per_second", OpenRange(usual=2e12)),
    ("cluster.accelerator.price_per_hour", OpenRange(usual=2.5)),
    ("cluster.accelerator.memory_bytes", OpenRange(usual=80e9)),
    ("cluster.accelerator.memory_bytes_per_second", OpenRange(usual=3.35e12)),
    ("cluster.accelerator.power_watts", OpenRange(usual=700.0)),
    ("cluster.network.*_bytes_per_second", OpenRange(usual=50e9)),
    ("cluster.network.devices_per_*", _COUNT),
    ("cluster.network.oversubscription", Range(low=1.0)),
    ("cluster.network.*_latency_seconds", OpenRange(usual=1e-5, zero_allowed=True)),
    ("cluster.storage.*_bytes_per_second", OpenRange(usual=1e12)),
    ("cluster.storage.write_slowdown", OpenRange(high=1.0, zero_allowed=True, usual=0.1)),
    ("cluster.reliability.*_share", _SHARE),
    ("cluster.reliability.*", Range(low=0.0)),
    ("cluster.power.waiting_share", _SHARE),
    ("cluster.power.pue", Range(low=1.0)),
    ("cluster.power.host_watts", Range(low=0.0)),
    ("cluster.power.price_per_kwh", Range(low=0.0)),
]


def check_values(config: RunConfig) -> None:
    """Check every number's range.

    Raises:
        ConfigError: the first value that cannot be.
    """
    check_numbers(asdict(config), "")


def check_numbers(section: Mapping[str, Any], prefix: str) -> None:
    """Check the range of every number of a section; `prefix` is its key, "" for the whole config.

    Raises:
        ConfigError: the first number that cannot be.
    """
    for key, value in _flatten(section, prefix):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(key, value, "is not a finite number", f"{key}={_usual(key)} would be usual")
        if key.startswith("deepspeed.") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for pattern, allowed in _RANGES:
            if fnmatchcase(key, pattern) and not _contains(allowed, value):
                raise ConfigError(key, value, f"must be {allowed.describe()}", f"{key}={allowed.nearest(value)} works")


def _contains(allowed: Range | OpenRange, value: float) -> bool:
    if isinstance(allowed, Range):
        return allowed.low <= value <= allowed.high
    return (value > 0 or (allowed.zero_allowed and value == 0)) and value < allowed.high


def _usual(key: str) -> float:
    for pattern, allowed in _RANGES:
        if fnmatchcase(key, pattern):
            return allowed.nearest(0.0)
    return 0.0


def _flatten(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _flatten(child, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _flatten(child, f"{prefix}.{index}")
    else:
        yield prefix, node
