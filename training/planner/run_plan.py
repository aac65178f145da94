"""The plan of a whole run: memory, speed and traffic of each training stage, finish date, price, energy. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.config.optimizer_schema import OptimizerKind
from training.config.schema import RunConfig
from training.models.sizes import num_active_parameters, num_parameters
from training.parallel.layout import Layout
from training.planner.checkpoint_cost import Storage
from training.planner.constants import CONSTANTS, Constants
from training.planner.flops import Counted, hfu, mfu
from training.planner.from_config import as_program, job_of
from training.planner.goodput_plan import GoodputPlan, RunOutline, plan_goodput
from training.planner.inference_price import InferencePrice, Serving, inference_price
from training.planner.job import Job, NumberFormat
from training.planner.layouts import describe, runs_today
from training.planner.memory import Verdict, memory, verdict
from training.planner.price import Power
from training.planner.regather import chosen_regather
from training.planner.stage_memory import StageMemory
from training.planner.step_time import StepTime, step_time
from training.planner.traffic import Traffic, traffic
from training.reporting.planned import PlannedStage

STEP_SIGMA = 0.1
"""How little a step's time is known: the goal for layouts that nothing was fitted to (docs/planner_validation.md)."""
_NODE_WRITE_BYTES_PER_SECOND = 1e9
"""Of one node, where the config does not say what the cluster's storage takes."""
_SERVED_SEQUENCES = 64
_LARGEST_COPY = 1024
"""Devices that one served copy of a model may be spread over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """One training stage."""

    training_stage: str
    job: Job
    layout: str
    """In one line."""
    runs_today: bool
    """Whether an engine of this version runs it."""
    regather: str
    """When ZeRO-3 gathers weights, and why; empty where it has none to gather."""
    num_steps: int
    tokens: int
    """Of all steps."""
    batch_ramp: tuple[tuple[int, int], ...]
    """(Steps, sequences of each) with batches smaller than the job's; everything about one step is of the full one."""
    mean_step_seconds: float
    """Over all steps, those of the batch ramp with their own time."""
    memory: tuple[StageMemory, ...]
    """Of a rank of each pipeline stage."""
    verdict: Verdict
    time: StepTime
    traffic: Traffic
    mfu: float
    """Model FLOPs utilisation, 0 to 1; causal attention, recompute not counted: the convention of metrics.jsonl."""
    mfu_full_attention: float
    """The same with attention counted as if nothing were masked, as most published figures are."""
    hfu: float
    """With recompute counted, causal attention."""

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.job.tokens_per_step / self.time.seconds

    @property
    def undisturbed_days(self) -> float:
        """Of the whole training stage, if nothing failed."""
        return self.num_steps * self.mean_step_seconds / 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What the trained model costs to serve on the devices that it was trained on, by the roofline."""

    serving: Serving
    price: InferencePrice


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """A run before it starts."""

    name: str
    num_nodes: int
    devices_per_node: int
    device: str
    num_parameters: int
    num_active_parameters: int
    num_prediction_blocks: int
    """Blocks of multi-token prediction, which time and memory leave out."""
    is_muon: bool
    """Whether Muon updates the hidden matrices; memory and time are AdamW's all the same."""
    stages: tuple[StagePlan, ...]
    storage: Storage
    """What checkpoints are written to."""
    storage_is_assumed: bool
    """Whether the config does not say how fast it is."""
    goodput: GoodputPlan | None
    """Of all training stages together; null on CPUs, whose failures nobody has counted."""
    served: Served | None
    """Null where no price is known, or the model is too large to be served on so many devices."""

    @property
    def num_devices(self) -> int:
        """Devices of the job, spares not counted."""
        return self.num_nodes * self.devices_per_node


def plan_run(config: RunConfig, constants: Constants = CONSTANTS, *, software: str | None = None) -> RunPlan:
    """Return the plan of a run; `software` is the program that runs it, null ours.

    Raises:
        ConfigError: the config does not say what a plan needs.
    """
    stages = tuple(plan_stage(config, name, constants, software=software) for name in config.stages)
    return RunPlan(
        name=config.run.name,
        num_nodes=config.cluster.num_nodes,
        devices_per_node=config.cluster.processes_per_node,
        device=config.cluster.accelerator.name,
        num_parameters=num_parameters(config.model),
        num_active_parameters=num_active_parameters(config.model),
        num_prediction_blocks=config.model.num_prediction_blocks,
        is_muon=config.optimizer.kind is OptimizerKind.muon,
        stages=stages,
        storage=storage_of(config),
        storage_is_assumed=config.cluster.storage.write_bytes_per_second is None,
        goodput=_goodput(config, stages) if config.cluster.accelerator.device != "cpu" else None,
        served=_served(config, stages[-1].job),
    )


def plan_stage(
    config: RunConfig, training_stage: str, constants: Constants = CONSTANTS, *, software: str | None = None
) -> StagePlan:
    """Return the plan of one training stage."""
    job, regather = chosen_regather(
        as_program(job_of(config, training_stage), software), config.layout_of(training_stage).regather, constants
    )
    time = step_time(job, constants)
    steps, replicas = config.num_steps(training_stage), config.num_replicas(training_stage)
    *ramp, _ = phases = config.batch_sizes(training_stage).lengths(steps)
    seconds = sum(
        number * step_time(_with_batch(job, sequences // replicas), constants).seconds for number, sequences in phases
    )
    return StagePlan(
        training_stage=training_stage,
        job=job,
        layout=describe(job.split, job.batch),
        runs_today=runs_today(job),
        regather=regather,
        num_steps=steps,
        tokens=config.num_tokens(training_stage),
        batch_ramp=tuple(ramp),
        mean_step_seconds=seconds / steps,
        memory=memory(job, constants),
        verdict=verdict(job, constants),
        time=time,
        traffic=traffic(job, constants),
        mfu=mfu(job, time.seconds),
        mfu_full_attention=mfu(job, time.seconds, Counted.full),
        hfu=hfu(job, time.seconds),
    )


def planned_stages(config: RunConfig, stages: Sequence[StagePlan]) -> dict[str, PlannedStage]:
    """Return what plan.json of a run directory holds, for the report to compare with."""
    planned = {}
    for stage in stages:
        layout = config.layout_of(stage.training_stage)
        planned[stage.training_stage] = PlannedStage(
            layout=Layout(
                world_size=config.world_size, num_pipeline_stages=layout.pipeline, zero_stage=layout.zero_stage
            ).describe(),
            step_seconds=stage.time.seconds,
            tokens_per_second=stage.tokens_per_second,
            mfu=stage.mfu,
            memory_bytes=stage.memory[0].tensors_bytes,
            num_ramp_steps=sum(steps for steps, _ in stage.batch_ramp),
        )
    return planned


def _with_batch(job: Job, replica_sequences: int) -> Job:
    """Return the same job with another number of sequences for each replica and step."""
    return replace(job, batch=replace(job.batch, accumulation=replica_sequences // job.batch.micro_batch))


def storage_of(config: RunConfig) -> Storage:
    """Return where checkpoints go; what the config does not say is 1 GB/s for each node, and reading as fast."""
    storage, nodes = config.cluster.storage, config.cluster.num_nodes
    write = storage.write_bytes_per_second or _NODE_WRITE_BYTES_PER_SECOND * nodes
    return Storage(
        write_bytes_per_second=write,
        read_bytes_per_second=storage.read_bytes_per_second or write,
        host_copy_bytes_per_second=storage.host_copy_bytes_per_second,
        write_slowdown=storage.write_slowdown,
    )


def _goodput(config: RunConfig, stages: tuple[StagePlan, ...]) -> GoodputPlan:
    cluster, num_steps = config.cluster, sum(stage.num_steps for stage in stages)
    seconds = sum(stage.num_steps * stage.mean_step_seconds for stage in stages)
    computing = sum(
        stage.num_steps * stage.mean_step_seconds * stage.time.passes.compute / stage.time.seconds for stage in stages
    )
    watts, power = cluster.accelerator.power_watts, cluster.power
    return plan_goodput(
        RunOutline(
            num_steps=num_steps,
            step_seconds=seconds / num_steps,
            tokens=sum(stage.tokens for stage in stages),
            num_nodes=cluster.num_nodes,
            devices_per_node=cluster.processes_per_node,
            num_parameters=num_parameters(config.model),
            asynchronous=config.checkpoint.asynchronous,
            every_steps=config.checkpoint.every_steps,
            computing_share=min(1.0, computing / seconds),
        ),
        reliability=cluster.reliability,
        storage=storage_of(config),
        price_per_device_hour=cluster.accelerator.price_per_hour,
        power=None
        if watts is None
        else Power(
            device_watts=watts,
            host_watts=power.host_watts,
            waiting_share=power.waiting_share,
            pue=power.pue,
            price_per_kwh=power.price_per_kwh,
        ),
        step_sigma=STEP_SIGMA,
        seed=config.run.seed,
    )


def _served(config: RunConfig, job: Job) -> Served | None:
    """Return the price of serving on the fewest devices (a power of two) that hold the model and a full batch."""
    price = config.cluster.accelerator.price_per_hour
    if price is None or job.number_format is NumberFormat.fp32:
        return None
    devices = 1
    while devices <= _LARGEST_COPY:
        serving = Serving(
            num_devices=devices,
            batch_sequences=_SERVED_SEQUENCES,
            context_tokens=job.batch.sequence_length,
            number_format=job.number_format,
        )
        if serving.fits(job.model, job.device):
            found = inference_price(job.model, job.device, serving, price_per_device_hour=price)
            return Served(serving=serving, price=found)
        devices *= 2
    return None
