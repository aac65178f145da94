"""What can be planned and rehearsed, but is run by no engine of this version."""

from training.config.schema import RunConfig
from training.errors import ConfigError


def check_engine_exists(config: RunConfig, training_stage: str) -> None:
    """Check that one of our engines can run a training stage.

    Raises:
        ConfigError: none can.
    """
    layout = config.layout_of(training_stage)
    own = config.stages[training_stage].parallel is not None
    key = f"stages.{training_stage}.parallel" if own else "parallel"
    planned = "this version plans and rehearses it (launch.plan, launch.rehearse), but no engine can run it yet"
    if layout.tensor > 1:
        raise ConfigError(f"{key}.tensor", layout.tensor, planned, f"{key}.tensor=1")
    if layout.zero_secondary_ranks is not None:
        name = f"{key}.zero_secondary_ranks"
        raise ConfigError(name, layout.zero_secondary_ranks, planned, f"{name}=null")
