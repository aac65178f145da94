"""Typed records of a run: one JSON object per line of metrics.jsonl, told apart by `kind`.

The JSONL is the truth; console, wandb and report are views of it. A record is written once and never changed;
after a crash, steps that were done again appear twice with a higher `attempt`, and readers keep the later one.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, get_args

from training.plain_files import typed


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One optimizer step."""

    kind: ClassVar[str] = "step"
    step: int
    """Global step over all training stages; the first one is 1."""
    stage: str
    """Training stage."""
    loss: float
    """Mean loss per token of the global batch, in nats, before the update."""
    grad_norm: float
    """Global L2 gradient norm before clipping."""
    clipped_grad_norm: float | None = None
    """Its norm after clipping, which the optimizer used; null also of a skipped step."""
    lr: float
    """Learning rate used by this step."""
    tokens: int
    """Tokens trained on since the start of the run, this step included."""
    tokens_per_second: float
    """Tokens of this step over its wall time, all ranks together."""
    tokens_per_second_per_device: float | None = None
    """The same over the number of ranks; null, as all that is null below, if an earlier version wrote the record."""
    mfu: float
    """Model FLOPs utilisation: model FLOPs of the step / (wall time × ranks × peak)."""
    hfu: float | None = None
    """Hardware FLOPs utilisation: the same with what is recomputed in backward counted too."""
    batch_id: str
    """Hash of the global sample ids of this step."""
    batch: int | None = None
    """Place of its global batch in the training stage's order, from 0; null if an earlier version wrote the record."""
    preference: dict[str, float] | None = None
    """Means over the pairs of a preference stage's step: accuracy (share in which the chosen answer has the higher
    reward), margin, chosen_reward, rejected_reward (in nats, times beta); null else."""
    attempt: int
    """How often the run directory was started before, so 0 for an undisturbed run."""
    seconds: float
    """Wall time of the step, its data too."""
    data_seconds: float | None = None
    """Of it, what rank 0 waited for its micro-batches."""
    waited_seconds: float | None = None
    """Of it, what rank 0 waited in collectives: for other ranks, and for what they send."""
    other_seconds: float | None = None
    """Before it, since the step or event before: records, checks, and all else that TimeRecord has no section for."""
    skipped: bool = False
    """True if nothing was updated: the gradients were not finite, or the loss was a spike that was held back."""
    bubble: float | None = None
    """Share of a pipeline's forwards and backwards in which ranks computed nothing, mean over ranks; else null."""
    later_loss: float | None = None
    """Loss per token of multi-token prediction, mean over its blocks; null without it."""
    experts: dict[str, float] | None = None
    """How the experts are; null of a dense model. Loads are tokens of the global batch over the mean: worst_load of any
    expert, in worst_block (from 0, among those with experts), worst_rank_load of a rank of the expert axis. dead is the
    number of experts without a token, over all blocks. entropy of the router's scores in nats, entropy_of_even as a
    share of that of even scores. balance_loss and z_loss per token, their coefficients in them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRecord:
    """One evaluation of a suite."""

    kind: ClassVar[str] = "eval"
    step: int
    stage: str
    """Training stage that was evaluated; "start" for the untrained model."""
    suite: str
    bits_per_byte: float | None
    """Held-out bits per byte over all scored documents; null if the suite measures none."""
    metrics: dict[str, float]
    """All numbers of the suite by name, these too."""
    samples: list[dict[str, str]]
    """Greedy samples: {"prompt": …, "text": …}."""
    seconds: float
    attempt: int
    report: str = ""
    """Path of the report in the run directory; it has the items. Empty if an earlier version wrote the record."""
    in_between: bool = False
    """Made in the midst of the training stage, not at its end."""

    def __post_init__(self) -> None:
        if not all({"prompt", "text"} <= sample.keys() for sample in self.samples):
            raise ValueError("a sample has no prompt or no text")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRecord:
    """One decision between two training stages."""

    kind: ClassVar[str] = "gate"
    step: int
    stage: str
    decision: str
    """promote, block, ask (a person is) or more_items (the evaluation is made again)."""
    reasons: list[str]
    """One sentence per condition, with both numbers."""
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRecord:
    """One committed checkpoint."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    stage: str
    directory: str
    """Relative to the run directory, unless it lies on fast storage."""
    num_bytes: int
    seconds: float
    """From the copy of the state to the commit; training goes on meanwhile."""
    attempt: int
    stall_seconds: float = 0.0
    """How long training stood still for it on rank 0."""
    bytes_per_second: float = 0.0
    """num_bytes / seconds, all ranks together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IncidentRecord:
    """Something that was not meant to happen, and what was done about it."""

    kind: ClassVar[str] = "incident"
    step: int
    stage: str
    what: str
    """Short name: non_finite, loss_spike, rollback, silent_corruption, corrupt_checkpoint, save_failed, save_late,
    loss_off_forecast, profile_failed, prune_failed, log_unwritable, heartbeat_file, hang, slow_rank, restart,
    config_changed, failure."""
    message: str
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """A training stage began or ended."""

    kind: ClassVar[str] = "stage"
    step: int
    stage: str
    event: str
    """begin, end, or (stage "run") done, blocked, stopped, failed, until (this start was asked to end here)."""
    layout: str
    """One-line description of the layout, for example "pipeline 2 × data 1, ZeRO-1, 2 ranks"."""
    attempt: int
    notes: list[str] = field(default_factory=list)
    """What the engine decided when it was built, and why: the cut of the layers, the schedule's bubble; which
    checkpoint's state it has, and how many bytes of it rank 0 read."""
    peak_memory_bytes: float | None = None
    """Event end: the most that tensors of rank 0 took of its device since the training stage began; null on CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartRecord:
    """The run directory was started: the first record of every attempt."""

    kind: ClassVar[str] = "start"
    step: int
    """Steps of the run so far, as far as metrics.jsonl knew then."""
    stage: str
    """Training stage that the ledger says is next."""
    attempt: int
    launched_seconds: float
    """Unix time at which launch.submit or Slurm's job step began, or else rank 0's process."""
    world_size: int
    """Ranks, one device each."""
    hosts: dict[str, str]
    """Host -> its ranks, for example {"node-1": "0-7"}."""
    peak_flops_per_second: float
    """Of one device: what MFU and HFU are shares of."""
    peak_source: str
    """Where that number comes from, in words."""
    price_per_hour: float | None = None
    """Of one device; null where the config has none."""
    data_fingerprint: str = ""
    tokenizer_hash: str = ""
    num_parameters: int | None = None
    """Of the model; null, as the next, if an earlier version wrote the record."""
    num_active_parameters: int | None = None
    """Those that one token meets: less than all with experts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeRecord:
    """Wall time of rank 0 since the last such record, or since the launch, that belongs to no step."""

    kind: ClassVar[str] = "time"
    step: int
    stage: str
    attempt: int
    spent: dict[str, float]
    """Section (training/fault_tolerance/heartbeat.py) -> seconds. All of a start's steps (seconds, other_seconds) and
    sections together are its wall time up to the newest record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayersRecord:
    """How each layer learned in one step; lists of equal length, one entry per layer, in running order."""

    kind: ClassVar[str] = "layers"
    step: int
    stage: str
    attempt: int
    names: list[str]
    """Canonical, for example model.layers.3."""
    weight_norms: list[float]
    """L2 norm of the layer's fp32 weights before the update."""
    grad_norms: list[float]
    """L2 norm of its gradient before clipping."""
    update_norms: list[float]
    """L2 norm of what the step added to its weights; over weight_norms it is the update-to-weight ratio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertsRecord:
    """What the routers of one step did."""

    kind: ClassVar[str] = "experts"
    step: int
    stage: str
    attempt: int
    loads: list[list[int]]
    """Of each block with experts, in order: tokens of the global batch that chose each expert."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRecord:
    """Memory of the ranks after a step; of the rank that has the most, and which that is."""

    kind: ClassVar[str] = "memory"
    step: int
    stage: str
    attempt: int
    host_bytes: float
    """Resident set of its process."""
    host_rank: int
    device_bytes: float | None
    """The most that tensors took of its device since the training stage began; null on CPU."""
    device_rank: int | None
    held_bytes: dict[str, int]
    """Of rank 0 between steps, by what it is: weights, gradients, optimizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileRecord:
    """A profile was written."""

    kind: ClassVar[str] = "profile"
    step: int
    """The last one in it."""
    stage: str
    attempt: int
    first_step: int
    rank: int
    trace: str
    """Path in the run directory of a Chrome trace (https://ui.perfetto.dev opens it)."""
    memory: str | None
    """Path of a memory snapshot (https://pytorch.org/memory_viz opens it); null where none was asked for."""
    operators: list[dict[str, Any]]
    """The costliest: {"name", "calls", "seconds"}, their own time on the device, or on the CPU without one."""


EventRecord = EvalRecord | GateRecord | CheckpointRecord | IncidentRecord | StageRecord
"""What is told at once, wherever a run is watched; the rest are numbers."""

Record = (
    StepRecord
    | EvalRecord
    | GateRecord
    | CheckpointRecord
    | IncidentRecord
    | StageRecord
    | StartRecord
    | TimeRecord
    | LayersRecord
    | ExpertsRecord
    | MemoryRecord
    | ProfileRecord
)

_KINDS: dict[str, type[Record]] = {record.kind: record for record in get_args(Record)}
_FIELDS: dict[str, frozenset[str]] = {
    record.kind: frozenset(f.name for f in fields(record)) for record in get_args(Record)
}


def to_json_object(record: Record, *, time_seconds: float) -> dict[str, Any]:
    """Return the JSON object of a record: `kind`, `time` (Unix seconds), then its fields."""
    return {"kind": record.kind, "time": time_seconds, **asdict(record)}


def from_json_object(line: dict[str, Any]) -> Record:
    """Return the record of one parsed line of metrics.jsonl. Unknown fields (of a newer version) are dropped.

    Raises:
        KeyError: the line's kind is unknown.
        ValueError: a field is missing or of another type.
    """
    kind = line["kind"]
    record_type, known = _KINDS[kind], _FIELDS[kind]
    return typed(record_type, {key: value for key, value in line.items() if key in known})
