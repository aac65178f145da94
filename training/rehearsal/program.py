"""A training stage's config -> the program of every rank, phase by phase. No torch.

Ranks of one pipeline stage run one text with other group members, so there are as many texts as pipeline stages; more
only where shards of a tied weight differ in size at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.config.deepspeed_config import REDUCE_BUCKET_ELEMENTS
from training.config.schema import ParallelConfig, Regather, RunConfig
from training.models.cut import cut
from training.models.memory import choose_regather, device_memory_bytes
from training.parallel import program as pipeline_program
from training.parallel.schedule import Action, Kind, Schedule, make_schedule
from training.rehearsal.axis_program import AxisProgram
from training.rehearsal.buckets import in_release_order, partition_numel, shard_numel
from training.rehearsal.engine_program import EngineProgram
from training.rehearsal.gathers import Coordinator, Gather
from training.rehearsal.grid import Grid, GroupKind
from training.rehearsal.operations import Collective, CollectiveKind, Compute, Operation, Program, Receive, Send
from training.rehearsal.parameters import Layer, Parameter, Sharing, chunk_layers, decoder_layers


class Phase(StrEnum):
    """Parts of a run that are executed one after the other."""

    start = "start"
    """Making the engine."""
    first_step = "first step"
    step = "step"
    """Any later one."""
    save = "save"
    """Writing a checkpoint, on a thread of its own."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What all ranks run in one phase."""

    texts: tuple[Program, ...]
    text_of_rank: NDArray[np.int32]

    def of(self, rank: int) -> Program:
        """Return a rank's program."""
        return self.texts[self.text_of_rank[rank]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training stage as the rehearsal sees it."""

    config: RunConfig
    training_stage: str
    grid: Grid

    @property
    def layout(self) -> ParallelConfig:
        """The training stage's layout."""
        return self.config.layout_of(self.training_stage)

    @cached_property
    def parts(self) -> list[range]:
        """Layers of every chunk, in order; chunk c lives on pipeline stage c % pipeline."""
        return cut(self.config, self.training_stage)

    @cached_property
    def layers(self) -> list[Layer]:
        """Layers of the whole model."""
        return decoder_layers(self.config.model)

    @cached_property
    def regather(self) -> Regather:
        """When a pipeline under ZeRO-3 gathers its weights; with planned axes as the config says, else per micro-batch.

        What `auto` would decide from is the memory plan of the axes that run.
        """
        if self.grid.is_planned_only():
            asked = self.layout.regather
            return Regather.per_microbatch if asked is Regather.auto else asked
        memory_bytes = device_memory_bytes(self.config, self.layout)
        return choose_regather(self.config, self.training_stage, parts=self.parts, memory_bytes=memory_bytes)[0]

    @property
    def global_batch(self) -> int:
        """Samples of one step."""
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
    def schedule(self) -> Schedule:
        """The pipeline's table of actions; without a pipeline, forwards and backwards in turn."""
        return make_schedule(
            self.layout.schedule,
            num_pipeline_stages=self.grid.pipeline,
            chunks_per_rank=self.layout.chunks_per_rank,
            num_micro_batches=self.accumulation,
        )

    def pipeline_stage_ranks(self, pipeline_stage: int) -> range:
        """Return the ranks of a pipeline stage."""
        width = self.grid.world_size // self.grid.pipeline
        return range(pipeline_stage * width, (pipeline_stage + 1) * width)

    def chunks_of(self, pipeline_stage: int) -> range:
        """Return the numbers of a pipeline stage's chunks."""
        return range(pipeline_stage, len(self.parts), self.grid.pipeline)

    @cached_property
    def engines(self) -> list[EngineProgram]:
        """The engine of every chunk. Experts are those of one expert rank; tensor ranks hold their parts."""
        return [self._engine(part) for part in self.parts]

    def held_layers(self, part: range, *, expert_place: int = 0) -> list[Layer]:
        """Return the layers of a part of the model as one rank holds them: its experts, its parts of matrices."""
        experts, grid = self.config.model.experts, self.grid
        each = experts.num_experts // grid.expert if experts else 0
        mine = range(expert_place * each, (expert_place + 1) * each)

        def held(layer: Layer) -> Layer:
            parameters = [p for p in layer.parameters if p.expert is None or p.expert in mine]
            return replace(layer, parameters=tuple(p.tensor_part(grid.tensor) for p in parameters))

        return [held(layer) for layer in chunk_layers(self.layers, part)]

    @property
    def shards(self) -> dict[Sharing, int]:
        """Ranks that ZeRO shards over, for each kind of parameter."""
        return {Sharing.dense: self.grid.num_shards, Sharing.expert: self.grid.num_expert_shards}

    def _engine(self, part: range) -> EngineProgram:
        layers = self.held_layers(part)
        bucket = REDUCE_BUCKET_ELEMENTS
        if self.grid.pipeline > 1:
            bucket = min(bucket, max(sum(p.numel for p in layer.parameters) for layer in layers))
        stage, model, precision = self.config.stages[self.training_stage], self.config.model, self.config.precision
        return EngineProgram(
            layers=layers,
            zero_stage=self.layout.zero_stage,
            precision=precision,
            num_shards=self.shards,
            bucket_elements=bucket,
            in_pipeline=self.grid.pipeline > 1,
            axes=AxisProgram(
                grid=self.grid,
                model=model,
                num_tokens=stage.micro_batch_sequences * stage.sequence_length // self.grid.sequence,
                dtype="bfloat16" if precision.value == "bf16" else "float32",
                recompute=self.layout.recompute,
            ),
        )


def build_programs(plan: Plan) -> dict[Phase, Texts]:
    """Return what all ranks run, phase by phase."""
    save = (all_reduce(GroupKind.checkpoint, 1, "int64", "bytes to be written"),) + 3 * (
        all_reduce(GroupKind.checkpoint, 1, "int64", "have all ranks succeeded"),
    )
    same_for_all = Texts((save,), np.zeros(plan.grid.world_size, np.int32))
    if plan.grid.pipeline == 1:
        phases = _without_pipeline(plan)
        every = np.zeros(plan.grid.world_size, np.int32)
        return {**{phase: Texts((text,), every) for phase, text in phases.items()}, Phase.save: same_for_all}
    step = _by_tied_part(plan, lambda stage, tied: _pipeline_step(plan, stage, tied))
    return {
        Phase.start: _by_pipeline_stage(plan, lambda stage: _pipeline_start(plan, stage)),
        Phase.first_step: step,
        Phase.step: step,
        Phase.save: same_for_all,
    }


def all_reduce(group: GroupKind, numel: int, dtype: str, about: str) -> Collective:
    """Return an all-reduce."""
    return Collective(CollectiveKind.all_reduce, group, numel, dtype, about=about)


def _sum(numel: int, about: str) -> Collective:
    """Return `ProcessGroup.sum`: one number more than it is given, the ballot's."""
    return all_reduce(GroupKind.world, numel + 1, "float64", f"{about}, ballot")


def _without_pipeline(plan: Plan) -> dict[Phase, Program]:
    (engine,) = plan.engines
    zero_stage = plan.layout.zero_stage
    # utils/groups.py, `_clone_world_group`: an engine that is given no group makes its own of all ranks.
    start = (*_new_groups(plan.grid, [GroupKind.world]), *engine.start())
    if zero_stage < 3:
        micro_batches = [
            _passes(engine, micro_batch, engine.reductions(is_last=micro_batch == plan.accumulation - 1))
            for micro_batch in range(plan.accumulation)
        ]
        step = _zero_step(engine, micro_batches, [])
        return {Phase.start: start, Phase.first_step: step, Phase.step: step}
    coordinator = Coordinator(engine.layers)
    steps = [_sharded_step(engine, coordinator, plan.accumulation) for _ in range(3)]
    # Two steps at least, so that also a step of one micro-batch has ended the recording.
    return {Phase.start: start, Phase.first_step: steps[0], Phase.step: steps[2]}


def _zero_step(
    engine: EngineProgram, micro_batches: Sequence[Sequence[Operation]], after: Sequence[Collective]
) -> Program:
    return (
        _sum(1, "valid tokens"),
        *(operation for micro_batch in micro_batches for operation in micro_batch),
        _sum(1, "loss"),
        *engine.update(),
        *after,
    )


def _passes(engine: EngineProgram, micro_batch: int, reductions: Sequence[Collective]) -> list[Operation]:
    forward = [operation for layer in engine.layers for operation in engine.axes.forward(layer)]
    backward = [operation for layer in reversed(engine.layers) for operation in engine.axes.backward(layer)]
    return [
        Compute(Action(Kind.forward, 0, micro_batch)),
        *forward,
        Compute(Action(Kind.backward, 0, micro_batch)),
        *backward,
        *reductions,
    ]


def _sharded_step(engine: EngineProgram, coordinator: Coordinator, accumulation: int) -> Program:
    """Return a step of ZeRO-3 without a pipeline."""
    # The gradient of a tied weight is complete once backward has come to the earlier of its layers.
    earliest = {p.name: index for index, layer in reversed(list(enumerate(engine.layers))) for p in layer.parameters}
    micro_batches: list[list[Operation]] = []
    for micro_batch in range(accumulation):
        checks = _order_checks(coordinator)
        coordinator.begin_micro_batch()
        events: list[Collective | Parameter] = []
        for event in coordinator.run():
            if isinstance(event, Gather):
                for sharing in engine.sharings:
                    mine = [p for p in event.parameters if p.sharing is sharing]
                    events += [engine.gather(mine)] if mine else []
            else:
                ready = in_release_order(engine.layers[event.layer])
                events += [p for p in ready if earliest[p.name] == event.layer]
        passes = _passes(engine, micro_batch, engine.with_reductions(events))
        micro_batches.append([passes[0], *checks, *passes[1:]])
    coordinator.update()
    return _zero_step(engine, micro_batches, [engine.gather([p]) for p in coordinator.persistent])


def _order_checks(coordinator: Coordinator) -> list[Collective]:
    """Return how DeepSpeed makes sure that all ranks recorded the same order (zero/utils.py, `assert_ints_same…`)."""
    modules, parameters = coordinator.num_recorded
    lists = [] if coordinator.is_recorded else [0]
    if coordinator.is_recorded and coordinator.is_recording:
        lists = [modules, parameters, parameters]
    return [
        Collective(CollectiveKind.broadcast, GroupKind.world, numel, "int64", root=0, about="recorded order of modules")
        for length in lists
        for numel in (1, length)
    ]


def _pipeline_start(plan: Plan, pipeline_stage: int) -> Program:
    told = len(plan.regather.value)
    kinds = [GroupKind.pipeline, GroupKind.shards]
    chunks = [plan.engines[chunk] for chunk in plan.chunks_of(pipeline_stage)]
    tied = [GroupKind.tied] if plan.config.model.tied_embeddings else []
    return (
        *(
            Collective(CollectiveKind.broadcast, GroupKind.world_cpu, numel, dtype, root=0, about="regather")
            for numel, dtype in ((1, "int64"), (told, "uint8"))
        ),
        *_new_groups(plan.grid, [*kinds, *_planned_groups(plan.grid)]),
        *(operation for engine in chunks for operation in engine.start()),
        *_new_groups(plan.grid, tied),
    )


def _planned_groups(grid: Grid) -> list[GroupKind]:
    sizes = {GroupKind.sequence: grid.sequence, GroupKind.tensor: grid.tensor, GroupKind.expert: grid.expert}
    kinds = [kind for kind, size in sizes.items() if size > 1]
    return [*kinds, GroupKind.expert_shards] if grid.expert > 1 else kinds


def _new_groups(grid: Grid, kinds: Sequence[GroupKind]) -> list[Collective]:
    return [
        Collective(CollectiveKind.new_group, GroupKind.world, members=f"{kind} group {index}")
        for kind in kinds
        for index in range(len(grid.groups(kind)))
    ]


def _pipeline_step(plan: Plan, pipeline_stage: int, tied_numel: int | None) -> Program:
    engines = {chunk: plan.engines[chunk] for chunk in plan.chunks_of(pipeline_stage)}
    sharded = plan.layout.zero_stage == 3
    held = sharded and plan.regather is Regather.per_step
    gathers = sharded and not held
    stage, first = plan.config.stages[plan.training_stage], next(iter(engines.values()))
    hidden = (
        stage.micro_batch_sequences * stage.sequence_length // plan.grid.sequence * plan.config.model.hidden_size,
        first.weights_dtype,
    )
    last = plan.accumulation - 1
    forwards = {chunk: engine.forward(gathers=gathers) for chunk, engine in engines.items()}
    backwards = {
        (chunk, is_last): engine.backward(gathers=gathers, is_last=is_last)
        for chunk, engine in engines.items()
        for is_last in (False, True)
    }
    operations: list[Operation] = [_sum(1, "valid tokens")]
    if held:
        for engine in engines.values():
            operations += [operation for layer in engine.layers for operation in engine.gather_layer(layer)]
    for step in pipeline_program.programs(plan.schedule)[pipeline_stage]:
        match step:
            case pipeline_program.Compute(action):
                operations.append(Compute(action))
                if action.kind is Kind.forward:
                    operations += forwards[action.chunk]
                else:
                    operations += backwards[action.chunk, action.micro_batch == last]
            case pipeline_program.Send():
                operations.append(Send(step.produced_by, step.peer_stage, *hidden))
            case pipeline_program.Receive():
                operations.append(Receive(step.produced_by, step.peer_stage, *hidden))
    if tied_numel is not None:
        about = f"gradients {plan.layers[0].parameters[0].name} of both its copies"
        operations.append(all_reduce(GroupKind.tied, tied_numel, "float32", about))
    operations.append(_sum(3, "squared norm, loss, idle share"))
    for engine in engines.values():
        operations += engine.update()
    return tuple(operations)


def _by_pipeline_stage(plan: Plan, text: Callable[[int], Program]) -> Texts:
    grid = plan.grid
    stages = np.arange(grid.world_size, dtype=np.int32) * np.int64(grid.pipeline) // grid.world_size
    return Texts(tuple(map(text, range(grid.pipeline))), stages.astype(np.int32))


def _by_tied_part(plan: Plan, text: Callable[[int, int | None], Program]) -> Texts:
    """Return texts by pipeline stage and, where a tied weight is, by how much of it a rank holds."""
    grid = plan.grid
    held = _tied_parts(plan)
    keys: dict[tuple[int, int | None], int] = {}
    text_of_rank = np.empty(grid.world_size, np.int32)
    rows = text_of_rank.reshape(grid.pipeline, grid.num_shards, grid.tensor)
    for stage in range(grid.pipeline):
        has_tied = held is not None and stage in (0, grid.pipeline - 1)
        for numel in np.unique(held).tolist() if held is not None and has_tied else [None]:
            # Where ZeRO-1 and 2 have only padding of it, DeepSpeed knows no such gradient.
            told = None if numel == 0 and plan.layout.zero_stage < 3 else numel
            number = keys.setdefault((stage, told), len(keys))
            rows[stage, (held == numel) if numel is not None else slice(None)] = number
    return Texts(tuple(text(stage, numel) for stage, numel in keys), text_of_rank)


def _tied_parts(plan: Plan) -> NDArray[np.int64] | None:
    """Return how many elements of the tied weight each shard holds, padding left out; None if there is none."""
    if not plan.config.model.tied_embeddings:
        return None
    numel, shards = plan.layers[0].parameters[0].numel, plan.grid.num_shards
    part = shard_numel(numel, shards) if plan.layout.zero_stage == 3 else partition_numel(numel, shards)
    return np.clip(numel - np.arange(shards, dtype=np.int64) * part, 0, part)
