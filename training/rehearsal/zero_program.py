"""What ranks run without a pipeline: our ZeroEngine over DeepSpeed's (training/engine/zero.py). No torch."""

from collections.abc import Sequence

from training.parallel.schedule import Action, Kind
from training.rehearsal.axis_program import axis_groups
from training.rehearsal.chunk_program import ChunkProgram, Event
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
from training.rehearsal.plan import Plan


def without_pipeline(plan: Plan) -> tuple[Program, Program, Program, Program]:
    """Return what every rank runs at the start, in the first step, in the second and in later ones."""
    (chunk,) = plan.chunks
    zero_stage = plan.layout.zero_stage
    axes = new_groups(plan.grid, axis_groups(plan.grid))
    # utils/groups.py, `_clone_world_group`: DeepSpeed makes a group of its own of all ranks, once in a process. Weights
    # that are sharded as they are built (training/engine/sharded_layers.py) do without it.
    own_group = new_groups(plan.grid, [GroupKind.world])
    weights = chunk.initial_weights()
    if zero_stage < 3:
        start = (*axes, *own_group, *weights)
        micro_batches = [
            (
                Compute(Action(Kind.forward, 0, micro_batch)),
                *chunk.forward(gathers=False),
                Compute(Action(Kind.backward, 0, micro_batch)),
                *chunk.backward(gathers=False, is_last=micro_batch == plan.accumulation - 1),
            )
            for micro_batch in range(plan.accumulation)
        ]
        step = _step(plan, micro_batches, [])
        return start, step, step, step
    start = (*axes, *weights, *own_group, *chunk.set_up())
    coordinator = Coordinator(chunk.layers, plan.gather_limits)
    # The recording ends with the second micro-batch, which may be the second step's.
    first, second, later = (_sharded_step(plan, chunk, coordinator) for _ in range(3))
    return start, first, second, later


def _step(plan: Plan, micro_batches: Sequence[Sequence[Operation]], after: Sequence[Collective]) -> Program:
    (chunk,) = plan.chunks
    return (
        world_sum(2, "targets, tokens"),
        *(operation for micro_batch in micro_batches for operation in micro_batch),
        world_sum(plan.num_losses + plan.num_routing_sums, "loss, routing" if plan.num_routing_sums else "loss"),
        *chunk.dense.update(),
        *after,
    )


def _sharded_step(plan: Plan, chunk: ChunkProgram, coordinator: Coordinator) -> Program:
    """Return a step of ZeRO-3 without a pipeline."""
    micro_batches: list[list[Operation]] = []
    for micro_batch in range(plan.accumulation):
        checks = _order_checks(coordinator)
        coordinator.begin_micro_batch()
        forward: list[Collective] = []
        backward: list[Event] = []
        is_forward = True
        for event in coordinator.run():
            if isinstance(event, Gather):
                (forward if is_forward else backward).append(chunk.dense.gather(event.parameters))
            elif event.kind is Kind.forward:
                forward += chunk.forward_of(chunk.layers[event.layer])
            else:
                is_forward = False
                backward += chunk.backward_of(event.layer)
        micro_batches.append(
            [
                Compute(Action(Kind.forward, 0, micro_batch)),
                *checks,
                *forward,
                Compute(Action(Kind.backward, 0, micro_batch)),
                *chunk.with_reductions(backward, is_last=micro_batch == plan.accumulation - 1),
            ]
        )
    coordinator.update()
    return _step(plan, micro_batches, [chunk.dense.gather([parameter]) for parameter in coordinator.persistent])


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
