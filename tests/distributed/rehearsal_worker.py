"""One rank: builds and trains engines of many layouts and compares each call of a process group with the rehearsal.

python -m tests.distributed.rehearsal_worker OUTPUT.json FOLDER
"""

import json
import sys
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tests.distributed.configs import EXPERTS, STAGE, micro_batches, small_config
from tests.distributed.ending import leave
from tests.distributed.engine_checks import progress_at
from tests.distributed.extent import IS_WHOLE
from tests.distributed.recorded_program import METHODS, Call, ProgramRecorder, predicted
from training.checkpoint.saver import Saver
from training.checkpoint.snapshot import Snapshot
from training.config.deepspeed_config import deepspeed_config
from training.config.model_schema import BalanceScope
from training.config.schema import DeepSpeedSection, PipelineSchedule, Precision, Recompute, Regather, RunConfig
from training.engine.build import build_engine
from training.engine.process_group import ProcessGroup, start
from training.rehearsal.grid import GroupKind
from training.rehearsal.operations import CollectiveKind
from training.rehearsal.ownership import WEIGHT, Ownership
from training.rehearsal.program import Phase
from training.rehearsal.rehearsal import Rehearsal

WORLD_SIZE = 4
_BF16: dict[str, Any] = {"precision": Precision.bf16}
_INTERLEAVED: dict[str, Any] = {"schedule": PipelineSchedule.interleaved, "chunks_per_rank": 2}
_PER_STEP: dict[str, Any] = {"pipeline": 2, "zero_stage": 3, "regather": Regather.per_step}
_PER_MICROBATCH: dict[str, Any] = {"pipeline": 2, "zero_stage": 3, "regather": Regather.per_microbatch}


_EXPERTS: dict[str, Any] = {"experts": EXPERTS}
_EXPERT_AXIS: dict[str, Any] = {"experts": EXPERTS, "expert": 2}


def _prefetch(*, ahead: int, live: int, reuse: int) -> dict[str, int]:
    return {
        "stage3_prefetch_bucket_size": ahead,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": reuse,
    }


_ALL: dict[str, dict[str, Any]] = {
    # The first one also shows that the first engine of a process makes DeepSpeed's group of all ranks.
    "zero3": {"zero_stage": 3},
    "zero3_bf16_tied": {"zero_stage": 3, "tied": True, **_BF16},
    "zero3_narrow_one_micro_batch": {"zero_stage": 3, "narrow": True, "micro_batch": 4},
    "zero3_small_prefetch": {
        "zero_stage": 3,
        "recompute": Recompute.full,
        "limits": _prefetch(ahead=60_000, live=230_000, reuse=100_000),
    },
    "zero3_tiny_prefetch": {"zero_stage": 3, "micro_batch": 1, "limits": _prefetch(ahead=1, live=130_000, reuse=1)},
    "zero3_small_bucket": {
        "zero_stage": 3,
        "narrow": True,
        "limits": {"reduce_bucket_size": 15_000, "sub_group_size": 9_000},
    },
    "zero2_small_bucket": {"zero_stage": 2, "narrow": True, "limits": {"reduce_bucket_size": 15_000}},
    "zero1_tiny_bucket": {"zero_stage": 1, "limits": {"reduce_bucket_size": 5_000}},
    "zero1_groups": {"zero_stage": 1, "narrow": True, "grouped": True, "limits": {"reduce_bucket_size": 15_000}},
    "zero3_groups": {"zero_stage": 3, "grouped": True},
    "pipeline_zero1_groups_tied": {"pipeline": 2, "zero_stage": 1, "tied": True, "grouped": True},
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1, "tied": True},
    "zero1_bf16": {"zero_stage": 1, "narrow": True, **_BF16},
    "zero2": {"zero_stage": 2, "narrow": True},
    "zero2_bf16_tied": {"zero_stage": 2, "tied": True, **_BF16},
    "pipeline_zero1": {"pipeline": 2, "zero_stage": 1},
    "pipeline_zero1_bf16_tied": {"pipeline": 2, "zero_stage": 1, "tied": True, **_BF16},
    "pipeline_zero1_interleaved": {"pipeline": 2, "zero_stage": 1, "tied": True, **_INTERLEAVED},
    "pipeline_zero2_tied": {"pipeline": 2, "zero_stage": 2, "tied": True, "narrow": True},
    "pipeline_zero2_bf16_interleaved": {"pipeline": 2, "zero_stage": 2, **_BF16, **_INTERLEAVED},
    "pipeline_zero3_per_step": {**_PER_STEP, "tied": True, "narrow": True},
    "pipeline_zero3_per_step_bf16_interleaved": {**_PER_STEP, **_BF16, **_INTERLEAVED},
    "pipeline_zero3_per_microbatch": {**_PER_MICROBATCH, "recompute": Recompute.full, "micro_batch": 1},
    "pipeline_zero3_per_microbatch_tied_interleaved": {**_PER_MICROBATCH, "tied": True, **_INTERLEAVED},
    "pipeline_of_4_zero3": {**_PER_STEP, "pipeline": 4},
    "zero3_one_micro_batch": {"zero_stage": 3, "micro_batch": 4},
    "experts_zero0": {"zero_stage": 0, **_EXPERTS},
    "experts_zero2_small_bucket": {"zero_stage": 2, "limits": {"reduce_bucket_size": 15_000}, **_EXPERTS},
    "experts_zero3_full": {"zero_stage": 3, "recompute": Recompute.full, **_EXPERTS},
    "sequence_zero1": {"zero_stage": 1, "sequence": 4},
    "sequence_zero2_small_bucket": {"zero_stage": 2, "sequence": 2, "limits": {"reduce_bucket_size": 15_000}},
    "sequence_zero3_bf16": {"zero_stage": 3, "sequence": 2, "recompute": Recompute.full, **_BF16},
    "sequence_zero3_experts_selective": {
        "zero_stage": 3,
        "sequence": 2,
        "recompute": Recompute.selective,
        **_EXPERTS,
    },
    "pipeline_sequence_zero3_per_step": {**_PER_STEP, "sequence": 2, "tied": True},
    "expert_zero1": {"zero_stage": 1, **_EXPERT_AXIS},
    "expert_zero1_bf16": {"zero_stage": 1, "tied": True, **_BF16, **_EXPERT_AXIS},
    "expert_zero2_full": {"zero_stage": 2, "recompute": Recompute.full, **_EXPERT_AXIS},
    "expert_zero3": {"zero_stage": 3, "tied": True, **_EXPERT_AXIS},
    "expert_zero3_full": {"zero_stage": 3, "recompute": Recompute.full, **_EXPERT_AXIS},
    "expert_of_4_zero3_selective": {"zero_stage": 3, "recompute": Recompute.selective, **_EXPERT_AXIS, "expert": 4},
    "expert_zero3_capacity": {
        "zero_stage": 3,
        "experts": replace(EXPERTS, capacity_factor=1.0, balance_scope=BalanceScope.micro_batch, bias_update_rate=0.0),
        "expert": 2,
    },
    "sequence_expert_zero1": {"zero_stage": 1, "sequence": 2, **_EXPERT_AXIS},
    "sequence_expert_zero2": {"zero_stage": 2, "sequence": 2, **_EXPERT_AXIS},
    "sequence_expert_zero3_full": {"zero_stage": 3, "sequence": 2, "recompute": Recompute.full, **_EXPERT_AXIS},
    "pipeline_expert_zero1": {"pipeline": 2, "zero_stage": 1, "tied": True, **_EXPERT_AXIS},
    "pipeline_expert_zero2_bf16": {"pipeline": 2, "zero_stage": 2, **_BF16, **_EXPERT_AXIS},
    "pipeline_expert_zero3_per_step": {**_PER_STEP, "recompute": Recompute.full, **_EXPERT_AXIS},
    "pipeline_expert_zero3_per_microbatch": {**_PER_MICROBATCH, "tied": True, **_EXPERT_AXIS},
    "pipeline_expert_sequence_zero3_interleaved": {
        **_PER_STEP,
        "sequence": 2,
        **_INTERLEAVED,
        "experts": replace(EXPERTS, num_dense_layers=0),
        "expert": 2,
    },
}
_LEFT_OUT = {
    *("zero3_narrow_one_micro_batch", "zero3_tiny_prefetch", "zero3_groups"),
    *("zero1", "zero2", "experts_zero0", "experts_zero2_small_bucket"),
    *("pipeline_zero1", "pipeline_zero1_bf16_tied", "pipeline_zero2_tied", "pipeline_zero3_per_step"),
    *("pipeline_zero3_per_microbatch_tied_interleaved", "sequence_zero2_small_bucket", "sequence_zero3_bf16"),
    *("expert_zero1", "expert_zero2_full", "expert_zero3", "sequence_expert_zero1", "sequence_expert_zero3_full"),
    *("pipeline_expert_zero1", "pipeline_expert_zero2_bf16", "pipeline_expert_zero3_per_step"),
}
"""Whose features the others have too, in other combinations."""
assert _ALL.keys() >= _LEFT_OUT, _LEFT_OUT - _ALL.keys()
LAYOUTS = {name: layout for name, layout in _ALL.items() if IS_WHOLE or name not in _LEFT_OUT}


def config_of(limits: dict[str, int] | None = None, **layout: Any) -> RunConfig:
    """The run of a layout; `limits` of ZeRO are such that a small model comes up against them."""
    config = small_config(world_size=WORLD_SIZE, **layout)
    if limits is None:
        return config
    zero = deepspeed_config(config, STAGE)["zero_optimization"] | limits
    return replace(config, deepspeed=DeepSpeedSection(extra={"zero_optimization": zero}))


def differing(real: list[Call], said: list[Call]) -> list[str]:
    """Return the first two calls that are not what was said."""
    pairs = enumerate(zip_longest(real, said))
    return [f"call {number}: {one}, rehearsed: {other}" for number, (one, other) in pairs if one != other][:2]


def among_many(calls: list[Call]) -> list[Call]:
    """Leave out what a rank does with itself alone, as rehearsals do."""
    return [call for call in calls if len(call.ranks) > 1]


def without_rows(calls: list[Call], rehearsal: Rehearsal) -> tuple[list[Call], list[int]]:
    """Return calls without the sizes of what travels to experts and back, and those: a router decides about them."""
    grid = rehearsal.plan.grid
    groups = {tuple(row) for row in grid.groups(GroupKind.expert).tolist()} if grid.expert > 1 else set()
    told: list[Call] = []
    rows: list[int] = []
    for call in calls:
        if call.ranks in groups and call.method == METHODS[CollectiveKind.all_to_all] and call.dtype != "int64":
            told.append(replace(call, numel=0))
            rows.append(call.numel)
        else:
            told.append(call)
    return told, rows


def held(snapshot: Snapshot) -> list[tuple[str, str, int, int, bool]]:
    """Return what an engine really holds: kind, parameter, first element, elements, whether this rank writes it."""
    return sorted((p.kind, p.parameter, p.start, p.numel, p.is_owner) for p in snapshot.pieces)


def rehearsed_state(rehearsal: Rehearsal, rank: int) -> list[tuple[str, str, int, int, bool]]:
    """Return the same as the rehearsal has it."""
    named = _ranges(rehearsal.ownership, rehearsal.plan.pipeline_stage_ranks_of(rank), rank)
    biases = _ranges(rehearsal.biases, rehearsal.plan.pipeline_stage_ranks_of(rank), rank)
    return sorted([*((kind, *row) for kind in rehearsal.state for row in named), *((WEIGHT, *row) for row in biases)])


def _ranges(ownership: Ownership, replicas: range, rank: int) -> list[tuple[str, int, int, bool]]:
    holder = replicas.start if ownership.is_replicated else rank
    mine = ownership.state.rows(ownership.state.rank == holder)
    owned = (mine.is_owner & (rank == holder)).tolist()
    ranges = zip(mine.parameter.tolist(), mine.start.tolist(), mine.numel.tolist(), owned, strict=True)
    return [(ownership.names[parameter], start, numel, is_owner) for parameter, start, numel, is_owner in ranges]


def compare(
    config: RunConfig,
    processes: ProcessGroup,
    savers: ProcessGroup,
    folder: Path,
    *,
    joined: list[Call],
    is_first: bool,
) -> dict[str, Any]:
    """Return how many calls each phase had, and those that are not what the rehearsal says."""
    rehearsal = Rehearsal.of(config, STAGE)
    said = {
        phase: predicted(texts.of(processes.rank), rehearsal.plan.grid, processes.rank)
        for phase, texts in rehearsal.phases.items()
    }
    if not is_first and not config.parallel.runs_in_chunks:
        everyone = tuple(range(WORLD_SIZE))  # DeepSpeed makes its group of all ranks once in a process
        said[Phase.start].remove(Call("new_group", everyone, 0, ""))
    real = {Phase.meeting: joined}
    with ProgramRecorder() as recorder:
        engine = build_engine(config, STAGE, processes)
        real[Phase.start] = recorder.take()
        for step, phase in enumerate((Phase.first_step, Phase.second_step, Phase.step)):
            batches = micro_batches(
                step,
                replica=engine.layout.replica_of(processes.rank),
                num_replicas=engine.layout.num_replicas,
                micro_batch=config.stages[STAGE].micro_batch_sequences,
            )
            assert not engine.train_batch(batches, lr=1e-3).skipped
            real[phase] = recorder.take()
        saver = Saver(savers, config={}, asynchronous=False)
        saver.begin(engine.snapshot, directory=folder, progress=progress_at(3), layout=engine.layout.describe())
        outcome = saver.finish()
        real[Phase.save] = recorder.take()
    state = [held(engine.snapshot), rehearsed_state(rehearsal, processes.rank)]
    written = engine.snapshot.owned_bytes, int(rehearsal.file_bytes[processes.rank])
    engine.close()
    assert outcome.checkpoint is not None, outcome.failure
    compared = {
        phase: (without_rows(among_many(calls), rehearsal), without_rows(said[phase], rehearsal))
        for phase, calls in real.items()
    }
    return {
        "num_calls": {phase: len(calls) for phase, calls in real.items()},
        "differing": {
            phase: found for phase, (made, foretold) in compared.items() if (found := differing(made[0], foretold[0]))
        },
        "rows": [[made[1], foretold[1]] for made, foretold in compared.values() if foretold[1]],
        "state": len(state[0]) if state[0] == state[1] else state,
        "file_bytes": written,
        "mistakes": [finding.message for finding in rehearsal.check() if finding.check != "memory"],
    }


def main(output: Path, folder: Path) -> None:
    with ProgramRecorder() as recorder:
        processes = start(60)
        savers = processes.with_own_group(60)
        joined = recorder.take()
    seen = {}
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        mine = compare(config_of(**layout), processes, savers, folder / name, joined=joined, is_first=number == 0)
        seen[name] = [json.loads(text) for text in processes.gather_text(json.dumps(mine))]
    if processes.rank == 0:
        output.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave()
