"""A job's model -> the config that our own models have, for what is computed from one. No torch."""

from training.config.model_schema import ExpertsConfig, ModelConfig
from training.planner.job import Job


def model_config(job: Job) -> ModelConfig:
    """Return the config of a job's model; one that is known by its sizes alone has the nearest one."""
    model, experts = job.model, job.model.experts
    if model.config is not None:
        return model.config
    return ModelConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_blocks,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_size=model.head_size,
        ffn_size=model.ffn_size,
        max_sequence_length=job.batch.sequence_length,
        tied_embeddings=model.tied_embeddings,
        experts=None
        if experts is None
        else ExpertsConfig(
            num_experts=experts.num_experts,
            experts_per_token=experts.experts_per_token,
            expert_ffn_size=experts.expert_ffn_size,
            num_shared_experts=experts.num_shared_experts,
            num_dense_layers=experts.num_dense_blocks,
        ),
    )
