"""Small models of every kind that a config can ask for."""

from typing import Any

from training.config.model_schema import ModelConfig, RopeScaling


def model(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 48,
        "num_layers": 3,
        "num_heads": 6,
        "num_kv_heads": 2,
        "ffn_size": 80,
        "max_sequence_length": 64,
        "init_std": 0.1,
    }
    return ModelConfig(**(values | changes))


LLAMA3_SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_sequence_length=16)

KINDS = {
    "grouped queries": model(),
    "one head per query": model(num_kv_heads=6),
    "one key head": model(num_kv_heads=1),
    "tied": model(tied_embeddings=True),
    "llama3 rope": model(rope_scaling=LLAMA3_SCALING, rope_theta=10_000.0),
    "tied llama3 rope": model(tied_embeddings=True, rope_scaling=LLAMA3_SCALING),
}
