"""Canonical names of a model's parameters, known without building it.

They are Hugging Face's Llama names (training/models/decoder.py); a test compares them with the built models.
"""

from collections.abc import Iterator

from training.config.model_schema import ModelConfig

BLOCKS = "model.layers."
"""What names in decoder blocks begin with."""
ROUTER = ".mlp.gate.weight"
"""What the name of a router's matrix ends with."""
_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def parameter_names(model: ModelConfig) -> list[str]:
    """Return the name of every parameter, tied ones once, in the order of the layers."""
    names = ["model.embed_tokens.weight"]
    for layer in range(model.num_layers):
        names += [f"{BLOCKS}{layer}.{rest}" for rest in _block(model, layer)]
    names.append("model.norm.weight")
    for number in range(model.num_prediction_blocks):
        own = [f"{part}.weight" for part in ("hidden_norm", "token_norm", "merge")]
        block = [f"block.{rest}" for rest in _block(model, model.num_layers)]
        names += [f"model.prediction.{number}.{rest}" for rest in (*own, *block, "norm.weight")]
    if not model.tied_embeddings:
        names.append("lm_head.weight")
    return names


def _block(model: ModelConfig, layer: int) -> Iterator[str]:
    yield "input_layernorm.weight"
    yield from (f"self_attn.{name}.weight" for name in _attention(model))
    yield "post_attention_layernorm.weight"
    experts = model.experts
    if experts is None or layer < experts.num_dense_layers:
        yield from (f"mlp.{name}.weight" for name in _FEED_FORWARD)
        return
    yield "mlp.gate.weight"
    yield from (f"mlp.experts.{name}" for name in _FEED_FORWARD)  # stacked: one tensor for all experts of a block
    if experts.num_shared_experts:
        yield from (f"mlp.shared_experts.{name}.weight" for name in _FEED_FORWARD)


def _attention(model: ModelConfig) -> Iterator[str]:
    latent = model.latent_attention
    if latent is None:
        yield from ("q_proj", "k_proj", "v_proj", "o_proj")
        yield from ("q_norm", "k_norm") if model.qk_norm else ()
        return
    yield from ("q_proj",) if latent.query_rank is None else ("q_a_proj", "q_a_layernorm", "q_b_proj")
    yield from ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
