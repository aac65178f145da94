"""Whether tensor, sequence and expert axes and hpZ fit each other, the world and the model."""

from training.config.nearest_numbers import closest, divisors, listed
from training.config.schema import ParallelConfig, RunConfig
from training.errors import ConfigError


def check_axes(config: RunConfig, training_stage: str, key: str) -> None:
    """Check a training stage's axes but the pipeline, which has its own checks; `key` is where its layout stands.

    Raises:
        ConfigError: an axis does not divide what it is to divide.
    """
    model, layout = config.model, config.layout_of(training_stage)
    _check_divides(
        f"{key}.tensor",
        layout.tensor,
        (
            ("model.num_heads", model.num_heads),
            ("model.num_kv_heads", model.num_kv_heads),
            ("model.ffn_size", model.ffn_size),
            ("model.vocab_size", model.vocab_size),
            *((("model.experts.expert_ffn_size", model.experts.expert_ffn_size),) if model.experts else ()),
        ),
    )
    _check_divides(
        f"{key}.sequence",
        layout.sequence,
        # Ulysses deals heads to ranks, on top of tensor parallelism.
        ((f"model.num_heads / {key}.tensor", model.num_heads // layout.tensor),),
    )
    _check_tokens(config, training_stage, layout, key)
    _check_world(config, layout, key)
    _check_expert(config, layout, key)
    _check_secondary(config, layout, key)


def _check_world(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    product = layout.pipeline * layout.tensor * layout.sequence
    if layout.tensor * layout.sequence == 1 or config.world_size % product == 0:
        return  # a pipeline by itself has a check of its own
    name = "tensor" if layout.tensor > 1 else "sequence"
    axis = layout.tensor if layout.tensor > 1 else layout.sequence
    fits = [n for n in divisors(config.model.num_heads) if config.world_size % (product // axis * n) == 0]
    remedy = f"{key}.{name}={closest(axis, fits)} works" if fits else f"{key}.pipeline=1 may leave room for it"
    raise ConfigError(
        f"{key}.{name}",
        axis,
        f"{config.world_size} ranks are no multiple of pipeline={layout.pipeline} x tensor={layout.tensor} x "
        f"sequence={layout.sequence} = {product}",
        remedy,
    )


def _check_tokens(config: RunConfig, training_stage: str, layout: ParallelConfig, key: str) -> None:
    name, length = f"stages.{training_stage}.sequence_length", config.stages[training_stage].sequence_length
    _check_divides(f"{key}.sequence", layout.sequence, ((name, length),))


def _check_divides(key: str, axis: int, dims: tuple[tuple[str, int], ...]) -> None:
    for name, size in dims:
        if size % axis:
            fit = closest(axis, divisors(size))
            reason = f"{name}={size} cannot be dealt evenly to {axis} ranks"
            raise ConfigError(key, axis, reason, f"{key}={fit} works (divisors of {size}: {listed(divisors(size))})")


def _check_expert(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    if layout.expert == 1:
        return
    experts = config.model.experts
    if experts is None:
        reason = "the model has no experts (model.experts=null)"
        raise ConfigError(f"{key}.expert", layout.expert, reason, f"{key}.expert=1, or a model with experts")
    if layout.zero_stage == 0:
        reason = "experts spread over ranks are sharded by ZeRO over other ranks than the rest of the model"
        raise ConfigError(f"{key}.zero_stage", layout.zero_stage, reason, f"{key}.zero_stage=1, or {key}.expert=1")
    holders = config.world_size // (layout.pipeline * layout.tensor)
    fits = sorted(set(divisors(experts.num_experts)) & set(divisors(holders)))
    if layout.expert not in fits:
        raise ConfigError(
            f"{key}.expert",
            layout.expert,
            f"it must divide the {experts.num_experts} experts of a block and the {holders} ranks (replicas x "
            "sequence) that they are spread over",
            f"{key}.expert={closest(layout.expert, fits)} works ({listed(fits)} do)",
        )


def _check_secondary(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    ranks = layout.zero_secondary_ranks
    if ranks is None:
        return
    name = f"{key}.zero_secondary_ranks"
    if layout.zero_stage != 3:
        reason = f"only ZeRO-3 shards weights (zero_stage={layout.zero_stage})"
        raise ConfigError(name, ranks, reason, f"{name}=null, or {key}.zero_stage=3")
    replicas = config.world_size // (layout.pipeline * layout.tensor)
    fits = [n for n in divisors(replicas) if 1 < n <= config.cluster.processes_per_node]
    if ranks not in fits:
        reason = f"it must divide the {replicas} ranks that ZeRO-3 shards over, within a node"
        remedy = f"{name}={closest(ranks, fits)} works ({listed(fits)} do)" if fits else f"{name}=null"
        raise ConfigError(name, ranks, reason, remedy)
