"""Whether a training stage can learn what it is for from the sources that it names, and by the layout that it has."""

from collections.abc import Iterator

from training.config.data_schema import SourceForm
from training.config.keys import no_such
from training.config.schema import ParallelConfig, PipelineEngineKind, RunConfig
from training.config.stage_schema import Packing, StageKind
from training.errors import ConfigError

_FORMS = {StageKind.sft: SourceForm.conversations, StageKind.preference: SourceForm.preferences}
"""What other kinds than those that read documents learn from."""


def check_stage_data(config: RunConfig, training_stage: str) -> None:
    """Check the mixture of a training stage, and what its kind needs.

    Raises:
        ConfigError: a source does not exist or has no records of the kind; a key has no effect or is contradicted.
    """
    stage, key = config.stages[training_stage], f"stages.{training_stage}"
    _check_sources(config, training_stage)
    begins = [change.from_fraction for change in stage.mixture_changes]
    if begins != sorted(set(begins)):
        reason = "each change begins after the one before"
        raise ConfigError(f"{key}.mixture_changes", begins, reason, f"in this order: {sorted(set(begins))}")
    if stage.packs_by is Packing.sequential and not stage.kind.reads_documents:
        reason = f"{stage.kind} learns from whole records"
        raise ConfigError(f"{key}.packing", stage.packing, reason, f"{key}.packing=best_fit, or null")
    if stage.packs_by is Packing.sequential and stage.min_document_tokens is not None:
        reason = "a stream of documents has no place to leave some out"
        remedy = f"{key}.packing=best_fit, or {key}.min_document_tokens=null"
        raise ConfigError(f"{key}.min_document_tokens", stage.min_document_tokens, reason, remedy)
    if stage.kind is StageKind.preference:
        _check_preference(config, training_stage)
    elif stage.preference is not None:
        reason = f"{stage.kind} does not learn from pairs"
        raise ConfigError(f"{key}.preference", "…", reason, f"{key}.preference=null, or {key}.kind=preference")


def _check_sources(config: RunConfig, training_stage: str) -> None:
    stage, sources = config.stages[training_stage], config.data.sources
    wanted = _FORMS.get(stage.kind, SourceForm.documents)
    for key, source in _named(config, training_stage):
        if source not in sources:
            raise no_such(key, source, "data.sources", list(sources))
        if sources[source].form is not wanted:
            fitting = [name for name, other in sources.items() if other.form is wanted]
            raise ConfigError(
                key,
                source,
                f"{stage.kind} learns from {wanted}, and data.sources.{source}.form={sources[source].form}",
                f"one of {fitting}" if fitting else f"a source with form={wanted}",
            )
        if config.data.held_out_fraction_of(source) == 1.0:
            reason = f"data.sources.{source}.held_out_fraction=1: nothing of it may be trained on"
            raise ConfigError(key, source, reason, f"lower it, or leave {source} out of the mixture")
    drawn = {source for key, source in _named(config, training_stage) if "max_epochs" not in key}
    for source in stage.max_epochs:
        if source not in drawn:
            key = f"stages.{training_stage}.max_epochs.{source}"
            raise ConfigError(key, stage.max_epochs[source], "the mixture does not draw from it", f"~{key}")


def _named(config: RunConfig, training_stage: str) -> Iterator[tuple[str, str]]:
    """Yield (key, source) of every place at which a training stage names a source."""
    stage, key = config.stages[training_stage], f"stages.{training_stage}"
    yield from ((f"{key}.mixture", source) for source in stage.mixture)
    for place, change in enumerate(stage.mixture_changes):
        yield from ((f"{key}.mixture_changes.{place}.mixture", source) for source in change.mixture)
    yield from ((f"{key}.max_epochs", source) for source in stage.max_epochs)


def _check_preference(config: RunConfig, training_stage: str) -> None:
    stage, layout, key = config.stages[training_stage], config.layout_of(training_stage), f"stages.{training_stage}"
    if stage.document_mask is False:
        reason = "an answer of a pair must not see the other one, which stands beside it in the sample"
        raise ConfigError(f"{key}.document_mask", "false", reason, f"{key}.document_mask=true, or null")
    if config.model.prediction is not None:
        reason = "DPO compares whole answers; multi-token prediction has no part in that"
        raise ConfigError("model.prediction", "…", reason, f"model.prediction=null, or leave {training_stage} out")
    if _is_deepspeed_pipeline(layout):
        where = f"{key}.parallel" if stage.parallel is not None else "parallel"
        reason = "DeepSpeed's PipelineEngine gives its loss function nothing but targets, and DPO needs the reference"
        raise ConfigError(
            f"{where}.pipeline_engine", layout.pipeline_engine, reason, f"{where}.pipeline_engine=autarky"
        )


def _is_deepspeed_pipeline(layout: ParallelConfig) -> bool:
    return layout.pipeline > 1 and layout.pipeline_engine is PipelineEngineKind.deepspeed
