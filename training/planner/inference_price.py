"""What tokens cost when the trained model is served, from the roofline of one copy of it. No torch.

A bound, not a benchmark: prompts are read at a share of the device's arithmetic, tokens are written at a share of its
memory's bandwidth, with a full batch at all times. Exchange between the devices of a copy is not in it.
"""

from dataclasses import dataclass

from training.errors import ConfigError
from training.planner.job import Device, ModelShape, NumberFormat

ELEMENT_BYTES = {NumberFormat.fp32: 4, NumberFormat.bf16: 2, NumberFormat.fp8: 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """How a model is served."""

    num_devices: int
    """Devices that share one copy of the weights."""
    batch_sequences: int
    """Sequences that are written at once."""
    context_tokens: int
    """Tokens that each of them attends to, on average."""
    number_format: NumberFormat = NumberFormat.bf16
    """Of weights, and of the operands of matrix products."""
    cache_format: NumberFormat = NumberFormat.bf16
    """Of cached keys and values."""
    flops_share: float = 0.4
    """Share of peak FLOP/s that matrix products reach; an assumption, measure it for your model."""
    bandwidth_share: float = 0.6
    """Share of the memory's bandwidth that is reached; an assumption, measure it for your model."""

    def needed_bytes(self, model: ModelShape) -> float:
        """Return what the weights of one copy and a full batch's keys and values take."""
        cache = cache_bytes_per_token(model, self.cache_format) * self.context_tokens
        return parameters(model) * ELEMENT_BYTES[self.number_format] + self.batch_sequences * cache

    def fits(self, model: ModelShape, device: Device) -> bool:
        """Return whether that fits the memory of its devices."""
        return self.needed_bytes(model) <= self.num_devices * device.memory_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class InferencePrice:
    """Throughput of one copy, and what its tokens cost."""

    prompt_tokens_per_second: float
    """Read, when nothing else is done."""
    output_tokens_per_second: float
    """Written, of all sequences together, when nothing else is done."""
    output_bound: str
    """What bounds the writing: memory or arithmetic."""
    price_per_million_prompt_tokens: float
    """In the currency of the devices' price."""
    price_per_million_output_tokens: float
    """The same of what is written."""


def parameters(model: ModelShape) -> float:
    """Return the parameters of all matrices, the embedding and the output projection included; norms are left out."""
    embeddings = (1 if model.tied_embeddings else 2) * model.vocab_size * model.hidden_size
    return embeddings + sum(
        count * (model.attention_parameters + ffn) for count, ffn in _ffn_kinds(model, touched_experts=None)
    )


def forward_flops_per_token(model: ModelShape, attended_tokens: float) -> float:
    """Return FLOPs of one token through the model; a multiply-add is 2.

    Args:
        model: sizes.
        attended_tokens: earlier tokens that it attends to.
    """
    experts = model.experts
    active = experts.experts_per_token if experts else None
    matrices = sum(
        count * (model.attention_parameters + ffn) for count, ffn in _ffn_kinds(model, touched_experts=active)
    )
    scores_and_sums = model.num_heads * (model.head_size + model.value_size) * attended_tokens
    return 2 * (matrices + model.vocab_size * model.hidden_size + model.num_blocks * scores_and_sums)


def weights_read(model: ModelShape, batch_tokens: int) -> float:
    """Return the parameters that a forward pass of some tokens reads: of experts, those that any token meets.

    Tokens choose their experts evenly and by themselves: of E experts, k for each of B tokens, E (1 - (1 - k / E)^B)
    are met on average.

    Args:
        model: sizes.
        batch_tokens: tokens that pass at once.
    """
    experts, touched = model.experts, None
    if experts is not None:
        missed = (1 - experts.experts_per_token / experts.num_experts) ** batch_tokens
        touched = experts.num_experts * (1 - missed)
    blocks = sum(
        count * (model.attention_parameters + ffn) for count, ffn in _ffn_kinds(model, touched_experts=touched)
    )
    return blocks + model.vocab_size * model.hidden_size


def cache_bytes_per_token(model: ModelShape, cache_format: NumberFormat) -> float:
    """Return the bytes of keys and values that one token of a sequence leaves in all blocks.

    Of latent attention too they are those of all heads: our decoder does not cache the vector they are made from.
    """
    width = model.num_kv_heads * (model.head_size + model.value_size)
    return model.num_blocks * width * ELEMENT_BYTES[cache_format]


def inference_price(
    model: ModelShape, device: Device, serving: Serving, *, price_per_device_hour: float
) -> InferencePrice:
    """Return what serving costs, by the roofline.

    Args:
        model: sizes.
        device: each of the devices of a copy.
        serving: how.
        price_per_device_hour: of one device.

    Raises:
        ConfigError: the weights and the cache do not fit the devices' memory, or the device has no peak for the format.
    """
    if serving.number_format not in device.peak_flops:
        formats = ", ".join(device.peak_flops)
        raise ConfigError(
            "serving.number_format",
            serving.number_format.value,
            f"the peak of one {device.name} is not known for it",
            f"one of {formats}, or give the peak in cluster.accelerator",
        )
    cache = cache_bytes_per_token(model, serving.cache_format) * serving.context_tokens
    _refuse_too_large(model, device, serving, cache)
    flops = serving.num_devices * device.peak_flops[serving.number_format] * serving.flops_share
    bandwidth = serving.num_devices * device.memory_bandwidth * serving.bandwidth_share
    # Causal: a prompt's tokens attend to half of it on average.
    prompt_seconds = forward_flops_per_token(model, serving.context_tokens / 2) / flops
    batch = serving.batch_sequences
    read = weights_read(model, batch) * ELEMENT_BYTES[serving.number_format] + batch * cache
    memory_seconds = read / bandwidth
    arithmetic_seconds = batch * forward_flops_per_token(model, serving.context_tokens) / flops
    output_seconds = max(memory_seconds, arithmetic_seconds) / batch
    price_per_second = serving.num_devices * price_per_device_hour / 3600
    return InferencePrice(
        prompt_tokens_per_second=1 / prompt_seconds,
        output_tokens_per_second=1 / output_seconds,
        output_bound="memory" if memory_seconds >= arithmetic_seconds else "arithmetic",
        price_per_million_prompt_tokens=1e6 * prompt_seconds * price_per_second,
        price_per_million_output_tokens=1e6 * output_seconds * price_per_second,
    )


def _refuse_too_large(model: ModelShape, device: Device, serving: Serving, cache_bytes: float) -> None:
    if serving.fits(model, device):
        return
    weights = parameters(model) * ELEMENT_BYTES[serving.number_format]
    memory = serving.num_devices * device.memory_bytes
    most = int((memory - weights) // cache_bytes)
    key, given, remedy = (
        ("serving.batch_sequences", serving.batch_sequences, f"serving.batch_sequences={most} or more devices")
        if most > 0
        else (
            "serving.num_devices",
            serving.num_devices,
            f"serving.num_devices={int((weights + cache_bytes) // device.memory_bytes) + 1} or more",
        )
    )
    raise ConfigError(
        key,
        given,
        f"weights of {weights / 1e9:.0f} GB and {serving.batch_sequences} caches of {cache_bytes / 1e9:.2f} GB are "
        f"more than {serving.num_devices} {device.name} have, {memory / 1e9:.0f} GB",
        remedy,
    )


def _ffn_kinds(model: ModelShape, *, touched_experts: float | None) -> list[tuple[int, float]]:
    """Return (blocks, parameters of the feed-forward layer) of both kinds of block; None takes all experts."""
    dense = model.ffn_matrices * model.hidden_size * model.ffn_size
    experts = model.experts
    if experts is None:
        return [(model.num_blocks, dense)]
    touched = experts.num_experts if touched_experts is None else touched_experts
    one = model.ffn_matrices * model.hidden_size * experts.expert_ffn_size
    routed = (touched + experts.num_shared_experts) * one + model.hidden_size * experts.num_experts
    return [(experts.num_dense_blocks, dense), (model.num_blocks - experts.num_dense_blocks, routed)]
