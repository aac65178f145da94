"""Whether training stages, data sources, learning-rate shapes, suites and gates refer to things that exist and fit."""

from training.config.benchmark_checks import check_benchmarks
from training.config.data_schema import SourceForm, SourceKind
from training.config.eval_schema import SuiteConfig
from training.config.gate_checks import PREVIOUS, START, check_gate
from training.config.keys import no_such
from training.config.schema import RunConfig, ScheduleConfig, ScheduleKind
from training.config.stage_data_checks import check_stage_data
from training.errors import ConfigError


def check_sources(config: RunConfig) -> None:
    """Check that exactly the sources that read files have a path.

    Raises:
        ConfigError: a path is missing or without effect.
    """
    for name, source in config.data.sources.items():
        key = f"data.sources.{name}.path"
        if source.kind.reads_files and source.path is None:
            raise ConfigError(key, None, f"{source.kind} reads files and has to know which", f"{key}=FOLDER_OR_GLOB")
        if source.kind is SourceKind.hub and source.path is None:
            raise ConfigError(key, None, "hub has to know which dataset", f"{key}=OWNER/NAME")
        if not source.kind.reads_files and source.kind is not SourceKind.hub and source.path is not None:
            raise ConfigError(
                key,
                source.path,
                f"{source.kind} brings its own text and would ignore the path",
                f"{key}=null, or data.sources.{name}.kind=text_files",
            )
        if source.form is not SourceForm.documents and not source.kind.has_fields:
            kinds = ", ".join(kind for kind in SourceKind if kind.has_fields)
            raise ConfigError(
                f"data.sources.{name}.form",
                source.form,
                f"{source.kind} has texts alone, no records with fields",
                f"data.sources.{name}.kind=json (or another of {kinds}), or data.sources.{name}.form=documents",
            )


def check_training_stage(config: RunConfig, training_stage: str) -> None:
    """Check what one training stage refers to.

    Raises:
        ConfigError: a source or suite does not exist, or the sequences are too long.
    """
    stage, key = config.stages[training_stage], f"stages.{training_stage}"
    if training_stage in (START, PREVIOUS):
        raise ConfigError(key, "…", "that is the name of an evaluation that gates compare with", f"{key}_stage")
    if not stage.mixture:
        source = next(iter(config.data.sources), "NAME")
        raise ConfigError(f"{key}.mixture", "{}", "there is nothing to learn from", f"+{key}.mixture.{source}=1.0")
    check_stage_data(config, training_stage)
    if stage.sequence_length > config.model.max_sequence_length:
        raise ConfigError(
            f"{key}.sequence_length",
            stage.sequence_length,
            f"the model has positions for {config.model.max_sequence_length} tokens (model.max_sequence_length)",
            f"{key}.sequence_length={config.model.max_sequence_length} is the longest",
        )
    if stage.eval_suite is not None and stage.eval_suite not in config.eval.suites:
        raise no_such(f"{key}.eval_suite", stage.eval_suite, "eval.suites", list(config.eval.suites))
    if stage.eval_suite is not None:
        _check_measured(config, key, stage.eval_suite)
    if stage.eval_every_steps is not None and stage.eval_suite is None:
        suite = next(iter(config.eval.suites), "NAME")
        raise ConfigError(
            f"{key}.eval_every_steps",
            stage.eval_every_steps,
            "there is no suite to run",
            f"{key}.eval_suite={suite}, or {key}.eval_every_steps=null",
        )
    own = stage.schedule is not None
    _check_schedule(config.schedule_of(training_stage), f"{key}.schedule" if own else "schedule")
    check_gate(config, training_stage)


def check_suites(config: RunConfig) -> None:
    """Check that every suite's source exists and its documents fit the model.

    Raises:
        ConfigError: they do not.
    """
    for name, suite in config.eval.suites.items():
        key = f"eval.suites.{name}"
        if suite.held_out_source is not None and suite.held_out_source not in config.data.sources:
            raise no_such(f"{key}.held_out_source", suite.held_out_source, "data.sources", list(config.data.sources))
        if suite.conversation_source is not None:
            _check_conversations(config, key, suite)
        if any(stage.eval_suite == name for stage in config.stages.values()):
            check_benchmarks(key, suite, max_length=config.model.max_sequence_length)
        longest = config.model.max_sequence_length - 1
        if suite.document_tokens > longest:
            raise ConfigError(
                f"{key}.document_tokens",
                suite.document_tokens,
                f"with the token that starts a document it passes model.max_sequence_length={longest + 1}",
                f"{key}.document_tokens={longest} is the longest",
            )


def _check_conversations(config: RunConfig, key: str, suite: SuiteConfig) -> None:
    name, sources = suite.conversation_source, config.data.sources
    assert name is not None  # the caller looked
    if name not in sources:
        raise no_such(f"{key}.conversation_source", name, "data.sources", list(sources))
    if sources[name].form is not SourceForm.conversations:
        of_them = [other for other in sources if sources[other].form is SourceForm.conversations]
        raise ConfigError(
            f"{key}.conversation_source",
            name,
            f"its records are {sources[name].form}, no conversations",
            f"{key}.conversation_source={of_them[0]}" if of_them else f"data.sources.{name}.form=conversations",
        )
    if suite.held_out_conversations < 1:
        remedy = f"{key}.held_out_conversations=100, or {key}.conversation_source=null"
        raise ConfigError(
            f"{key}.held_out_conversations", suite.held_out_conversations, "none of them is measured", remedy
        )


def _check_measured(config: RunConfig, key: str, name: str) -> None:
    """Check that a suite measures held-out records: the report's first number, which every run can be judged by."""
    suite = config.eval.suites[name]
    if suite.conversation_source is not None:
        return
    if suite.held_out_source is None or suite.held_out_documents < 1:
        source = next(iter(config.data.sources))
        raise ConfigError(
            f"{key}.eval_suite",
            name,
            "that suite measures nothing that is held out of this run's data",
            f"eval.suites.{name}.held_out_source={source} eval.suites.{name}.held_out_documents=24, or for "
            f"conversations eval.suites.{name}.conversation_source and held_out_conversations",
        )


def _check_schedule(schedule: ScheduleConfig, key: str) -> None:
    if schedule.kind is not ScheduleKind.wsd and schedule.decay_fraction > 0:
        raise ConfigError(
            f"{key}.decay_fraction",
            schedule.decay_fraction,
            f"only wsd has a decay of its own; {schedule.kind} would ignore it",
            f"{key}.decay_fraction=0, or {key}.kind=wsd",
        )
    if schedule.warmup_fraction + schedule.decay_fraction > 1:
        fit = round(1 - schedule.warmup_fraction, 6)
        raise ConfigError(
            f"{key}.decay_fraction",
            schedule.decay_fraction,
            f"with warmup_fraction={schedule.warmup_fraction} it is more than the whole training stage",
            f"{key}.decay_fraction={fit} works",
        )
