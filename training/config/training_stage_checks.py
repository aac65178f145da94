"""Whether training stages, data sources, learning-rate shapes, suites and gates refer to things that exist and fit."""

from training.config.keys import nearest
from training.config.schema import RunConfig, ScheduleConfig, ScheduleKind, SourceKind
from training.errors import ConfigError


def check_sources(config: RunConfig) -> None:
    """Check that exactly the sources that read files have a path.

    Raises:
        ConfigError: a path is missing or without effect.
    """
    for name, source in config.data.sources.items():
        key = f"data.sources.{name}.path"
        if source.kind is SourceKind.text_files and source.path is None:
            raise ConfigError(key, None, "text_files reads files and has to know which", f"{key}=FOLDER_OR_GLOB")
        if source.kind is not SourceKind.text_files and source.path is not None:
            raise ConfigError(
                key,
                source.path,
                f"{source.kind} brings its own text and would ignore the path",
                f"{key}=null, or data.sources.{name}.kind=text_files",
            )


def check_training_stage(config: RunConfig, training_stage: str) -> None:
    """Check what one training stage refers to.

    Raises:
        ConfigError: a source or suite does not exist, or the sequences are too long.
    """
    stage, key = config.stages[training_stage], f"stages.{training_stage}"
    if not stage.mixture:
        source = next(iter(config.data.sources), "NAME")
        raise ConfigError(f"{key}.mixture", "{}", "there is nothing to learn from", f"+{key}.mixture.{source}=1.0")
    for source in stage.mixture:
        if source not in config.data.sources:
            raise _no_such(f"{key}.mixture", source, "data.sources", list(config.data.sources))
    if stage.sequence_length > config.model.max_sequence_length:
        raise ConfigError(
            f"{key}.sequence_length",
            stage.sequence_length,
            f"the model has positions for {config.model.max_sequence_length} tokens (model.max_sequence_length)",
            f"{key}.sequence_length={config.model.max_sequence_length} is the longest",
        )
    if stage.eval_suite is not None and stage.eval_suite not in config.eval.suites:
        raise _no_such(f"{key}.eval_suite", stage.eval_suite, "eval.suites", list(config.eval.suites))
    own = stage.schedule is not None
    _check_schedule(config.schedule_of(training_stage), f"{key}.schedule" if own else "schedule")
    _check_gate(config, training_stage)


def check_suites(config: RunConfig) -> None:
    """Check that every suite's source exists and its documents fit the model.

    Raises:
        ConfigError: they do not.
    """
    for name, suite in config.eval.suites.items():
        key = f"eval.suites.{name}"
        if suite.held_out_source not in config.data.sources:
            raise _no_such(f"{key}.held_out_source", suite.held_out_source, "data.sources", list(config.data.sources))
        longest = config.model.max_sequence_length - 1
        if suite.document_tokens > longest:
            raise ConfigError(
                f"{key}.document_tokens",
                suite.document_tokens,
                f"with the token that starts a document it passes model.max_sequence_length={longest + 1}",
                f"{key}.document_tokens={longest} is the longest",
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


def _check_gate(config: RunConfig, training_stage: str) -> None:
    stage, key = config.stages[training_stage], f"stages.{training_stage}"
    if stage.gate is None:
        return
    if stage.eval_suite is None:
        suite = next(iter(config.eval.suites), "NAME")
        raise ConfigError(
            f"{key}.gate", "set", "a gate needs an evaluation to judge", f"{key}.eval_suite={suite}, or {key}.gate=null"
        )
    if stage.gate.max_increase_over_previous is None:
        return
    compared = _previous_suite(config, training_stage)
    if compared != stage.eval_suite:
        reason = (
            "no evaluation comes before this one"
            if compared is None
            else f"the evaluation before ran suite {compared}, this one runs {stage.eval_suite}: not the same measure"
        )
        remedy = "eval.at_start=true measures the untrained model first, or " if compared is None else ""
        raise ConfigError(
            f"{key}.gate.max_increase_over_previous",
            stage.gate.max_increase_over_previous,
            reason,
            f"{remedy}{key}.gate.max_increase_over_previous=null",
        )


def _previous_suite(config: RunConfig, training_stage: str) -> str | None:
    """Return the suite of the newest evaluation before a training stage's own."""
    first = next(iter(config.stages.values()))
    suite = first.eval_suite if config.eval.at_start else None
    for name, stage in config.stages.items():
        if name == training_stage:
            break
        suite = stage.eval_suite or suite
    return suite


def _no_such(key: str, given: str, section: str, known: list[str]) -> ConfigError:
    close = nearest(given, known)
    hint = f"did you mean {close[0]}? " if close else ""
    return ConfigError(key, given, f"{section} has no {given}", f"{hint}{section} has: {', '.join(known)}")
