"""Canonical names of a model's parameters, known without building it.

They are Hugging Face's Llama names (training/models/decoder.py); a test compares them with the built models.
"""

from collections.abc import Iterator

from training.config.model_schema import ModelConfig

BLOCKS = "model.layers."
"""What names in decoder blocks begin with."""
ROUTER = ".mlp.gate.weight"
"""What the name of a router's matrix ends with."""
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def parameter_names(model: ModelConfig) -> list[str]:
    """Return the name of every parameter, tied ones once, in the order of the layers."""
    names = ["model.embed_tokens.weight"]
    for layer in range(model.num_layers):
        names += [f"{BLOCKS}{layer}.{rest}.weight" for rest in _block(model, layer)]
    names.append("model.norm.weight")
    if not model.tied_embeddings:
        names.append("lm_head.weight")
    return names


def _block(model: ModelConfig, layer: int) -> Iterator[str]:
    yield "input_layernorm"
    yield from (f"self_attn.{name}" for name in _ATTENTION)
    yield "post_attention_layernorm"
    experts = model.experts
    if experts is None or layer < experts.num_dense_layers:
        yield from (f"mlp.{name}" for name in _FEED_FORWARD)
        return
    yield "mlp.gate"
    for kind, count in (("shared_experts", experts.num_shared_experts), ("experts", experts.num_experts)):
        yield from (f"mlp.{kind}.{number}.{name}" for number in range(count) for name in _FEED_FORWARD)
