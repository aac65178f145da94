"""The first lines of the report: what is trained, where, how far it is, how long it took, what it cost so far."""

from collections.abc import Iterator
from dataclasses import dataclass

from training.reporting import formatting
from training.reporting.report.ahead import ExpectedEnd, total_steps
from training.reporting.report.time_lost import cost
from training.reporting.summary import RunSummary

_MOST_HOSTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One cell of the headline."""

    name: str
    value: str
    detail: str = ""
    """Less important, beneath it."""


def facts(summary: RunSummary) -> list[Fact]:
    """Return the headline, cell by cell."""
    return [*_what(summary), *_how_far(summary), *_how_long(summary)]


def progress(summary: RunSummary, end: ExpectedEnd | None = None) -> str:
    """Return in a sentence where the run is: step, training stage and loss, and the one expected at its end."""
    if not summary.steps:
        return "No step was done yet."
    last, total = summary.steps[-1], total_steps(summary)
    of_total = f" of {total:,}" if total is not None and total >= last.step else ""
    said = f"Step {last.step:,}{of_total}, training stage {last.stage}, loss {last.loss:.4f}"
    if end is None:
        return f"{said}."
    band = f"{end.expected.low:.3f} to {end.expected.high:.3f}"
    return f"{said}; {end.expected.loss:.3f} ({band}) is expected at the stage's end, step {end.step:,}."


def _what(summary: RunSummary) -> Iterator[Fact]:
    config, start = summary.config, summary.starts[-1] if summary.starts else None
    layers, hidden = config.get("model.num_layers"), config.get("model.hidden_size")
    shape = f"{layers} layers of {hidden}" if layers and hidden else ""
    if start and start.num_parameters is not None:
        size = f"{formatting.count(start.num_parameters)} parameters"
        active = start.num_active_parameters
        if active is not None and active < start.num_parameters:
            shape = f"{formatting.count(active)} active, {shape}" if shape else f"{formatting.count(active)} active"
        yield Fact(name="model", value=size, detail=shape)
    elif shape:
        yield Fact(name="model", value=shape)
    if summary.stages:
        names = [stage.name for stage in summary.stages]
        done = sum(stage.status in ("promoted", "done") for stage in summary.stages)
        yield Fact(name="training stages", value=f"{done} of {len(names)} done", detail=" → ".join(names))
    if start:
        hosts = list(start.hosts)
        more = f" and {len(hosts) - _MOST_HOSTS} more" if len(hosts) > _MOST_HOSTS else ""
        device = config.get("cluster.accelerator.name", "device")
        yield Fact(
            name="where",
            value=f"{start.world_size:,} × {device}, {len(hosts):,} host{'s' if len(hosts) > 1 else ''}",
            detail=", ".join(hosts[:_MOST_HOSTS]) + more,
        )
    layout = next((stage.layout for stage in reversed(summary.stages) if stage.layout), "")
    if layout:
        yield Fact(name="layout", value=layout)


def _how_far(summary: RunSummary) -> Iterator[Fact]:
    total = total_steps(summary)
    last = summary.steps[-1].step if summary.steps else 0
    of_total = f" of {total:,}" if total is not None and total >= last else ""
    yield Fact(name="steps", value=f"{last:,}{of_total}", detail=f"{formatting.count(summary.tokens)} tokens")
    if summary.steps:
        newest = summary.steps[-min(20, len(summary.steps)) :]
        rate = sum(step.tokens_per_second for step in newest) / len(newest)
        mfu = sum(step.mfu for step in newest) / len(newest)
        yield Fact(
            name="speed, last steps",
            value=f"{formatting.count(rate)} tokens/s",
            detail=f"MFU {formatting.percent(mfu)}",
        )


def _how_long(summary: RunSummary) -> Iterator[Fact]:
    attempts, incidents = summary.num_attempts, len(summary.incidents)
    yield Fact(
        name="started, UTC",
        value=formatting.when(summary.first_time_seconds).removesuffix(" UTC"),
        detail=f"{_number(attempts, 'attempt')}, {_number(incidents, 'incident')}",
    )
    took = summary.goodput.wall_seconds if summary.goodput else summary.last_time_seconds - summary.first_time_seconds
    yield Fact(
        name="took", value=formatting.duration(took), detail=f"{formatting.duration(summary.training_seconds)} in steps"
    )
    if summary.goodput and summary.goodput.wall_seconds:
        value = formatting.percent(summary.goodput.share)
        yield Fact(name="goodput", value=value, detail="of the wall time in steps that count")
    if used := cost(summary.goodput, summary.starts):
        hours = f"{used.device_hours:,.3g}" if used.device_hours < 100 else f"{used.device_hours:,.0f}"
        if used.price is None:
            yield Fact(name="device-hours", value=hours, detail="no price is configured")
        else:
            yield Fact(name="price so far", value=f"{used.price:,.2f}", detail=f"{hours} device-hours")


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
