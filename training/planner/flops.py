"""FLOPs of one optimizer step under the conventions that people quote, and what of the peak they are. No torch.

Everywhere a multiply-add is 2 FLOPs, backward is twice forward, and looking up an embedding is free.
"""

from collections.abc import Callable
from enum import StrEnum

from training.errors import ConfigError
from training.planner.job import Job, Recompute
from training.planner.software import SOFTWARE


class Counted(StrEnum):
    """How attention is counted."""

    causal = "causal"
    """Each position meets half of the others on average: what is computed, and our own convention."""
    full = "full"
    """As if nothing were masked (PaLM, arXiv:2204.02311, appendix B, and most published MFU)."""


def model_flops(job: Job, attention: Counted = Counted.causal) -> float:
    """Return FLOPs of forward and backward of one step, all ranks together, recompute not counted."""
    return 3 * job.tokens_per_step * (_products(job) + _head(job) + _attention(job, attention))


def hardware_flops(job: Job, attention: Counted = Counted.causal) -> float:
    """Return the same with what is recomputed counted too (HFU's numerator, arXiv:2205.05198, section 6.3)."""
    recompute = job.split.recompute
    again = 0.0
    if recompute is Recompute.full:
        again = _products(job) + _attention(job, attention)
    elif recompute is Recompute.attention:
        again = _attention(job, attention)
    elif recompute is Recompute.selective:
        again = SOFTWARE[job.software].selective_gemm_share * _products(job)
    return model_flops(job, attention) + job.tokens_per_step * again


def mfu(job: Job, step_seconds: float, attention: Counted = Counted.causal) -> float:
    """Return model FLOPs over what the devices could do in the time at their peak, 0 to 1."""
    return model_flops(job, attention) / (step_seconds * _peak(job))


def hfu(job: Job, step_seconds: float, attention: Counted = Counted.causal) -> float:
    """Return hardware FLOPs over what the devices could do in the time at their peak, 0 to 1."""
    return hardware_flops(job, attention) / (step_seconds * _peak(job))


def _megatron_2021(job: Job) -> float:
    """Return hardware FLOPs with full recompute, but of the head (arXiv:2104.04473, equation 3)."""
    forward = _products(job) + _attention(job, Counted.full)
    return job.tokens_per_step * (4 * forward + 3 * _head(job))


def _embedding_counted(job: Job) -> float:
    """Return 6 N with the embedding among N, and full attention (llm-foundry, scripts/train/benchmarking)."""
    untied = 0.0 if job.model.tied_embeddings else _head(job)
    return model_flops(job, Counted.full) + 3 * job.tokens_per_step * untied


PUBLISHED: dict[str, Callable[[Job], float]] = {
    "6N_mm_full_attn": lambda job: model_flops(job, Counted.full),
    "6N_mm_causal_attn": lambda job: model_flops(job, Counted.causal),
    "mosaic_6N_full_attn": _embedding_counted,
    "megatron21_hw_8x": _megatron_2021,
}
"""FLOPs of one step by the convention's name in `published/runs.csv`."""


def published_flops(job: Job, convention: str) -> float:
    """Return FLOPs of one step by a published row's convention.

    Raises:
        ConfigError: it has no such name.
    """
    if convention not in PUBLISHED:
        raise ConfigError("flops_convention", convention, "not a known convention", f"one of {', '.join(PUBLISHED)}")
    return PUBLISHED[convention](job)


def published_mfu(job: Job, step_seconds: float, convention: str) -> float:
    """Return the utilisation that a publication with such a convention would print, 0 to 1.

    Raises:
        ConfigError: there is no such convention.
    """
    return published_flops(job, convention) / (step_seconds * _peak(job))


def _peak(job: Job) -> float:
    return job.split.world_size * job.device.peak_flops[job.number_format]


def _products(job: Job) -> float:
    """Return FLOPs of one forward per token in the matrix products of all blocks."""
    model, experts = job.model, job.model.experts
    attention = model.attention_parameters
    dense = model.ffn_matrices * model.hidden_size * model.ffn_size
    if experts is None:
        return 2 * model.num_blocks * (attention + dense)
    each = model.ffn_matrices * model.hidden_size * experts.expert_ffn_size
    routed = model.hidden_size * experts.num_experts + (experts.experts_per_token + experts.num_shared_experts) * each
    num_routed = model.num_blocks - experts.num_dense_blocks
    return 2 * (model.num_blocks * attention + experts.num_dense_blocks * dense + num_routed * routed)


def _head(job: Job) -> float:
    return 2 * job.model.vocab_size * job.model.hidden_size


def _attention(job: Job, counted: Counted) -> float:
    sizes = job.model.head_size + job.model.value_size
    full = 2 * job.model.num_blocks * job.model.num_heads * sizes * job.batch.sequence_length
    return full / 2 if counted is Counted.causal else full
