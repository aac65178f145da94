"""A training stage as the rehearsal sees it: its grid of ranks, and what each of them holds and schedules. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from training.config.deepspeed_config import deepspeed_config
from training.config.optimizer_schema import OptimizerKind
from training.config.schema import ParallelConfig, PipelineEngineKind, Precision, Recompute, Regather, RunConfig
from training.config.stage_schema import PREFERENCE_MEASURES
from training.errors import ConfigError
from training.models.cut import cut
from training.models.memory import choose_regather, device_memory_bytes
from training.models.zero_memory import SUB_GROUP_ELEMENTS
from training.parallel.program import Program as SchedulePart
from training.parallel.program import programs
from training.parallel.schedule import Schedule, make_schedule
from training.planner.from_config import job_of
from training.planner.job import Job
from training.planner.regather import chosen_regather
from training.rehearsal.axis_program import AxisProgram
from training.rehearsal.chunk_program import ChunkProgram
from training.rehearsal.engine_program import EngineProgram
from training.rehearsal.gathers import GatherLimits
from training.rehearsal.grid import Grid, GroupKind
from training.rehearsal.parameters import Layer, Parameter, chunk_layers, decoder_layers, distinct


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training stage as the rehearsal sees it."""

    config: RunConfig
    training_stage: str
    grid: Grid

    @property
    def is_planned_only(self) -> bool:
        """Whether no engine runs it yet: a tensor axis."""
        return self.grid.tensor > 1

    @property
    def layout(self) -> ParallelConfig:
        """The training stage's layout."""
        return self.config.layout_of(self.training_stage)

    @cached_property
    def parts(self) -> list[range]:
        """Layers of every chunk, in order; chunk c lives on pipeline stage c % pipeline."""
        return cut(self.config, self.training_stage)

    @property
    def has_tied_copies(self) -> bool:
        """Whether a tied weight has a copy on another pipeline stage, or in another chunk."""
        return self.config.model.tied_embeddings and len(self.parts) > 1

    @cached_property
    def layers(self) -> list[Layer]:
        """Layers of the whole model."""
        return decoder_layers(self.config.model)

    @cached_property
    def job(self) -> Job | None:
        """What launch.plan plans; None where the speeds of the cluster's devices and links are unknown."""
        cluster = self.config.cluster
        speeds = (cluster.network, cluster.accelerator.peak_flops_per_second)
        if any(speed is None for speed in (*speeds, cluster.accelerator.memory_bytes_per_second)):
            return None
        return chosen_regather(job_of(self.config, self.training_stage), self.layout.regather)[0]

    @cached_property
    def regather(self) -> Regather:
        """When chunks under ZeRO-3 gather their weights: as the engines decide, with a tensor axis as launch.plan does.

        Where that cannot plan and `auto` is asked for, per micro-batch.
        """
        if self.is_planned_only:
            if self.job is not None and self.layout.zero_stage == 3 and self.grid.pipeline > 1:
                return Regather.per_step if self.job.split.gathers_per_step else Regather.per_microbatch
            asked = self.layout.regather
            return Regather.per_microbatch if asked is Regather.auto else asked
        memory_bytes = device_memory_bytes(self.config, self.layout)
        return choose_regather(self.config, self.training_stage, parts=self.parts, memory_bytes=memory_bytes)[0]

    @property
    def num_routing_sums(self) -> int:
        """Numbers that a step sums up of what its routers did (training/models/routing_log.py)."""
        experts = self.config.model.experts
        return sum(layer.has_experts for layer in self.layers) * (experts.num_experts + 3) if experts else 0

    @property
    def num_losses(self) -> int:
        """Numbers that a step sums up of its micro-batches' losses (training/engine/learning_pass.py)."""
        learns_from_pairs = self.config.stages[self.training_stage].preference_settings is not None
        return 1 + len(PREFERENCE_MEASURES) if learns_from_pairs else 1

    @property
    def global_batch(self) -> int:
        """Samples of one step, after a batch ramp if there is one."""
        return self.config.stages[self.training_stage].global_batch_sequences

    @property
    def micro_batch(self) -> int:
        """Samples that one replica runs at once."""
        return self.config.stages[self.training_stage].micro_batch_sequences

    @property
    def accumulation(self) -> int:
        """Micro-batches of one replica and step."""
        return self.global_batch // (self.micro_batch * self.grid.data)

    @cached_property
    def zero_settings(self) -> dict[str, Any]:
        """What the DeepSpeed dictionary says of ZeRO."""
        return deepspeed_config(self.config, self.training_stage)["zero_optimization"]

    @property
    def gather_limits(self) -> GatherLimits:
        """What ZeRO-3 without a pipeline gathers ahead and holds."""
        keys = {
            "prefetch": "stage3_prefetch_bucket_size",
            "live": "stage3_max_live_parameters",
            "reuse": "stage3_max_reuse_distance",
            "persistent": "stage3_param_persistence_threshold",
        }
        told = self.zero_settings
        return GatherLimits(**{name: told[key] for name, key in keys.items() if key in told})

    @cached_property
    def schedule(self) -> Schedule:
        """The pipeline's table of actions; without a pipeline, forwards and backwards in turn."""
        return make_schedule(
            self.layout.schedule,
            num_pipeline_stages=self.grid.pipeline,
            chunks_per_rank=self.layout.chunks_per_rank,
            num_micro_batches=self.accumulation,
        )

    @cached_property
    def schedule_programs(self) -> Sequence[SchedulePart]:
        """What each pipeline stage computes, sends and receives."""
        return programs(self.schedule)

    def pipeline_stage_ranks(self, pipeline_stage: int) -> range:
        """Return the ranks of a pipeline stage."""
        width = self.grid.world_size // self.grid.pipeline
        return range(pipeline_stage * width, (pipeline_stage + 1) * width)

    def pipeline_stage_ranks_of(self, rank: int) -> range:
        """Return the ranks of a rank's pipeline stage."""
        return self.pipeline_stage_ranks(self.grid.pipeline_stage_of(rank))

    def chunks_of(self, pipeline_stage: int) -> range:
        """Return the numbers of a pipeline stage's chunks."""
        return range(pipeline_stage, len(self.parts), self.grid.pipeline)

    @cached_property
    def chunks(self) -> list[ChunkProgram]:
        """Every chunk. Its experts are those of the first expert rank; tensor ranks hold their parts."""
        return [self._chunk(part) for part in self.parts]

    def held_layers(self, part: range, *, expert_place: int = 0) -> list[Layer]:
        """Return the layers of a part of the model as one rank holds them: its experts, its parts of matrices."""
        tensor, expert = self.grid.tensor, self.grid.expert

        def held(layer: Layer) -> Layer:
            parameters = [parameter.tensor_part(tensor) for parameter in layer.parameters]
            if expert == 1:
                return replace(layer, parameters=tuple(parameters))
            return replace(
                layer,
                parameters=tuple(p for p in parameters if not p.is_expert),
                apart=tuple(p.expert_part(expert_place, expert) for p in parameters if p.is_expert),
            )

        return [held(layer) for layer in chunk_layers(self.layers, part)]

    def _chunk(self, part: range) -> ChunkProgram:
        layers = self.held_layers(part)
        stage, layout, precision = self.config.stages[self.training_stage], self.layout, self.config.precision
        apart = [parameter for layer in layers for parameter in layer.apart]
        return ChunkProgram(
            layers=layers,
            dense=self._engine(distinct(layers), [layer.parameters for layer in layers], GroupKind.shards),
            experts=self._engine(apart, [layer.apart for layer in layers], GroupKind.expert_shards) if apart else None,
            axes=AxisProgram(
                grid=self.grid,
                model=self.config.model,
                num_sequences=stage.micro_batch_sequences,
                num_tokens=stage.micro_batch_sequences * stage.sequence_length // self.grid.sequence,
                dtype="bfloat16" if precision is Precision.bf16 else "float32",
            ),
            recomputes=layout.recompute is not Recompute.none,
        )

    def _engine(
        self, parameters: list[Parameter], units: Sequence[Sequence[Parameter]], group: GroupKind
    ) -> EngineProgram:
        """Return the engine of parameters; in a chunk its bucket is as large as the largest unit of them."""
        bucket: int = self.zero_settings["reduce_bucket_size"]
        if self.layout.runs_in_chunks:
            bucket = min(bucket, max(sum(parameter.numel for parameter in unit) for unit in units))
        shards = {GroupKind.shards: self.grid.num_shards, GroupKind.expert_shards: self.grid.num_expert_shards}
        return EngineProgram(
            parameters=parameters,
            group=group,
            num_shards=shards[group],
            zero_stage=self.layout.zero_stage,
            precision=self.config.precision,
            optimizer=self.config.optimizer,
            bucket_elements=bucket,
            sub_group_elements=self.zero_settings.get("sub_group_size", SUB_GROUP_ELEMENTS),
            in_chunk=self.layout.runs_in_chunks,
        )


def plan_of(config: RunConfig, training_stage: str) -> Plan:
    """Return a training stage's layout as a grid of ranks.

    Raises:
        ConfigError: it runs on DeepSpeed's own PipelineEngine, with Muon or with multi-token prediction,
            or learns from pairs with a sequence axis.
    """
    layout = config.layout_of(training_stage)
    if layout.pipeline > 1 and layout.pipeline_engine is PipelineEngineKind.deepspeed:
        raise ConfigError(
            "parallel.pipeline_engine",
            layout.pipeline_engine,
            "the program of DeepSpeed's PipelineEngine is its own; what is rehearsed are our engines",
            "parallel.pipeline_engine=autarky",
        )
    if config.optimizer.kind is OptimizerKind.muon:
        raise ConfigError(
            "optimizer.kind",
            config.optimizer.kind,
            "what ranks exchange for Muon's updates is not rehearsed",
            "optimizer=adamw, which is the same but for the end of each step",
        )
    if config.model.prediction is not None:
        raise ConfigError(
            "model.prediction",
            "…",
            "what blocks of multi-token prediction gather and exchange is not rehearsed",
            "model.prediction=null, which is the same but for the last pipeline stage",
        )
    if config.stages[training_stage].preference_settings is not None and layout.sequence > 1:
        raise ConfigError(
            f"stages.{training_stage}.kind",
            config.stages[training_stage].kind,
            "ranks that share sequences add up what each knows of the answers, whose number follows from the data",
            "parallel.sequence=1, or rehearse the training stages before it",
        )
    if layout.zero_secondary_ranks is not None:
        raise ConfigError(
            "parallel.zero_secondary_ranks",
            layout.zero_secondary_ranks,
            "no engine runs a second copy of the weights, and its gathers are not rehearsed",
            "parallel.zero_secondary_ranks=null",
        )
    return Plan(
        config=config,
        training_stage=training_stage,
        grid=Grid(
            pipeline=layout.pipeline,
            data=config.num_replicas(training_stage),
            sequence=layout.sequence,
            tensor=layout.tensor,
            expert=layout.expert,
        ),
    )
