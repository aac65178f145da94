"""Where a model is cut into the chunks of a pipeline, by modelled cost. No torch."""

from collections.abc import Sequence

from training.config.model_schema import ModelConfig
from training.config.schema import RunConfig
from training.models.sizes import layer_costs
from training.parallel.partition import balance, by_hand

FLOPS_PER_BYTE = 300.0
"""Matrix FLOPs that take as long as moving one byte: an H100's 989 TFLOP/s in bf16 over its 3.35 TB/s."""
_GRADIENT_TRAFFIC_BYTES = 2 * 4
"""Bytes moved per parameter to add to its fp32 gradient: one read, one write."""
WARN_IMBALANCE = 0.15
"""How much slower than the mean the slowest chunk may be before it is worth a warning."""


def cut(config: RunConfig, training_stage: str) -> list[range]:
    """Return the layers of every chunk of a training stage's pipeline, in model order; none is empty.

    By `parallel.layers_per_pipeline_stage` if that is given, else such that the costliest chunk costs the least.
    """
    layout, num_further = config.layout_of(training_stage), config.model.num_prediction_blocks
    if layout.layers_per_pipeline_stage:
        return by_hand(layout.layers_per_pipeline_stage, config.model.num_layers, num_after=2 + num_further)
    costs = running_costs(config, training_stage)
    # Prediction blocks stay with the output projection: what goes from the one to the other is several hidden states.
    first_inseparable = len(costs) - 1 - num_further
    units = [*costs[:first_inseparable], sum(costs[first_inseparable:])]
    parts = balance(units, layout.pipeline * layout.chunks_per_rank)
    return [*parts[:-1], range(parts[-1].start, len(costs))]


def running_costs(config: RunConfig, training_stage: str) -> list[float]:
    """Return what each layer costs per micro-batch, forward and backward, in FLOPs or what takes as long.

    A layer takes as long as the slower of its matrix products and of reading and writing its whole gradient once, in
    fp32. The second is what an embedding costs, whose look-up is free, and all layers if micro-batches are tiny.
    """
    stage, layout = config.stages[training_stage], config.layout_of(training_stage)
    return costs_of(
        config.model,
        sequence_length=stage.sequence_length,
        rank_tokens=stage.micro_batch_sequences * stage.sequence_length / layout.sequence,
        expert=layout.expert,
    )


def costs_of(model: ModelConfig, *, sequence_length: int, rank_tokens: float, expert: int = 1) -> list[float]:
    """Return `running_costs` of a model without a run.

    Args:
        model: its sizes.
        sequence_length: tokens of a sequence.
        rank_tokens: tokens of a micro-batch on one rank.
        expert: ranks that the experts of a block are spread over. Tensor parallelism divides all costs alike.
    """
    return [
        max(
            3 * layer.forward_flops_per_token * rank_tokens,
            FLOPS_PER_BYTE
            * _GRADIENT_TRAFFIC_BYTES
            * (layer.num_parameters - layer.num_expert_parameters * (1 - 1 / expert)),
        )
        for layer in layer_costs(model, sequence_length)
    ]


def imbalance(costs: Sequence[float], parts: Sequence[range]) -> float:
    """Return how much costlier than the mean the costliest part is: 0.0 is even, 0.15 is 15 %."""
    totals = [sum(costs[index] for index in part) for part in parts]
    return max(totals) * len(totals) / sum(totals) - 1.0


def describe(config: RunConfig, training_stage: str, parts: Sequence[range]) -> list[str]:
    """Return sentences for people: the layers of each chunk, and a warning if one costs much more than the others."""
    pipeline = config.layout_of(training_stage).pipeline
    num_blocks = config.model.num_layers
    names = ["the embedding", *(f"block {number}" for number in range(num_blocks)), "the norm"]
    names += [*(f"prediction block {number}" for number in range(config.model.num_prediction_blocks)), "the head"]

    def layers(part: range) -> str:
        first, last = names[part.start], names[part.stop - 1]
        return first if first == last else f"{first} to {last}"

    lines = []
    for stage in range(pipeline):
        lines.append(f"pipeline stage {stage}: " + "; ".join(layers(part) for part in parts[stage::pipeline]))
    found = imbalance(running_costs(config, training_stage), parts)
    if found > WARN_IMBALANCE:
        lines.append(
            f"WARNING: the costliest chunk costs {100 * found:.0f} % more than the mean, the others wait for it; "
            "another pipeline, chunks_per_rank or layers_per_pipeline_stage (all under parallel) may divide it better"
        )
    return lines
