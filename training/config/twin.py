"""A run in small: model, layout and training stages in the ratios of one that is to be started on a cluster. Pure.

What it shows is that this code trains such a model under such a layout; not speed, and not how well it will do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from training.config.data_schema import DataConfig
from training.config.eval_schema import EvalConfig
from training.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    OptimizerConfig,
    ParallelConfig,
    Precision,
    RunConfig,
    StageConfig,
)
from training.config.stage_schema import StageKind
from training.config.twin_layout import twin_layers, twin_layout
from training.config.twin_model import TwinSizes, scaled_length, twin_model

_SEQUENCE_TOKENS = 64
"""Of the training stage with the shortest sequences, unless the longest ones would pass _LONGEST_TOKENS."""
_LEAST_SEQUENCE_TOKENS = 16
_LONGEST_TOKENS = 1024
_BATCH_TOKENS = 1024
_LR = 2e-3
"""Peak rate for models up to about 10 million parameters (conf/optimizer/adamw.yaml)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Laptop:
    """What twins run on and learn from."""

    cluster: ClusterConfig
    """This machine, with as many processes as the twin is to have."""
    data: DataConfig
    """Text that is there."""
    steps: int
    """Optimizer steps of the whole run, dealt to its training stages; each has at least one."""


def twin_of(config: RunConfig, laptop: Laptop) -> RunConfig:
    """Return the twin of a checked run; what does not follow from its size is as it is.

    Left out is what no engine runs or what means nothing in small: tensor parallelism, hpZ, fp8, gates, benchmarks,
    batch ramps, initial weights, limits of epochs, batches to skip.
    """
    processes, ratio = laptop.cluster.processes_per_node, _length_ratio(config)
    sizes = TwinSizes(
        num_layers=max(twin_layers(config.layout_of(name), processes) for name in config.stages),
        vocab_size=laptop.data.tokenizer_vocab_size,
        length_ratio=ratio,
    )
    model = twin_model(config.model, sizes)

    def layout(original: ParallelConfig) -> ParallelConfig:
        return twin_layout(original, model, processes=processes, length_ratio=ratio)

    theirs = list(laptop.data.sources)
    sources = {name: theirs[place % len(theirs)] for place, name in enumerate(config.data.sources)}
    steps = _dealt(laptop.steps, list(config.stages))
    stages = {
        name: replace(
            _stage(config, name, layout(config.layout_of(name)), laptop, ratio, steps[name]),
            mixture=_mixture(stage.mixture, sources),
            mixture_changes=[
                replace(change, mixture=_mixture(change.mixture, sources)) for change in stage.mixture_changes
            ],
            parallel=stage.parallel and layout(stage.parallel),
        )
        for name, stage in config.stages.items()
    }
    # A key that every training stage sets for itself may not be given.
    uses_parallel = any(stage.parallel is None for stage in config.stages.values())
    return replace(
        config,
        run=replace(config.run, name=f"{config.run.name}-twin"),
        init_from=None,
        precision=Precision.bf16 if config.precision is Precision.fp8 else config.precision,
        model=model,
        parallel=layout(config.parallel) if uses_parallel else config.parallel,
        data=replace(laptop.data, prepared_root=config.data.prepared_root),
        optimizer=_optimizer(config),
        stages=stages,
        eval=_evaluations(config.eval, sources, longest=model.max_sequence_length - 1),
        checkpoint=_checkpoints(config.checkpoint, laptop.steps),
        cluster=laptop.cluster,
    )


def _length_ratio(config: RunConfig) -> float:
    """Return what lengths are multiplied by, all by the same."""
    lengths = [stage.sequence_length for stage in config.stages.values()]
    shortest = min(_SEQUENCE_TOKENS, max(_LEAST_SEQUENCE_TOKENS, _LONGEST_TOKENS * min(lengths) / max(lengths)))
    return min(1.0, shortest / min(lengths))


def _dealt(steps: int, names: list[str]) -> dict[str, int]:
    """Return the steps of each training stage, as equal as can be."""
    each, rest = divmod(steps, len(names))
    return {name: max(1, each + (place < rest)) for place, name in enumerate(names)}


def _mixture(weights: Mapping[str, float], sources: Mapping[str, str]) -> dict[str, float]:
    """Return a mixture of other sources with the same weights; sources that become one add theirs."""
    mixture: dict[str, float] = {}
    for name, weight in weights.items():
        mixture[sources[name]] = mixture.get(sources[name], 0.0) + weight
    return mixture


def _stage(
    config: RunConfig, name: str, layout: ParallelConfig, laptop: Laptop, ratio: float, steps: int
) -> StageConfig:
    """Return a training stage in small, of so many steps, with the mixture and layout that it has."""
    stage = config.stages[name]
    length = scaled_length(stage.sequence_length, ratio)
    replicas = laptop.cluster.processes_per_node // (layout.pipeline * layout.sequence)
    accumulates = config.accumulation_steps(name) > 1
    num_micro_batches = 2 if layout.pipeline > 1 or accumulates else 1
    micro = max(1, _BATCH_TOKENS // (length * replicas * num_micro_batches))
    batch = micro * replicas * num_micro_batches
    every = stage.eval_every_steps
    # A laptop's data are texts: what learns from conversations and pairs elsewhere learns from them here, packed alike.
    is_kept = stage.kind.reads_documents
    return replace(
        stage,
        kind=stage.kind if is_kept else StageKind.pretrain,
        packing=stage.packs_by,
        document_mask=stage.masks_documents,
        preference=None,
        max_epochs={},
        skip_batches=[],
        min_document_tokens=None,
        tokens=steps * batch * length,
        sequence_length=length,
        global_batch_sequences=batch,
        micro_batch_sequences=micro,
        batch_ramp=[],
        lr=stage.lr and _twin_rate(config, stage.lr),
        gate=None,
        eval_every_steps=every and min(every, max(1, steps // 2)),
    )


def _twin_rate(config: RunConfig, rate: float) -> float:
    """Return a learning rate in small: training stages keep the ratios of theirs to the highest."""
    highest = max(config.optimizer.lr if stage.lr is None else stage.lr for stage in config.stages.values())
    return float(f"{_LR * rate / highest:.3g}")


def _optimizer(config: RunConfig) -> OptimizerConfig:
    if all(stage.lr is not None for stage in config.stages.values()):
        return config.optimizer  # its rate is not used, and may not be given
    return replace(config.optimizer, lr=_twin_rate(config, config.optimizer.lr))


def _evaluations(evaluations: EvalConfig, sources: Mapping[str, str], *, longest: int) -> EvalConfig:
    """Return the same suites on other held-out text, without benchmarks."""
    suites = {
        name: replace(
            suite,
            # A laptop's data are texts, so what is measured on conversations elsewhere is measured on them.
            held_out_source=_source(suite.held_out_source or suite.conversation_source, sources),
            held_out_documents=suite.held_out_documents or suite.held_out_conversations,
            conversation_source=None,
            held_out_conversations=0,
            document_tokens=min(suite.document_tokens, longest),
            benchmarks={},
        )
        for name, suite in evaluations.suites.items()
    }
    return replace(evaluations, suites=suites)


def _source(name: str | None, sources: Mapping[str, str]) -> str | None:
    return None if name is None else sources[name]


def _checkpoints(checkpoints: CheckpointConfig, steps: int) -> CheckpointConfig:
    """Return how a short run is saved: once on the way at least, and all on this machine."""
    every = min(checkpoints.every_steps, max(1, steps // 2))
    permanent = checkpoints.permanent_every_steps
    return replace(
        checkpoints,
        every_steps=every,
        permanent_every_steps=None if permanent is None else permanent // checkpoints.every_steps * every,
        fast_root=None,
    )
