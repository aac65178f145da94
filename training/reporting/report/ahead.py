"""What is to come: the steps of each training stage by the config, and the loss expected at the present one's end."""

from collections.abc import Mapping
from dataclasses import dataclass

from training.reporting.forecast import Expectation, forecast
from training.reporting.summary import RunSummary

_SIGMAS, _MIN_STEPS = 6.0, 200
"""Where the config has no reporting.forecast."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedEnd:
    """The end of the training stage that is being trained."""

    stage: str
    step: int
    """Its last one."""
    expected: Expectation


def total_steps(summary: RunSummary) -> int | None:
    """Return the steps of all training stages; None where the config does not say it plainly (batches that grow)."""
    steps = [_size(summary.config, stage.name) for stage in summary.stages]
    return sum(size[0] for size in steps if size) if steps and all(steps) else None


def expected_end(summary: RunSummary) -> ExpectedEnd | None:
    """Return the loss to expect at the end of the newest training stage; None if it has ended, or is too young."""
    if not summary.steps or summary.state == "done":
        return None
    last = summary.steps[-1]
    mine = [step for step in summary.steps if step.stage == last.stage]
    size = _size(summary.config, last.stage)
    if size is None:
        return None
    end_step, end_tokens = mine[0].step - 1 + size[0], size[0] * size[1]
    if end_step <= last.step:
        return None
    before = next((step.tokens for step in reversed(summary.steps) if step.step < mine[0].step), 0)
    expected = forecast(
        mine,
        at_tokens=before + end_tokens,
        tokens_before=before,
        sigmas=_number(summary.config, "reporting.forecast.sigmas", _SIGMAS),
        min_steps=int(_number(summary.config, "reporting.forecast.min_steps", _MIN_STEPS)),
    )
    return None if expected is None else ExpectedEnd(stage=last.stage, step=end_step, expected=expected)


def _size(config: Mapping[str, str], stage: str) -> tuple[int, int] | None:
    """Return the steps of a training stage, and the tokens of each."""
    prefix = f"stages.{stage}."
    try:
        tokens = int(config[f"{prefix}tokens"])
        batch = int(config[f"{prefix}global_batch_sequences"]) * int(config[f"{prefix}sequence_length"])
    except (KeyError, ValueError):
        return None
    return None if config.get(f"{prefix}batch_ramp", "[]") != "[]" or batch <= 0 else (-(-tokens // batch), batch)


def _number(config: Mapping[str, str], key: str, otherwise: float) -> float:
    try:
        return float(config[key])
    except (KeyError, ValueError):
        return otherwise
