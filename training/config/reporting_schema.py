"""Section `reporting`: what is shown while a run goes on. Part of `schema.py`."""

from dataclasses import dataclass, field
from enum import StrEnum


class WandbMode(StrEnum):
    """How metrics reach Weights & Biases."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass(frozen=True, kw_only=True, slots=True)
class WandbConfig:
    """Weights & Biases."""

    mode: WandbMode = WandbMode.offline
    """offline writes files in the run directory; online needs a key in the environment."""
    project: str = "autarky"
    """Project name."""
    entity: str | None = None
    """Team or user; null takes the account's default."""
    group: str | None = None
    """Name under which wandb groups runs; null takes run.name, which the runs of a sweep share."""
    tags: list[str] = field(default_factory=list)
    """Words to find the run by."""
    alerts: bool = True
    """Whether incidents and gates that block are sent as alerts, which wandb passes on by mail or Slack."""
    system_every_seconds: float = 15.0
    """Between two samples of CPU, memory and devices of rank 0's node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastConfig:
    """Where the loss is expected: a power law of the training stage's tokens, fitted to its loss so far."""

    every_steps: int = 50
    """Steps between fits; 0 for none."""
    min_steps: int = 200
    """Steps of a training stage, those of its warm-up not counted, before the first one."""
    sigmas: float = 6.0
    """Half width of the band, in standard deviations of the loss around the law."""
    patience_steps: int = 20
    """Steps in a row above the band before there is an incident (loss_off_forecast)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """What torch's profiler records. RUN_DIR/profile.json asks for one while a run goes on (docs/reporting.md)."""

    steps: list[int] = field(default_factory=list)
    """Steps of the run, counted from 1."""
    ranks: list[int] = field(default_factory=lambda: [0])
    """Which ranks write."""
    memory: bool = False
    """Also a snapshot of what was allocated, by which line; on CUDA devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportingConfig:
    """What is shown while a run goes on. metrics.jsonl is always written, every step."""

    console_every_steps: int = 10
    """Steps between log lines where the output is not a terminal."""
    layers_every_steps: int = 100
    """Steps between norms of weights, gradients and updates of each layer; 0 for none."""
    experts_every_steps: int = 50
    """Steps between the loads of every expert; 0 for none."""
    memory_every_steps: int = 50
    """Steps between looks at all ranks' memory; 0 for none."""
    tensorboard: bool = False
    """Also write TensorBoard's event files to RUN_DIR/tensorboard."""
    forecast: ForecastConfig = field(default_factory=ForecastConfig)
    """Where the loss is expected."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """What torch's profiler records."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""
