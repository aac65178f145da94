"""The part of the schema that says what an evaluation must show; see `training/config/schema.py`."""

from dataclasses import dataclass, field
from enum import StrEnum


class Metric(StrEnum):
    """What a gate can ask for of held-out records. Benchmarks have more: "<benchmark>/<metric>"."""

    bits_per_byte = "bits_per_byte"
    """Of held-out text; lower is better."""
    multiple_choice_accuracy = "multiple_choice_accuracy"
    """Share of right answers; higher is better."""
    assistant_nats_per_token = "assistant_nats_per_token"
    """Loss on what the assistant says in held-out conversations; lower is better."""


def is_better_when_lower(metric: str) -> bool:
    """Return whether a metric, a benchmark's too, is how unlikely text is; all others are shares of right answers."""
    return metric.rpartition("/")[2] in (Metric.bits_per_byte, Metric.assistant_nats_per_token)


class GateAction(StrEnum):
    """What follows from a gate."""

    promote = "promote"
    block = "block"
    ask = "ask"
    """A person decides, with `python -m launch.gate`; the run ends until then."""
    more_items = "more_items"
    """The evaluation is made again with twice as many items."""
    roll_back = "roll_back"
    """The training stage counts as not trained: its checkpoint is put aside, and the run ends where it began it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateCondition:
    """One thing an evaluation must show; exactly one of at_most, at_least and compared_with."""

    metric: str
    """bits_per_byte (lower is better) or multiple_choice_accuracy (higher is better) of held-out text,
    assistant_nats_per_token (lower is better) of held-out conversations; or that of a benchmark, such as
    fcc_amateur_extra/acc, bfcl_simple/parsed, bits_per_byte_code/bits_per_byte, bfcl_multi_turn/pass_hat_4."""
    at_most: float | None = None
    """Highest value, for a metric that is better when lower."""
    at_least: float | None = None
    """Lowest value, for a metric that is better when higher."""
    compared_with: str | None = None
    """previous (the evaluation before, for the first training stage that of the untrained model), start (the untrained
    model) or an earlier training stage: no worse than its, item by item, but for the margin."""
    margin: float = 0.0
    """How much worse than what it is compared with still counts as no worse, in units of the metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Conditions a training stage's evaluation must meet before the next one may start.

    A condition is met only if the whole confidence interval meets it, and missed only if the whole one misses it.
    """

    conditions: dict[str, GateCondition] = field(default_factory=dict)
    """Name -> condition; none promotes."""
    pass_if: list[list[str]] = field(default_factory=list)
    """Alternatives, each a list of conditions that must be met together; empty asks for all conditions."""
    confidence: float = 0.95
    """The gate promotes wrongly, and calls a condition missed wrongly, with a probability of at most 1 less this."""
    when_missed: GateAction = GateAction.block
    """block, ask or roll_back."""
    when_unclear: GateAction = GateAction.block
    """Where the items say neither: block, ask or more_items."""
    max_looks: int = 1
    """Evaluations at most with when_unclear=more_items, each with twice the items of the one before; the more looks,
    the surer each must be."""
