"""Whether the settings of fault tolerance fit each other."""

from training.config.schema import RunConfig
from training.errors import ConfigError


def check_fault_tolerance(config: RunConfig) -> None:
    """Check that a rank can be slow often enough to be named.

    Raises:
        ConfigError: it cannot.
    """
    stragglers = config.fault_tolerance.stragglers
    if stragglers.slow_windows > stragglers.of_windows:
        raise ConfigError(
            "fault_tolerance.stragglers.slow_windows",
            stragglers.slow_windows,
            f"only fault_tolerance.stragglers.of_windows={stragglers.of_windows} windows are looked back "
            "on, so no rank would ever be named",
            f"fault_tolerance.stragglers.slow_windows={stragglers.of_windows} works",
        )
