"""Whether a run's suites ask for benchmarks that there are, and that lie prepared."""

from pathlib import Path

from training.config.benchmarks import BENCHMARKS, can_be_tried_again, missing
from training.config.eval_schema import BenchmarkConfig, SuiteConfig
from training.config.keys import no_such
from training.config.schema import RunConfig
from training.errors import ConfigError, DataError


def check_benchmarks(key: str, suite: SuiteConfig) -> None:
    """Check what a suite asks of benchmarks, without looking at any file.

    Raises:
        ConfigError: the first thing that cannot be.
    """
    for name, how in suite.benchmarks.items():
        if name not in BENCHMARKS:
            raise no_such(f"{key}.benchmarks", name, "the benchmarks (docs/evaluation_tasks.md)", list(BENCHMARKS))
        _check_tries(f"{key}.benchmarks.{name}", name, how)


def _check_tries(key: str, name: str, how: BenchmarkConfig) -> None:
    if how.tries > 1 and not can_be_tried_again(name):
        again = [other for other in BENCHMARKS if can_be_tried_again(other)]
        reason = "one answer to each question is all that is measured of it"
        raise ConfigError(f"{key}.tries", how.tries, reason, f"{key}.tries=1; several tries: {', '.join(again)}")
    if how.tries > 1 and how.temperature == 0.0:
        reason = "at temperature 0 all tries are the same one"
        raise ConfigError(f"{key}.tries", how.tries, reason, f"{key}.temperature=0.8, or {key}.tries=1")


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
