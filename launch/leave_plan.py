"""plan.json in the run directory: what this start is expected to take, for the report to compare with."""

import sys
from pathlib import Path

from training.config.schema import RunConfig
from training.errors import ConfigError
from training.planner.calibration import constants_of
from training.planner.run_plan import plan_stage, planned_stages
from training.planner.this_machine import with_this_machine
from training.reporting.planned import write_plan


def leave_plan(directory: Path, config: RunConfig) -> None:
    """Write the plan of a run's training stages; say why there is none if its cluster is not known well enough.

    A run needs no plan to start: a cluster whose links nobody has written down must still be able to train.
    """
    try:
        measured = with_this_machine(config)
        constants = constants_of(measured.cluster)
        plans = [plan_stage(measured, name, constants) for name in measured.stages]
    except ConfigError as error:
        print(f"no plan to compare with: {error}", file=sys.stderr)
        return
    write_plan(directory, planned_stages(measured, plans))
