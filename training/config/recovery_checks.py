"""Whether engines can do what is asked about spikes and corruption, and what to go back to is kept."""

from training.config.fault_tolerance_schema import SpikeAction
from training.config.schema import PipelineEngineKind, RunConfig
from training.errors import ConfigError

_KEY = "fault_tolerance"


def check_recovery(config: RunConfig) -> None:
    """Check that spikes can be judged, that every engine can do what is asked, and that there is a way back.

    Raises:
        ConfigError: they are not.
    """
    _check_window(config)
    _check_engines(config)
    _check_way_back(config)


def _check_window(config: RunConfig) -> None:
    recovery = config.fault_tolerance.recovery
    if recovery.min_steps > recovery.window_steps:
        raise ConfigError(
            f"{_KEY}.recovery.min_steps",
            recovery.min_steps,
            f"the window holds {recovery.window_steps} steps, so no loss would ever be judged",
            f"{_KEY}.recovery.min_steps={recovery.window_steps} works",
        )


def _check_engines(config: RunConfig) -> None:
    """Check that nothing has to happen between backward and update where DeepSpeed's PipelineEngine does both."""
    recovery, corruption = config.fault_tolerance.recovery, config.fault_tolerance.corruption
    asked = {
        "recovery.on_loss_spike": (recovery.on_loss_spike is SpikeAction.skip, recovery.on_loss_spike, "rollback"),
        "corruption.at_rest_every_steps": (
            corruption.at_rest_every_steps is not None,
            corruption.at_rest_every_steps,
            "null",
        ),
        "corruption.rerun_every_steps": (
            corruption.rerun_every_steps is not None,
            corruption.rerun_every_steps,
            "null",
        ),
    }
    for name, stage in config.stages.items():
        layout = config.layout_of(name)
        if layout.pipeline == 1 or layout.pipeline_engine is PipelineEngineKind.autarky:
            continue
        where = f"stages.{name}.parallel" if stage.parallel else "parallel"
        for key, (is_asked, given, works) in asked.items():
            if is_asked:
                raise ConfigError(
                    f"{_KEY}.{key}",
                    given,
                    f"acts between backward and update, and {where}.pipeline_engine={layout.pipeline_engine} does both "
                    "in one call",
                    f"{where}.pipeline_engine=autarky can, or {_KEY}.{key}={works}",
                )


def _check_way_back(config: RunConfig) -> None:
    """Check that the checkpoint before a spike is kept until the spike is known to be one."""
    recovery, checkpoint = config.fault_tolerance.recovery, config.checkpoint
    if recovery.on_loss_spike is not SpikeAction.rollback:
        return
    saved_since = -(-(recovery.patience_steps - 1 + recovery.rewind_steps) // checkpoint.every_steps)
    if checkpoint.keep_last > saved_since:
        return
    raise ConfigError(
        "checkpoint.keep_last",
        checkpoint.keep_last,
        f"a spike is acted upon {recovery.patience_steps - 1 + recovery.rewind_steps} steps after the place to go back "
        f"to (patience_steps - 1 + rewind_steps), and every {checkpoint.every_steps} steps a checkpoint is saved: the "
        "one to go back to would be gone",
        f"checkpoint.keep_last={saved_since + 1} works",
    )
