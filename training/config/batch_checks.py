"""Whether a training stage's batches rise, divide among its replicas and fill its pipeline's schedule."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import gcd, inf

from training.config.nearest_numbers import closest, divisors, listed
from training.config.schema import PipelineSchedule, RunConfig, StageConfig
from training.errors import ConfigError


def check_ramp(config: RunConfig, training_stage: str) -> None:
    """Check that a training stage's batch ramp rises up to its global batch, and ends before the training stage does.

    Raises:
        ConfigError: it does not.
    """
    stage, sizes = config.stages[training_stage], config.batch_sizes(training_stage)
    full, ramp_key = stage.global_batch_sequences, f"stages.{training_stage}.batch_ramp"
    tokens, smaller = 0, 0
    for place, step in enumerate(stage.batch_ramp):
        key, sequences = f"{ramp_key}.{place}", step.global_batch_sequences
        without = f"leave this step out: {_ramp(stage, training_stage, place, None)}"
        if not smaller < sequences < full:
            reason = f"batches grow from step to step of the ramp, up to global_batch_sequences={full}"
            reason += f", and the step before has {smaller}" if place else ""
            raise ConfigError(f"{key}.global_batch_sequences", sequences, reason, without)
        if step.until_tokens <= tokens:
            reason = f"the steps before it last for {tokens} tokens, so it would have no batch"
            raise ConfigError(f"{key}.until_tokens", step.until_tokens, reason, without)
        tokens, smaller = sizes.tokens_before(sizes.num_batches(step.until_tokens)), sequences
    if stage.batch_ramp and tokens >= stage.tokens:
        raise ConfigError(
            f"{ramp_key}.{len(stage.batch_ramp) - 1}.until_tokens",
            stage.batch_ramp[-1].until_tokens,
            f"the training stage has {stage.tokens} tokens, so no batch of {full} would come",
            f"stages.{training_stage}.tokens={tokens + full * stage.sequence_length} works, or "
            f"{_ramp(stage, training_stage, len(stage.batch_ramp) - 1, None)}",
        )


def check_batches(config: RunConfig, training_stage: str) -> None:
    """Check that every size of a training stage's batches is whole micro-batches for each replica.

    Raises:
        ConfigError: one is not.
    """
    stage, replicas = config.stages[training_stage], config.num_replicas(training_stage)
    micro = stage.micro_batch_sequences
    unit = micro * replicas
    sizes = list(_sizes(config, training_stage))
    common = gcd(*(size.sequences for size in sizes))
    for place, size in enumerate(sizes):
        batch = size.sequences
        if batch % unit == 0:
            continue
        smaller = sizes[place - 1].sequences if place else 0
        larger = sizes[place + 1].sequences if place + 1 < len(sizes) else inf
        near = {batch // unit * unit, (batch // unit + 1) * unit}
        fits = sorted((n for n in near if smaller < n < larger), key=lambda n: (abs(n - batch), n))
        remedies = [f"{size.given_as(n)} works" if n == fits[0] else f"{n} too" for n in fits]
        if common % replicas == 0:
            micros = divisors(common // replicas)
            divide = f"({listed(micros)} divide {common // replicas})"
            remedies.append(f"stages.{training_stage}.micro_batch_sequences={closest(micro, micros)} {divide}")
        reason = f"is no multiple of micro_batch_sequences={micro} times {replicas} data replicas = {unit}"
        raise ConfigError(size.key, batch, reason, ", or ".join(remedies or [size.given_as(None)]))


def check_rounds(config: RunConfig, training_stage: str, layout_key: str) -> None:
    """Check that an interleaved pipeline can run the micro-batches of every batch in equal rounds.

    Raises:
        ConfigError: it cannot.
    """
    layout, stage = config.layout_of(training_stage), config.stages[training_stage]
    unit = stage.micro_batch_sequences * config.num_replicas(training_stage)
    for size in _sizes(config, training_stage):
        if layout.schedule is not PipelineSchedule.interleaved or size.sequences % unit:
            continue  # uneven batches are refused by their own check
        num_micro_batches = size.sequences // unit
        if num_micro_batches % max(1, num_micro_batches // layout.pipeline) == 0:
            continue
        down, up = (num_micro_batches // layout.pipeline * layout.pipeline + more for more in (0, layout.pipeline))
        raise ConfigError(
            size.key,
            size.sequences,
            f"makes {num_micro_batches} micro-batches per replica, and interleaved runs them in equal rounds of "
            f"about pipeline={layout.pipeline}",
            f"{size.given_as(up * unit)} works ({down * unit} too), or {layout_key}.schedule=1f1b and "
            f"{layout_key}.chunks_per_rank=1",
        )


@dataclass(frozen=True, slots=True)
class _Size:
    """A size that a global batch has."""

    key: str
    sequences: int
    given_as: Callable[[int | None], str]
    """Other samples -> the override that gives them; None -> that leaves this step of the ramp out."""


def _sizes(config: RunConfig, training_stage: str) -> Iterator[_Size]:
    """Yield every size that a global batch has, in order."""
    stage = config.stages[training_stage]
    for place, step in enumerate(stage.batch_ramp):
        key = f"stages.{training_stage}.batch_ramp.{place}.global_batch_sequences"
        yield _Size(key, step.global_batch_sequences, lambda n, at=place: _ramp(stage, training_stage, at, n))
    key = f"stages.{training_stage}.global_batch_sequences"
    yield _Size(key, stage.global_batch_sequences, lambda n: f"{key}={n}")


def _ramp(stage: StageConfig, training_stage: str, place: int, sequences: int | None) -> str:
    """Return the override of a whole ramp with another size in one of its steps, or without that step (None)."""
    changed = [] if sequences is None else [replace(stage.batch_ramp[place], global_batch_sequences=sequences)]
    steps = [*stage.batch_ramp[:place], *changed, *stage.batch_ramp[place + 1 :]]
    shown = [f"{{until_tokens:{s.until_tokens},global_batch_sequences:{s.global_batch_sequences}}}" for s in steps]
    return f"stages.{training_stage}.batch_ramp=[{','.join(shown)}]"
