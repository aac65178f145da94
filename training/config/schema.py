"""What can be configured: one frozen dataclass per section, each field with its type and unit.

YAML files under `conf/` hold the values; `training/config/load.py` is where the two meet, and
`training/config/checks.py` refuses what cannot be. The field docstrings are the text of `conf/README.md`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from training.config.batch_sizes import BatchRampStep, BatchSizes, batch_sizes
from training.config.cluster_schema import (
    AcceleratorConfig,
    HostfileConfig,
    NetworkConfig,
    PreflightConfig,
)
from training.config.data_schema import DataConfig
from training.config.eval_schema import EvalConfig
from training.config.fault_tolerance_schema import CorruptionConfig, RecoveryConfig
from training.config.gate_schema import GateConfig
from training.config.model_schema import ModelConfig
from training.config.optimizer_schema import OptimizerConfig
from training.config.reliability_schema import PowerConfig, ReliabilityConfig, StorageConfig
from training.config.reporting_schema import ReportingConfig
from training.config.slurm_schema import SlurmConfig
from training.config.stage_schema import MixtureChange, Packing, PreferenceConfig, SkippedBatches, StageKind
from training.config.watchdog_schema import HangConfig, StragglerConfig


class Resume(StrEnum):
    """What a start does when its run directory already holds checkpoints."""

    never = "never"
    auto = "auto"
    must = "must"


class Precision(StrEnum):
    """Dtype of weights and activations; master weights and optimizer state are always fp32.

    fp8 is that of the operands of blocks' matrix products alone, the rest is bf16. Planned only: no engine runs it.
    """

    fp32 = "fp32"
    bf16 = "bf16"
    fp8 = "fp8"


class Recompute(StrEnum):
    """Which activations are recomputed in backward: none, whole blocks, or all but matrix products."""

    none = "none"
    full = "full"
    selective = "selective"


class PipelineSchedule(StrEnum):
    """Order in which a pipeline runs its micro-batches."""

    one_forward_one_backward = "1f1b"
    interleaved = "interleaved"


class Regather(StrEnum):
    """When ZeRO-3 gathers the weights of a pipeline stage: once a step, for every micro-batch, or as memory allows."""

    per_step = "per_step"
    per_microbatch = "per_microbatch"
    auto = "auto"


class PipelineEngineKind(StrEnum):
    """Whose engine runs a pipeline: ours (ZeRO-1 to 3, both schedules) or DeepSpeed's PipelineEngine (ZeRO-1, 1f1b)."""

    autarky = "autarky"
    deepspeed = "deepspeed"


class AttentionImplementation(StrEnum):
    """What computes attention in training: torch's scaled_dot_product_attention, FlexAttention or FlashAttention."""

    auto = "auto"
    sdpa = "sdpa"
    flex = "flex"
    flash = "flash"


class ScheduleKind(StrEnum):
    """Shape of the learning rate over one training stage."""

    constant = "constant"
    cosine = "cosine"
    wsd = "wsd"


class Launcher(StrEnum):
    """Who starts the ranks: DeepSpeed's launcher on this machine, the same over the hosts of a file, or Slurm."""

    local = "local"
    hostfile = "hostfile"
    slurm = "slurm"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSection:
    """Identity of a run."""

    name: str
    """Short name; part of the run id. Letters, digits, '.', '_' and '-'."""
    id: str | None = None
    """Directory name under `root`. Chosen by the launcher when null; give one to continue a certain run."""
    root: str = "runs"
    """Folder of all run directories; a relative path counts from the launch directory."""
    seed: int = 0
    """Seed of initial weights, sample order and dropout masks. Not of anything that depends on the layout."""
    until: str | None = None
    """Training stage after whose gate this start ends, with exit code 0; null goes on to the last one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumeConfig:
    """Whether a start goes on with an earlier one, and what may then be another. `resume=auto` sets resume.mode."""

    mode: Resume = Resume.never
    """never starts new; auto continues what is there; must refuses to start fresh."""
    allow: list[str] = field(default_factory=list)
    """Keys that may change on purpose when a run goes on (optimizer.lr, stages.*.tokens); a section is all in it."""


_LOSS_CHUNK_TOKENS = 4096
"""Enough for a full-speed matrix product; 128 Ki tokens of Llama 3's vocabulary have 3 GB of logits at a time then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How ranks share the work of one training stage. The number of data replicas is derived."""

    pipeline: int = 1
    """Pipeline stages; the world size divided by it, and by tensor and sequence, is the number of data replicas."""
    tensor: int = 1
    """Ranks that share every matrix product of a block (arXiv:1909.08053). Planned only: no engine runs it."""
    sequence: int = 1
    """Ranks that share the tokens of each sequence (Ulysses, arXiv:2309.14509)."""
    expert: int = 1
    """Ranks that the experts of a block are spread over (arXiv:2006.16668), out of the replicas and the ranks of
    `sequence`."""
    zero_stage: int = 1
    """What data replicas shard: 0 nothing, 1 optimizer state, 2 + gradients, 3 + weights (arXiv:1910.02054)."""
    zero_secondary_ranks: int | None = None
    """ZeRO-3: ranks, of one node, that a second copy of the weights is sharded over, which backward gathers from (hpZ,
    arXiv:2306.10209); null keeps none. Planned only so far."""
    recompute: Recompute = Recompute.none
    """Activation recompute in backward."""
    layers_per_pipeline_stage: list[int] | None = None
    """Blocks of each pipeline stage by hand (with chunks_per_rank > 1: of each chunk); null balances modelled cost."""
    schedule: PipelineSchedule = PipelineSchedule.one_forward_one_backward
    """Order of a pipeline's micro-batches: 1f1b, or interleaved (arXiv:2104.04473, section 2.2)."""
    chunks_per_rank: int = 1
    """Model chunks of each rank of a pipeline; interleaved needs at least 2."""
    regather: Regather = Regather.auto
    """When a pipeline under ZeRO-3 gathers its weights; auto decides from the memory plan and says why."""
    pipeline_engine: PipelineEngineKind = PipelineEngineKind.autarky
    """Whose engine runs a pipeline."""
    loss_chunk_tokens: int | None = None
    """Tokens of a rank's micro-batch whose logits exist at a time; one with no more has them whole. Null takes 4096;
    with DeepSpeed's PipelineEngine logits are always whole."""
    attention: AttentionImplementation = AttentionImplementation.auto
    """What computes attention in training: auto is sdpa, and for documents on accelerators flash in bf16, else flex."""

    @property
    def logits_at_once_tokens(self) -> int | None:
        """Tokens of a rank's micro-batch whose logits may exist at a time; None is all of them."""
        if self.pipeline > 1 and self.pipeline_engine is PipelineEngineKind.deepspeed:
            return None
        return self.loss_chunk_tokens or _LOSS_CHUNK_TOKENS

    @property
    def runs_in_chunks(self) -> bool:
        """Whether our engine of one DeepSpeedEngine per chunk runs it: our pipelines, and experts spread over ranks."""
        return self.expert > 1 or (self.pipeline > 1 and self.pipeline_engine is PipelineEngineKind.autarky)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate as a function of the step within one training stage."""

    kind: ScheduleKind = ScheduleKind.constant
    """constant after warm-up; cosine (arXiv:1608.03983); wsd = warm-up, stable, decay (arXiv:2404.06395)."""
    warmup_fraction: float = 0.0
    """Share of the training stage's steps with a linearly rising rate."""
    decay_fraction: float = 0.0
    """wsd: share of the steps, at the end, with a linearly falling rate."""
    final_ratio: float = 0.0
    """Rate at the very end, as a share of the peak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """One training stage: what it learns from, for how long, under which layout, and what it must show."""

    kind: StageKind = StageKind.pretrain
    """What it learns from, and how."""
    mixture: dict[str, float]
    """Source name -> weight; weights need not sum to 1."""
    mixture_changes: list[MixtureChange] = field(default_factory=list)
    """Other mixtures from later points on, in order: [{from_fraction: 0.5, mixture: {code: 1}}]."""
    max_epochs: dict[str, float] = field(default_factory=dict)
    """Source name -> how often this training stage may go through it; from then on the others take its share."""
    skip_batches: list[SkippedBatches] = field(default_factory=list)
    """Global batches that are not trained on; the steps take the next ones instead."""
    tokens: int
    """Token budget; rounded up to whole optimizer steps."""
    sequence_length: int
    """Tokens per sample."""
    packing: Packing | None = None
    """How records are put into samples; null takes sequential for pretrain and anneal, else best_fit."""
    min_document_tokens: int | None = None
    """With best_fit: only records with at least so many tokens are learned from; null takes all."""
    document_mask: bool | None = None
    """Whether a token sees those of its own record alone, of the records that are packed into a sample; null takes no
    for pretrain and anneal, else yes."""
    preference: PreferenceConfig | None = None
    """For kind preference; null takes the defaults."""
    global_batch_sequences: int
    """Samples per optimizer step over all ranks."""
    batch_ramp: list[BatchRampStep] = field(default_factory=list)
    """Smaller batches at the beginning, in order: [{until_tokens: 1_000_000, global_batch_sequences: 8}]."""
    micro_batch_sequences: int
    """Samples one data replica runs at once; the accumulation steps follow from it."""
    lr: float | None = None
    """Peak learning rate of this training stage; null takes optimizer.lr."""
    schedule: ScheduleConfig | None = None
    """Learning-rate shape of this training stage; null takes the top-level schedule."""
    parallel: ParallelConfig | None = None
    """Layout of this training stage; null takes the top-level parallel group."""
    eval_suite: str | None = None
    """Name of the suite (eval.suites) run after this training stage; null runs none."""
    eval_every_steps: int | None = None
    """Optimizer steps between evaluations in the midst of this training stage, with the same suite; null leaves it at
    the one after it."""
    gate: GateConfig | None = None
    """Gate after the evaluation; null lets the next training stage start."""

    @property
    def packs_by(self) -> Packing:
        """How records are put into samples."""
        whole = self.kind not in (StageKind.pretrain, StageKind.anneal)
        return self.packing or (Packing.best_fit if whole else Packing.sequential)

    @property
    def preference_settings(self) -> PreferenceConfig | None:
        """How it learns from pairs; None where it does not."""
        return (self.preference or PreferenceConfig()) if self.kind is StageKind.preference else None

    @property
    def masks_documents(self) -> bool:
        """Whether a token sees those of its own record alone."""
        if self.document_mask is None:
            return self.kind not in (StageKind.pretrain, StageKind.anneal)
        return self.document_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When state is saved and what is kept."""

    every_steps: int
    """Optimizer steps between checkpoints; the end of a training stage always saves."""
    keep_last: int = 2
    """Newest checkpoints kept besides the last one of each training stage."""
    permanent_every_steps: int | None = None
    """Optimizer steps between checkpoints that are kept for good, in the run directory; a multiple of every_steps. Null
    keeps only those at the ends of training stages."""
    fast_root: str | None = None
    """Folder on fast storage that every node sees, for the checkpoints that are not kept for good; a relative path
    counts from the launch directory. Null puts them into the run directory too."""
    asynchronous: bool = True
    """Write while training goes on; false waits for every save."""
    commit_timeout_seconds: int = 1800
    """Longest a rank waits for the other ranks' writing; a slow disk is no hang."""
    max_stall_seconds: float = 0.25
    """Longest that training waits for the save before when the next one is due. After that the due one is made once the
    earlier one has ended, and an incident says so: the storage is too slow for every_steps."""
    max_failed_saves: int = 10
    """Saves in a row that may fail (disk full, storage gone) before the run stops with exit code 8; training goes on
    and tries again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultToleranceConfig:
    """Limits after which a job stops instead of waiting."""

    collective_timeout_seconds: int = 600
    """A collective that waits longer ends the job with an error."""
    max_consecutive_skips: int = 3
    """Consecutive steps that were not used (NaN or Inf gradients, loss spikes held back) before the job stops."""
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    """Loss spikes."""
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    """Silent data corruption."""
    hang: HangConfig = field(default_factory=HangConfig)
    """Limits of the watchdog."""
    stragglers: StragglerConfig = field(default_factory=StragglerConfig)
    """Slow ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Where a run starts, and who starts it."""

    num_nodes: int
    """Nodes."""
    processes_per_node: int
    """Ranks per node: one per device."""
    accelerator: AcceleratorConfig
    """Device of each rank."""
    network: NetworkConfig | None = None
    """What connects the devices; null is not known, and then a plan has no step time."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """Where checkpoints go."""
    reliability: ReliabilityConfig = field(default_factory=ReliabilityConfig)
    """How often something fails, and what follows."""
    power: PowerConfig = field(default_factory=PowerConfig)
    """What nodes draw."""
    calibration: str | None = None
    """File that `launch.plan --calibrate` has written from real runs of this cluster: plans then use its constants; a
    relative path counts from the launch directory. Null uses those of published runs."""
    threads_per_process: int = 1
    """OMP_NUM_THREADS of each rank; part of bitwise reproducibility on CPU."""
    master_port: int | None = None
    """Rendezvous port; null takes a free one."""
    launcher: Launcher = Launcher.local
    """Who starts the ranks."""
    max_restarts: int = 0
    """How often launch.submit starts a run again by itself, unless a person has to look (local, hostfile; Slurm has
    cluster.slurm.max_requeues). 0 leaves it to whoever started it."""
    dry_run: bool = False
    """Print every command, which rank runs where, and the environment; start nothing."""
    hostfile: HostfileConfig | None = None
    """Hosts of launcher=hostfile."""
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    """Checks of the nodes before the start."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the ranks: what the machines need (NCCL_*, UCX_*). Never secrets."""
    slurm: SlurmConfig | None = None
    """What Slurm is asked for with launcher=slurm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepSpeedSection:
    """Additions to the derived DeepSpeed dictionary."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Extra DeepSpeed keys; a key that Autarky derives itself is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A whole run, as frozen into `config.yaml` of the run directory."""

    run: RunSection
    """Identity."""
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    """Whether and how a start goes on with an earlier one."""
    init_from: str | None = None
    """Weights that the first training stage starts from: hf:DIR (a Hugging Face directory) or checkpoint:DIR; null
    draws them from run.seed."""
    precision: Precision
    """Dtype of weights and activations; fp8, of blocks' matrix products, can be planned only."""
    model: ModelConfig
    """Architecture."""
    parallel: ParallelConfig
    """Layout of training stages that do not name their own."""
    data: DataConfig
    """Sources and tokenizer."""
    optimizer: OptimizerConfig
    """Optimizer."""
    schedule: ScheduleConfig
    """Learning-rate shape of training stages that do not name their own."""
    stages: dict[str, StageConfig]
    """Training stages, in order."""
    eval: EvalConfig
    """Evaluation suites."""
    checkpoint: CheckpointConfig
    """Checkpoints."""
    fault_tolerance: FaultToleranceConfig
    """Limits."""
    reporting: ReportingConfig
    """Views of the metrics."""
    cluster: ClusterConfig
    """Machines."""
    deepspeed: DeepSpeedSection
    """Extra DeepSpeed keys."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.cluster.num_nodes * self.cluster.processes_per_node

    def layout_of(self, training_stage: str) -> ParallelConfig:
        """Return the layout of a training stage: its own, else the top-level one."""
        return self.stages[training_stage].parallel or self.parallel

    def schedule_of(self, training_stage: str) -> ScheduleConfig:
        """Return the learning-rate shape of a training stage: its own, else the top-level one."""
        return self.stages[training_stage].schedule or self.schedule

    def num_replicas(self, training_stage: str) -> int:
        """Return the number of data replicas of a training stage (a validated config divides evenly)."""
        layout = self.layout_of(training_stage)
        return self.world_size // (layout.pipeline * layout.tensor * layout.sequence)

    def num_shards(self, training_stage: str) -> int:
        """Return the ranks of a pipeline stage that ZeRO shards over: replicas times those that share sequences."""
        return self.num_replicas(training_stage) * self.layout_of(training_stage).sequence

    def batch_sizes(self, training_stage: str) -> BatchSizes:
        """Return the sizes of a training stage's global batches."""
        stage = self.stages[training_stage]
        return batch_sizes(
            stage.batch_ramp,
            global_batch_sequences=stage.global_batch_sequences,
            sequence_length=stage.sequence_length,
        )

    def accumulation_steps(self, training_stage: str) -> int:
        """Return micro-batches per data replica and optimizer step; while a batch ramp lasts there are fewer."""
        stage = self.stages[training_stage]
        return stage.global_batch_sequences // (stage.micro_batch_sequences * self.num_replicas(training_stage))

    def micro_batch_counts(self, training_stage: str) -> list[int]:
        """Return how many micro-batches a data replica has in a step, for each phase of the batch ramp in order."""
        unit = self.stages[training_stage].micro_batch_sequences * self.num_replicas(training_stage)
        return [phase.sequences // unit for phase in self.batch_sizes(training_stage).phases]

    def num_steps(self, training_stage: str) -> int:
        """Return optimizer steps of a training stage: the token budget, rounded up to whole steps."""
        return self.batch_sizes(training_stage).num_batches(self.stages[training_stage].tokens)

    def num_tokens(self, training_stage: str) -> int:
        """Return the tokens of all steps of a training stage: the budget, rounded up."""
        return self.batch_sizes(training_stage).tokens_before(self.num_steps(training_stage))

    def first_step(self, training_stage: str) -> int:
        """Return the global step count before the first step of a training stage."""
        steps = 0
        for name in self.stages:
            if name == training_stage:
                return steps
            steps += self.num_steps(name)
        raise KeyError(training_stage)
