"""Model families of Hugging Face as tables: which field of config.json is which of ours, which weight is called what.

No torch. Another family is another table. What is not in a table and changes the numbers is refused, so a model either
computes here what it computes in transformers, or is not taken. Defaults and conditions are those of transformers
5.23.0, models/*/configuration_*.py and modeling_*.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.config.model_schema import ModelConfig, RouterScore
from training.errors import ConfigError

_REMEDY = "only models that Autarky's decoder computes exactly as transformers does can be taken"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One `model_type` of transformers. In names and keys `{layer}` is the number of a block, `{expert}` of an expert.

    Fields of ModelConfig are dotted paths: "experts.num_experts".
    """

    model_type: str
    """Of config.json."""
    architecture: str
    """Class of transformers that the weights are for."""
    fields: Mapping[str, str]
    """Field of ModelConfig -> key of config.json."""
    defaults: Mapping[str, Any]
    """What transformers takes for a key that config.json leaves out."""
    default_rope_theta: float = 10_000.0
    """What it takes for rope_theta."""
    fixed: Mapping[str, Any]
    """Keys that change the numbers -> the only value with which they are ours; also what a missing one means."""
    implied: Mapping[str, Any]
    """Field of ModelConfig -> its value in every model of the family, which config.json does not give."""
    at_least: Mapping[str, int] = field(default_factory=dict)
    """Field of ModelConfig -> least value that transformers' class can run."""
    has_router_bias: bool = False
    """Whether routers have the bias of balancing without a loss."""
    predicts_further_tokens: bool = False
    """Whether files may hold further blocks that predict tokens after the next one; they are left out."""
    weights: Mapping[str, str]
    """Canonical parameter name -> key in the safetensors files; with {expert}, one key for each part of a stack."""
    tied: Mapping[str, str] = field(default_factory=lambda: {"lm_head.weight": "model.embed_tokens.weight"})
    """Key that a model with tied embeddings may repeat -> the key that it repeats."""
    buffers: frozenset[str] = frozenset()
    """Keys that old files carry though they follow from config.json; left out."""

    def parts_of(self, parameter: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        """Return (key, shape) of the tensors in the files whose values, one after the other, are a parameter's."""
        pattern, layer = _pattern(parameter)
        key = self.weights[pattern].replace("{layer}", layer)
        if "{expert}" not in key:
            return [(key, shape)]
        return [(key.replace("{expert}", str(expert)), shape[1:]) for expert in range(shape[0])]

    def is_buffer(self, key: str) -> bool:
        """Return whether a key of the files is one that is left out."""
        return _pattern(key)[0] in self.buffers


def refusal(key: str, given: object, reason: str, remedy: str = _REMEDY) -> ConfigError:
    """Return the error for a key of a config.json that is not ours."""
    return ConfigError(f"config.json: {key}", given, reason, remedy)


def value_of(model: ModelConfig, path: str) -> Any:
    """Return the value of a dotted field; None where its section is missing."""
    value: Any = model
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value


def _pattern(name: str) -> tuple[str, str]:
    """Return a name with its first whole number replaced by {layer}, and that number ("" if there is none)."""
    match = re.search(r"(?<=\.)(?:0|[1-9][0-9]*)(?=\.)", name)
    return (f"{name[: match.start()]}{{layer}}{name[match.end() :]}", match[0]) if match else (name, "")


def _block(*parts: str) -> dict[str, str]:
    """Return the weights of parts of a block that are called the same here and there."""
    names = [f"model.layers.{{layer}}.{part}.weight" for part in parts]
    return dict(zip(names, names, strict=True))


_MATRICES = ("gate_proj", "up_proj", "down_proj")
_DENSE = _block(*(f"mlp.{matrix}" for matrix in _MATRICES))
_ATTENTION = _block("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_HEAD_NORMS = _block("self_attn.q_norm", "self_attn.k_norm")
# Canonical names are Llama's (docs/adr/0004), and those of DeepSeek-V3 for what Llama has not.
_FRAME = {
    **{name: name for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")},
    **_block("input_layernorm", "post_attention_layernorm"),
}
_ROUTED = {
    **_block("mlp.gate"),
    **{
        f"model.layers.{{layer}}.mlp.experts.{matrix}": f"model.layers.{{layer}}.mlp.experts.{{expert}}.{matrix}.weight"
        for matrix in _MATRICES
    },
}

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "ffn_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02}
_DENSE_MODEL: dict[str, Any] = {"experts": None, "latent_attention": None}
_SOFTMAX_ROUTER: dict[str, Any] = {
    "latent_attention": None,
    "experts.score": RouterScore.softmax,
    "experts.num_shared_experts": 0,
    "experts.weight_scale": 1.0,
    "experts.num_groups": 1,
    "experts.groups_per_token": 1,
    "experts.capacity_factor": None,
}
_QWEN = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields=_SIZES | {"head_size": "head_dim"},
    defaults=_DEFAULTS,
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    implied=_DENSE_MODEL | {"qk_norm": False},
    weights=_FRAME | _ATTENTION | _DENSE,
    buffers=frozenset({"model.layers.{layer}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"}),
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fields=_SIZES | {"head_size": "head_dim"},
    defaults=_DEFAULTS | {"head_dim": 128},
    fixed=_QWEN,
    implied=_DENSE_MODEL | {"qk_norm": True},
    weights=_FRAME | _ATTENTION | _HEAD_NORMS | _DENSE,
)

MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    fields={
        **_SIZES,
        "head_size": "head_dim",
        "experts.num_experts": "num_local_experts",
        "experts.experts_per_token": "num_experts_per_tok",
        "experts.expert_ffn_size": "intermediate_size",
    },
    defaults=_DEFAULTS | {"rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2},
    default_rope_theta=1_000_000.0,
    fixed={"hidden_act": "silu", "sliding_window": None, "router_jitter_noise": 0.0},
    implied=_SOFTMAX_ROUTER | {"qk_norm": False, "experts.normalize_weights": True, "experts.num_dense_layers": 0},
    weights={
        **_FRAME,
        **_ATTENTION,
        "model.layers.{layer}.mlp.gate.weight": "model.layers.{layer}.block_sparse_moe.gate.weight",
        **{
            f"model.layers.{{layer}}.mlp.experts.{matrix}": (
                f"model.layers.{{layer}}.block_sparse_moe.experts.{{expert}}.{name}.weight"
            )
            for matrix, name in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
        },
    },
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fields={
        **_SIZES,
        "head_size": "head_dim",
        "experts.num_experts": "num_experts",
        "experts.experts_per_token": "num_experts_per_tok",
        "experts.expert_ffn_size": "moe_intermediate_size",
        "experts.normalize_weights": "norm_topk_prob",
        "experts.num_dense_layers": "mlp_only_layers",
    },
    defaults={
        **_DEFAULTS,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "mlp_only_layers": [],
    },
    fixed=_QWEN | {"decoder_sparse_step": 1},
    implied=_SOFTMAX_ROUTER | {"qk_norm": True},
    weights=_FRAME | _ATTENTION | _HEAD_NORMS | _DENSE | _ROUTED,
)

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fields={
        **_SIZES,
        "latent_attention.kv_rank": "kv_lora_rank",
        "latent_attention.query_rank": "q_lora_rank",
        "latent_attention.head_size": "qk_nope_head_dim",
        "latent_attention.rope_head_size": "qk_rope_head_dim",
        "latent_attention.value_head_size": "v_head_dim",
        "experts.num_experts": "n_routed_experts",
        "experts.experts_per_token": "num_experts_per_tok",
        "experts.expert_ffn_size": "moe_intermediate_size",
        "experts.num_shared_experts": "n_shared_experts",
        "experts.num_dense_layers": "first_k_dense_replace",
        "experts.normalize_weights": "norm_topk_prob",
        "experts.weight_scale": "routed_scaling_factor",
        "experts.num_groups": "n_group",
        "experts.groups_per_token": "topk_group",
    },
    defaults={
        **_DEFAULTS,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
    },
    fixed={
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_interleave": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
    },
    implied={
        "head_size": None,
        "qk_norm": False,
        "experts.score": RouterScore.sigmoid,
        "experts.capacity_factor": None,
    },
    at_least={"experts.num_shared_experts": 1},
    has_router_bias=True,
    predicts_further_tokens=True,
    weights={
        **_FRAME,
        **_block("self_attn.q_proj", "self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj"),
        **_block("self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm", "self_attn.kv_b_proj", "self_attn.o_proj"),
        **_DENSE,
        **_ROUTED,
        **_block(*(f"mlp.shared_experts.{matrix}" for matrix in _MATRICES)),
        "model.layers.{layer}.mlp.gate.bias": "model.layers.{layer}.mlp.gate.e_score_correction_bias",
    },
)

FAMILIES = {family.model_type: family for family in (LLAMA, QWEN3, MIXTRAL, QWEN3_MOE, DEEPSEEK_V3)}
