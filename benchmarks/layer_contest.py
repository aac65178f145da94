"""One layer, forward and backward, beside transformers' own of the same shapes and weights: experts and attention.

One process with all cores, in turns; their outputs are compared first. transformers has two ways to run experts, a loop
and torch's grouped product: both compete.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, LlamaConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from benchmarks.tables import spread, table
from training.config.model_schema import ExpertsConfig, LatentAttentionConfig, ModelConfig
from training.models.attention import make_attention
from training.models.experts import MixtureOfExperts
from training.models.rope import rotary_tables

_BATCH, _TOKENS = 2, 512
_OURS = "Autarky"
Layer = Callable[[Tensor], Tensor]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerContest:
    """Seconds of a forward and backward, layer by layer and round by round."""

    seconds: dict[str, dict[str, list[float]]]
    """Layer -> contestant -> seconds of each round."""
    differences: dict[str, float]
    """Layer -> largest difference of outputs, as a share of the largest output."""


def compete_in_layers(*, num_rounds: int, num_passes: int, say: Callable[[str], None]) -> LayerContest:
    """Return the seconds of all contestants; the order changes with every round."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    seconds: dict[str, dict[str, list[float]]] = {}
    differences: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, (hidden_size, contestants) in _layers(dtype).items():
            title = f"{name}, {str(dtype).removeprefix('torch.')}"
            say(f"layers: {title}")
            inputs = torch.randn(_BATCH, _TOKENS, hidden_size, dtype=dtype, requires_grad=True)
            gradient = torch.randn_like(inputs)
            outputs = {contestant: layer(inputs).detach().float() for contestant, layer in contestants.items()}
            largest = outputs[_OURS].abs().max()
            differences[title] = max(((o - outputs[_OURS]).abs().max() / largest).item() for o in outputs.values())
            seconds[title] = {contestant: [] for contestant in contestants}
            for number in range(num_rounds + 1):  # the first one warms up
                turns = list(contestants.items())
                for contestant, layer in turns if number % 2 == 0 else turns[::-1]:
                    begun = time.perf_counter()
                    for _ in range(num_passes):
                        layer(inputs).backward(gradient)
                    if number:
                        seconds[title][contestant].append((time.perf_counter() - begun) / num_passes)
    return LayerContest(seconds=seconds, differences=differences)


def layers(contest: LayerContest) -> list[str]:
    """Return the section of the page."""
    rows = []
    for title, of_layer in contest.seconds.items():
        for contestant, values in of_layer.items():
            ratios = _ratios(of_layer, contestant)
            rows.append([title, contestant, spread([1000 * v for v in values], ".1f"), spread(ratios, ".2f")])
    slowest = min(
        statistics.median(_ratios(of_layer, contestant))
        for of_layer in contest.seconds.values()
        for contestant in of_layer
        if contestant != _OURS
    )
    fp32, bf16 = (
        max(value for title, value in contest.differences.items() if title.endswith(dtype))
        for dtype in ("float32", "bfloat16")
    )
    return [
        "## Layers",
        "",
        f"Forward and backward of one layer on {_BATCH} × {_TOKENS} tokens, one process with all cores, the same "
        "shapes and weights. Experts: 32 of 512 × 384, 4 per token. Attention: 16 query and 4 key/value heads of 64, "
        "causal, rotary, by scaled_dot_product_attention on both sides. Latent attention: 8 heads of 64 + 32, values "
        "of 64.",
        "",
        *table(["layer", "", "ms", "it ÷ ours"], rows),
        "",
        f"At least as fast as each: {'yes' if slowest >= 1.0 else 'no'}. Outputs differ by at most {fp32:.1e} (fp32) "
        f"and {bf16:.1e} (bf16) of the largest one: transformers' router computes in bf16 and chooses other experts "
        "for some tokens, ours in fp32.",
    ]


def _ratios(of_layer: Mapping[str, list[float]], contestant: str) -> list[float]:
    return [theirs / ours for ours, theirs in zip(of_layer[_OURS], of_layer[contestant], strict=True)]


def _layers(dtype: torch.dtype) -> dict[str, tuple[int, dict[str, Layer]]]:
    """Return layer -> (hidden size, contestant -> what runs it)."""
    return {
        "experts": (512, _experts(dtype)),
        "attention": (1024, _attention(dtype)),
        "latent attention": (768, _latent_attention(dtype)),
    }


def _model(**sizes: object) -> ModelConfig:
    usual = {"vocab_size": 32, "num_layers": 1, "ffn_size": 32, "max_sequence_length": 2 * _TOKENS}
    return ModelConfig(**(usual | sizes))  # type: ignore[arg-type]


def _experts(dtype: torch.dtype) -> dict[str, Layer]:
    experts = ExpertsConfig(num_experts=32, experts_per_token=4, expert_ffn_size=384)
    ours = _filled(MixtureOfExperts(_model(hidden_size=512, num_heads=8, num_kv_heads=8, experts=experts)), dtype)
    contestants: dict[str, Layer] = {_OURS: ours}
    for way in ("eager", "grouped_mm"):
        config = Qwen3MoeConfig(
            hidden_size=512, moe_intermediate_size=384, num_experts=32, num_experts_per_tok=4, norm_topk_prob=True
        )
        config._experts_implementation = way
        theirs = Qwen3MoeSparseMoeBlock(config)
        theirs.to(dtype)
        with torch.no_grad():
            theirs.gate.weight.copy_(ours.gate.weight)
            weights = dict(theirs.experts.named_parameters())
            weights["gate_up_proj"].copy_(torch.cat([ours.experts.gate_proj, ours.experts.up_proj], dim=1))
            weights["down_proj"].copy_(ours.experts.down_proj)
        contestants[f"transformers, {way}"] = theirs
    return contestants


def _attention(dtype: torch.dtype) -> dict[str, Layer]:
    model = _model(hidden_size=1024, num_heads=16, num_kv_heads=4)
    ours = _filled(make_attention(model), dtype)
    config = LlamaConfig(hidden_size=1024, num_attention_heads=16, num_key_value_heads=4)
    config._attn_implementation = "sdpa"
    return {_OURS: ours, "transformers, sdpa": _theirs(LlamaAttention(config, layer_idx=0), ours, model, dtype)}


def _latent_attention(dtype: torch.dtype) -> dict[str, Layer]:
    latent = LatentAttentionConfig(kv_rank=128, query_rank=256, head_size=64, rope_head_size=32, value_head_size=64)
    model = _model(hidden_size=768, num_heads=8, num_kv_heads=8, latent_attention=latent)
    ours = _filled(make_attention(model), dtype)
    config = DeepseekV3Config(
        hidden_size=768,
        num_attention_heads=8,
        num_key_value_heads=8,
        q_lora_rank=256,
        kv_lora_rank=128,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
    )
    config._attn_implementation = "sdpa"
    return {_OURS: ours, "transformers, sdpa": _theirs(DeepseekV3Attention(config, layer_idx=0), ours, model, dtype)}


def _filled(module: Module, dtype: torch.dtype) -> Module:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.05)
    return module.to(dtype)


def _theirs(module: nn.Module, ours: nn.Module, model: ModelConfig, dtype: torch.dtype) -> Layer:
    """Return a function that runs transformers' attention with our weights and rotary tables that are made already."""
    module.to(dtype).load_state_dict(ours.state_dict())
    cos, sin = (x.to(dtype)[None] for x in rotary_tables(model, _TOKENS, torch.device("cpu")))
    return lambda hidden_BTD: module(hidden_BTD, position_embeddings=(cos, sin), attention_mask=None)[0]
