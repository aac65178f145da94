"""All layouts of a model on a number of devices: the legal ones, and why the others are not. No torch."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

from training.config.nearest_numbers import divisors
from training.parallel.schedule import interleaving_fits
from training.planner.job import Batch, Job, ModelShape, Recompute, Split
from training.planner.pipeline_time import chunks_of
from training.planner.software import OURS, SOFTWARE

MICRO_BATCHES = (1, 2, 4, 8)
CHUNKS = (1, 2, 4, 8)
LEAST_TO_MOST_RECOMPUTE = (Recompute.none, Recompute.selective, Recompute.full)


@dataclass(slots=True)
class Refusals:
    """Why layouts are not legal, each reason with how many it refuses and the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Count one layout."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, example)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the search may choose from."""

    world_size: int
    global_batch: int
    """Sequences of one optimizer step."""
    only_ours: bool = False
    """Only what an engine of this version runs: no tensor axis."""


def runs_today(job: Job) -> bool:
    """Return whether an engine of this version runs a job (training/config/engine_checks.py)."""
    split = job.split
    in_chunks = split.pipeline > 1 or split.expert > 1
    deepspeed_cannot = split.zero_stage > 1 or split.chunks_per_rank > 1 or split.context > 1 or split.expert > 1
    return (
        job.software in OURS
        and not (job.software == OURS[1] and deepspeed_cannot)
        and split.tensor == 1
        and split.zero3_group is None
        and not (in_chunks and split.zero_stage == 0)
    )


def describe(split: Split, batch: Batch) -> str:
    """Return a layout in one line, with the names that the config has for it."""
    axes = [("pipeline", split.pipeline), ("tensor", split.tensor), ("sequence", split.context)]
    axes += [("expert", split.expert), ("replicas", split.replicas)]
    parts = [f"{name} {size}" for name, size in axes if size > 1 or name in ("pipeline", "replicas")]
    if split.chunks_per_rank > 1:
        parts.append(f"{split.chunks_per_rank} chunks")
    parts.append(f"ZeRO-{split.zero_stage}")
    if split.zero_stage == 3 and split.pipeline > 1:
        parts.append("gathered per step" if split.gathers_per_step else "per micro-batch")
    if split.recompute is not Recompute.none:
        parts.append(f"recompute {split.recompute}")
    parts.append(f"{batch.accumulation} x {batch.micro_batch}")
    return ", ".join(parts)


def legal_layouts(template: Job, limits: Limits, refusals: Refusals) -> Iterator[Job]:
    """Yield every legal layout with the recompute of the template, each with all its ZeRO stages.

    What is left open is what memory decides: recompute, and whether ZeRO-3's weights stay gathered in a pipeline.

    Args:
        template: model, device, network, precision and sequence length.
        limits: the devices and the batch.
        refusals: is told of what is not legal.
    """
    for split in _axes(template, limits, refusals):
        for micro_batch, chunks in product(MICRO_BATCHES, CHUNKS):
            accumulation, rest = divmod(limits.global_batch, split.replicas * micro_batch)
            batch = replace(template.batch, micro_batch=micro_batch, accumulation=accumulation)
            chunked = replace(split, chunks_per_rank=chunks)
            reason = _why_not(template, chunked, batch, rest)
            if reason:
                refusals.add(reason, describe(chunked, batch))
                continue
            for zero_stage in _zero_stages(chunked):
                yield replace(template, split=replace(chunked, zero_stage=zero_stage), batch=batch)


def _axes(template: Job, limits: Limits, refusals: Refusals) -> Iterator[Split]:
    """Yield the axes whose product is the world, without ZeRO stage, chunks and recompute."""
    model, world, node = template.model, limits.world_size, template.network.devices_per_node
    within_node = divisors(node)
    experts = model.experts
    spreads = [1] if experts is None else divisors(experts.num_experts)
    tensors = [1] if limits.only_ours else within_node
    for pipeline in divisors(world):
        if pipeline > model.num_blocks:
            refusals.add("more pipeline stages than blocks", f"pipeline {pipeline}")
            continue
        for tensor, context in product(tensors, within_node):
            product_of_axes = pipeline * tensor * context
            example = f"pipeline {pipeline}, tensor {tensor}, sequence {context}"
            if tensor * context > node:
                refusals.add(f"tensor x sequence leaves the node's {node} devices", example)
            elif world % product_of_axes:
                refusals.add(f"pipeline x tensor x sequence does not divide {world} devices", example)
            elif model.num_heads % (tensor * context) or any(size % tensor for size in _cut_by_tensor(model)):
                refusals.add("heads, widths or vocabulary cannot be dealt evenly", example)
            else:
                holders = world // (pipeline * tensor)
                for expert in spreads:
                    if holders % expert:
                        refusals.add(
                            "experts cannot be dealt evenly to replicas x sequence", f"{example}, expert {expert}"
                        )
                        continue
                    yield Split(
                        replicas=world // product_of_axes,
                        pipeline=pipeline,
                        tensor=tensor,
                        context=context,
                        tensor_shards_sequence=template.split.tensor_shards_sequence,
                        context_exchange="heads",
                        expert=expert,
                        recompute=template.split.recompute,
                    )


def _cut_by_tensor(model: ModelShape) -> tuple[int, ...]:
    widths = (model.experts.expert_ffn_size,) if model.experts else ()
    return (model.num_kv_heads, model.ffn_size, model.vocab_size, *widths)


def _why_not(template: Job, split: Split, batch: Batch, rest: int) -> str:
    """Return why a split and its micro-batches do not go together; empty if they do."""
    if rest or not batch.accumulation:
        return "the global batch is no multiple of replicas x micro-batch"
    if split.chunks_per_rank > 1 and split.pipeline == 1:
        return "chunks without a pipeline"
    if split.pipeline * split.chunks_per_rank > template.model.num_blocks:
        return "more chunks than blocks"
    if split.chunks_per_rank > 1 and not interleaving_fits(split.pipeline, batch.accumulation):
        return "interleaved needs micro-batches in equal rounds"
    if split.pipeline > 1 and batch.accumulation < split.pipeline // 2:
        return "a pipeline with fewer micro-batches than half its stages would mostly wait"
    chunks = chunks_of(replace(template, split=split), SOFTWARE[template.software].cut)
    if not all(chunk.dense_blocks + chunk.expert_blocks + chunk.has_embedding + chunk.has_head for chunk in chunks):
        return "embedding or head cost so much that another chunk would be empty"
    return ""


def _zero_stages(split: Split) -> tuple[int, ...]:
    if split.shards == 1:
        return (1,)
    return (1, 2, 3)
