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


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportingConfig:
    """What is shown while a run goes on. metrics.jsonl is always written, every step."""

    console_every_steps: int = 10
    """Steps between log lines where the output is not a terminal."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""
