"""transformers' own Llama for a model of ours: what our decoder is compared with."""

from transformers import LlamaConfig, LlamaForCausalLM

from training.config.schema import ModelConfig


def llama(config: ModelConfig) -> LlamaForCausalLM:
    rope: dict = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_sequence_length,
        }
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.ffn_size,
            max_position_embeddings=config.max_sequence_length,
            rms_norm_eps=config.norm_epsilon,
            tie_word_embeddings=config.tied_embeddings,
            rope_parameters=rope,
            attention_dropout=0.0,
        )
    ).eval()
