"""Whether a gate asks for what evaluations can show."""

from training.config.benchmarks import metrics_of
from training.config.eval_schema import SuiteConfig
from training.config.gate_schema import GateAction, GateCondition, GateConfig, Metric, is_better_when_lower
from training.config.keys import no_such
from training.config.schema import RunConfig
from training.errors import ConfigError

START = "start"
"""Name of the evaluation of the untrained model."""
PREVIOUS = "previous"
"""Name of the evaluation before, whichever that is."""


def check_gate(config: RunConfig, training_stage: str) -> None:
    """Check that a training stage's gate asks for what its evaluation, and those before, can show.

    Raises:
        ConfigError: the first thing that cannot be.
    """
    stage, key = config.stages[training_stage], f"stages.{training_stage}"
    if stage.gate is None:
        return
    if stage.eval_suite is None:
        suite = next(iter(config.eval.suites), "NAME")
        raise ConfigError(
            f"{key}.gate", "set", "a gate needs an evaluation to judge", f"{key}.eval_suite={suite}, or {key}.gate=null"
        )
    for name, condition in stage.gate.conditions.items():
        _check_condition(config, training_stage, f"{key}.gate.conditions.{name}", condition)
    for names in stage.gate.pass_if:
        for name in names:
            if name not in stage.gate.conditions:
                raise no_such(f"{key}.gate.pass_if", name, f"{key}.gate.conditions", list(stage.gate.conditions))
        if not names:
            remedy = f"name the conditions that must be met together; {key}.gate=null asks for nothing"
            raise ConfigError(f"{key}.gate.pass_if", "[]", "an alternative without conditions is always met", remedy)
    _check_actions(stage.gate, f"{key}.gate")


def _check_condition(config: RunConfig, training_stage: str, key: str, condition: GateCondition) -> None:
    asked = {
        "at_most": condition.at_most,
        "at_least": condition.at_least,
        "compared_with": condition.compared_with,
    }
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        reason = "a condition has exactly one of at_most, at_least and compared_with"
        raise ConfigError(key, ", ".join(given) or "nothing asked", reason, f"keep {given[0] if given else 'one'}")
    suite_name = config.stages[training_stage].eval_suite
    assert suite_name is not None  # a gate has one
    suite = config.eval.suites[suite_name]
    if condition.metric not in (known := measured_by(suite)):
        if condition.metric == Metric.multiple_choice_accuracy:
            reason = f"suite {suite_name} asks no multiple-choice question"
            remedy = f"eval.suites.{suite_name}.multiple_choice_items=200"
            raise ConfigError(f"{key}.metric", condition.metric, reason, remedy)
        reason = f"must be one of what suite {suite_name} measures"
        raise ConfigError(
            f"{key}.metric", condition.metric, reason, f"{key}.metric={known[0]}; all: {', '.join(known)}"
        )
    is_lower_better = is_better_when_lower(condition.metric)
    wrong = "at_least" if is_lower_better else "at_most"
    if given == [wrong]:
        better, right = ("lower", "at_most") if is_lower_better else ("higher", "at_least")
        reason = f"{condition.metric} is better when {better}"
        raise ConfigError(f"{key}.{wrong}", asked[wrong], reason, f"{key}.{right}={asked[wrong]}")
    if condition.compared_with is None:
        if condition.margin != 0.0:
            reason = "there is nothing that it could be a margin to"
            raise ConfigError(f"{key}.margin", condition.margin, reason, f"change {key}.{given[0]} itself")
        return
    baseline = baseline_of(config, training_stage, condition.compared_with)
    if baseline is None:
        earlier = list(config.stages)[: list(config.stages).index(training_stage)]
        known = [PREVIOUS, START, *earlier]
        if condition.compared_with not in known:
            raise no_such(f"{key}.compared_with", condition.compared_with, "an earlier evaluation", known)
        raise ConfigError(
            f"{key}.compared_with",
            condition.compared_with,
            "there is no such evaluation before this one",
            "eval.at_start=true measures the untrained model first; or at_most, or at_least",
        )
    compared = _suite_of(config, baseline)
    if compared != suite_name:
        raise ConfigError(
            f"{key}.compared_with",
            condition.compared_with,
            f"that evaluation runs suite {compared}, this one runs {suite_name}: not the same measure",
            f"give both the same eval_suite, or ask for at_most or at_least in {key}",
        )


def measured_by(suite: SuiteConfig) -> list[str]:
    """Return what gates can ask for of a suite."""
    known = [str(Metric.bits_per_byte)] if suite.held_out_source else []
    known += [str(Metric.multiple_choice_accuracy)] if suite.multiple_choice_items else []
    known += [str(Metric.assistant_nats_per_token)] if suite.conversation_source else []
    for name, benchmark in suite.benchmarks.items():
        known += metrics_of(name, benchmark.tries)
    return known


def _check_actions(gate: GateConfig, key: str) -> None:
    for name, action, allowed in (
        ("when_missed", gate.when_missed, [GateAction.block, GateAction.ask, GateAction.roll_back]),
        ("when_unclear", gate.when_unclear, [GateAction.block, GateAction.ask, GateAction.more_items]),
    ):
        if action not in allowed:
            raise ConfigError(f"{key}.{name}", action, "a gate that is not met does not do that", " or ".join(allowed))
    if (gate.max_looks > 1) != (gate.when_unclear is GateAction.more_items):
        raise ConfigError(
            f"{key}.max_looks",
            gate.max_looks,
            f"when_unclear={gate.when_unclear}: evaluations with more items go with more than one look",
            f"{key}.when_unclear=more_items and {key}.max_looks=3, or {key}.max_looks=1",
        )


def baseline_of(config: RunConfig, training_stage: str, name: str) -> str | None:
    """Return the training stage (START for the untrained model) whose evaluation a gate's baseline is; None if none is.

    Args:
        config: the run's.
        training_stage: whose gate it is.
        name: `compared_with`: previous, start, or a training stage.
    """
    measured = [START] if config.eval.at_start and next(iter(config.stages.values())).eval_suite else []
    for other, stage in config.stages.items():
        if other == training_stage:
            break
        measured += [other] if stage.eval_suite else []
    if name == PREVIOUS:
        return measured[-1] if measured else None
    return name if name in measured else None


def _suite_of(config: RunConfig, evaluation: str) -> str | None:
    stage = next(iter(config.stages.values())) if evaluation == START else config.stages[evaluation]
    return stage.eval_suite
