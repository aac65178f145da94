"""One rank: trains the same model under many layouts and writes what it saw as JSON (rank 0).

python -m tests.distributed.equivalence_worker OUTPUT.json FOLDER_FOR_CHECKPOINTS
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.distributed.configs import EXPERTS, STAGE, micro_batches, small_config
from tests.distributed.ending import leave
from tests.distributed.engine_checks import crossings, poisonings, progress_at, save, scoring
from training.config.schema import PipelineEngineKind, PipelineSchedule, Precision, Recompute, Regather, RunConfig
from training.engine.base import Engine, StepInstructions
from training.engine.build import build_engine
from training.engine.process_group import ProcessGroup, groups_within, start
from training.stages.statistics import largest_with_rank

NUM_STEPS = 20
NUM_VARIANT_STEPS = 8
LRS = [1.5e-3 * min(1.0, (step + 1) / 5) for step in range(NUM_STEPS)]
SAVED_STEP = 6
AFTER_SAVE = range(SAVED_STEP, SAVED_STEP + 2)

DEEPSPEED = {"pipeline_engine": PipelineEngineKind.deepspeed}
INTERLEAVED = {"schedule": PipelineSchedule.interleaved, "chunks_per_rank": 2}
DROPOUT = {"dropout": 0.2}
GROWN = {"ramped": True, "grouped": True}
LOSS_CHUNKS = {"loss_chunk_tokens": 20}
"""Fewer than any micro-batch has, and no divisor of it."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "zero3_tied": {"zero_stage": 3, "tied": True},
    "pipeline": {"pipeline": 2, "zero_stage": 1, "micro_batch": 4, **DEEPSPEED},
    "pipeline_tied": {"pipeline": 2, "zero_stage": 1, "micro_batch": 4, "tied": True, **DEEPSPEED},
    "pipeline_zero3": {"pipeline": 2, "zero_stage": 3, "micro_batch": 4},
    "pipeline_zero3_interleaved": {"pipeline": 2, "zero_stage": 3, "micro_batch": 4, **INTERLEAVED},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "zero1_bf16": {"zero_stage": 1, "precision": Precision.bf16},
    "zero3_bf16": {"zero_stage": 3, "precision": Precision.bf16},
    "pipeline_bf16": {"pipeline": 2, "zero_stage": 1, "micro_batch": 4, "precision": Precision.bf16, **DEEPSPEED},
    "pipeline_zero3_bf16": {"pipeline": 2, "zero_stage": 3, "micro_batch": 4, "precision": Precision.bf16},
    "pipeline_zero1_bf16": {"pipeline": 2, "zero_stage": 1, "micro_batch": 4, "precision": Precision.bf16},
    "zero3_full_recompute": {"zero_stage": 3, "recompute": Recompute.full},
    "zero3_selective_recompute": {"zero_stage": 3, "recompute": Recompute.selective},
    "pipeline_full_recompute": {
        **{"pipeline": 2, "zero_stage": 1, "micro_batch": 4, "recompute": Recompute.full},
        **DEEPSPEED,
    },
    "pipeline_zero3_selective_recompute": {
        **{"pipeline": 2, "zero_stage": 3, "micro_batch": 2, "recompute": Recompute.selective},
        "regather": Regather.per_microbatch,
    },
    "zero1_ramp_groups": {"zero_stage": 1, **GROWN},
    "zero3_ramp_groups": {"zero_stage": 3, **GROWN},
    "pipeline_ramp": {"pipeline": 2, "zero_stage": 1, "micro_batch": 4, "ramped": True, **DEEPSPEED},
    "pipeline_zero3_ramp_groups": {"pipeline": 2, "zero_stage": 3, "micro_batch": 4, "tied": True, **GROWN},
    "zero3_muon": {"zero_stage": 3, "muon": True},
    "zero1_muon_bf16": {"zero_stage": 1, "muon": True, "precision": Precision.bf16},
    "zero3_muon_bf16": {"zero_stage": 3, "muon": True, "precision": Precision.bf16},
    "pipeline_zero3_muon": {"pipeline": 2, "zero_stage": 3, "micro_batch": 4, "muon": True},
    "zero1_dropout": {"zero_stage": 1, **DROPOUT},
    "pipeline_zero3_dropout": {
        **{"pipeline": 2, "zero_stage": 3, "micro_batch": 4, "recompute": Recompute.full},
        **DROPOUT,
        **INTERLEAVED,
    },
    "zero3_loss_chunks": {"zero_stage": 3, **LOSS_CHUNKS},
    "pipeline_zero3_loss_chunks": {
        **{"pipeline": 2, "zero_stage": 3, "micro_batch": 4, "regather": Regather.per_microbatch},
        "tied": True,
        **LOSS_CHUNKS,
    },
    "zero3_documents": {"zero_stage": 3, "documents": True, "recompute": Recompute.full},
    "zero3_pairs": {"zero_stage": 3, "pairs": True, "tied": True},
    "zero1_pairs_bf16": {"zero_stage": 1, "pairs": True, "precision": Precision.bf16, **LOSS_CHUNKS},
    "pipeline_zero3_pairs": {
        **{"pipeline": 2, "zero_stage": 3, "micro_batch": 4, "pairs": True},
        **{"regather": Regather.per_microbatch, "recompute": Recompute.full},
        **LOSS_CHUNKS,
    },
    "pipeline_zero3_documents": {
        **{"pipeline": 2, "zero_stage": 3, "micro_batch": 4, "recompute": Recompute.selective},
        "documents": True,
        **INTERLEAVED,
    },
}
"""Layouts whose arithmetic is that of another one, or too coarse for many steps to show more than few."""
WIDE: dict[str, dict[str, Any]] = {
    "zero3_on_4": {"zero_stage": 3},
    "zero3_on_4_padded": {"zero_stage": 3, "narrow": True},
    "pipeline_2x2": {"pipeline": 2, "zero_stage": 1, **DEEPSPEED},
    "pipeline_2x2_tied": {"pipeline": 2, "zero_stage": 1, "tied": True, **DEEPSPEED},
    "pipeline_4": {"pipeline": 4, "zero_stage": 1, "micro_batch": 4, **DEEPSPEED},
    "pipeline_zero3_2x2": {"pipeline": 2, "zero_stage": 3},
    "pipeline_zero3_2x2_tied": {"pipeline": 2, "zero_stage": 3, "tied": True, **INTERLEAVED},
    "pipeline_zero2_2x2_tied": {"pipeline": 2, "zero_stage": 2, "tied": True},
    "pipeline_zero1_2x2_tied": {"pipeline": 2, "zero_stage": 1, "tied": True},
    "pipeline_zero3_4": {"pipeline": 4, "zero_stage": 3, "micro_batch": 4, "regather": Regather.per_microbatch},
    "sequence_dropout": {"sequence": 2, "zero_stage": 3, **DROPOUT},
    "sequence_documents": {"sequence": 2, "zero_stage": 3, "documents": True, **LOSS_CHUNKS},
    "zero3_pairs_on_4": {"zero_stage": 3, "pairs": True, **LOSS_CHUNKS},
    "pairs_of_all_kinds": {
        **{"pipeline": 2, "sequence": 2, "expert": 2, "zero_stage": 3, "pairs": True},
        **{"experts": EXPERTS, **INTERLEAVED},
    },
    "later_tokens_zero3": {"zero_stage": 3, "prediction": True},
    "later_tokens_pipeline": {"pipeline": 2, "zero_stage": 1, "prediction": True, **INTERLEAVED},
    "later_tokens_of_all_kinds": {
        **{"pipeline": 2, "sequence": 2, "expert": 2, "zero_stage": 3, "prediction": True, "tied": True},
        **{"experts": EXPERTS, "documents": True, "recompute": Recompute.full, **LOSS_CHUNKS},
    },
    "experts_zero3": {"zero_stage": 3, "experts": EXPERTS},
    "experts_over_2": {"zero_stage": 1, "expert": 2, "experts": EXPERTS},
    "experts_over_2_pipeline_zero3": {"pipeline": 2, "zero_stage": 3, "expert": 2, "experts": EXPERTS},
    "experts_over_4_sequence": {
        **{"zero_stage": 2, "sequence": 2, "expert": 4, "recompute": Recompute.full, "tied": False},
        "experts": EXPERTS,
    },
    "experts_over_2_pipeline_zero3_bf16": {
        **{"pipeline": 2, "zero_stage": 3, "expert": 2, "experts": EXPERTS, "precision": Precision.bf16},
        "regather": Regather.per_microbatch,
    },
}
"""Layouts of four processes, replicas and pipeline stages together among them."""
CROSSED = (
    ("zero0", "zero1", "zero3", "pipeline", "pipeline_zero3"),
    ("zero3_tied", "pipeline_tied"),
    ("zero1_bf16", "zero3_bf16", "pipeline_zero1_bf16", "pipeline_zero3_bf16"),
    ("zero3_loss_chunks",),
    ("pipeline_zero3_loss_chunks",),
    ("zero3_muon", "pipeline_zero3_muon"),
    ("zero1_muon_bf16", "zero3_muon_bf16"),
)
WIDE_CROSSED = (
    ("zero3_on_4", "pipeline_2x2", "pipeline_zero3_2x2"),
    ("pipeline_2x2_tied", "pipeline_zero3_2x2_tied", "pipeline_zero1_2x2_tied"),
    ("zero3_on_4_padded",),
    ("later_tokens_zero3", "later_tokens_pipeline"),
    ("experts_zero3", "experts_over_2", "experts_over_2_pipeline_zero3", "experts_over_4_sequence"),
)
"""Within a group, what any layout saves any layout loads."""
WORLDS = {2: (LAYOUTS | VARIANTS, CROSSED), 4: (WIDE, WIDE_CROSSED)}
"""Number of processes -> layouts trained, groups crossed."""
ALL = LAYOUTS | VARIANTS | WIDE
PLAIN = (*CROSSED[0], "pipeline_zero3_2x2", "experts_over_2_pipeline_zero3", "experts_over_4_sequence")
"""Layouts that also score."""
POISONED = (
    *CROSSED[0],
    "pipeline_zero3_2x2",
    "zero3_on_4_padded",
    "pipeline_zero1_bf16",
    "pipeline_zero3_bf16",
    "pipeline_zero1_2x2_tied",
    "zero3_loss_chunks",
    "pipeline_zero3_loss_chunks",
    "zero3_muon",
    "zero1_muon_bf16",
    "pipeline_zero3_muon",
)
"""Layouts that also meet a NaN."""
MEASURED_STEP = 3
"""Its layers are measured, in every layout. After a checkpoint was loaded another one's are, and not felt."""


def steps_of(layout: str) -> int:
    """The number of steps that a layout is trained for."""
    return NUM_STEPS if layout in LAYOUTS else NUM_VARIANT_STEPS


def steps(
    engine: Engine, config: RunConfig, processes: ProcessGroup, which: range, *, measured_step: int = MEASURED_STEP
) -> dict[str, list[Any]]:
    losses, norms = [], []
    measured: list[dict[str, float]] = []
    layers = []
    for step in which:
        batches = micro_batches(
            step,
            replica=engine.layout.replica_of(processes.rank),
            num_replicas=engine.layout.num_replicas,
            micro_batch=config.stages[STAGE].micro_batch_sequences,
            sequences=config.batch_sizes(STAGE).sequences(step),
            documents=config.stages[STAGE].masks_documents,
            pairs=config.stages[STAGE].preference_settings is not None,
        )
        # Where the last layer returns the loss itself, a step computed twice compares that.
        twice = config.parallel.loss_chunk_tokens is not None
        instructions = StepInstructions(twice=twice, measure_layers=step == measured_step)
        result = engine.train_batch(batches, lr=LRS[step], instructions=instructions)
        assert not result.skipped
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if result.preference is not None:
            measured.append(result.preference)
        if result.layers is not None:
            layers.append(asdict(result.layers))
    found: dict[str, list[Any]] = {"losses": losses, "norms": norms, "layers": layers}
    return found | ({"preference": measured} if measured else {})


def train(name: str, options: dict[str, Any], processes: ProcessGroup, folder: Path) -> dict[str, list[float]]:
    """Losses and norms of one layout; layouts that are crossed save on the way, which must not be felt."""
    config = small_config(world_size=processes.world_size, **options)
    engine = build_engine(config, STAGE, processes)
    seen = steps(engine, config, processes, range(SAVED_STEP))
    if any(name in group for group in CROSSED + WIDE_CROSSED):
        save(engine, processes, folder / name, progress_at(SAVED_STEP))
    after = steps(engine, config, processes, range(SAVED_STEP, steps_of(name)))
    engine.close()
    return {key: seen[key] + after[key] for key in seen}


def examine(name: str, group: tuple[str, ...], processes: ProcessGroup, folder: Path) -> dict[str, Any]:
    """Everything that starts from a saved checkpoint, in one engine of the layout."""
    config = small_config(world_size=processes.world_size, **ALL[name])
    engine = build_engine(config, STAGE, processes, initial_weights=False)
    sources = {source: folder / source / f"step-{SAVED_STEP:08d}" for source in group}

    def train_on() -> dict[str, list[float]]:
        return steps(engine, config, processes, AFTER_SAVE, measured_step=AFTER_SAVE.start)

    seen: dict[str, Any] = {"crossings": crossings(engine, processes, sources, folder / f"again_{name}", train_on)}
    if name in PLAIN:
        seen["scoring"] = scoring(engine, config, processes, sources[name], LRS, SAVED_STEP)
    if name in POISONED:
        seen["poisonings"] = poisonings(engine, config, processes, sources[name], LRS, SAVED_STEP)
    engine.close()
    return seen


def main(output: Path, folder: Path) -> None:
    processes = start(60)
    began = time.monotonic()
    seen: dict[str, Any] = {"layouts": {}, "examined": {}}
    layouts, crossed = WORLDS[processes.world_size]
    behind = processes.world_size - 1 - processes.rank
    seen["largest"] = {processes.world_size: largest_with_rank(processes, [2**40 - 4096 * behind, 7 * 1024 + 5, -1])}
    for name, options in layouts.items():
        seen["layouts"][name] = train(name, options, processes, folder)
        say(processes, began, f"trained {name}: {seen['layouts'][name]['losses'][-1]}")
    for group in crossed:
        for name in group:
            seen["examined"][name] = examine(name, group, processes, folder)
            say(processes, began, f"examined {name}")
    seen["groups"] = {processes.world_size: [int(text) for text in processes.gather_text(str(len(groups_within())))]}
    if processes.rank == 0:
        output.write_text(json.dumps(seen))


def say(processes: ProcessGroup, began: float, what: str) -> None:
    print(f"[rank {processes.rank}] {time.monotonic() - began:.0f} s: {what}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave()
