"""Whether a run's suites ask for benchmarks that there are, and that lie prepared."""

from pathlib import Path

from training.config.benchmarks import BENCHMARKS, BenchmarkKind, can_be_tried_again, missing
from training.config.eval_schema import BenchmarkConfig, SuiteConfig
from training.config.keys import no_such
from training.config.schema import RunConfig
from training.errors import ConfigError, DataError


def check_benchmarks(key: str, suite: SuiteConfig, *, max_length: int) -> None:
    """Check what a suite asks of benchmarks of a model with such a longest sequence, without looking at any file.

    Raises:
        ConfigError: the first thing that cannot be.
    """
    for name, how in suite.benchmarks.items():
        if name not in BENCHMARKS:
            raise no_such(f"{key}.benchmarks", name, "the benchmarks (docs/evaluation_tasks.md)", list(BENCHMARKS))
        _check_tries(f"{key}.benchmarks.{name}", name, how)
        _check_items(f"{key}.benchmarks.{name}", name, how)
        _check_answer(f"{key}.benchmarks.{name}", name, how, suite.max_length or max_length)
        if BENCHMARKS[name].kind is BenchmarkKind.workflow and (how.few_shot or how.chat):
            given, field = (how.few_shot, "few_shot") if how.few_shot else (how.chat, "chat")
            reason = "a workflow is a conversation as it is: through the model's template if it has one, no examples"
            raise ConfigError(f"{key}.benchmarks.{name}.{field}", given, reason, f"leave {field} out")


def _check_tries(key: str, name: str, how: BenchmarkConfig) -> None:
    if how.tries > 1 and not can_be_tried_again(name):
        again = [other for other in BENCHMARKS if can_be_tried_again(other)]
        reason = "one answer to each question is all that is measured of it"
        raise ConfigError(f"{key}.tries", how.tries, reason, f"{key}.tries=1; several tries: {', '.join(again)}")
    if how.tries > 1 and how.temperature == 0.0:
        reason = "at temperature 0 all tries are the same one"
        raise ConfigError(f"{key}.tries", how.tries, reason, f"{key}.temperature=0.8, or {key}.tries=1")


def _check_items(key: str, name: str, how: BenchmarkConfig) -> None:
    if how.compact and not BENCHMARKS[name].has_functions:
        shown = [other for other in BENCHMARKS if BENCHMARKS[other].has_functions]
        raise ConfigError(f"{key}.compact", "true", "it shows no functions", f"leave it out; for {', '.join(shown)}")
    if how.held_out_fraction is not None and not 0.0 < how.held_out_fraction <= 1.0:
        reason, remedy = "it is a share of the items, more than 0 and at most 1", f"{key}.held_out_fraction=0.2"
        raise ConfigError(f"{key}.held_out_fraction", how.held_out_fraction, reason, remedy)


def _check_answer(key: str, name: str, how: BenchmarkConfig, max_length: int) -> None:
    answer_tokens = how.max_new_tokens or BENCHMARKS[name].answer_tokens
    if answer_tokens is not None and answer_tokens >= max_length:
        raise ConfigError(
            f"{key}.max_new_tokens",
            answer_tokens if how.max_new_tokens else f"{answer_tokens} (the benchmark's own)",
            f"the longest sequence has {max_length} tokens: no room is left for the question",
            f"{key}.max_new_tokens={max(1, max_length // 4)} leaves some, if answers can be so short",
        )


def check_prepared(config: RunConfig) -> None:
    """Check that the benchmarks of all suites that training stages use lie prepared; reads a few MB each.

    Raises:
        DataError: one does not, with the command that prepares it.
    """
    used = {stage.eval_suite for stage in config.stages.values()}
    names = {name: None for suite in used if suite for name in config.eval.suites[suite].benchmarks}
    faults = missing(Path(config.data.prepared_root), names)
    if faults:
        raise DataError("\n".join(faults))
