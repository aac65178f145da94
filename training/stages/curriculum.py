"""The learning rate of every step, from the config alone. Pure."""

import math

from training.config.schema import RunConfig, ScheduleConfig, ScheduleKind


def learning_rate(config: RunConfig, training_stage: str, stage_step: int) -> float:
    """Return the learning rate of one step of a training stage.

    Args:
        config: the run.
        training_stage: its name.
        stage_step: optimizer steps already done in this training stage, so 0 for its first step.
    """
    own_peak = config.stages[training_stage].lr
    peak = config.optimizer.lr if own_peak is None else own_peak
    num_steps = config.num_steps(training_stage)
    assert 0 <= stage_step < num_steps, f"training stage {training_stage} has {num_steps} steps, not step {stage_step}"
    return peak * schedule_factor(config.schedule_of(training_stage), stage_step=stage_step, num_steps=num_steps)


def schedule_factor(schedule: ScheduleConfig, *, stage_step: int, num_steps: int) -> float:
    """Return the learning rate of a step as a share of the peak, in [0, 1].

    With s = stage_step, N = num_steps, W = warm-up steps, D = decay steps and f = final_ratio:

    - warm-up, s < W: (s + 1) / W, which reaches 1 at the last warm-up step;
    - constant: 1;
    - wsd, the last D steps: 1 - (1 - f) (s - (N - 1 - D)) / D, which is f at s = N - 1; 1 before them;
    - cosine: f + (1 - f) (1 + cos(pi p)) / 2, where p runs from 0 at the last warm-up step (the first step without
      warm-up) to 1 at s = N - 1.

    W and D are their shares of N, rounded to whole steps; D gives way where both together would exceed N.
    """
    warmup_steps = round(schedule.warmup_fraction * num_steps)
    if stage_step < warmup_steps:
        return (stage_step + 1) / warmup_steps
    match schedule.kind:
        case ScheduleKind.constant:
            return 1.0
        case ScheduleKind.wsd:
            decay_steps = min(round(schedule.decay_fraction * num_steps), num_steps - warmup_steps)
            into_decay = stage_step - (num_steps - 1 - decay_steps)
            if into_decay <= 0:
                return 1.0
            return _between(1.0, schedule.final_ratio, into_decay / decay_steps)
        case ScheduleKind.cosine:
            peak_step = max(warmup_steps - 1, 0)
            if stage_step == peak_step:
                return 1.0
            progress = (stage_step - peak_step) / (num_steps - 1 - peak_step)
            return _between(schedule.final_ratio, 1.0, (1.0 + math.cos(math.pi * progress)) / 2.0)


def _between(start: float, end: float, share: float) -> float:
    """Return the point between two values: exactly `start` at share 0 and `end` at 1, and never turning back between.

    The weighted sum start·(1 - share) + end·share would turn back by a rounding where the two are nearly equal.
    """
    if share == 1.0:
        return end
    low, high = min(start, end), max(start, end)
    return min(max(start + (end - start) * share, low), high)
