"""What a rehearsal has shown, as text for people and as plain values for JSON. No torch."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from training.models.memory import device_memory_bytes
from training.rehearsal.failures import Loss, Start
from training.rehearsal.findings import Finding
from training.rehearsal.grid import Grid, Ranks, shown
from training.rehearsal.operations import Collective, CollectiveKind, Program, Send
from training.rehearsal.planned_memory import described
from training.rehearsal.planted import Trial
from training.rehearsal.program import Phase
from training.rehearsal.rehearsal import Rehearsal
from training.reporting.formatting import gibibytes, num_bytes

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "int64": 8, "uint8": 1}
_MOST_FINDINGS = 20
_RING_SHARES: dict[CollectiveKind, Callable[[int, int], float]] = {
    CollectiveKind.all_gather: lambda others, _size: others,
    CollectiveKind.reduce_scatter: lambda others, size: others / size,
    CollectiveKind.all_reduce: lambda others, size: 2 * others / size,
    CollectiveKind.broadcast: lambda others, _size: min(1, others),
    CollectiveKind.all_to_all: lambda others, size: others / size,
}
"""What a member sends, as a multiple of what it gives: (other members, members) -> share."""


def describe(rehearsal: Rehearsal, findings: Sequence[Finding]) -> str:
    """Return a page: the layout, what each pipeline stage runs in a step, what was checked, and every finding."""
    plan, ownership, files = rehearsal.plan, rehearsal.ownership, rehearsal.file_bytes
    grid = plan.grid
    inner = [
        f"{axis} {size}"
        for axis, size in (("sequence", grid.sequence), ("tensor", grid.tensor), ("expert", grid.expert))
        if size > 1
    ]
    axes = "".join(f" x {axis}" for axis in inner)
    layout = f"pipeline {grid.pipeline} x data {grid.data}{axes}, ZeRO-{plan.layout.zero_stage}"
    texts = rehearsal.phases[Phase.step].texts
    lines = [
        f"{plan.config.run.name}, {plan.training_stage}: {_count(grid.world_size, 'rank')} as {layout}",
        f"  programs    {sum(len(t.texts) for t in rehearsal.phases.values())} texts; a step is "
        f"{_span([len(text) for text in texts])} operations, the start {_span(_lengths(rehearsal, Phase.start))}",
        f"  gathers     {plan.regather if plan.layout.zero_stage == 3 else 'none: weights are whole'}",
        *(f"  step        {line}" for line in _step_lines(rehearsal)),
        f"  state       {len(ownership.state):,} ranges of {len(ownership.names):,} parameters, "
        f"{int(ownership.numels.sum()):,} elements",
        f"  samples     {plan.global_batch:,} a step: {_count(grid.data, 'replica')} x "
        f"{_count(plan.accumulation, 'micro-batch', 'es')} x {plan.micro_batch}"
        f"{'; counted from the end of the batch ramp' if plan.config.stages[plan.training_stage].batch_ramp else ''}",
        f"  checkpoint  {num_bytes(int(files.sum()))}; files of {num_bytes(int(files.min()))} to "
        f"{num_bytes(int(files.max()))}",
        f"  memory      {_memory_line(rehearsal)}",
    ]
    if plan.is_planned_only:
        lines.append(
            f"  PLANNED: no engine runs tensor {grid.tensor} yet; what is rehearsed of it is a proposal, compared with "
            "no engine"
        )
    return "\n".join([*lines, *_finding_lines(findings)])


def describe_loss(loss: Loss, starts: Sequence[tuple[str, Start | None]]) -> str:
    """Return what dies, and what the next start may be."""
    stages = ", ".join(f"{stage} ({dead})" for stage, dead in loss.dead_of_pipeline_stage.items())
    lines = [
        f"dead: {_count(len(loss.nodes), 'node')} ({', '.join(map(str, loss.nodes[:8]))}"
        f"{', …' if len(loss.nodes) > 8 else ''}), {shown(np.array(loss.ranks, np.int32))}",
        f"  pipeline stages (dead ranks)  {stages}",
        f"  replicas that cannot go on    {len(loss.replicas):,}",
        f"  state in no living memory     {num_bytes(loss.lost_bytes)} of {num_bytes(loss.state_bytes)}: "
        + ("the living hold a whole copy" if loss.survives_in_memory else "the last checkpoint is needed"),
    ]
    for name, start in starts:
        if start is None:
            lines.append(f"  {name}: no number of the living nodes fits pipeline and global batch")
            continue
        lines.append(
            f"  {name}: {start.num_nodes:,} nodes, {start.world_size:,} ranks as pipeline {start.pipeline} x data "
            f"{start.replicas}, {_count(start.accumulation, 'micro-batch', 'es')}; each rank reads at most "
            f"{num_bytes(int(start.read_bytes.max()))} from at most {_count(int(start.read_files.max()), 'file')}, "
            f"{num_bytes(int(start.read_bytes.sum()))} in all"
        )
    return "\n".join(lines)


def describe_trials(trials: Sequence[Trial], kinds: Sequence[str]) -> str:
    """Return a line for each planted mistake: what was said of it, or that it was missed."""
    width = max(map(len, kinds))
    by_kind = {trial.kind: trial for trial in trials}
    lines = []
    for kind in kinds:
        trial = by_kind.get(kind)
        if trial is None:
            lines.append(f"  {kind:{width}}  (this layout leaves no room for it)")
        else:
            said = "MISSED" if trial.naming is None else trial.naming.message.splitlines()[0]
            lines.append(f"  {kind:{width}}  {said}")
    named = sum(trial.naming is not None for trial in trials)
    return "\n".join([f"planted mistakes: {named} of {len(trials)} found and named", *lines])


def as_plain(rehearsal: Rehearsal, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the same as plain values."""
    plan, grid = rehearsal.plan, rehearsal.plan.grid
    return {
        "training_stage": plan.training_stage,
        "world_size": grid.world_size,
        "axes": {
            "pipeline": grid.pipeline,
            "data": grid.data,
            "sequence": grid.sequence,
            "tensor": grid.tensor,
            "expert": grid.expert,
        },
        "planned_only": plan.is_planned_only,
        "zero_stage": plan.layout.zero_stage,
        "regather": plan.regather.value,
        "parameters": int(rehearsal.ownership.numels.sum()),
        "operations": {phase.value: _lengths(rehearsal, phase) for phase in rehearsal.phases},
        "sent_bytes_per_step": [ring_bytes(text, grid) for text in rehearsal.phases[Phase.step].texts],
        "checkpoint_bytes": int(rehearsal.file_bytes.sum()),
        "largest_file_bytes": int(rehearsal.file_bytes.max()),
        "planned_memory_bytes": [part.total_bytes for part in rehearsal.memory],
        "findings": [findings_as_plain(finding) for finding in findings],
    }


def findings_as_plain(finding: Finding) -> dict[str, Any]:
    """Return one finding as plain values."""
    return {
        "check": finding.check,
        "message": finding.message,
        "ranks": list(finding.ranks),
        "parameter": finding.parameter,
        "operation": finding.operation,
    }


def loss_as_plain(loss: Loss, starts: Sequence[tuple[str, Start | None]]) -> dict[str, Any]:
    """Return a loss and the starts after it as plain values."""
    return {
        "nodes": list(loss.nodes),
        "ranks": list(loss.ranks),
        "dead_of_pipeline_stage": loss.dead_of_pipeline_stage,
        "replicas": list(loss.replicas),
        "lost_bytes": loss.lost_bytes,
        "survives_in_memory": loss.survives_in_memory,
        "starts": {
            name: start
            and {
                "num_nodes": start.num_nodes,
                "world_size": start.world_size,
                "replicas": start.replicas,
                "accumulation": start.accumulation,
                "largest_read_bytes": int(start.read_bytes.max()),
                "read_bytes": int(start.read_bytes.sum()),
                "most_files": int(start.read_files.max()),
            }
            for name, start in starts
        },
    }


def _finding_lines(findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return ["  no mistake: all programs end, and everything is owned, read and written exactly once"]
    lines = [f"  {_count(len(findings), 'FINDING')}"]
    lines += [f"  {finding.check}: {finding.message}" for finding in findings[:_MOST_FINDINGS]]
    left = len(findings) - _MOST_FINDINGS
    return [*lines, *([f"  and {left} more (--json has all)"] if left > 0 else [])]


def _step_lines(rehearsal: Rehearsal) -> list[str]:
    """Return a line for all ranks that start the same collectives in a step, in whatever order."""
    texts, grid = rehearsal.phases[Phase.step], rehearsal.plan.grid
    ranks_of: dict[str, list[Ranks]] = {}
    for number in dict.fromkeys(texts.text_of_rank.tolist()):
        text = texts.texts[number]
        counted = Counter(f"{op.kind} over {op.group}" for op in text if isinstance(op, Collective))
        sends = sum(isinstance(op, Send) for op in text)
        parts = [f"{count:,} {what}" for what, count in counted.items()]
        parts += [f"{sends:,} sends"] if sends else []
        line = f"{', '.join(parts) or 'nothing with other ranks'}; {num_bytes(ring_bytes(text, grid))} sent by each"
        ranks_of.setdefault(line, []).append(np.flatnonzero(texts.text_of_rank == number).astype(np.int32))
    return [f"{shown(np.concatenate(ranks))}: {line}" for line, ranks in ranks_of.items()]


def ring_bytes(text: Program, grid: Grid) -> int:
    """Return the bytes that a rank sends in a program if collectives go round a ring, each member passing parts on.

    Of n members each sends n-1 shards in an all-gather, (n-1)/n of its input in a reduce-scatter, and both in an
    all-reduce (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009).
    """
    kinds = {op.group for op in text if isinstance(op, Collective)}
    sizes = {kind: grid.groups(kind).shape[1] for kind in kinds}
    total = 0.0
    for op in text:
        if isinstance(op, Send):
            total += _DTYPE_BYTES[op.dtype] * op.numel
        elif isinstance(op, Collective) and op.dtype:
            given, others = _DTYPE_BYTES[op.dtype] * op.numel, sizes[op.group] - 1
            total += given * _RING_SHARES[op.kind](others, sizes[op.group])
    return round(total)


def _memory_line(rehearsal: Rehearsal) -> str:
    if not rehearsal.memory:
        return "not planned: launch.plan's way needs the speed of the cluster's devices and links"
    fullest = max(rehearsal.memory, key=lambda part: part.total_bytes)
    device = device_memory_bytes(rehearsal.plan.config, rehearsal.plan.layout)
    return f"fullest pipeline stage {described(fullest)}; the device has {gibibytes(device)}"


def _lengths(rehearsal: Rehearsal, phase: Phase) -> list[int]:
    return [len(text) for text in rehearsal.phases[phase].texts]


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"
