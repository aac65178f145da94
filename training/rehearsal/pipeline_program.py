"""What ranks run whose model is in chunks: our PipelineZeroEngine (training/engine/pipeline_zero.py). No torch.

That is every pipeline, and experts that are spread over ranks also without one.
"""

from training.config.schema import Regather
from training.parallel import program as schedule_program
from training.parallel.schedule import Kind
from training.rehearsal.axis_program import axis_groups
from training.rehearsal.grid import GroupKind
from training.rehearsal.operations import (
    Collective,
    CollectiveKind,
    Compute,
    Operation,
    Program,
    Receive,
    Send,
    all_reduce,
    new_groups,
    world_sum,
)
from training.rehearsal.plan import Plan


def pipeline_start(plan: Plan, pipeline_stage: int) -> Program:
    """Return how the ranks of a pipeline stage make their engine."""
    told = len(plan.regather.value)
    kinds = [GroupKind.pipeline, GroupKind.shards]
    chunks = [plan.chunks[number] for number in plan.chunks_of(pipeline_stage)]
    tied = [GroupKind.tied] if plan.has_tied_copies else []
    return (
        *(
            Collective(CollectiveKind.broadcast, GroupKind.world_cpu, numel, dtype, root=0, about="regather")
            for numel, dtype in ((1, "int64"), (told, "uint8"))
        ),
        *new_groups(plan.grid, [*kinds, *axis_groups(plan.grid)]),
        *(operation for chunk in chunks for operation in (*chunk.initial_weights(), *chunk.set_up())),
        *new_groups(plan.grid, tied),
    )


def pipeline_step(plan: Plan, pipeline_stage: int, tied_numel: int | None) -> Program:
    """Return one step of ranks of a pipeline stage.

    Args:
        plan: the training stage.
        pipeline_stage: place in the pipeline.
        tied_numel: elements that they hold of a tied weight; None if there is nothing to add up.
    """
    chunks = {number: plan.chunks[number] for number in plan.chunks_of(pipeline_stage)}
    sharded = plan.layout.zero_stage == 3
    held = sharded and plan.regather is Regather.per_step
    gathers = sharded and not held
    stage, first = plan.config.stages[plan.training_stage], next(iter(chunks.values()))
    hidden = (
        stage.micro_batch_sequences * stage.sequence_length // plan.grid.sequence * plan.config.model.hidden_size,
        first.dense.weights_dtype,
    )
    last = plan.accumulation - 1
    forwards = {number: chunk.forward(gathers=gathers) for number, chunk in chunks.items()}
    backwards = {
        (number, is_last): chunk.backward(gathers=gathers, is_last=is_last)
        for number, chunk in chunks.items()
        for is_last in (False, True)
    }
    operations: list[Operation] = [world_sum(2, "targets, tokens")]
    if held:
        for chunk in chunks.values():
            operations += chunk.gather_all()
    for step in plan.schedule_programs[pipeline_stage]:
        match step:
            case schedule_program.Compute(action):
                operations.append(Compute(action))
                if action.kind is Kind.forward:
                    operations += forwards[action.chunk]
                else:
                    operations += backwards[action.chunk, action.micro_batch == last]
            case schedule_program.Send():
                operations.append(Send(step.produced_by, step.peer_stage, *hidden))
            case schedule_program.Receive():
                operations.append(Receive(step.produced_by, step.peer_stage, *hidden))
    if tied_numel is not None:
        about = f"gradients {plan.layers[0].parameters[0].name} of both its copies"
        operations.append(all_reduce(GroupKind.tied, tied_numel, "float32", about))
    routed = ", routing" if plan.num_routing_sums else ""
    operations.append(world_sum(2 + plan.num_losses + plan.num_routing_sums, f"squared norm, loss, idle share{routed}"))
    # Engines of experts come after all others (training/engine/stateful.py).
    for engine in (*(chunk.dense for chunk in chunks.values()), *(chunk.experts for chunk in chunks.values())):
        operations += engine.update() if engine is not None else []
    return tuple(operations)
