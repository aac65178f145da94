"""What ranks run without a pipeline: our ZeroEngine over DeepSpeed's (training/engine/zero.py). No torch."""

from collections.abc import Sequence

from training.parallel.schedule import Action, Kind
from training.rehearsal.axis_program import planned_groups
from training.rehearsal.buckets import in_release_order
from training.rehearsal.engine_program import EngineProgram
from training.rehearsal.gathers import Coordinator, Gather
from training.rehearsal.grid import GroupKind
from training.rehearsal.operations import (
    Collective,
    CollectiveKind,
    Compute,
    Operation,
    Program,
    new_groups,
    world_sum,
)
from training.rehearsal.parameters import Parameter
from training.rehearsal.plan import Plan


def without_pipeline(plan: Plan) -> tuple[Program, Program, Program, Program]:
    """Return what every rank runs at the start, in the first step, in the second and in later ones."""
    (engine,) = plan.engines
    zero_stage = plan.layout.zero_stage
    # utils/groups.py, `_clone_world_group`: DeepSpeed makes a group of its own of all ranks, once in a process. Weights
    # that are sharded as they are built (training/engine/sharded_layers.py) do without it.
    own_group = new_groups(plan.grid, [GroupKind.world, *planned_groups(plan.grid)])
    before = engine.initial_weights() if zero_stage == 3 else []
    after = engine.set_up() if zero_stage == 3 else engine.initial_weights()
    start = (*before, *own_group, *after)
    if zero_stage < 3:
        micro_batches = [
            _passes(engine, micro_batch, engine.reductions(is_last=micro_batch == plan.accumulation - 1))
            for micro_batch in range(plan.accumulation)
        ]
        step = _zero_step(engine, micro_batches, [])
        return start, step, step, step
    coordinator = Coordinator(engine.layers, plan.gather_limits)
    # The recording ends with the second micro-batch, which may be the second step's.
    first, second, later = (_sharded_step(engine, coordinator, plan.accumulation) for _ in range(3))
    return start, first, second, later


def _zero_step(
    engine: EngineProgram, micro_batches: Sequence[Sequence[Operation]], after: Sequence[Collective]
) -> Program:
    return (
        world_sum(1, "valid tokens"),
        *(operation for micro_batch in micro_batches for operation in micro_batch),
        world_sum(1, "loss"),
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
                ready = in_release_order(engine.layers[event.layer], engine.optimizer)
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
