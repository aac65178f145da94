"""Whether the devices, and an engine, can compute in the run's precision."""

from training.config.schema import Precision, RunConfig
from training.errors import ConfigError

_REMEDY = "precision=bf16"


def check_precision(config: RunConfig, *, to_plan: bool) -> None:
    """Check that fp8 is asked of devices that have it, and only to plan.

    Args:
        config: the run.
        to_plan: whether it is only planned.

    Raises:
        ConfigError: the device cannot multiply in fp8, or an engine would have to.
    """
    if config.precision is not Precision.fp8:
        return
    accelerator = config.cluster.accelerator
    if accelerator.fp8_flops_per_second is None:
        reason = (
            f"{accelerator.name} has no units that multiply fp8, as far as the config says "
            "(cluster.accelerator.fp8_flops_per_second=null)"
        )
        raise ConfigError(
            "precision", config.precision, reason, f"{_REMEDY}, or a cluster that has (cluster=azure_nd_h100_v5)"
        )
    if not to_plan:
        reason = "no engine of this version multiplies in fp8; launch.plan says what it would take"
        raise ConfigError("precision", config.precision, reason, _REMEDY)
