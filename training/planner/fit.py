"""Fits the planner's constants to the calibration rows of the published runs, and prints them.

    python -m training.planner.fit

Least squares on the logarithm of predicted over published step time, with a loss that forgives outliers. Each constant
has bounds outside of which it would not mean what its docstring says, and is weakly drawn to what was expected of it,
so that one which the rows hardly tell stays near there. The constants in the code are this command's output, rounded.
Needs scipy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from training.planner.constants import CONSTANTS, Constants
from training.planner.published_split import Run, Use, runs_of, sweep_runs
from training.planner.step_time import step_time

_FORGIVEN = 0.05
"""Logarithmic error beyond which a row counts linearly rather than squared."""
_PULL = 0.02
"""Weight of a constant's distance from what was expected, in logits of its place between its bounds."""
_WIDE = 20.0
"""Ratio of bounds from which a constant's place between them is counted in its logarithm."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One fitted constant: a field of `Efficiency`, or of some kernels or programs that share it."""

    field: str
    low: float
    expected: float
    high: float
    kernels: tuple[str, ...] = ()
    software: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Where it stands in the code."""
        owner = self.kernels[0] if self.kernels else self.software[0] if self.software else "efficiency"
        return f"{owner}.{self.field}"

    def value(self, constants: Constants) -> float:
        """Return the constant's value."""
        if self.kernels:
            return getattr(constants.kernels[self.kernels[0]], self.field)
        if self.software:
            return getattr(constants.software[self.software[0]], self.field)
        return getattr(constants.efficiency, self.field)


_MEGATRON = ("megatron", "megatron_hybrid_ep", "megatron_hybrid_ep_overlap")
_NANOTRON = ("nanotron", "nanotron_pipelined")
_COMPILED = ("torchtitan_compile", "torchtitan_async_tensor")
_TORCHTITAN = ("torchtitan_eager", *_COMPILED)

PARAMETERS = (
    Parameter("gemm_sustained", 0.6, 0.9, 1.0),
    Parameter("ampere_gemm_sustained", 0.6, 0.92, 1.0),
    Parameter("gemm_sustained_fp8", 0.5, 0.9, 1.0),
    Parameter("gemm_waves", 0.01, 0.2, 1.0),
    Parameter("gemm_inner", 10, 80, 1000),
    Parameter("memory", 0.7, 0.8, 0.9),
    Parameter("interference", 0.0, 0.5, 1.0),
    Parameter("power_exponent", 0.1, 0.35, 1.0),
    Parameter("share_of_peak", 0.10, 0.22, 0.50, kernels=("flash_1",)),
    Parameter("ampere_share_of_peak", 0.20, 0.4, 0.70, kernels=("flash_1",)),
    Parameter("share_of_peak", 0.20, 0.4, 0.60, kernels=("flash_2",)),
    Parameter("share_of_peak", 0.40, 0.65, 0.80, kernels=("cudnn",)),
    Parameter("keys_half", 20, 500, 2000, kernels=("flash_1", "flash_2", "cudnn")),
    Parameter("tensor_overlap", 0.0, 0.6, 1.0, software=_MEGATRON),
    Parameter("traffic_factor", 0.6, 1.5, 2.5, software=_MEGATRON),
    Parameter("loss_bytes_per_logit", 6, 12, 40, software=_MEGATRON),
    Parameter("expert_overlap", 0.0, 0.5, 1.0, software=("megatron_hybrid_ep_overlap",)),
    Parameter("traffic_factor", 0.8, 2.5, 5.0, software=_NANOTRON),
    Parameter("loss_bytes_per_logit", 8, 40, 70, software=_NANOTRON),
    Parameter("host_seconds_per_block", 1e-3, 4.4e-3, 8e-3, software=_NANOTRON),
    Parameter("issue_seconds_per_member", 1e-4, 2.5e-4, 6e-4, software=("nanotron_pipelined",)),
    Parameter("data_overlap", 0.0, 0.3, 1.0, software=_NANOTRON),
    Parameter("message_bytes", 50e6, 300e6, 5e9, software=("nanotron",)),
    Parameter("message_bytes", 50e6, 1e9, 5e9, software=("nanotron_pipelined",)),
    Parameter("whole_message_bytes", 10e6, 150e6, 1e9, software=_NANOTRON),
    Parameter("step_seconds", 1e-3, 0.03, 0.3, software=_NANOTRON),
    Parameter("traffic_factor", 1.0, 4, 6.0, software=("torchtitan_eager",)),
    Parameter("traffic_factor", 0.6, 2.0, 4.0, software=_COMPILED),
    Parameter("loss_bytes_per_logit", 8, 40, 70, software=_TORCHTITAN),
    Parameter("traffic_factor", 0.6, 1, 4.0, software=("llm_foundry",)),
    Parameter("loss_bytes_per_logit", 6, 24, 60, software=("llm_foundry",)),
)
"""What is fitted. All else in the code names its source."""


def with_values(constants: Constants, values: Sequence[float]) -> Constants:
    """Return constants with the fitted ones replaced, in the order of PARAMETERS."""
    efficiency, kernels, software = constants.efficiency, dict(constants.kernels), dict(constants.software)
    for parameter, value in zip(PARAMETERS, map(float, values), strict=True):
        change = {parameter.field: value}
        for name in parameter.kernels:
            kernels[name] = replace(kernels[name], **change)
        for name in parameter.software:
            software[name] = replace(software[name], **change)
        if not parameter.kernels and not parameter.software:
            efficiency = replace(efficiency, **change)
    return Constants(efficiency, kernels, software)


def fit(runs: Sequence[tuple[Run, float]], constants: Constants = CONSTANTS) -> list[float]:
    """Return the values of PARAMETERS that fit the runs best.

    Args:
        runs: each with its weight.
        constants: what is not fitted is taken from here.
    """
    weights = np.array([math.sqrt(weight) for _, weight in runs])
    start = np.array([_logit(parameter) for parameter in PARAMETERS])

    def residuals(logits: NDArray[np.float64]) -> NDArray[np.float64]:
        trial = with_values(constants, _values(logits))
        errors = [math.log(step_time(run.job, trial).seconds / (run.step_seconds or 1.0)) for run, _ in runs]
        return np.concatenate([weights * errors, _PULL * (logits - start)])

    found = least_squares(residuals, start, loss="soft_l1", f_scale=_FORGIVEN, max_nfev=60)
    return _values(found.x)


def _logit(parameter: Parameter) -> float:
    """Return the place of what is expected between the bounds, as a number without bounds."""
    scale = math.log if parameter.high > _WIDE * parameter.low > 0 else float
    low, expected, high = map(scale, (parameter.low, parameter.expected, parameter.high))
    return math.log((expected - low) / (high - expected))


def _values(logits: NDArray[np.float64]) -> list[float]:
    values = []
    for parameter, logit in zip(PARAMETERS, logits, strict=True):
        share = 1 / (1 + math.exp(-logit))
        low, high = parameter.low, parameter.high
        wide = high > _WIDE * low > 0
        values.append(low * (high / low) ** share if wide else low + (high - low) * share)
    return values


def calibration_runs() -> list[tuple[Run, float]]:
    """Return the runs to fit, with weights: the whole sweep together counts as much as its rows of `runs.csv`."""
    published = [run for run in runs_of()[0] if run.use is Use.calibration]
    sweep = [run for run in sweep_runs() if run.use is Use.calibration]
    from_sweep = sum(run.job.software.startswith("nanotron") for run in published)
    return [(run, 1.0) for run in published] + [(run, from_sweep / len(sweep)) for run in sweep]


def main() -> None:
    """Print every fitted constant: before and after."""
    values = fit(calibration_runs())
    for parameter, value in zip(PARAMETERS, values, strict=True):
        print(f"{parameter.name:<48} {parameter.value(CONSTANTS):>10.4g} -> {value:.4g}")  # noqa: T201


if __name__ == "__main__":
    main()
